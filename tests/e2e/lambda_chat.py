"""A chat backend as it is written for AWS: one `lambda_handler`, boto3, a table of connections. Nothing here knows of Trunkline.

`python lambda_chat.py PORT DATABASE ENDPOINT` serves it over HTTP, as `event` in the body and the returned object as the answer.
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3

DATABASE = os.environ.get("DATABASE", "chat.sqlite")
ENDPOINT = os.environ.get("ENDPOINT", "")
_local = threading.local()


def table() -> sqlite3.Connection:
    if not hasattr(_local, "table"):
        _local.table = sqlite3.connect(DATABASE, isolation_level=None, timeout=10)
        _local.table.execute("create table if not exists connections (id text primary key, name text)")
        _local.table.execute("create table if not exists gone (id text, code int, reason text)")
    return _local.table


def client():
    if not hasattr(_local, "client"):
        _local.client = boto3.client("apigatewaymanagementapi", endpoint_url=ENDPOINT)
    return _local.client


def broadcast(text: str) -> None:
    for (connection,) in table().execute("select id from connections").fetchall():
        try:
            client().post_to_connection(ConnectionId=connection, Data=text.encode())
        except client().exceptions.GoneException:
            table().execute("delete from connections where id = ?", (connection,))


def lambda_handler(event, context):
    request = event["requestContext"]
    connection = request["connectionId"]
    match request["routeKey"]:
        case "$connect":
            name = (event.get("queryStringParameters") or {}).get("name")
            if not name:
                return {"statusCode": 401, "body": "who are you?"}
            if name.isdecimal():
                return {"statusCode": int(name), "headers": {"X-Reason": "asked for"}, "body": json.dumps({"message": "no"})}
            if name == "error":
                raise KeyError("Authorization")
            if name == "wrong":
                return {"body": "no status"}
            table().execute("insert or replace into connections values (?, ?)", (connection, name))
            if name == "early":
                client().post_to_connection(ConnectionId=connection, Data=b"welcome")
            offered = event["headers"].get("Sec-WebSocket-Protocol", "").split(", ")
            return {"statusCode": 200, "headers": {"Sec-WebSocket-Protocol": "chat"} if "chat" in offered else {}}
        case "$disconnect":
            table().execute("delete from connections where id = ?", (connection,))
            table().execute("insert into gone values (?, ?, ?)", (connection, request["disconnectStatusCode"], request["disconnectReason"]))
        case "sendmessage":
            ((name,),) = table().execute("select name from connections where id = ?", (connection,)).fetchall()
            broadcast(f"{name}: {json.loads(event['body'])['text']}")
        case "whoami":
            found = client().get_connection(ConnectionId=connection)
            answer = {"ip": found["Identity"]["SourceIp"], "agent": found["Identity"]["UserAgent"], "at": found["ConnectedAt"].isoformat()}
            answer["active"] = found["LastActiveAt"].isoformat()
            client().post_to_connection(ConnectionId=connection, Data=json.dumps(answer))
        case "kick":
            client().delete_connection(ConnectionId=json.loads(event["body"])["id"])
        case "chat/echo":
            return {"statusCode": 200, "body": json.loads(event["body"]).get("text", "")}
        case "$default":
            client().post_to_connection(ConnectionId=connection, Data=f"no route for {event['body']}")
    return {"statusCode": 200}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["content-length"])))
        try:
            answer = lambda_handler(event, None)
        except Exception as error:  # noqa: BLE001 what Lambda answers
            answer = {"errorMessage": str(error), "errorType": type(error).__name__}
            print(repr(error), file=sys.stderr, flush=True)
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


if __name__ == "__main__":
    DATABASE, ENDPOINT = sys.argv[2:4]
    os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(f"listening lambda 127.0.0.1:{server.server_address[1]}\nready", flush=True)
    server.serve_forever()
