"""The chat room of docs/examples/scf-chat, as it is: three functions, run in a process of Python and as HTTP functions."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path

import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from harness import Dev, Process, free_port, until
from python_sdk import ROOT, python

pytestmark = pytest.mark.short

EXAMPLE = ROOT / "docs/examples/scf-chat"
PATH = "/release/chatroom"
SIZE = 4
HTTP = """
[api.functions]
dialect = "scf"
registration = "http://127.0.0.1:{port}/registration"
transmission = "http://127.0.0.1:{port}/transmission"
cleanup = "http://127.0.0.1:{port}/cleanup"
"""
CLIENT = """
import sys, time, websockets.sync.client
with websockets.sync.client.connect(sys.argv[1], compression=None) as client:
    print("ready", flush=True)
    time.sleep(1000)
"""


class Room:
    def __init__(self, folder: Path, host: str) -> None:
        self.folder = folder
        self.database = folder / "chat.db"
        config = (EXAMPLE / "chatroom.toml").read_text()
        if host == "http":
            port = free_port()
            config += HTTP.format(port=port)
        self.node = Dev(folder, config=config).start()
        env = {"CHAT_DATABASE": str(self.database), "CHAT_ROOM_SIZE": str(SIZE), "PUSH_ADDRESS": f"{self.node.broker.http()}/push/chatroom"}
        if host == "http":
            words = [Path(__file__).with_name("scf_http.py"), str(port), EXAMPLE]
        else:
            words = ["-m", "trunkline.functions", "run", "--broker", self.node.grpc, "--api", "chatroom"]
            for slot in ("registration", "transmission", "cleanup"):
                words += [f"--{slot}", EXAMPLE / f"{slot}.py"]
        self.functions: Process = python("functions", folder, *words, env=env).start()

    def connect(self, **options):
        return websockets.sync.client.connect(self.node.ws(PATH), compression=None, legacy=True, open_timeout=20, **options)

    def members(self) -> int:
        with sqlite3.connect(self.database) as db:
            return db.execute("SELECT COUNT(*) FROM member").fetchone()[0]


@pytest.fixture(params=["run", "http"])
def room(request, folder):
    return Room(folder, request.param)


def received(client, last: str) -> list[str]:
    """Up to and with `last`."""
    texts = [client.recv(timeout=40)]
    while texts[-1] != last:
        texts.append(client.recv(timeout=40))
    return texts


def test_what_one_says_all_hear_and_a_full_room_turns_away_by_err_no(room):
    with room.connect(subprotocols=["v2", "v1"]) as ada, room.connect() as bob:
        assert (ada.subprotocol, bob.subprotocol) == ("v2", None)
        ada.send("hello")
        bob.send("wörld")
        bob.send(b"\0 not text")
        for client in (ada, bob):
            assert {client.recv(timeout=10), client.recv(timeout=10)} == {"guest 1: hello", "guest 2: wörld"}
        others = [room.connect() for _ in range(SIZE - 2)]
        with pytest.raises(InvalidStatus) as refused:
            room.connect()
        assert refused.value.response.status_code == 403
        assert json.loads(refused.value.response.body) == {"errNo": 103, "errMsg": "the room is full"}
        assert room.members() == SIZE
        others[0].close()
        # whose place is free then
        assert ada.recv(timeout=10) == "guest 3 left"
        until(lambda: room.members() == SIZE - 1, "the place to be free")
        room.connect().close()
        others[1].close()
    until(lambda: room.members() == 0, "everybody to be forgotten")
    turned_away = {record.connection for record in room.node.tail() if record.fields.get("cause") == "rejected"}
    assert len(turned_away) == 1


def test_a_crash_of_the_function_process_loses_nothing_and_keeps_the_order(room):
    messages, clients = 30, [room.connect() for _ in range(3)]
    for number in range(messages):
        for client in clients:
            client.send(f"{number}")
        if number in (8, 16):
            room.functions.kill9()
        if number in (12, 24):
            room.functions.start()
    for client in clients:
        client.send("end")
    wanted = {f"guest {guest}: {text}" for guest in (1, 2, 3) for text in [*map(str, range(messages)), "end"]}
    for client in clients:
        texts: list[str] = []
        while not wanted <= set(texts):
            texts.append(client.recv(timeout=40))
        for guest in (1, 2, 3):
            said = [text for text in texts if text.startswith(f"guest {guest}: ")]
            # a message in work at a crash comes again as a whole: only itself may be repeated, and nothing overtakes it
            assert list(dict.fromkeys(said)) == [f"guest {guest}: {text}" for text in [*map(str, range(messages)), "end"]]
            assert said == sorted(said, key=list(dict.fromkeys(said)).index)
            assert len(said) <= messages + 1 + 2 * 2
    for client in clients:
        client.close()
    until(lambda: room.members() == 0, "everybody to be forgotten")


def test_a_killed_client_and_one_who_leaves_while_the_functions_are_away_are_cleaned_up(room):
    with room.connect() as ada:
        killed = Process("client", [sys.executable, "-c", CLIENT, room.node.ws(PATH)], room.folder).start()
        assert room.members() == 2
        killed.kill9()
        assert ada.recv(timeout=20) == "guest 2 left"
        until(lambda: room.members() == 1, "the killed one to be forgotten")
        bob = room.connect()
        room.functions.kill9()
        bob.close()
        ada.send("still here")
        room.functions.start()
        assert {ada.recv(timeout=30), ada.recv(timeout=30)} == {"guest 3 left", "guest 1: still here"}
        until(lambda: room.members() == 1, "the one who left to be forgotten")
