"""A subscriber against a broker in miniature: what the pure parts decide arrives on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
from fake_broker import FakeBroker

import trunkline
from trunkline import Context, Handler, HandlerError, Message, Opened, Registration, Subscriber
from trunkline._channel import channel
from trunkline._credentials import Credentials
from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire


class Obedient(Handler):
    """Does what messages say."""

    def __init__(self) -> None:
        self.handled: list[tuple[int, str, int]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.running = self.running_max = 0

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def opened(self, cx: Context, opened: Opened) -> Registration:
        if opened.query == "no":
            return Registration.reject(403, "no")
        return Registration.accept(channels=["lobby"], attributes={"path": opened.path})

    async def message(self, cx: Context, message: Message) -> None:
        assert isinstance(message, str)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            self.handled.append((cx.connection.bytes[0], message, cx.attempt))
            word, _, rest = message.partition(" ")
            if word == "wait":
                await self.gate(rest).wait()
            elif word == "fail-once" and cx.attempt == 1:
                raise HandlerError.retry_after(0.05)
            elif word == "break" and cx.attempt == 1:
                raise RuntimeError("broken")
            elif word == "park":
                raise HandlerError.park(rest)
            elif word == "malformed" and cx.attempt == 1:
                cx.join("\7")
            elif word == "hang" and cx.attempt == 1:
                await asyncio.Event().wait()
            cx.push(message)
        finally:
            self.running -= 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals without a delay of their own come again soon."""
    monkeypatch.setattr("trunkline._backoff.REFUSE_DELAY", (0.02, 0.1))


@contextlib.asynccontextmanager
async def running(
    handler: Handler, *brokers: FakeBroker, addresses: list[str] | None = None, **settings: object
) -> AsyncIterator[asyncio.Task[None]]:
    subscriber = Subscriber(addresses or [broker.address for broker in brokers], group="test", member="m1", **settings)  # type: ignore[arg-type]
    task = asyncio.ensure_future(subscriber.run(handler))
    try:
        for broker in brokers:
            await broker.until("it joined", lambda broker=broker: broker.joins)  # type: ignore[misc]
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        for broker in brokers:
            await broker.stop()


def case(test):  # type: ignore[no-untyped-def]
    """Runs a coroutine as a test."""

    def run(quick: None) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test()

        asyncio.run(bounded())

    run.__name__ = test.__name__
    return run


@case
async def test_a_connection_s_messages_are_handled_in_order_and_others_beside_them():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, kinds=[trunkline.EventKind.MESSAGE], apis=["test"], credit=200):
        join = broker.joins[0]
        assert (join.group, join.member, list(join.apis), list(join.kinds), join.credit) == ("test", "m1", ["test"], [2], 200)
        assert join.start == records.Start(latest=True)
        for number in range(100):
            broker.message(number + 1, number % 5, f"m{number}")
        await broker.until_all_settled()
    for lane in range(5):
        assert [text for of, text, _ in handler.handled if of == lane] == [f"m{n}" for n in range(100) if n % 5 == lane]
    assert sorted(broker.pushed()) == sorted(f"m{n}" for n in range(100))


@case
async def test_a_slow_connection_delays_no_other_and_workers_are_bounded():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, workers=3):
        broker.message(1, 1, "wait here")
        for number in range(2, 30):
            broker.message(number, number, f"m{number}")
        await broker.until("all others are settled", lambda: len(broker.open) == 1)
        handler.gate("here").set()
        await broker.until_all_settled()
    assert 1 < handler.running_max <= 3


@case
async def test_a_refused_event_comes_again_before_the_connection_s_later_ones():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        for offset, text in enumerate(["a", "fail-once", "b", "break", "c", "malformed", "d"], 1):
            broker.message(offset, 1, text)
        await broker.until_all_settled()
    assert broker.pushed() == ["a", "fail-once", "b", "break", "c", "malformed", "d"]
    assert [attempt for _, text, attempt in handler.handled if text == "fail-once"] == [1, 2]


@case
async def test_a_handler_that_hangs_is_given_up():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, timeout=0.1):
        broker.message(1, 1, "hang")
        broker.message(2, 1, "after")
        await broker.until_all_settled()
    assert broker.pushed() == ["hang", "after"]


@case
async def test_a_dead_letter_is_parked_and_the_next_one_goes_on():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        broker.message(1, 1, "park not mine")
        broker.message(2, 1, "after")
        broker.event(wire.Event(offset=3, connection=b"\1" * 16))
        broker.event(wire.Event(offset=4, connection=b"short", message=records.MessageReceived(kind=1)))
        await broker.until_all_settled()
    assert broker.pushed() == ["after"]
    assert sorted(offset for offset, _ in broker.parked()) == [1, 3, 4] and (1, "not mine") in broker.parked()


@case
async def test_a_stream_that_ends_is_opened_again_and_open_events_are_handled_again():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        broker.message(1, 1, "wait here")
        await broker.until("it runs", lambda: True)
        while not handler.handled:
            await asyncio.sleep(0.01)
        broker.end_stream()
        await broker.until("it joined again", lambda: len(broker.joins) == 2)
        handler.gate("here").set()
        await broker.until_all_settled()
    assert [attempt for _, _, attempt in handler.handled] == [1, 2]
    assert broker.pushed() == ["wait here"], "the first run came to nothing"


@case
async def test_a_broker_that_was_away_is_joined_again():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        broker.message(1, 1, "a")
        await broker.until_all_settled()
        await broker.stop()
        broker.streams = None
        broker.message(2, 1, "b")
        await asyncio.sleep(0.3)
        await broker.start()
        await broker.until_all_settled()
    assert broker.pushed() == ["a", "b"]


@case
async def test_what_was_done_under_a_stale_epoch_is_dropped():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        broker.message(1, 1, "wait here")
        while not handler.handled:
            await asyncio.sleep(0.01)
        broker.reassign()
        handler.gate("here").set()
        await broker.until_all_settled()
    assert broker.commits[-1].epoch == 2
    assert len(handler.handled) == 2 and broker.pushed() == ["wait here"]


@case
async def test_a_commit_without_an_answer_is_sent_again_and_happens_once():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        broker.answers.extend([wire.CODE_THROTTLED, wire.CODE_NO_LEADER])
        broker.lose_answers = 1
        broker.message(1, 1, "a")
        await broker.until("four commits", lambda: len(broker.commits) >= 4)
        broker.message(2, 1, "b")
        await broker.until_all_settled()
    # the answer to the third was lost, and the fourth is told that it is not open any more
    assert broker.pushed() == ["a", "b"] and len(broker.commits) >= 5
    assert [text for _, text, _ in handler.handled] == ["a", "b"]


@case
async def test_slow_events_are_reported_as_worked_on():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, extend_every=0.05):
        broker.message(7, 1, "wait here")
        await broker.until("two extensions", lambda: len(broker.extends) >= 2)
        assert list(broker.extends[0].offsets) == [7]
        handler.gate("here").set()
        await broker.until_all_settled()


@case
async def test_a_cancelled_run_finishes_what_runs_and_gives_back_the_rest():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, credit=32) as task:
        for offset, text in enumerate(["wait here", "b", "c"], 1):
            broker.message(offset, 1, text)
        while not handler.handled:
            await asyncio.sleep(0.01)
        task.cancel()
        await broker.until("the credit is given back", lambda: broker.credits == [-32])
        assert not task.done()
        handler.gate("here").set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert broker.pushed() == ["wait here"]
    released = [outcome.offset for commit in broker.commits for outcome in commit.outcomes if outcome.refused.released]
    assert released == [2, 3] and [event.attempt for event in broker.open] == [1, 1]


@case
async def test_a_drain_ends_with_its_grace_and_a_second_cancellation_at_once():
    broker, handler = await FakeBroker().start(), Obedient()
    loop = asyncio.get_running_loop()
    async with running(handler, broker, grace=0.2) as task:
        broker.message(1, 1, "wait for ever")
        while not handler.handled:
            await asyncio.sleep(0.01)
        began = loop.time()
        task.cancel()
        await asyncio.wait([task])
        assert 0.15 < loop.time() - began < 5
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, grace=1000.0) as task:
        broker.message(1, 1, "wait for ever")
        while not handler.handled:
            await asyncio.sleep(0.01)
        task.cancel()
        await broker.until("it drains", lambda: broker.credits)
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.done()


@case
async def test_the_group_that_is_asked_decides_and_others_only_add():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker):
        for offset, (group, query) in enumerate([("test", ""), ("test", "no"), ("", ""), ("", "no"), ("other", "no")], 1):
            opened = records.ConnectionOpened(handler_group=group, query=query, path="/p")
            broker.event(wire.Event(offset=offset, connection=bytes([offset]) * 16, opened=opened))
        await broker.until_all_settled()
    commands = [command for commit in broker.applied for command in commit.commands]
    found = sorted((command.connection[0], command.WhichOneof("command")) for command in commands)
    assert found == [(1, "accept"), (2, "reject"), (3, "attributes"), (3, "join"), (4, "close")]


@case
async def test_decorated_functions_are_a_handler():
    broker, handler, closed = await FakeBroker().start(), Handler(), []

    @handler.on_opened
    async def opened(cx: Context, opened: Opened) -> Registration:
        return Registration.reject(418, "short and stout")

    @handler.on_message
    async def message(cx: Context, message: Message) -> None:
        cx.push(b"\0" if isinstance(message, bytes) else message.upper())

    @handler.on_closed
    async def on_closed(cx: Context, event: trunkline.Closed) -> None:
        closed.append((event.code, event.reason, event.cause))

    async with running(handler, broker):
        connection = b"\1" * 16
        broker.event(wire.Event(offset=1, connection=connection, opened=records.ConnectionOpened(handler_group="test")))
        broker.message(2, 1, "hello")
        broker.event(wire.Event(offset=3, connection=connection, closed=records.ConnectionClosed(code=1001, reason="bye", cause=4)))
        await broker.until_all_settled()
    assert broker.commits[0].commands[0].reject == records.ConnectionRejected(status=418, body=b"short and stout")
    assert broker.pushed() == ["HELLO"] and closed == [(1001, "bye", trunkline.CloseCause.IDLE)]


@case
async def test_a_subscription_that_is_forbidden_ends_after_what_runs_elsewhere():
    broker, handler = await FakeBroker().start(), Obedient()
    with pytest.raises(trunkline.Refused) as refused:
        # no trailers: it is the gRPC code that counts
        await Subscriber(broker.address, group="forbidden").run(handler)
    assert refused.value.grpc_code is grpc.StatusCode.PERMISSION_DENIED
    await broker.stop()


@case
async def test_a_member_that_is_given_one_broker_serves_all_and_joins_each_once():
    first, second, handler = await FakeBroker().start(), await FakeBroker().start(), Obedient()
    both = [wire.BrokerAddress(id=1, grpc=first.address), wire.BrokerAddress(id=2, grpc=second.address)]
    first.brokers, second.brokers = wire.Brokers(broker=1, brokers=both), wire.Brokers(broker=2, brokers=both)
    # an address where nobody is, and one broker twice
    addresses = ["127.0.0.1:1", first.address, f"http://{first.address}"]
    async with running(handler, first, second, addresses=addresses):
        first.message(1, 1, "a")
        second.message(1, 2, "b")
        await first.until_all_settled()
        await second.until_all_settled()
        assert (len(first.joins), len(second.joins)) == (1, 1)
    assert (first.pushed(), second.pushed()) == (["a"], ["b"])


def test_a_broker_that_is_away_is_spoken_of_once_and_when_it_is_back(caplog, monkeypatch):
    attempts, told = [], asyncio.Event()

    def counted(target: str, credentials: Credentials) -> grpc.aio.Channel:
        attempts.append(target)
        if len(attempts) == 5:
            told.set()
        return channel(target, credentials)

    async def main() -> None:
        broker, again = await FakeBroker().start(), FakeBroker()
        async with running(Obedient(), broker):
            monkeypatch.setattr("trunkline._session.channel", counted)
            await broker.stop()
            await told.wait()
            again.address = broker.address
            await again.start()
            await again.until("it joined again", lambda: again.joins)
            async with asyncio.timeout(20):
                while "is back after" not in caplog.text:
                    await asyncio.sleep(0.01)
        await again.stop()

    with caplog.at_level(logging.INFO, "trunkline"):
        asyncio.run(main())
    warned = [record.getMessage() for record in caplog.records if record.getMessage().startswith("no stream to the broker")]
    # the stream's end, that nobody is there, and perhaps that somebody is about to be
    assert 1 <= len(warned) <= 3 < len(attempts), warned


@case
async def test_what_retention_has_taken_is_told_and_a_handler_that_fails_at_that_goes_on():
    broker, handler, told = FakeBroker(), Handler(), []
    broker.trimmed = wire.TrimmedRange(**{"from": 1 << 16, "through": 5 << 16 | 2})
    await broker.start()

    @handler.on_trimmed
    def trimmed(gone: trunkline.Trimmed) -> None:
        told.append((gone.partition, str(gone.first), str(gone.last)))
        raise RuntimeError("no")

    @handler.on_message
    async def message(cx: Context, message: Message) -> None:
        cx.push(message)

    async with running(handler, broker):
        broker.message(6 << 16, 1, "a")
        await broker.until_all_settled()
    assert broker.pushed() == ["a"] and told == [(0, "1.0", "5.2")]
    with pytest.raises(TypeError):
        handler.on_trimmed(message)  # type: ignore[type-var]


@case
async def test_a_broker_that_sends_too_much_is_left():
    broker, handler = await FakeBroker().start(), Obedient()
    async with running(handler, broker, credit=2):
        for offset in range(1, 6):
            broker.open.append(wire.Event(offset=offset, connection=b"\1" * 16, message=records.MessageReceived(kind=1)))
        broker.give_out()
        broker.open.clear()
        await broker.until("it joined again", lambda: len(broker.joins) >= 2)
