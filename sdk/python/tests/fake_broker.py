"""A broker in miniature that speaks the real protocol: it gives out events in order, keeps what is open, applies commits or answers what
a test wants, and records everything."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc

from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire
from trunkline.v1.trunkline_pb2_grpc import (
    ConnectionsServicer,
    HandlersServicer,
    add_ConnectionsServicer_to_server,
    add_HandlersServicer_to_server,
)

Context = grpc.aio.ServicerContext
Asked, Answered = TypeVar("Asked"), TypeVar("Answered")


class FakeBroker(HandlersServicer, ConnectionsServicer):
    def __init__(self, *, token: str | None = None, cert: bytes | None = None, key: bytes | None = None) -> None:
        """With a token: nobody gets in without it. With a certificate and its key: speaks TLS."""
        self.token, self.cert, self.key = token, cert, key
        self.calls = 0
        self.trimmed: wire.TrimmedRange | None = None
        self.open: list[wire.Event] = []
        self.given: set[int] = set()
        self.epoch = 0
        self.streams: asyncio.Queue[wire.SubscribeResponse | grpc.StatusCode] | None = None
        self.brokers: wire.Brokers | None = None
        # what the next commits are answered in place of being applied
        self.answers: deque[int] = deque()
        # apply the commit, but answer that nobody knows
        self.lose_answers = 0
        self.joins: list[wire.Join] = []
        self.commits: list[wire.Commit] = []
        self.applied: list[wire.Commit] = []
        self.extends: list[wire.Extend] = []
        self.credits: list[int] = []
        self.submit: deque[wire.SubmitResponse | tuple[grpc.StatusCode, str, str]] = deque()
        self.submitted: list[wire.SubmitRequest] = []
        self.streams_ended = 0
        self._changed = asyncio.Condition()
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    async def start(self) -> FakeBroker:
        self._server = grpc.aio.server()
        add_HandlersServicer_to_server(self, self._server)
        add_ConnectionsServicer_to_server(self, self._server)
        if self.cert is None or self.key is None:
            port = self._server.add_insecure_port(self.address)
        else:
            port = self._server.add_secure_port(self.address, grpc.ssl_server_credentials([(self.key, self.cert)]))
        self.address = f"127.0.0.1:{port}"
        await self._server.start()
        if self.brokers is None:
            own = int(self.address.rpartition(":")[2])
            self.brokers = wire.Brokers(broker=own, brokers=[wire.BrokerAddress(id=own, grpc=self.address)])
        return self

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    async def until(self, what: str, condition: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(20), self._changed:
                await self._changed.wait_for(condition)
        except TimeoutError:
            raise AssertionError(f"never: {what}") from None

    async def until_all_settled(self) -> None:
        await self.until("everything is settled", lambda: not self.open)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # ---- what tests do -------------------------------------------------------------------------------------------------

    def message(self, offset: int, connection: int, text: str) -> None:
        message = records.MessageReceived(kind=records.MESSAGE_KIND_TEXT, payload=text.encode())
        self.event(wire.Event(offset=offset, connection=bytes([connection]) * 16, message=message))

    def event(self, event: wire.Event) -> None:
        event.attempt, event.api, event.time = 1, "test", event.offset
        self.open.append(event)
        self.give_out()

    def end_stream(self, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        """With it goes the lease: what is open is given again with attempt + 1."""
        if self.streams is not None:
            self.streams.put_nowait(code)
            self.streams = None
        for event in self.open:
            event.attempt += event.offset in self.given
        self.given.clear()

    def reassign(self) -> None:
        """Takes the partition away and gives it back, without a word about what is open."""
        self.given.clear()
        self._assign()
        self.give_out()

    def pushed(self) -> list[str]:
        """Payloads of the pushes of every commit that was applied, in order."""
        commands = (command for commit in self.applied for command in commit.commands)
        return [command.push.payload.decode() for command in commands if command.HasField("push")]

    def parked(self) -> list[tuple[int, str]]:
        outcomes = (outcome for commit in self.applied for outcome in commit.outcomes)
        return [(outcome.offset, outcome.parked.reason) for outcome in outcomes if outcome.HasField("parked")]

    # ---- the protocol --------------------------------------------------------------------------------------------------

    def send(self, **response: object) -> None:
        if self.streams is not None:
            self.streams.put_nowait(wire.SubscribeResponse(**response))  # type: ignore[arg-type]

    def give_out(self) -> None:
        fresh = [event for event in self.open if event.offset not in self.given]
        if fresh and self.streams is not None:
            self.given.update(event.offset for event in fresh)
            self.send(events=wire.Events(partition=0, epoch=self.epoch, events=fresh))

    async def _admit(self, context: Context[Asked, Answered]) -> None:
        self.calls += 1
        said = dict(context.invocation_metadata() or ()).get("authorization")
        if self.token is not None and said != f"Bearer {self.token}":
            trailers = (("trunkline-code", "unauthenticated"), ("trunkline-retry", "no"))
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed", trailers)

    def _assign(self) -> None:
        self.epoch += 1
        self.send(assigned=wire.Assigned(partition=0, epoch=self.epoch, trimmed=self.trimmed))

    async def Subscribe(  # noqa: N802
        self, requests: AsyncIterator[wire.SubscribeRequest], context: Context[wire.SubscribeRequest, wire.SubscribeResponse]
    ) -> AsyncIterator[wire.SubscribeResponse]:
        await self._admit(context)
        stream: asyncio.Queue[wire.SubscribeResponse | grpc.StatusCode] = asyncio.Queue()
        assert self.brokers is not None
        yield wire.SubscribeResponse(brokers=self.brokers)
        reading = asyncio.ensure_future(self._read(requests, stream))
        try:
            while isinstance(response := await stream.get(), wire.SubscribeResponse):
                yield response
            await context.abort(response, "as the test wants")
        finally:
            reading.cancel()
            self.streams_ended += 1

    async def _read(
        self, requests: AsyncIterator[wire.SubscribeRequest], stream: asyncio.Queue[wire.SubscribeResponse | grpc.StatusCode]
    ) -> None:
        async for request in requests:
            match request.WhichOneof("request"):
                case "join":
                    self._join(request.join, stream)
                case "commit":
                    self._commit(request.commit)
                case "extend":
                    self.extends.append(request.extend)
                case "credit":
                    self.credits.append(request.credit.amount)
            await self._tell()

    def _join(self, join: wire.Join, stream: asyncio.Queue[wire.SubscribeResponse | grpc.StatusCode]) -> None:
        if join.group == "forbidden":
            stream.put_nowait(grpc.StatusCode.PERMISSION_DENIED)
            return
        self.joins.append(join)
        self.streams = stream
        self.given.clear()
        self.send(joined=wire.Joined(partitions=1, broker=1))
        self._assign()
        self.give_out()

    def _commit(self, commit: wire.Commit) -> None:
        self.commits.append(commit)
        code = self.answers.popleft() if self.answers else self._apply(commit)
        self.send(committed=wire.CommitResult(id=commit.id, partition=0, status=wire.Status(code=code)))

    def _apply(self, commit: wire.Commit) -> int:
        if commit.epoch != self.epoch:
            return wire.CODE_STALE_EPOCH
        by_offset = {event.offset: event for event in self.open}
        if any(outcome.offset not in by_offset or outcome.offset not in self.given for outcome in commit.outcomes):
            return wire.CODE_NOT_OPEN
        self.applied.append(commit)
        for outcome in commit.outcomes:
            event = by_offset[outcome.offset]
            if outcome.HasField("refused"):
                event.attempt += not outcome.refused.released
                self.given.discard(event.offset)
                # what is released comes behind what was refused, or to somebody else
                if not outcome.refused.released:
                    asyncio.get_running_loop().call_later(outcome.refused.delay_ms / 1000, self.give_out)
            else:
                self.open.remove(event)
        if self.lose_answers:
            self.lose_answers -= 1
            return wire.CODE_UNKNOWN
        return wire.CODE_APPLIED

    async def Submit(  # noqa: N802
        self, request: wire.SubmitRequest, context: Context[wire.SubmitRequest, wire.SubmitResponse]
    ) -> wire.SubmitResponse:
        await self._admit(context)
        self.submitted.append(request)
        answer = self.submit.popleft() if self.submit else (grpc.StatusCode.UNIMPLEMENTED, "not expected", "no")
        if isinstance(answer, wire.SubmitResponse):
            return answer
        code, name, retry = answer
        trailers = (("trunkline-code", name), ("trunkline-retry", retry)) if retry else ()
        await context.abort(code, name, trailers)
        raise AssertionError("aborted")

    async def Get(  # noqa: N802
        self, request: wire.GetConnectionRequest, context: Context[wire.GetConnectionRequest, wire.Connection]
    ) -> wire.Connection:
        await self._admit(context)
        if request.connection == bytes(16):
            trailers = (("trunkline-code", "CODE_GONE"), ("trunkline-retry", "no"))
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such connection", trailers)
        return wire.Connection(connection=request.connection, api="test", attributes={"user": "ada"}, opened_at=1_500_000)
