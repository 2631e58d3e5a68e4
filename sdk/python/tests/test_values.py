"""Ids, commands, contexts, events, errors: what needs neither schedule nor broker."""

from __future__ import annotations

import doctest

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import trunkline
from trunkline import _backoff, _command, _handler
from trunkline import _limits as limits
from trunkline._context import Context, Origin
from trunkline._errors import Code, NoAnswer, Refused, Retry, Unreachable, of_rpc
from trunkline._event import Opened, encoded, received
from trunkline._handler import Registration, decide
from trunkline._ids import ConnectionId, Offset
from trunkline.v1 import records_pb2 as records

ID = ConnectionId(b"\7" * 16)


def context(group: str = "chat") -> Context:
    return Context(Origin(group, 3, Offset(5 << 16 | 2), 1_500_000, 1, ID, "chat"))


@given(st.binary(min_size=16, max_size=16))
def test_connection_ids_read_what_they_write(raw):
    assert ConnectionId.parse(str(ConnectionId(raw))) == ConnectionId(raw)
    assert len(str(ConnectionId(raw))) == 22


@pytest.mark.parametrize("wrong", ["", "a", "A" * 21, "A" * 23, "A" * 21 + "=", "A" * 21 + "!", "A" * 21 + "B", "ä" * 22, "A" * 20 + "==", "A" * 21 + "\n"])
def test_what_is_no_connection_id_is_refused(wrong):
    with pytest.raises(ValueError):
        ConnectionId.parse(wrong)


def test_offsets_are_shown_as_index_and_position():
    assert str(Offset(5 << 16 | 2)) == "5.2"
    assert Offset.parse("5.2") == 5 << 16 | 2
    for wrong in ("", "5", "5.", ".2", "5.65536", f"{1 << 48}.0", "-1.0", "5.2.1", "٥.2"):
        with pytest.raises(ValueError):
            Offset.parse(wrong)


def test_malformed_commands_are_found_when_they_are_made():
    make = trunkline.Command
    assert make.push(ID, "x").wire.push.kind == records.MESSAGE_KIND_TEXT
    assert make.push(str(ID), b"x").wire.push.kind == records.MESSAGE_KIND_BINARY
    assert make.publish("room", "x", but_not=[ID]) == make.publish("room", "x", but_not=[str(ID)])
    for wrong in (
        lambda: make.push(ID, bytes(limits.MESSAGE_BYTES_MAX + 1)),
        lambda: make.push("no id", "x"),
        lambda: make.push(ID, "\ud800"),
        lambda: make.join(ID, ""),
        lambda: make.leave(ID, "a\nb"),
        lambda: make.publish("\ud800", "x"),
        lambda: make.publish("x" * 256, "x"),
        lambda: make.publish("room", "x", but_not=[ID] * 257),
        lambda: make.publish_to_api("no such name!", "x"),
        lambda: make.close(ID, 1006),
        lambda: make.close(ID, 4000, "x" * 124),
        lambda: make.set_attributes(ID, {"k": "v" * 5000}),
        lambda: make.reject(ID, 200),
        lambda: make.accept(ID, channels=["x"] * 129),
    ):
        with pytest.raises(trunkline.CommandError):
            wrong()


def test_a_message_is_text_or_bytes():
    assert encoded("ü") == (records.MESSAGE_KIND_TEXT, b"\xc3\xbc")
    assert encoded(bytearray(b"x")) == (records.MESSAGE_KIND_BINARY, b"x")
    with pytest.raises(TypeError):
        encoded(12)  # type: ignore[arg-type]
    # cannot come from an edge
    assert received(records.MessageReceived(kind=records.MESSAGE_KIND_TEXT, payload=b"\xff")) == b"\xff"


def test_a_decision_goes_before_what_was_pushed():
    cx = context()
    cx.push("welcome")
    cx.join("room")
    assert decide(cx, "chat", Registration.accept(subprotocol="v2", attributes={"user": "ada"}, channels=["lobby"])) is None
    commands = cx.finish()
    assert [command.WhichOneof("command") for command in commands] == ["accept", "push", "join"]
    assert commands[0].accept == records.ConnectionAccepted(subprotocol="v2", attributes={"user": "ada"}, channels=["lobby"])


def test_a_group_that_is_not_asked_does_to_an_open_connection_what_it_can():
    cx = context()
    decide(cx, "", Registration.accept(attributes={"user": "ada"}, channels=["lobby"]))
    assert [command.WhichOneof("command") for command in cx.finish()] == ["attributes", "join"]
    cx = context()
    decide(cx, "", Registration.reject(403, "no"))
    assert cx.finish()[0].close.code == 1008
    cx = context()
    assert "other" in (decide(cx, "other", Registration.reject(403)) or "")
    assert cx.finish() == []


def test_one_malformed_command_fails_the_event_even_if_it_is_caught():
    cx = context()
    cx.push("a")
    with pytest.raises(trunkline.CommandError):
        cx.join("\7")
    cx.push("b")
    with pytest.raises(trunkline.CommandError):
        cx.finish()


def test_commands_of_one_event_are_bounded():
    cx = context()
    for _ in range(limits.COMMANDS_MAX):
        cx.push("x")
    with pytest.raises(trunkline.CommandError, match="1024"):
        cx.push("x")
    cx = context()
    cx.push(bytes(limits.MESSAGE_BYTES_MAX))
    with pytest.raises(trunkline.CommandError, match="together"):
        cx.push(bytes(limits.MESSAGE_BYTES_MAX))
    with pytest.raises(trunkline.CommandError, match="unlogged"):
        context().command(trunkline.Command.publish("c", "x", unlogged=True))


def test_the_context_names_the_event():
    cx = context()
    assert (cx.idempotency_key, cx.time, cx.attempt, cx.partition) == ("chat/3/5.2", 1.5, 1, 3)


def test_what_a_client_asked_for_is_found():
    headers = [records.Header(name="user-agent", value="x")]
    parameters = [records.Header(name="id", value="7")]
    opened = Opened.of(
        records.ConnectionOpened(query="a=1&name=J%C3%B6rg+B&bad=%zz&flag&a=2", headers=headers, parameters=parameters)
    )
    assert [opened.query_parameter(name) for name in ("name", "bad", "flag", "a", "none")] == ["Jörg B", "%zz", "", "1", None]
    assert (opened.header("User-Agent"), opened.header("x"), opened.parameter("id")) == ("x", None, "7")


def test_functions_that_would_block_everybody_are_refused():
    handler = trunkline.Handler()
    with pytest.raises(TypeError, match="async def"):
        handler.on_message(lambda cx, message: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    "wrong",
    [{"group": "a b"}, {"credit": 0}, {"credit": 10_001}, {"workers": 0}, {"timeout": 0}, {"timeout": float("nan")}, {"apis": ["ä"]}, {"member": ""}],
)
def test_wrong_settings_are_refused_at_once(wrong):
    with pytest.raises(trunkline.SettingError):
        trunkline.Subscriber("127.0.0.1:1", **wrong)


def rpc_error(code: grpc.StatusCode, details: str = "", **trailers: str) -> grpc.aio.AioRpcError:
    metadata = grpc.aio.Metadata(*((key.replace("_", "-"), value) for key, value in trailers.items()))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details)


def test_a_status_of_the_broker_says_what_to_do():
    error = of_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "x", trunkline_code="CODE_NO_LEADER", trunkline_retry="safe"))
    assert (error.retry, error.may_have_happened, error.code) == (Retry.SAFE, False, Code.NO_LEADER)
    error = of_rpc(rpc_error(grpc.StatusCode.UNKNOWN, "x", trunkline_code="unknown", trunkline_retry="same-key"))
    assert (error.retry, error.may_have_happened) == (Retry.SAME_KEY, True)
    error = of_rpc(rpc_error(grpc.StatusCode.PERMISSION_DENIED, "x", trunkline_code="not_authorized", trunkline_retry="no"))
    assert isinstance(error, Refused) and error.is_final and error.code is Code.NOT_AUTHORIZED
    error = of_rpc(rpc_error(grpc.StatusCode.NOT_FOUND, "x", trunkline_code="gone", trunkline_retry="no"))
    assert error.is_gone and isinstance(error, Refused) and not error.is_final


def test_a_broken_connection_may_have_done_it_and_none_at_all_has_not():
    error = of_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    assert isinstance(error, NoAnswer) and error.may_have_happened
    error = of_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused"))
    assert isinstance(error, Unreachable) and not error.may_have_happened
    error = of_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "errors resolving nowhere:1: [field:hostname lookup error: Domain name not found]"))
    assert isinstance(error, Unreachable)
    assert of_rpc(rpc_error(grpc.StatusCode.DEADLINE_EXCEEDED)).may_have_happened
    assert of_rpc(rpc_error(grpc.StatusCode.UNIMPLEMENTED)).retry is Retry.NO


def test_what_may_be_tried_again():
    assert Code.GONE.retry is Retry.NO and Code.THROTTLED.retry is Retry.SAFE and Code.UNKNOWN.retry is Retry.SAME_KEY
    assert Code.of_name("no_leader") is Code.of_name("CODE_NO_LEADER") is Code.NO_LEADER
    assert Code.of_name("KeyReused") is Code.UNSPECIFIED and Code.of_number(99) is Code.UNSPECIFIED


def test_delays_grow_and_stay_bounded():
    backoff = _backoff.Backoff(0.1, 5.0)
    for attempt in range(100):
        full = _backoff.exponential(0.1, 5.0, attempt)
        assert full / 2 <= backoff.next() <= full <= 5.0
    backoff.reset()
    assert backoff.next() <= 0.1
    assert [_backoff.refuse_delay(attempt) for attempt in (0, 1, 2, 100)] == [1, 1, 2, 300]


@pytest.mark.parametrize("module", [_command, _handler])
def test_examples_of_docstrings(module):
    found = doctest.testmod(module, extraglobs={"Command": trunkline.Command, "Registration": Registration})
    assert found.attempted and not found.failed
