# -*- coding: utf-8 -*-
# An anonymous chat room, function 2 of 3: gives what one says to all.
import os
import sqlite3

import requests

DATABASE = os.environ.get("CHAT_DATABASE", "/tmp/chat.db")
PUSH_ADDRESS = os.environ.get("PUSH_ADDRESS", "http://127.0.0.1:7080/push/chatroom")


def send(connection, text):
    message = {"websocket": {"action": "data send", "secConnectionID": connection, "dataType": "text", "data": text}}
    answer = requests.post(PUSH_ADDRESS, json=message, timeout=10).json()
    # one who has just left is none of our business: the cleanup function is on its way
    if answer["errNo"] not in (0, 410):
        raise Exception("send to %s: %s" % (connection, answer["errMsg"]))


def main_handler(event, context):
    if "websocket" not in event:
        return {"errNo": 102, "errMsg": "not found websocket"}

    connection = event["websocket"]["secConnectionID"]
    db = sqlite3.connect(DATABASE, timeout=10)
    members = db.execute("SELECT number, connection FROM member ORDER BY number").fetchall()
    db.close()

    speaker = [number for number, each in members if each == connection]
    if not speaker or event["websocket"]["dataType"] != "text":
        return "ignored"
    text = "guest " + str(speaker[0]) + ": " + event["websocket"]["data"]
    for number, each in members:
        send(each, text)
    return "send message ok"
