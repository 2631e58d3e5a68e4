"""`trunkline-functions run` against a real broker: what functions are given, and what becomes of those that fail, block or die."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import websockets.exceptions
import websockets.sync.client

from harness import Dev, Process, until
from python_sdk import python

pytestmark = pytest.mark.short

CONFIG = """
[edge]
headers = ["host", "sec-websocket-extensions"]

[[api]]
name = "{name}"
path = "/{name}/{{room}}"
"""

# writes down what it is given, and does what a message says
FUNCTION = """
import json, os, sqlite3, sys, threading, time
journal = os.environ["JOURNAL"]
here = threading.get_ident()

def main_handler(event, context):
    assert threading.get_ident() == here, "globals belong to one thread"
    with open(journal, "a") as file:
        file.write(json.dumps([context["function_name"], event, context["trunkline"]["attempt"]]) + "\\n")
    action = event["websocket"]["action"]
    data = event["websocket"].get("data", "")
    if action == "connecting":
        if event["requestContext"]["path"].endswith("closed"):
            return {"errNo": 7, "errMsg": "closed to you"}
        if event["requestContext"]["path"].endswith("broken"):
            raise RuntimeError("no registration today")
        return {"errNo": 0, "errMsg": "ok", "websocket": event["websocket"]}
    if data == "fail":
        raise RuntimeError("no transmission today")
    if data == "exit":
        sys.exit(1)
    if data == "block":
        time.sleep(3600)
    if data == "slow":
        time.sleep(2)
    return {"websocket": {"dataType": event["websocket"]["dataType"], "data": data}} if action == "data send" else None
"""


class Running:
    def __init__(self, folder: Path, name: str, *flags: str) -> None:
        self.name, self.journal = name, folder / "journal.jsonl"
        (folder / "function.py").write_text(FUNCTION)
        self.node = Dev(folder, config=CONFIG.format(name=name)).start()
        words = ["-m", "trunkline.functions", "run", "--broker", self.node.grpc, "--api", name, "--backoff", "20ms"]
        for slot in ("registration", "transmission", "cleanup"):
            words += [f"--{slot}", folder / "function.py"]
        env = {"JOURNAL": str(self.journal)}
        self.functions: Process = python("functions", folder, *words, "--integration-response", *flags, env=env).start()

    def connect(self, room: str = "open", **options):
        return websockets.sync.client.connect(self.node.ws(f"/{self.name}/{room}"), legacy=True, open_timeout=30, **options)

    def calls(self, slot: str) -> list[tuple[dict, int]]:
        rows = map(json.loads, self.journal.read_text().splitlines()) if self.journal.exists() else ()
        return [(event, attempt) for name, event, attempt in rows if name == slot]

    def lag(self) -> int | None:
        return self.node.lag(self.name)


def test_events_are_the_documented_ones_over_a_real_connection(folder):
    run = Running(folder, "shapes", "--stage", "prod")
    with run.connect(subprotocols=["chat", "binary"]) as client:
        assert client.subprotocol == "chat"
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
        client.send(b"\0\xff")
        assert client.recv(timeout=10) == b"\0\xff"
        identity = run.node.connections()[0]["connection"]
    run.connect(compression=None).close()
    until(lambda: len(run.calls("cleanup")) == 2, "both to be cleaned up")
    (first, _), (second, _) = run.calls("registration")
    request = first["requestContext"]
    assert request.pop("requestId")
    assert request == {
        "serviceName": "shapes",
        "path": "/shapes/open",
        "httpMethod": "GET",
        "identity": {},
        "sourceIp": "127.0.0.1",
        "stage": "prod",
        "websocketEnable": True,
    }
    extensions = first["websocket"].pop("secWebSocketExtensions")
    assert extensions.startswith("permessage-deflate")
    assert first["websocket"] == {"action": "connecting", "secConnectionID": identity, "secWebSocketProtocol": "chat,binary"}
    assert set(second["websocket"]) == {"action", "secConnectionID"}, "nothing was offered"
    sent = {"action": "data send", "secConnectionID": identity}
    assert [event for event, _ in run.calls("transmission")] == [
        {"websocket": {**sent, "dataType": "text", "data": "hello"}},
        {"websocket": {**sent, "dataType": "binary", "data": "AP8="}},
    ]
    closing = run.calls("cleanup")[0][0]["websocket"]
    assert closing == {"action": "closing", "secConnectionID": identity, "closeCode": "1000", "closeReason": "", "closeCause": "client"}
    assert run.functions.stop() == 0


def test_a_registration_that_says_no_or_nothing_turns_the_client_away(folder):
    run = Running(folder, "doors")
    for room, status, said in [("closed", 403, {"errNo": 7, "errMsg": "closed to you"}), ("broken", 502, None)]:
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            run.connect(room)
        assert refused.value.response.status_code == status
        assert said is None or json.loads(refused.value.response.body) == said
    assert "no registration today" in run.functions.log_text()
    until(lambda: run.lag() == 0, "everything to be settled")
    assert run.calls("cleanup") == [], "nothing is to be cleaned up"
    assert len(run.calls("registration")) == 1 + 3


def test_a_function_that_goes_on_failing_becomes_a_dead_letter_and_the_next_message_goes_on(folder):
    run = Running(folder, "letters", "--on-failure", "dead_letter", "--retries", "1")
    with run.connect() as client:
        for text in ("a", "fail", "b", "exit", "c"):
            client.send(text)
        assert [client.recv(timeout=20) for _ in range(3)] == ["a", "b", "c"]
        until(lambda: run.lag() == 0, "everything to be settled")
        letters = run.node.cli_json("dead-letters", "list", "letters")
        assert [letter["text"] for letter in letters] == ["fail", "exit"]
        assert "no transmission today" in letters[0]["failure"] and "SystemExit" in letters[1]["failure"]
    log = run.functions.log_text()
    assert 'raise RuntimeError("no transmission today")' in log, "the traceback is in the log"


def test_with_close_the_connection_is_closed_with_1011(folder):
    run = Running(folder, "closes", "--on-failure", "close", "--retries", "0")
    with run.connect() as client:
        client.send("fail")
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            client.recv(timeout=20)
        assert closed.value.rcvd.code == 1011
    until(lambda: run.calls("cleanup"), "the cleanup")
    assert run.calls("cleanup")[0][0]["websocket"]["closeCause"] == "handler"


def test_with_retry_the_message_comes_again_and_later_ones_of_its_connection_wait(folder):
    run = Running(folder, "again", "--retries", "0")
    with run.connect() as client, run.connect() as other:
        client.send("fail")
        client.send("after")
        other.send("beside")
        assert other.recv(timeout=10) == "beside"
        until(lambda: len([1 for event, _ in run.calls("transmission") if event["websocket"]["data"] == "fail"]) >= 4, "four attempts", 30)
        assert not any(event["websocket"]["data"] == "after" for event, _ in run.calls("transmission"))
        # mended and started again
        source = folder / "function.py"
        source.write_text(source.read_text().replace('raise RuntimeError("no transmission today")', "pass"))
        assert run.functions.stop() == 0
        run.functions.start()
        assert [client.recv(timeout=40), client.recv(timeout=10)] == ["fail", "after"]


def test_two_processes_share_the_work_and_one_takes_over(folder):
    run = Running(folder, "shared")
    second = python("second", folder, *run.functions.argv[1:], env={"JOURNAL": str(run.journal)}).start()
    with run.connect() as client:
        client.send("a")
        assert client.recv(timeout=10) == "a"
        for victim in (run.functions, second):
            victim.kill9()
            client.send("b")
            if victim is run.functions:
                assert client.recv(timeout=30) == "b"
        run.functions.start()
        assert client.recv(timeout=30) == "b"


def test_functions_that_block_stop_no_others_and_do_not_keep_the_process_from_ending(folder):
    flags = ["--timeout", "300ms", "--concurrency", "2", "--retries", "0", "--on-failure", "dead_letter", "--grace", "1s"]
    run = Running(folder, "blocks", *flags)
    with run.connect() as client, run.connect() as other:
        client.send("block")
        client.send("after")
        other.send("beside")
        assert other.recv(timeout=10) == "beside"
        assert client.recv(timeout=20) == "after"
        letters = run.node.cli_json("dead-letters", "list", "blocks")
        assert [letter["text"] for letter in letters] == ["block"] and "no answer within" in letters[0]["failure"]
        assert run.functions.stop() == 0


def test_a_stop_waits_for_calls_that_run_and_gives_the_rest_back(folder):
    run = Running(folder, "stops", "--concurrency", "1")
    with run.connect() as client, run.connect() as other:
        client.send("slow")
        until(lambda: run.calls("transmission"), "the call to begin")
        # these wait for an instance, or behind the first one
        client.send("after")
        other.send("beside")
        assert run.functions.stop() == 0
        assert client.recv(timeout=5) == "slow", "finished and committed by then"
        run.functions.start()
        assert (client.recv(timeout=20), other.recv(timeout=20)) == ("after", "beside")
    until(lambda: run.lag() == 0, "everything to be settled")
    calls = [event["websocket"]["data"] for event, _ in run.calls("transmission")]
    assert sorted(calls) == ["after", "beside", "slow"], "each once"


def test_what_is_not_finished_when_the_grace_is_over_comes_again(folder):
    run = Running(folder, "cuts", "--grace", "100ms")
    with run.connect() as client:
        client.send("slow")
        until(lambda: run.calls("transmission"), "the call to begin")
        assert run.functions.stop() == 0
        assert "were not finished when the time was up" in run.functions.log_text()
        run.functions.start()
        assert client.recv(timeout=20) == "slow"
    assert [attempt for _, attempt in run.calls("transmission")] == [1, 2]


CLOUD = """
import asyncio, os
import config

async def main_handler(event, context):
    await asyncio.sleep(0)
    print("called", config.NAME)
    if "requestContext" in event:
        return {"errNo": 0, "errMsg": "ok"}
    return config.NAME + os.environ["SUFFIX"]
"""


def test_functions_keep_the_folders_they_had_in_the_cloud_and_are_loaded_again_when_they_change(folder):
    for name in ("registration", "transmission"):
        (folder / name).mkdir()
        (folder / name / "index.py").write_text(CLOUD)
        (folder / name / "config.py").write_text(f"NAME = {name!r}\n")
    node = Dev(folder, config=CONFIG.format(name="cloud")).start()
    words = ["-m", "trunkline.functions", "run", "--broker", node.grpc, "--api", "cloud", "--integration-response", "--reload"]
    for name in ("registration", "transmission"):
        words += [f"--{name}", folder / name / "index.py"]
    functions = python("functions", folder, *words, "--env", "SUFFIX=!").start()
    with websockets.sync.client.connect(node.ws("/cloud/x"), legacy=True) as client:
        client.send("")
        assert client.recv(timeout=10) == "transmission!"
        config = folder / "transmission/config.py"
        config.write_text("NAME = \n")
        until(lambda: "SyntaxError" in functions.log_text(), "what is wrong to be said")
        client.send("")
        config.write_text("NAME = 'mended'\n")
        assert client.recv(timeout=20) == "mended!"
    assert functions.stop() == 0
    printed = functions.stdout_path.read_text()
    assert "called registration" in printed and "called mended" in printed
