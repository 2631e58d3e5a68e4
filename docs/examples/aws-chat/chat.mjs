// The same backend in JavaScript, with the official SDK. Nothing in it is made for Trunkline; only ENDPOINT says where the management
// API is. The table of connections is a file here: in the cloud it is a database.
import fs from "node:fs";
import {
  ApiGatewayManagementApiClient,
  DeleteConnectionCommand,
  GetConnectionCommand,
  GoneException,
  PostToConnectionCommand,
} from "@aws-sdk/client-apigatewaymanagementapi";

const table = process.env.CHAT_DATABASE ?? "/tmp/aws-chat.json";
const client = new ApiGatewayManagementApiClient({ endpoint: process.env.ENDPOINT ?? "http://127.0.0.1:7080/prod" });

const members = () => (fs.existsSync(table) ? JSON.parse(fs.readFileSync(table, "utf8")) : {});
const nameOf = (event) => members()[event.requestContext.connectionId] ?? "somebody";
const change = (edit) => {
  const all = members();
  edit(all);
  fs.writeFileSync(`${table}.new`, JSON.stringify(all));
  fs.renameSync(`${table}.new`, table);
};
const post = (id, message) => client.send(new PostToConnectionCommand({ ConnectionId: id, Data: JSON.stringify(message) }));
const gone = (error) => {
  if (!(error instanceof GoneException)) throw error;
};

const broadcast = (message, besides) =>
  Promise.all(
    Object.keys(members()).map(async (id) => {
      if (id === besides) return;
      try {
        await post(id, message);
      } catch (error) {
        gone(error);
        change((all) => delete all[id]);
      }
    }),
  );

export const connect = async (event) => {
  const name = event.queryStringParameters?.name;
  if (!name) return { statusCode: 401, body: "who are you?" };
  change((all) => (all[event.requestContext.connectionId] = name));
  const offered = (event.headers["Sec-WebSocket-Protocol"] ?? "").split(", ");
  return { statusCode: 200, headers: offered.includes("chat") ? { "Sec-WebSocket-Protocol": "chat" } : {} };
};

export const disconnect = async (event) => {
  const { connectionId, disconnectStatusCode, disconnectReason } = event.requestContext;
  await broadcast({ left: nameOf(event), code: disconnectStatusCode, reason: disconnectReason }, connectionId);
  change((all) => delete all[connectionId]);
  return { statusCode: 200 };
};

export const say = async (event) => {
  await broadcast({ from: nameOf(event), text: JSON.parse(event.body).text });
  return { statusCode: 200 };
};

export const who = async (event) => {
  const id = event.requestContext.connectionId;
  const found = await client.send(new GetConnectionCommand({ ConnectionId: id }));
  await post(id, { members: Object.values(members()), you: found.Identity.SourceIp, since: found.ConnectedAt.toISOString() });
  return { statusCode: 200 };
};

export const kick = async (event) => {
  const { name } = JSON.parse(event.body);
  const ids = Object.entries(members()).filter(([, each]) => each === name);
  await Promise.all(ids.map(([id]) => client.send(new DeleteConnectionCommand({ ConnectionId: id })).catch(gone)));
  return { statusCode: 200 };
};

export const fallback = async (event) => {
  await post(event.requestContext.connectionId, { error: "no such action", message: event.body });
  return { statusCode: 200 };
};
