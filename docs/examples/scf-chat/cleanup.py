# -*- coding: utf-8 -*-
# An anonymous chat room, function 3 of 3: forgets who has left, and tells the others.
import os
import sqlite3

import requests

DATABASE = os.environ.get("CHAT_DATABASE", "/tmp/chat.db")
PUSH_ADDRESS = os.environ.get("PUSH_ADDRESS", "http://127.0.0.1:7080/push/chatroom")


def send(connection, text):
    message = {"websocket": {"action": "data send", "secConnectionID": connection, "dataType": "text", "data": text}}
    answer = requests.post(PUSH_ADDRESS, json=message, timeout=10).json()
    if answer["errNo"] not in (0, 410):
        raise Exception("send to %s: %s" % (connection, answer["errMsg"]))


def main_handler(event, context):
    print("cleanup: %s" % event)
    if "websocket" not in event:
        return {"errNo": 102, "errMsg": "not found websocket"}

    connection = event["websocket"]["secConnectionID"]
    db = sqlite3.connect(DATABASE, timeout=10)
    left = db.execute("SELECT number FROM member WHERE connection = ?", (connection,)).fetchone()
    others = db.execute("SELECT connection FROM member WHERE connection <> ?", (connection,)).fetchall()
    if left is not None:
        for (each,) in others:
            send(each, "guest " + str(left[0]) + " left")
        with db:
            db.execute("DELETE FROM member WHERE connection = ?", (connection,))
    db.close()
    return "cleanup ok"
