// A chat backend as it is written for AWS in JavaScript: one handler, the official SDK, a table of connections. Nothing here knows of
// Trunkline. `node lambda_chat.mjs PORT ENDPOINT` serves it over HTTP, as `event` in the body and the returned object as the answer.
import http from "node:http";
import {
  ApiGatewayManagementApiClient,
  DeleteConnectionCommand,
  ForbiddenException,
  GetConnectionCommand,
  GoneException,
  PayloadTooLargeException,
  PostToConnectionCommand,
} from "@aws-sdk/client-apigatewaymanagementapi";

const [port, endpoint] = process.argv.slice(2);
const client = new ApiGatewayManagementApiClient({ endpoint });
const names = new Map();

const post = (id, text) => client.send(new PostToConnectionCommand({ ConnectionId: id, Data: Buffer.from(text) }));

const failure = async (call, type) => {
  try {
    await call;
    return "no error";
  } catch (error) {
    return { error: error.name, status: error.$metadata?.httpStatusCode, own: error instanceof type };
  }
};

const broadcast = (text) =>
  Promise.all(
    [...names.keys()].map(async (id) => {
      try {
        await post(id, text);
      } catch (error) {
        if (!(error instanceof GoneException)) throw error;
        names.delete(id);
        await broadcast(`gone: ${id}`);
      }
    }),
  );

export const handler = async (event) => {
  const { routeKey, connectionId, disconnectStatusCode, disconnectReason } = event.requestContext;
  switch (routeKey) {
    case "$connect": {
      const name = event.queryStringParameters?.name;
      if (!name) return { statusCode: 401, body: "who are you?" };
      names.set(connectionId, name);
      return { statusCode: 200, headers: { "Sec-WebSocket-Protocol": "chat" } };
    }
    case "$disconnect": {
      const name = names.get(connectionId);
      names.delete(connectionId);
      await broadcast(`${name} left: ${disconnectStatusCode} ${disconnectReason}`);
      return { statusCode: 200 };
    }
    case "sendmessage": {
      const { text, ghost } = JSON.parse(event.body);
      if (ghost) names.set(ghost, "ghost");
      await broadcast(`${names.get(connectionId)}: ${text}`);
      return { statusCode: 200 };
    }
    case "whoami": {
      const found = await client.send(new GetConnectionCommand({ ConnectionId: connectionId }));
      const times = { at: found.ConnectedAt.toISOString(), active: found.LastActiveAt.toISOString() };
      await post(connectionId, JSON.stringify({ ip: found.Identity.SourceIp, ...times }));
      return { statusCode: 200 };
    }
    case "errors": {
      const gone = { ConnectionId: "AAAAAAAAAAAAAAAAAAAAAA" };
      const stranger = new ApiGatewayManagementApiClient({
        endpoint,
        credentials: { accessKeyId: "NOBODY", secretAccessKey: "nothing" },
      });
      const large = { ...gone, Data: Buffer.alloc(128 * 1024 + 1, "x") };
      const answers = [
        await failure(client.send(new PostToConnectionCommand({ ...gone, Data: "x" })), GoneException),
        await failure(client.send(new GetConnectionCommand(gone)), GoneException),
        await failure(client.send(new DeleteConnectionCommand(gone)), GoneException),
        await failure(client.send(new PostToConnectionCommand(large)), PayloadTooLargeException),
        await failure(stranger.send(new GetConnectionCommand(gone)), ForbiddenException),
      ];
      await post(connectionId, JSON.stringify(answers));
      return { statusCode: 200 };
    }
    case "leave":
      await client.send(new DeleteConnectionCommand({ ConnectionId: connectionId }));
      return { statusCode: 200 };
    default:
      await post(connectionId, `no route for ${event.body}`);
      return { statusCode: 200 };
  }
};

http
  .createServer(async (request, response) => {
    const chunks = [];
    for await (const chunk of request) chunks.push(chunk);
    let answer;
    try {
      answer = await handler(JSON.parse(Buffer.concat(chunks)));
    } catch (error) {
      console.error(error);
      answer = { errorMessage: error.message, errorType: error.name };
    }
    response.end(JSON.stringify(answer));
  })
  .listen(Number(port), "127.0.0.1", () => console.log(`listening lambda 127.0.0.1:${port}\nready`));
