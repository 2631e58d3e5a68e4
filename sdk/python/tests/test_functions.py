"""The functions' dialect, their instances, and what becomes of events whose functions fail."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from trunkline import CloseCause, Closed, ConnectionId, HandlerError, Offset, Opened
from trunkline._context import Context, Origin
from trunkline.functions import cli, scf
from trunkline.functions.bridge import CallSettings, Functions, OnFailure
from trunkline.functions.instances import FunctionFile, Instances, LoadError, TimedOut
from trunkline.v1 import records_pb2 as records

ID = ConnectionId(bytes(range(16)))


def context(attempt: int = 1, age: float = 0) -> Context:
    time_us = int((time.time() - age) * 1_000_000)
    return Context(Origin("chat", 3, Offset(5 << 16 | 2), time_us, attempt, ID, "chat"))


def opened(**fields: object) -> Opened:
    fields = {"peer": "10.0.2.14:4711", "path": "/test/7", "handler_group": "chat", **fields}
    return Opened.of(records.ConnectionOpened(**fields))  # type: ignore[arg-type]


def strings(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(map(strings, value.values())))


# ---- the dialect ---------------------------------------------------------------------------------------------------------


def test_a_registration_event_is_the_documented_one():
    event = scf.registration_event(context(), opened(), scf.Front(path="/test/{id}", stage="prod"))
    request_id = event["requestContext"].pop("requestId")
    assert str(uuid.UUID(request_id)) == request_id
    assert event == {
        "requestContext": {
            "serviceName": "chat",
            "path": "/test/{id}",
            "httpMethod": "GET",
            "identity": {},
            "sourceIp": "10.0.2.14",
            "stage": "prod",
            "websocketEnable": True,
        },
        "websocket": {"action": "connecting", "secConnectionID": "AAECAwQFBgcICQoLDA0ODw"},
    }
    assert json.loads(json.dumps(event)) == event


def test_what_the_client_offers_is_there_only_then():
    headers = [records.Header(name="sec-websocket-extensions", value="permessage-deflate; client_max_window_bits")]
    event = scf.registration_event(context(), opened(subprotocols=["chat", "binary"], headers=headers, principal="ada"), scf.Front())
    assert event["websocket"]["secWebSocketProtocol"] == "chat,binary"
    assert event["websocket"]["secWebSocketExtensions"] == "permessage-deflate; client_max_window_bits"
    assert event["requestContext"]["identity"] == {"secretId": "ada"} and event["requestContext"]["path"] == "/test/7"
    assert "queryString" not in event["requestContext"]
    front = scf.Front(forward_request=True)
    parameters = [records.Header(name="id", value="7")]
    event = scf.registration_event(context(), opened(query="a=1&a=2&b=%C3%BC", headers=headers, parameters=parameters), front)
    assert event["requestContext"]["queryString"] == {"a": "1", "b": "ü"}
    assert event["requestContext"]["pathParameters"] == {"id": "7"} and "sec-websocket-extensions" in event["requestContext"]["headers"]


def test_every_value_inside_websocket_is_a_string():
    closed = Closed(1006, "", CloseCause.CLIENT_VANISHED)
    events = [
        scf.registration_event(context(), opened(subprotocols=["a"]), scf.Front()),
        scf.transmission_event(context(), "ü"),
        scf.transmission_event(context(), b"\0\xff"),
        scf.cleanup_event(context(), closed),
    ]
    assert all(strings(event["websocket"]) for event in events)
    assert [event["websocket"]["action"] for event in events] == ["connecting", "data send", "data send", "closing"]
    assert [(event["websocket"]["dataType"], event["websocket"]["data"]) for event in events[1:3]] == [("text", "ü"), ("binary", "AP8=")]
    said = {"closeCode": "1006", "closeReason": "", "closeCause": "client_vanished"}
    assert events[3] == {"websocket": {"action": "closing", "secConnectionID": str(ID), **said}}
    assert scf.wants_cleanup(closed) and not scf.wants_cleanup(Closed(1006, "", CloseCause.REJECTED))


def test_a_registration_s_answer_decides():
    offered = opened(subprotocols=["chat", "binary"])

    def accepted(answer: object) -> str:
        decision = scf.decision(answer, offered)
        assert decision.rejected is None
        return decision.subprotocol

    assert accepted({"errNo": 0, "errMsg": "ok"}) == ""
    assert accepted('{"errNo": 0}') == accepted(b'{"errNo": 0}') == ""
    # the documentation's example sends back all that was offered
    assert accepted({"errNo": 0, "websocket": {"secWebSocketProtocol": "binary,chat"}}) == "binary"
    assert accepted({"errNo": 0, "websocket": {"secWebSocketProtocol": "other, chat"}}) == "chat"
    assert accepted({"errNo": 0, "websocket": {"secWebSocketProtocol": "other"}}) == ""
    assert accepted({"errNo": 0, "websocket": {"secWebSocketProtocol": None}}) == ""
    rejected = scf.decision({"errNo": 101, "errMsg": "not found request context"}, offered).rejected
    assert rejected is not None and rejected[0] == 403
    assert json.loads(rejected[1]) == {"errNo": 101, "errMsg": "not found request context"}
    for message, shown in (("房间满了", "房间满了"), ("\ud800", "?"), (None, ""), (object(), "")):
        rejected = scf.decision({"errNo": -1, "errMsg": message}, offered).rejected
        assert rejected is not None and json.loads(rejected[1]) == {"errNo": -1, "errMsg": shown}
    with pytest.raises(scf.BadAnswer):
        scf.decision({"errNo": 1, "errMsg": "x" * (64 << 10)}, offered)


@pytest.mark.parametrize("answer", [None, "", "no json", b"\xff", [], 0, {}, {"errNo": "0"}, {"errNo": True}, {"errNo": None}, {"errNo": 0.0}])
def test_an_answer_that_is_none_is_found(answer):
    with pytest.raises(scf.BadAnswer):
        scf.decision(answer, opened())


def test_what_an_integration_response_pushes():
    push = scf.integration_response
    assert push(None) is None and push("") is None and push(b"") is None
    assert push("hello") == "hello" and push({"a": 1}) == '{"a": 1}' and push('{"a": 1}') == '{"a": 1}' and push(7) == "7"
    assert push({"websocket": {"dataType": "text", "data": "x"}}) == "x"
    assert push('{"websocket": {"dataType": "binary", "data": "AP8="}}') == b"\0\xff"
    for wrong in ({"websocket": {"dataType": "binary", "data": "?"}}, {"websocket": {"data": 1}}, {"websocket": {"dataType": "x", "data": ""}}, b"\xff", object(), "x" * ((16 << 20) + 1), "\ud800"):
        with pytest.raises(scf.BadAnswer):
            push(wrong)


def test_the_context_of_a_call():
    given = scf.function_context(context(attempt=2), "transmission", 15.0)
    assert (given["function_name"], given["time_limit_in_ms"], given["namespace"], given["function_version"]) == ("transmission", 15000, "chat", "$LATEST")
    assert given["trunkline"]["idempotency_key"] == "chat/3/5.2" and given["trunkline"]["attempt"] == 2
    assert given["request_id"] == scf.function_context(context(), "x", 1)["request_id"], "the same for every attempt"


# ---- instances -----------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "function.py") -> FunctionFile:
    (folder / name).write_text(text)
    return FunctionFile.parse("transmission", str(folder / name))


def test_a_function_is_a_file_and_perhaps_a_name(tmp_path):
    file = write(tmp_path, "def main_handler(event, context): return 1\ndef other(event, context): return 2\n")
    assert (file.load()({}, {}), file.name) == (1, "main_handler")
    assert FunctionFile.parse("cleanup", f"{file.path}:other").load()({}, {}) == 2
    with pytest.raises(LoadError, match="no file"):
        FunctionFile.parse("cleanup", str(tmp_path / "none.py"))
    with pytest.raises(LoadError, match="no function none"):
        FunctionFile.parse("cleanup", f"{file.path}:none").load()


def test_an_instance_has_globals_of_its_own_and_runs_where_it_was_loaded(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    file = write(
        tmp_path,
        """
import beside, dataclasses, sqlite3, threading, time
db = sqlite3.connect(":memory:")  # may be used in this thread only
calls, thread = 0, threading.get_ident()

@dataclasses.dataclass
class Answer:
    calls: int

def main_handler(event, context):
    global calls
    calls += 1
    db.execute("SELECT 1")
    if event:
        time.sleep(0.2)
    assert thread == threading.get_ident() and beside.VALUE == 7
    return Answer(calls).calls
""",
    )

    async def main() -> None:
        instances = Instances(file, 4)
        await instances.warm(5)
        # both at once: two instances
        assert await asyncio.gather(instances.call({"x": 1}, {}, 5), instances.call({"x": 1}, {}, 5)) == [1, 1]
        # one after another: the warm one
        assert [await instances.call({}, {}, 5) for _ in range(3)] == [2, 3, 4]

    asyncio.run(main())


def test_a_function_that_blocks_stops_no_other_and_gets_its_place_back(tmp_path):
    file = write(
        tmp_path,
        """
import threading
gate = threading.Event()
def main_handler(event, context):
    if "wait" in event:
        event["wait"].wait(30)
        return "late"
    return "prompt"
""",
    )

    async def main() -> None:
        instances, gate = Instances(file, 2), threading.Event()
        for stuck in (1, 2):
            with pytest.raises(TimedOut):
                await instances.call({"wait": gate}, {}, 0.05)
            assert instances.stuck == stuck
            assert await instances.call({}, {}, 5) == "prompt"
        # as many are stuck as may work: the next ones take places away
        for _ in range(2):
            with pytest.raises(TimedOut):
                await instances.call({"wait": gate}, {}, 0.05)
        waiting = asyncio.ensure_future(instances.call({}, {}, 5))
        assert not (await asyncio.wait([waiting], timeout=0.2))[0]
        gate.set()
        assert await waiting == "prompt"
        async with asyncio.timeout(10):
            while instances.stuck:
                await asyncio.sleep(0.01)
        assert await asyncio.gather(*(instances.call({}, {}, 5) for _ in range(10))) == ["prompt"] * 10

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_no_place_is_lost_or_won_whatever_ends_when(tmp_path, seed):
    """Answers, timeouts, exceptions and cancellations, many of them at the same moment."""
    file = write(
        tmp_path,
        """
import sys, time
def main_handler(event, context):
    if "gate" in event:
        event["entered"].append(1)
        event["gate"].wait(20)
    time.sleep(event.get("time", 0))
    if event.get("fail"):
        raise KeyError("x")
    if event.get("exit"):
        sys.exit(1)
""",
    )
    chance, places = random.Random(seed), 4

    async def one(instances: Instances) -> None:
        # around the timeout, so that both happen at once now and then
        event = {"time": chance.choice([0.0, 0.02, 0.02]), "fail": chance.random() < 0.3, "exit": chance.random() < 0.1}
        call = asyncio.ensure_future(instances.call(event, {}, chance.choice([0.02, 0.02, 1.0])))
        if chance.random() < 0.2:
            await asyncio.sleep(chance.choice([0, 0.01, 0.02]))
            call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    async def main() -> None:
        instances = Instances(file, places)
        await asyncio.gather(*(one(instances) for _ in range(100)))
        async with asyncio.timeout(20):
            while instances.stuck:
                await asyncio.sleep(0.005)
        # exactly so many run at once
        entered, gate = [], threading.Event()
        event = {"entered": entered, "gate": gate}
        calls = [asyncio.ensure_future(instances.call(event, {}, 30)) for _ in range(places + 1)]
        async with asyncio.timeout(20):
            while len(entered) < places:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        assert len(entered) == places
        gate.set()
        assert await asyncio.gather(*calls) == [None] * (places + 1)

    asyncio.run(main())


def test_what_a_function_raises_comes_out_and_sys_exit_ends_its_instance_only(tmp_path):
    file = write(
        tmp_path,
        """
import sys
calls = 0
def main_handler(event, context):
    global calls
    calls += 1
    if event.get("exit"):
        sys.exit(3)
    if event.get("raise"):
        raise KeyError("missing")
    return calls
""",
    )

    async def main() -> None:
        instances = Instances(file, 1)
        assert await instances.call({}, {}, 5) == 1
        with pytest.raises(KeyError):
            await instances.call({"raise": 1}, {}, 5)
        assert await instances.call({}, {}, 5) == 3, "the instance goes on"
        with pytest.raises(Exception, match="SystemExit"):
            await instances.call({"exit": 1}, {}, 5)
        assert await instances.call({}, {}, 5) == 1, "another one"

    asyncio.run(main())


def test_a_function_may_be_a_coroutine(tmp_path):
    file = write(tmp_path, "import asyncio\nasync def main_handler(event, context):\n    await asyncio.sleep(0)\n    return 'ok'\n")
    assert asyncio.run(Instances(file, 1).call({}, {}, 5)) == "ok"


def test_a_module_that_cannot_be_loaded_is_tried_again(tmp_path):
    file = write(tmp_path, "raise RuntimeError('no database yet')\n")

    async def main() -> None:
        instances = Instances(file, 1)
        with pytest.raises(RuntimeError):
            await instances.warm(5)
        write(tmp_path, "def main_handler(event, context): return 'ok'\n")
        assert await instances.call({}, {}, 5) == "ok"

    before = set(sys.modules)
    asyncio.run(main())
    assert len([name for name in set(sys.modules) - before if name.startswith("trunkline_function")]) == 1


# ---- what becomes of events ----------------------------------------------------------------------------------------------

SCRIPTED = """
def main_handler(event, context):
    calls.append((event, context))
    answer = answers.pop(0)
    if isinstance(answer, float):
        time.sleep(answer)
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer
"""


class Scripted:
    """A function that answers what a test says."""

    calls: list[tuple[dict, dict]]
    answers: list[object]

    def __init__(self, folder: Path, slot: str) -> None:
        import builtins

        self.calls, self.answers = [], []
        name = f"scripted_{uuid.uuid4().hex}"
        setattr(builtins, name, self)
        (folder / f"{slot}.py").write_text(f"import builtins, time\ncalls = builtins.{name}.calls\nanswers = builtins.{name}.answers\n{SCRIPTED}")
        self.instances = Instances(FunctionFile.parse(slot, str(folder / f"{slot}.py")), 4)


@pytest.fixture
def chat(tmp_path):
    """`chat(on_failure=…)` is a handler and its three functions."""

    def make(**settings: object) -> tuple[Functions, dict[str, Scripted]]:
        functions = {slot: Scripted(tmp_path, slot) for slot in ("registration", "transmission", "cleanup")}
        call = CallSettings(**{"backoff": 0.001, "timeout": 0.5, "retries": 1, **settings})  # type: ignore[arg-type]
        return Functions(call, **{slot: function.instances for slot, function in functions.items()}), functions

    return make


def commands(cx: Context) -> list[str]:
    return [command.WhichOneof("command") or "" for command in cx.finish()]


def test_functions_are_called_with_events_and_context(chat):
    handler, functions = chat()
    functions["registration"].answers[:] = [{"errNo": 0, "errMsg": "ok"}]
    functions["transmission"].answers[:] = ["ignored"]
    functions["cleanup"].answers[:] = [None]

    async def main() -> None:
        assert (await handler.opened(context(), opened())).rejected is None
        cx = context()
        await handler.message(cx, "hello")
        assert commands(cx) == [], "the answer is ignored"
        await handler.closed(context(), Closed(1000, "", CloseCause.CLIENT))
        await handler.closed(context(), Closed(1006, "", CloseCause.REJECTED))

    asyncio.run(main())
    assert [len(function.calls) for function in functions.values()] == [1, 1, 1]
    event, given = functions["transmission"].calls[0]
    assert event["websocket"]["data"] == "hello" and given["function_name"] == "transmission"


def test_a_function_that_fails_once_is_called_again_at_once_and_the_exception_is_logged(chat, caplog):
    handler, functions = chat()
    functions["transmission"].answers[:] = [ValueError("once"), "ok"]
    with caplog.at_level(logging.ERROR):
        asyncio.run(handler.message(context(), "hello"))
    assert len(functions["transmission"].calls) == 2
    assert "ValueError: once" in caplog.text and "transmission.py" in caplog.text and "instances.py" not in caplog.text


@pytest.mark.parametrize("failure", [ValueError("again"), 3.0])
def test_a_function_that_goes_on_failing_ends_as_on_failure_says(chat, failure):
    async def fails(on_failure: OnFailure, event: str) -> Context:
        handler, functions = chat(on_failure=on_failure)
        for function in functions.values():
            function.answers[:] = [failure, failure]
        cx = context(attempt=3)
        if event == "message":
            await handler.message(cx, "hello")
        else:
            await handler.closed(cx, Closed(1000, "", CloseCause.CLIENT))
        return cx

    async def main() -> None:
        for event in ("message", "closed"):
            with pytest.raises(HandlerError) as error:
                await fails(OnFailure.RETRY, event)
            # 1 ms, doubled for two deliveries before this one and an attempt more at once, with jitter
            assert error.value.delay is not None and 0.004 <= error.value.delay <= 0.012
            with pytest.raises(HandlerError) as error:
                await fails(OnFailure.DEAD_LETTER, event)
            assert error.value.parked is not None and ("again" in error.value.parked or "no answer" in error.value.parked)
        cx = await fails(OnFailure.CLOSE, "message")
        assert cx.finish()[0].close.code == 1011
        with pytest.raises(HandlerError) as error:
            await fails(OnFailure.CLOSE, "closed")
        assert error.value.parked is not None

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answers", "status", "calls"),
    [
        ([ValueError("x"), ValueError("x")], 502, 2),
        ([3.0, 3.0], 504, 2),
        ([{"errMsg": "no number"}], 502, 1),
        (["no json"], 502, 1),
        ([ValueError("x"), {"errNo": 5, "errMsg": "no"}], 403, 2),
    ],
)
def test_a_registration_without_an_answer_is_refused(chat, answers, status, calls):
    handler, functions = chat()
    functions["registration"].answers[:] = answers
    decision = asyncio.run(handler.opened(context(), opened()))
    assert decision.rejected is not None and decision.rejected[0] == status
    assert set(json.loads(decision.rejected[1])) == {"errNo", "errMsg"}
    assert len(functions["registration"].calls) == calls


@pytest.mark.parametrize(
    ("answers", "cleanups"),
    [
        ([3.0, 3.0], 1),
        ([3.0, ValueError("x")], 1),
        (["no json"], 1),
        ([ValueError("x"), ValueError("x")], 0),
        ([3.0, {"errNo": 5, "errMsg": "no"}], 0),
    ],
)
def test_who_was_turned_away_without_an_answer_is_cleaned_up(chat, answers, cleanups):
    handler, functions = chat()
    functions["registration"].answers[:] = answers
    functions["cleanup"].answers[:] = [None]

    async def main() -> None:
        assert (await handler.opened(context(), opened())).rejected is not None
        for _ in range(2):
            await handler.closed(context(), Closed(1006, "", CloseCause.REJECTED))

    asyncio.run(main())
    assert len(functions["cleanup"].calls) == cleanups


def test_a_registration_whose_client_has_gone_long_ago_is_not_asked_for(chat):
    handler, functions = chat()
    decision = asyncio.run(handler.opened(context(age=120), opened()))
    assert decision.rejected is not None and decision.rejected[0] == 504 and functions["registration"].calls == []


def test_where_nobody_waits_for_a_decision_a_failed_registration_is_an_event_as_others(chat):
    async def fails(on_failure: OnFailure) -> Context:
        handler, functions = chat(on_failure=on_failure)
        functions["registration"].answers[:] = [ValueError("x")] * 2
        cx = context(age=120)
        assert (await handler.opened(cx, opened(handler_group=""))).rejected is None
        return cx

    async def main() -> None:
        for on_failure in (OnFailure.RETRY, OnFailure.DEAD_LETTER):
            with pytest.raises(HandlerError):
                await fails(on_failure)
        assert (await fails(OnFailure.CLOSE)).finish()[0].close.code == 1011

    asyncio.run(main())


def test_a_registration_is_given_up_when_nobody_waits_any_more(chat):
    handler, functions = chat(registration_timeout=0.1, timeout=30.0)
    functions["registration"].answers[:] = [0.5]
    decision = asyncio.run(handler.opened(context(), opened()))
    assert decision.rejected is not None and decision.rejected[0] == 504


def test_without_a_registration_function_everybody_gets_in(chat):
    _, functions = chat()
    handler = Functions(CallSettings(), transmission=functions["transmission"].instances)
    assert asyncio.run(handler.opened(context(), opened())).rejected is None
    asyncio.run(handler.closed(context(), Closed(1000, "", CloseCause.CLIENT)))


def test_an_integration_response_is_pushed_and_nonsense_fails_without_another_call(chat):
    handler, functions = chat(integration_response=True, on_failure=OnFailure.DEAD_LETTER)
    functions["transmission"].answers[:] = ["hi", {"websocket": {"dataType": "binary", "data": "?"}}]

    async def main() -> None:
        cx = context()
        await handler.message(cx, "hello")
        assert cx.finish()[0].push.payload == b"hi"
        with pytest.raises(HandlerError) as error:
            await handler.message(context(), "hello")
        assert "base64" in str(error.value.parked)

    asyncio.run(main())
    assert len(functions["transmission"].calls) == 2


# ---- the command line ----------------------------------------------------------------------------------------------------


def test_durations():
    assert [cli.duration(text) for text in ("250ms", "10s", "5m", "1h", "1.5s")] == [0.25, 10, 300, 3600, 1.5]
    for wrong in ("", "10", "s", "-1s", "1d", "1 s", "nan"):
        with pytest.raises(cli.argparse.ArgumentTypeError):
            cli.duration(wrong)


@pytest.mark.parametrize(
    "wrong",
    [["--timeout", "0s"], ["--timeout", "1h"], ["--retries", "11"], ["--concurrency", "0"], ["--on-failure", "x"], ["--nonsense"], ["--group", "a b"], ["--broker", "nonsense"], ["--cleanup", "none.py"]],
)
def test_wrong_words_end_with_64(tmp_path, wrong, capsys):
    path = str(write(tmp_path, "def main_handler(event, context): pass\n").path)
    try:
        code = cli.main(["run", "--api", "x", "--transmission", path, *wrong])
    except SystemExit as error:
        code = error.code
    assert code == 64
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("trunkline-functions")


def test_a_file_that_cannot_be_loaded_ends_with_64(tmp_path, capsys, caplog):
    for text in ("x = 1\n", "raise RuntimeError('no')\n", "def main_handler(\n", "import sys\nsys.exit(0)\n"):
        assert cli.main(["run", "--api", "x", "--transmission", str(write(tmp_path, text).path)]) == 64
        assert "function.py" in capsys.readouterr().err
