"""Commands without a subscription, and connections as they are now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import grpc

from trunkline import _limits as limits
from trunkline._backoff import Backoff
from trunkline._channel import channel
from trunkline._command import Command
from trunkline._credentials import Addresses, Authority, credentials
from trunkline._errors import CommandError, CommandFailure, NoAnswer, Retry, TrunklineError, Untrusted, of_rpc, outcome
from trunkline._event import Message
from trunkline._ids import ConnectionId, Offset, connection_id
from trunkline.v1 import trunkline_pb2 as wire
from trunkline.v1.trunkline_pb2_grpc import ConnectionsStub, HandlersStub

RETRY = (0.05, 2.0)
"""First and longest wait before a submission is sent again."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Applied:
    """A command that is in the log."""

    partition: int
    """The partition whose log it is in."""
    offset: Offset
    """Where in it; zero for an unlogged publish."""
    forwarded: bool
    """Another partition carries it out: it is on its way there, and cannot be lost."""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as it is now."""

    id: ConnectionId
    api: str
    edge: str
    opened_at: float
    """Seconds since the epoch."""
    subprotocol: str
    attributes: Mapping[str, str]
    channels: tuple[str, ...]
    peer: str
    principal: str
    is_pending: bool
    """It waits for its handler's decision."""

    @classmethod
    def of(cls, connection: wire.Connection) -> Connection:
        return cls(
            id=ConnectionId(connection.connection),
            api=connection.api,
            edge=connection.edge,
            opened_at=connection.opened_at / 1_000_000,
            subprotocol=connection.subprotocol,
            attributes=dict(connection.attributes),
            channels=tuple(connection.channels),
            peer=connection.peer,
            principal=connection.principal,
            is_pending=connection.phase == wire.CONNECTION_PHASE_PENDING,
        )


Result = Applied | CommandFailure


class Client:
    """A client of a cluster by one of its brokers, which forwards to the leaders, or by several: then the next one is asked where
    one is away or cannot answer. Connects when first used and again when needed; use it in one event loop, and close it.

        async with Client("127.0.0.1:7070") as client:
            await client.publish("lobby", "the kitchen closes")
            await client.publish("till", '{"total": 12}', key="bill-4711")  # done once, however often an answer is lost

    | setting | meaning | default |
    |---|---|---|
    | `addresses` | brokers, one or several | TRUNKLINE_BROKER, else 127.0.0.1:7070 |
    | `token` | proves who calls; `trunkline token new` makes one | TRUNKLINE_TOKEN, else none |
    | `ca` | authority of the brokers' certificates, a PEM file or its content: they speak TLS | TRUNKLINE_CA, else the system's for `https://` |
    | `timeout` | seconds that one call may take, attempts included | 15 |
    """

    def __init__(
        self,
        addresses: Addresses | None = None,
        *,
        token: str | None = None,
        ca: Authority | None = None,
        timeout: float = 15.0,
    ) -> None:
        self._credentials, self._targets = credentials(addresses, token, ca)
        self._metadata = self._credentials.metadata
        self._timeout = timeout
        self._channels: dict[int, grpc.aio.Channel] = {}
        # which of them answered last
        self._turn = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        channels, self._channels = self._channels, {}
        for each in channels.values():
            await each.close()

    # ---- commands ------------------------------------------------------------------------------------------------------

    async def push(self, connection: ConnectionId | str, message: Message, *, key: str = "") -> Applied:
        """Sends a message to a connection."""
        return await self.submit_one(Command.push(connection, message), key=key)

    async def publish(
        self,
        channel: str,
        message: Message,
        *,
        but_not: Iterable[ConnectionId | str] = (),
        unlogged: bool = False,
        key: str = "",
    ) -> Applied:
        """Sends a message to a channel."""
        return await self.submit_one(Command.publish(channel, message, but_not=but_not, unlogged=unlogged), key=key)

    async def publish_to_api(
        self, api: str, message: Message, *, but_not: Iterable[ConnectionId | str] = (), unlogged: bool = False, key: str = ""
    ) -> Applied:
        """Sends a message to every connection of an API."""
        return await self.submit_one(Command.publish_to_api(api, message, but_not=but_not, unlogged=unlogged), key=key)

    async def close(self, connection: ConnectionId | str, code: int = 1000, reason: str = "", *, key: str = "") -> Applied:
        """Closes a connection. (`aclose` closes this client.)"""
        return await self.submit_one(Command.close(connection, code, reason), key=key)

    async def join(self, connection: ConnectionId | str, channel: str, *, key: str = "") -> Applied:
        """Puts a connection into a channel."""
        return await self.submit_one(Command.join(connection, channel), key=key)

    async def leave(self, connection: ConnectionId | str, channel: str, *, key: str = "") -> Applied:
        """Takes a connection out of a channel."""
        return await self.submit_one(Command.leave(connection, channel), key=key)

    async def set_attributes(
        self, connection: ConnectionId | str, attributes: Mapping[str, str], *, removed: Iterable[str] = (), key: str = ""
    ) -> Applied:
        """Sets attributes of a connection and removes others."""
        return await self.submit_one(Command.set_attributes(connection, attributes, removed=removed), key=key)

    async def submit_one(self, command: Command, *, key: str = "") -> Applied:
        """One command; raises what became of it otherwise."""
        result = (await self.submit([command], key=key))[0]
        if isinstance(result, CommandFailure):
            raise result
        return result

    async def submit(self, commands: Sequence[Command], *, key: str = "") -> list[Result]:
        """Several commands at once. A result for each, in order: one may fail while others are applied.

        `key` (at most 255 bytes) names the submission: sent again with the same key within ten minutes it is not done again, and the
        first result is returned. Tries again until the client's timeout, at another broker if there are several, where that cannot do
        anything twice: if nothing happened, or with a key."""
        if not commands:
            return []
        if len(commands) > limits.COMMANDS_MAX:
            raise CommandError(f"more than {limits.COMMANDS_MAX} commands at once")
        if len(key.encode()) > limits.KEY_BYTES_MAX:
            raise CommandError(f"an idempotency key has at most {limits.KEY_BYTES_MAX} bytes")
        request = wire.SubmitRequest(commands=[command.wire for command in commands], idempotency_key=key)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        backoff = Backoff(*RETRY)
        # another broker may prove who it is where one does not
        others = len(self._targets) - 1
        while True:
            turn, stub = self._turn, HandlersStub(self._channel())
            answer: list[Result] | TrunklineError
            try:
                left = max(deadline - loop.time(), 0.001)
                response = await _answer(stub.Submit(request, timeout=left, metadata=self._metadata))
                answer = _results(request, response)
            except TrunklineError as error:
                answer = error
            again = allows(answer.retry, key) if isinstance(answer, TrunklineError) else should_send_again(answer, key)
            if isinstance(answer, Untrusted) and others > 0:
                others, again = others - 1, True
            delay = backoff.next()
            if not again or loop.time() + delay >= deadline:
                if isinstance(answer, TrunklineError):
                    raise answer
                return answer
            self._next(turn)
            await asyncio.sleep(delay)

    # ---- connections ---------------------------------------------------------------------------------------------------

    async def connection(self, connection: ConnectionId | str) -> Connection:
        """A connection as it is now; an error whose `is_gone` is true if it is not there."""
        request = wire.GetConnectionRequest(connection=connection_id(connection).bytes)
        found: wire.Connection = await self._ask(
            lambda channel: ConnectionsStub(channel).Get(request, timeout=self._timeout, metadata=self._metadata)
        )
        return Connection.of(found)

    async def connections(
        self, *, api: str = "", channel: str = "", limit: int = 100, after: ConnectionId | str | None = None
    ) -> list[Connection]:
        """A page of connections, by API or channel. The next one begins `after` its last; it is empty at the end."""
        position = b"" if after is None else connection_id(after).bytes
        request = wire.ListConnectionsRequest(api=api, channel=channel, limit=limit, after=position)
        page: wire.ListConnectionsResponse = await self._ask(
            lambda channel: ConnectionsStub(channel).List(request, timeout=self._timeout, metadata=self._metadata)
        )
        return [Connection.of(connection) for connection in page.connections]

    # ---- brokers in turn -----------------------------------------------------------------------------------------------

    def _channel(self) -> grpc.aio.Channel:
        turn = self._turn
        if turn not in self._channels:
            self._channels[turn] = channel(self._targets[turn], self._credentials)
        return self._channels[turn]

    def _next(self, turn: int) -> None:
        """From now on the one after `turn` is asked, unless another call has seen to that already."""
        if self._turn == turn:
            self._turn = (turn + 1) % len(self._targets)

    async def _ask(self, call: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
        """Asks one broker after another, each once, until one answers. Only for what may be asked twice."""
        for left in reversed(range(len(self._targets))):
            turn = self._turn
            try:
                return await _answer(call(self._channel()))
            except TrunklineError as error:
                if left == 0 or (error.retry is Retry.NO and not isinstance(error, Untrusted)):
                    raise
                self._next(turn)
        raise AssertionError("there is at least one address")


async def _answer(call: Awaitable[T]) -> T:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise of_rpc(error) from None


def allows(retry: Retry, key: str) -> bool:
    """Whether what ended so may be sent again."""
    return retry is Retry.SAFE or (retry is Retry.SAME_KEY and bool(key))


def should_send_again(results: Sequence[Result], key: str) -> bool:
    """Without a key only if nothing at all happened: what was applied would be applied again."""
    retryable = [isinstance(result, CommandFailure) and allows(result.retry, key) for result in results]
    return any(retryable) if key else bool(retryable) and all(retryable)


def _results(request: wire.SubmitRequest, response: wire.SubmitResponse) -> list[Result]:
    if len(response.results) != len(request.commands):
        raise NoAnswer(f"{len(response.results)} results for {len(request.commands)} commands")
    return [_result(result) for result in response.results]


def _result(result: wire.CommandResult) -> Result:
    try:
        forwarded = outcome(result.status)
    except CommandFailure as failure:
        return failure
    return Applied(result.partition, Offset(result.offset), forwarded)
