// A hub as it is written for Azure Web PubSub: the official library's event handler, and nothing that knows of Trunkline.
// `node azure_hub.mjs PORT JOURNAL` serves it; every event is written to the journal, one JSON object a line.
import fs from "node:fs";
import http from "node:http";
import { WebPubSubEventHandler } from "@azure/web-pubsub-express";

const [port, journal] = process.argv.slice(2);
const write = (event, more) => {
  const { context } = event;
  fs.appendFileSync(journal, JSON.stringify({ ...context, ...more }) + "\n");
};

const handler = new WebPubSubEventHandler("hub", {
  path: "/eventhandler",
  allowedEndpoints: ["https://other.example.com", "https://chat.example.com"],
  handleConnect(request, response) {
    write(request, { queries: request.queries, subprotocols: request.subprotocols, headers: request.headers });
    if (request.queries.refuse) return response.fail(401, "not today");
    response.setState("messages", 0);
    response.success({ userId: "ada", groups: ["room"], subprotocol: request.subprotocols[0] });
  },
  onConnected(request) {
    write(request);
  },
  handleUserEvent(request, response) {
    write(request);
    const messages = request.context.states.messages + 1;
    response.setState("messages", messages);
    if (request.dataType === "binary") return response.success(request.data, "binary");
    response.success(`${messages}: ${request.data}`, "text");
  },
  onDisconnected(request) {
    write(request, { reason: request.reason });
  },
});

// what express would do
const middleware = handler.getMiddleware();
const server = http.createServer((request, response) => {
  const { pathname } = new URL(request.url, "http://hub");
  middleware(Object.assign(request, { path: pathname, baseUrl: "" }), response, () => {
    response.statusCode = 404;
    response.end();
  });
});
server.listen(Number(port), "127.0.0.1", () => console.log("ready"));
