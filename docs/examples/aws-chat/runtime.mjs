// What Lambda's runtime does, in a page: `node runtime.mjs PORT FILE` serves every exported function of FILE at its name, such as
// http://127.0.0.1:9000/connect.
import http from "node:http";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [port, file] = process.argv.slice(2);
// SDKs sign what they send; Trunkline looks at that only if `broker.aws.keys` names keys
process.env.AWS_REGION ??= "local";
process.env.AWS_ACCESS_KEY_ID ??= "local";
process.env.AWS_SECRET_ACCESS_KEY ??= "local";
const functions = await import(pathToFileURL(path.resolve(file)));

const server = http.createServer(async (request, response) => {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  const name = request.url.slice(1);
  if (typeof functions[name] !== "function") return response.writeHead(404).end();
  let answer;
  try {
    // the id is the same on every attempt for one event
    answer = await functions[name](JSON.parse(Buffer.concat(chunks)), { functionName: name, awsRequestId: request.headers["idempotency-key"] });
  } catch (error) {
    console.error(error);
    // as Lambda says that a function raised: Trunkline tries again
    answer = { errorMessage: error.message, errorType: error.name };
  }
  response.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(answer));
});
server.listen(Number(port), "127.0.0.1", () => console.log("ready"));
