"""The same connections, once through HTTP functions and once through functions in a process of Python: both are given the same."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import websockets.sync.client

from harness import Dev, until
from python_sdk import python

pytestmark = pytest.mark.short

SLOTS = ("registration", "transmission", "cleanup")
CONFIG = """
[[api]]
name = "twice"
path = "/stage/twice"

[api.functions]
dialect = "scf"
{functions}
"""
FUNCTION = """
import json, os
def main_handler(event, context):
    with open(os.environ["JOURNAL"], "a") as file:
        file.write(json.dumps(["{slot}", event]) + "\\n")
    return {{"errNo": 0, "errMsg": "ok", "websocket": event["websocket"]}}
"""


def events(journal: Path) -> dict[str, list]:
    """By connection, in order."""
    found: dict[str, list] = {}
    for line in journal.read_text().splitlines() if journal.exists() else ():
        slot, event = json.loads(line)
        # one's group is not the other's, and so is the event's name
        event.get("requestContext", {}).pop("requestId", None)
        found.setdefault(event["websocket"]["secConnectionID"], []).append((slot, event))
    return found


def test_http_functions_and_functions_in_a_process_are_given_the_same(folder):
    for slot in SLOTS:
        (folder / f"{slot}.py").write_text(FUNCTION.format(slot=slot))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    urls = "\n".join(f'{slot} = "http://127.0.0.1:{port}/{slot}"' for slot in SLOTS)
    node = Dev(folder, config=CONFIG.format(functions=urls)).start()
    http, own = folder / "http.jsonl", folder / "own.jsonl"
    host = Path(__file__).with_name("scf_http.py")
    python("http", folder, host, str(port), folder, env={"JOURNAL": str(http)}).start()
    # a group of its own that decides about nobody
    words = ["-m", "trunkline.functions", "run", "--broker", node.grpc, "--api", "twice", "--group", "observer"]
    words += [word for slot in SLOTS for word in (f"--{slot}", folder / f"{slot}.py")]
    python("own", folder, *words, env={"JOURNAL": str(own)}).start()

    def connect(**options):
        return websockets.sync.client.connect(node.ws("/stage/twice?a=1&b=%C3%BC"), legacy=True, **options)

    with connect(subprotocols=["chat", "v2.binary"]) as client:
        for message in ("hello", "", "wörld 🌍 \0", b"", b"\0\xff", b"x" * 3000, "y" * 3000):
            client.send(message)
        client.close(3001, "bye bye")
    with connect(compression=None):
        pass
    vanishing = connect(compression=None)
    vanishing.send("last words")
    until(lambda: node.connections(), "it to be there")
    vanishing.socket.shutdown(socket.SHUT_RDWR)
    until(lambda: all(len(events(journal)) == 3 and all(each[-1][0] == "cleanup" for each in events(journal).values()) for journal in (http, own)), "three cleanups on both sides")
    assert events(own) == events(http)
    assert sorted(len(each) for each in events(own).values()) == [2, 3, 9]
