# -*- coding: utf-8 -*-
# An anonymous chat room, function 1 of 3: decides who gets in, and keeps the connection's id.
import os
import sqlite3

DATABASE = os.environ.get("CHAT_DATABASE", "/tmp/chat.db")
ROOM_SIZE = int(os.environ.get("CHAT_ROOM_SIZE", "100"))


def connect():
    db = sqlite3.connect(DATABASE, timeout=10)
    db.execute("CREATE TABLE IF NOT EXISTS member (number INTEGER PRIMARY KEY AUTOINCREMENT, connection TEXT UNIQUE)")
    return db


def main_handler(event, context):
    print("registration: %s" % event)
    if "requestContext" not in event:
        return {"errNo": 101, "errMsg": "not found request context"}
    if "websocket" not in event:
        return {"errNo": 102, "errMsg": "not found websocket"}

    connection = event["websocket"]["secConnectionID"]
    db = connect()
    with db:
        # takes the lock for writing at once: nobody else gets the last place meanwhile
        db.execute("BEGIN IMMEDIATE")
        members = db.execute("SELECT COUNT(*) FROM member WHERE connection <> ?", (connection,)).fetchone()[0]
        if members >= ROOM_SIZE:
            return {"errNo": 103, "errMsg": "the room is full"}
        db.execute("INSERT OR IGNORE INTO member (connection) VALUES (?)", (connection,))
    db.close()

    answer = {"errNo": 0, "errMsg": "ok", "websocket": {"action": "connecting", "secConnectionID": connection}}
    if "secWebSocketProtocol" in event["websocket"]:
        answer["websocket"]["secWebSocketProtocol"] = event["websocket"]["secWebSocketProtocol"]
    if "secWebSocketExtensions" in event["websocket"]:
        answer["websocket"]["secWebSocketExtensions"] = event["websocket"]["secWebSocketExtensions"]
    return answer
