"""The chat backend of docs/examples/aws-chat, as it is: Lambda-shaped functions in Python with boto3, and in Node with the official SDK."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harness import Dev, Process, free_port, until
from node_sdk import sdk_for_node
from python_sdk import ROOT

pytestmark = pytest.mark.short

EXAMPLE = ROOT / "docs/examples/aws-chat"
CLIENT = """
import sys, time, websockets.sync.client
with websockets.sync.client.connect(sys.argv[1], compression=None) as client:
    print("ready", flush=True)
    time.sleep(1000)
"""
GHOST = "L0SM9cOFvHcCIhw="
"""A connection's id of the old gateway."""


class Chat:
    def __init__(self, folder: Path, language: str, need) -> None:
        self.folder, self.language = folder, language
        port = free_port()
        self.dev = Dev(folder, config=(EXAMPLE / "chat.toml").read_text().replace("127.0.0.1:9000", f"127.0.0.1:{port}")).start()
        self.database = folder / "members"
        env = {"CHAT_DATABASE": str(self.database), "ENDPOINT": self.dev.process.http() + "/prod"}
        if language == "python":
            argv = [sys.executable, EXAMPLE / "runtime.py", port, EXAMPLE / "chat.py"]
        else:
            packages = sdk_for_node(need, EXAMPLE / "runtime.mjs", EXAMPLE / "chat.mjs")
            argv = ["node", packages / "runtime.mjs", port, packages / "chat.mjs"]
        self.functions = Process("functions", argv, folder, env).start()

    def url(self, name: str) -> str:
        return f"{self.dev.ws('/prod')}?name={name}"

    def connect(self, name: str, **options):
        return websockets.sync.client.connect(self.url(name), compression=None, legacy=True, open_timeout=20, **options)

    def members(self) -> dict[str, str]:
        if self.language == "node":
            return json.loads(self.database.read_text()) if self.database.exists() else {}
        with sqlite3.connect(self.database, timeout=10) as db:
            return dict(db.execute("SELECT connection, name FROM member"))

    def add(self, connection: str, name: str) -> None:
        if self.language == "node":
            self.database.write_text(json.dumps(self.members() | {connection: name}))
            return
        with sqlite3.connect(self.database, timeout=10) as db:
            db.execute("INSERT INTO member VALUES (?, ?)", (connection, name))


@pytest.fixture(params=["python", "node"])
def chat(request, folder, need):
    return Chat(folder, request.param, need)


def send(client, **message) -> None:
    client.send(json.dumps(message))


def received(client) -> dict:
    return json.loads(client.recv(timeout=20))


def test_connect_custom_routes_broadcast_with_one_gone_and_disconnect_with_its_code(chat):
    with pytest.raises(InvalidStatus) as refused:
        chat.connect("")
    assert (refused.value.response.status_code, refused.value.response.body) == (401, b"who are you?")
    with chat.connect("ada", subprotocols=["other", "chat"]) as ada, chat.connect("bob") as bob:
        assert (ada.subprotocol, bob.subprotocol) == ("chat", None)
        chat.add(GHOST, "ghost")
        send(ada, action="say", text="hellö")
        assert [received(client) for client in (ada, bob)] == [{"from": "ada", "text": "hellö"}] * 2
        until(lambda: GHOST not in chat.members(), "the one who is gone to be taken out of the table")
        send(bob, action="who")
        answer = received(bob)
        assert sorted(answer["members"]) == ["ada", "bob"] and answer["you"] == "127.0.0.1" and answer["since"].startswith("20")
        for nothing in ("no json", '{"action":"fly"}', '{"other":1}', "[]"):
            bob.send(nothing)
            assert received(bob) == {"error": "no such action", "message": nothing}
        send(ada, action="kick", name="bob")
        with pytest.raises(ConnectionClosed) as kicked:
            bob.recv(timeout=20)
        assert kicked.value.rcvd.code == 1000
        assert received(ada) == {"left": "bob", "code": 1000, "reason": "Connection Closed Normally"}
        with chat.connect("carl") as carl:
            carl.close(4000, "enough")
        assert received(ada) == {"left": "carl", "code": 4000, "reason": "enough"}
        until(lambda: list(chat.members().values()) == ["ada"], "carl to be forgotten")
    until(lambda: chat.members() == {}, "everybody to be forgotten")


def test_a_killed_client_is_told_of_as_an_unclean_end(chat):
    with chat.connect("ada") as ada:
        killed = Process("client", [sys.executable, "-c", CLIENT, chat.url("bob")], chat.folder).start()
        assert sorted(chat.members().values()) == ["ada", "bob"]
        killed.kill9()
        left = received(ada)
        assert (left["left"], left["code"]) == ("bob", 1006)
        until(lambda: list(chat.members().values()) == ["ada"], "the killed one to be forgotten")


def test_messages_and_disconnects_wait_for_a_backend_that_is_away(chat):
    with chat.connect("ada") as ada:
        bob = chat.connect("bob")
        chat.functions.kill9()
        for number in range(5):
            send(ada, action="say", text=f"{number}")
        bob.close(4001, "gone home")
        chat.functions.start()
        messages = [received(ada) for _ in range(6)]
        assert [message["text"] for message in messages if "text" in message] == ["0", "1", "2", "3", "4"]
        (left,) = [message for message in messages if "left" in message]
        # a broadcast that found bob gone has taken out the row with the name before the disconnect came
        assert left["left"] in ("bob", "somebody")
        assert (left["code"], left["reason"]) == (4001, "gone home")
        until(lambda: list(chat.members().values()) == ["ada"], "bob to be forgotten")


def test_the_preset_has_the_old_gateway_s_limits(chat):
    def closed_with(send_it) -> int:
        with chat.connect("ada") as client:
            with pytest.raises(ConnectionClosed) as closed:
                # the close may come before all is sent
                send_it(client)
                while True:
                    client.recv(timeout=20)
            return closed.value.rcvd.code

    half = "x" * (16 << 10)
    with chat.connect("ada") as client:
        # 112 KiB in frames of 16
        client.send(['{"action":"say","text":"', *[half] * 7, '"}'])
        assert received(client) == {"from": "ada", "text": half * 7}
    assert closed_with(lambda client: client.send(b"\0")) == 1003
    assert closed_with(lambda client: client.send("x" * ((32 << 10) + 1))) == 1009
    assert closed_with(lambda client: client.send([half] * 9)) == 1009
