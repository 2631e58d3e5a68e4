"""A chat backend as one writes it for AWS Lambda behind an API Gateway WebSocket API: a function per route, boto3, a table of connections.

Nothing in it is made for Trunkline; only ENDPOINT says where the management API is.
"""
import json
import os
import sqlite3

import boto3

DATABASE = os.environ.get("CHAT_DATABASE", "/tmp/aws-chat.db")
# in the cloud: "https://" + event["requestContext"]["domainName"] + "/" + event["requestContext"]["stage"]
ENDPOINT = os.environ.get("ENDPOINT", "http://127.0.0.1:7080/prod")

gateway = boto3.client("apigatewaymanagementapi", endpoint_url=ENDPOINT)


def table():
    db = sqlite3.connect(DATABASE, timeout=10)
    db.execute("CREATE TABLE IF NOT EXISTS member (connection TEXT PRIMARY KEY, name TEXT)")
    return db


def broadcast(message, besides=""):
    db = table()
    for (connection,) in db.execute("SELECT connection FROM member WHERE connection <> ? ORDER BY rowid", (besides,)).fetchall():
        try:
            gateway.post_to_connection(ConnectionId=connection, Data=json.dumps(message))
        except gateway.exceptions.GoneException:
            # closed since the table was read, or a row left behind in the old gateway
            with db:
                db.execute("DELETE FROM member WHERE connection = ?", (connection,))
    db.close()


def reply(event, message):
    gateway.post_to_connection(ConnectionId=event["requestContext"]["connectionId"], Data=json.dumps(message))


def name_of(event):
    db = table()
    found = db.execute("SELECT name FROM member WHERE connection = ?", (event["requestContext"]["connectionId"],)).fetchone()
    db.close()
    return found[0] if found else "somebody"


def connect(event, context):
    """Route $connect: decides who gets in."""
    name = (event.get("queryStringParameters") or {}).get("name")
    if not name:
        return {"statusCode": 401, "body": "who are you?"}
    db = table()
    with db:
        db.execute("INSERT OR REPLACE INTO member VALUES (?, ?)", (event["requestContext"]["connectionId"], name))
    db.close()
    answer = {"statusCode": 200}
    if "chat" in event["headers"].get("Sec-WebSocket-Protocol", "").split(", "):
        answer["headers"] = {"Sec-WebSocket-Protocol": "chat"}
    return answer


def disconnect(event, context):
    """Route $disconnect: forgets who has left, and tells the others how."""
    request = event["requestContext"]
    left = {"left": name_of(event), "code": request["disconnectStatusCode"], "reason": request["disconnectReason"]}
    broadcast(left, besides=request["connectionId"])
    db = table()
    with db:
        db.execute("DELETE FROM member WHERE connection = ?", (request["connectionId"],))
    db.close()
    return {"statusCode": 200}


def say(event, context):
    """Route say: {"action": "say", "text": "hello"} goes to all."""
    broadcast({"from": name_of(event), "text": json.loads(event["body"])["text"]})
    return {"statusCode": 200}


def who(event, context):
    """Route who: {"action": "who"} is answered with the names, and what the gateway knows of the asker."""
    found = gateway.get_connection(ConnectionId=event["requestContext"]["connectionId"])
    db = table()
    names = [name for (name,) in db.execute("SELECT name FROM member ORDER BY rowid")]
    db.close()
    reply(event, {"members": names, "you": found["Identity"]["SourceIp"], "since": found["ConnectedAt"].isoformat()})
    return {"statusCode": 200}


def kick(event, context):
    """Route kick: {"action": "kick", "name": "bob"} ends the connections of that name."""
    db = table()
    name = json.loads(event["body"])["name"]
    for (connection,) in db.execute("SELECT connection FROM member WHERE name = ?", (name,)).fetchall():
        try:
            gateway.delete_connection(ConnectionId=connection)
        except gateway.exceptions.GoneException:
            pass
    db.close()
    return {"statusCode": 200}


def fallback(event, context):
    """Route $default: whatever names no route."""
    reply(event, {"error": "no such action", "message": event["body"]})
    return {"statusCode": 200}
