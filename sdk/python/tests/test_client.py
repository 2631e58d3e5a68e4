"""What a client sends, and when it sends it again."""

from __future__ import annotations

import asyncio
import socket
import time

import grpc
import pytest
from fake_broker import FakeBroker

from trunkline import Applied, Client, Code, Command, CommandError, CommandFailure, NoAnswer, Refused, Retry, Unreachable
from trunkline._client import should_send_again
from trunkline.v1 import trunkline_pb2 as wire

ID = "A" * 22
OTHER = "BAAAAAAAAAAAAAAAAAAAAA"


def results(*codes: int) -> wire.SubmitResponse:
    return wire.SubmitResponse(
        results=[wire.CommandResult(status=wire.Status(code=code), partition=1, offset=7) for code in codes]
    )


APPLIED = results(wire.CODE_APPLIED)
NO_LEADER = (grpc.StatusCode.UNAVAILABLE, "CODE_NO_LEADER", "safe")
UNKNOWN = (grpc.StatusCode.UNKNOWN, "CODE_UNKNOWN", "same-key")
# as a broken connection looks: no word from the broker
BROKEN = (grpc.StatusCode.UNAVAILABLE, "Socket closed", "")


def free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


def test_every_command_reaches_the_broker_with_its_key():
    async def main() -> None:
        broker = await FakeBroker().start()
        broker.submit.extend([APPLIED] * 8)
        async with Client(broker.address) as client:
            assert await client.push(OTHER, "x", key="k") == Applied(1, 7, False)  # type: ignore[arg-type]
            await client.publish("room", b"x", but_not=[OTHER], unlogged=True)
            await client.publish_to_api("chat", "x")
            await client.close(OTHER, 4000, "bye")
            await client.join(OTHER, "room", key="j")
            await client.leave(OTHER, "room", key="l")
            await client.set_attributes(OTHER, {"a": "b"}, removed=["c"])
            assert await client.submit([]) == []
        sent = [request.commands[0].WhichOneof("command") for request in broker.submitted]
        assert sent == ["push", "publish", "publish", "close", "join", "leave", "attributes"]
        assert [request.idempotency_key for request in broker.submitted] == ["k", "", "", "", "j", "l", ""]
        assert broker.submitted[1].commands[0].unlogged
        await broker.stop()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answers", "key", "sent", "end"),
    [
        ([NO_LEADER, APPLIED], "", 2, None),
        ([results(wire.CODE_THROTTLED), APPLIED], "", 2, None),
        ([UNKNOWN, APPLIED], "", 1, Refused),
        ([UNKNOWN, BROKEN, APPLIED], "key", 3, None),
        ([BROKEN], "", 1, NoAnswer),
        ([results(wire.CODE_UNKNOWN)], "", 1, CommandFailure),
        ([results(wire.CODE_GONE)], "key", 1, CommandFailure),
        ([results(wire.CODE_APPLIED, wire.CODE_APPLIED)], "", 1, NoAnswer),
        ([(grpc.StatusCode.FAILED_PRECONDITION, "CODE_KEY_REUSED", "no")], "key", 1, Refused),
    ],
)
def test_a_submission_is_sent_again_only_where_that_is_safe(answers, key, sent, end):
    async def main() -> None:
        broker = await FakeBroker().start()
        broker.submit.extend(answers)
        async with Client(broker.address) as client:
            if end is None:
                await client.publish("room", "x", key=key)
            else:
                with pytest.raises(end):
                    await client.publish("room", "x", key=key)
        assert len(broker.submitted) == sent
        assert all(request == broker.submitted[0] for request in broker.submitted)
        await broker.stop()

    asyncio.run(main())


def test_one_command_may_fail_alone():
    async def main() -> None:
        broker = await FakeBroker().start()
        broker.submit.append(results(wire.CODE_FORWARDED, wire.CODE_GONE))
        async with Client(broker.address) as client:
            first, second = await client.submit([Command.push(OTHER, "x"), Command.push(ID, "x")])
        assert isinstance(first, Applied) and first.forwarded and str(first.offset) == "0.7"
        assert isinstance(second, CommandFailure) and second.is_gone and second.retry is Retry.NO
        await broker.stop()

    asyncio.run(main())


def test_a_broker_that_is_not_there_is_named_so_and_tried_until_the_timeout():
    async def main() -> None:
        began = time.monotonic()
        async with Client(free_address(), timeout=0.5) as client:
            with pytest.raises(Unreachable) as error:
                await client.publish("room", "x")
        assert error.value.retry is Retry.SAFE and not error.value.may_have_happened
        assert time.monotonic() - began < 5

    asyncio.run(main())


def test_the_next_broker_is_asked_where_one_is_away_or_has_no_leader_and_stays_so():
    async def main() -> None:
        without, broker = await FakeBroker().start(), await FakeBroker().start()
        without.submit.extend([NO_LEADER] * 3)
        broker.submit.extend([APPLIED] * 2)
        async with Client([free_address(), without.address, broker.address]) as client:
            await client.publish("room", "x")
            await client.publish("room", "y")
        assert (len(without.submitted), len(broker.submitted)) == (1, 2)
        async with Client([free_address(), broker.address]) as client:
            assert (await client.connection(OTHER)).attributes == {"user": "ada"}
        await without.stop()
        await broker.stop()

    asyncio.run(main())


def test_a_connection_that_is_gone_is_told_apart():
    async def main() -> None:
        broker = await FakeBroker().start()
        async with Client(broker.address) as client:
            with pytest.raises(Refused) as error:
                await client.connection(ID)
        assert error.value.is_gone and error.value.code is Code.GONE
        await broker.stop()

    asyncio.run(main())


def test_what_is_too_much_is_not_sent():
    async def main() -> None:
        async with Client("127.0.0.1:1") as client:
            with pytest.raises(CommandError):
                await client.submit([Command.publish("room", "x")] * 1025)
            with pytest.raises(CommandError):
                await client.publish("room", "x", key="k" * 256)

    asyncio.run(main())


def test_without_a_key_only_what_did_not_happen_is_sent_again():
    def failed(code: Code) -> CommandFailure:
        return CommandFailure(code)

    done = Applied(0, 1, False)  # type: ignore[arg-type]
    assert should_send_again([failed(Code.NO_LEADER)], "")
    assert not should_send_again([done, failed(Code.NO_LEADER)], "")
    assert should_send_again([done, failed(Code.NO_LEADER)], "k")
    assert not should_send_again([failed(Code.UNKNOWN)], "")
    assert should_send_again([failed(Code.UNKNOWN)], "k")
    assert not should_send_again([done, failed(Code.GONE)], "k")
