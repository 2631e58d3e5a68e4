"""The class users write their handlers with, and what its methods answer."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from trunkline._command import Command
from trunkline._context import Context
from trunkline._event import Closed, Message, Opened
from trunkline._ids import Offset


@dataclass(frozen=True, slots=True)
class Registration:
    """The decision about a new connection.

    >>> yes = Registration.accept(subprotocol="chat.v2", channels=["lobby"], attributes={"user": "ada"})
    >>> no = Registration.reject(403, "not today")
    """

    rejected: tuple[int, bytes] | None = None
    subprotocol: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    @classmethod
    def accept(
        cls,
        *,
        subprotocol: str = "",
        headers: Iterable[tuple[str, str]] = (),
        attributes: Mapping[str, str] | None = None,
        channels: Iterable[str] = (),
    ) -> Registration:
        """Lets the connection in: with one of the subprotocols it offered, headers in the answer to the handshake, attributes that
        are kept with it, and in channels from the start, so that it misses none of their publishes."""
        return cls(None, subprotocol, tuple(headers), dict(attributes or {}), tuple(channels))

    @classmethod
    def reject(cls, status: int, body: str | bytes = b"") -> Registration:
        """Turns it away with an HTTP status (400 to 599) and a body."""
        return cls(rejected=(status, body.encode() if isinstance(body, str) else body))


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a group misses of a partition: its start is not in the log any more, or an operator lets a full log go on without it."""

    partition: int
    """Whose log."""
    first: Offset
    """The first offset that is gone..."""
    last: Offset
    """... and the last one. Not every offset between them was an event of the group."""


class HandlerError(Exception):
    """An event could not be handled, and what is to become of it. Any other exception means: again, after a growing delay."""

    delay: float | None = None
    parked: str | None = None

    @classmethod
    def retry_after(cls, delay: float) -> HandlerError:
        """Deliver the event again after `delay` seconds (at most 49 days). Later events of the connection wait for it."""
        error = cls(f"the event is to come again after {delay:g} s")
        error.delay = delay
        return error

    @classmethod
    def park(cls, reason: str) -> HandlerError:
        """Set the event aside as a dead letter and go on with the connection's next one."""
        error = cls(f"the event is parked: {reason}")
        error.parked = reason
        return error


OnOpened = TypeVar("OnOpened", bound=Callable[[Context, Opened], Awaitable[Registration | None]])
OnMessage = TypeVar("OnMessage", bound=Callable[[Context, Message], Awaitable[None]])
OnClosed = TypeVar("OnClosed", bound=Callable[[Context, Closed], Awaitable[None]])
OnTrimmed = TypeVar("OnTrimmed", bound=Callable[[Trimmed], None])


class Handler:
    """Handles the events of connections: either override `opened`, `message` and `closed`, or decorate functions with
    `on_opened`, `on_message` and `on_closed`. What is not there answers with nothing, and accepts. `trimmed` and `on_trimmed` are told of
    events that nobody can be given any more.

    Events of one connection come one at a time and in order: opened, messages, closed. Different connections run in parallel, so
    handlers are coroutines; give what blocks to a thread (`await asyncio.to_thread(...)`). An event may come more than once (after
    a crash, or after an error): see `Context.idempotency_key`.
    """

    _on_opened: Callable[[Context, Opened], Awaitable[Registration | None]] | None = None
    _on_message: Callable[[Context, Message], Awaitable[None]] | None = None
    _on_closed: Callable[[Context, Closed], Awaitable[None]] | None = None
    _on_trimmed: Callable[[Trimmed], None] | None = None

    async def opened(self, cx: Context, opened: Opened) -> Registration | None:
        """A connection was opened. Where the API asks this group for a decision, the client gets its answer only when this returns;
        elsewhere channels and attributes of the answer are applied, and a rejection closes the connection. `None` accepts."""
        return None if self._on_opened is None else await self._on_opened(cx, opened)

    async def message(self, cx: Context, message: Message) -> None:
        """A message was received."""
        if self._on_message is not None:
            await self._on_message(cx, message)

    async def closed(self, cx: Context, closed: Closed) -> None:
        """A connection was closed. Nothing can be sent to it any more."""
        if self._on_closed is not None:
            await self._on_closed(cx, closed)

    def trimmed(self, trimmed: Trimmed) -> None:
        """Retention has taken events before this group was given them. Said at least once, and again at each assignment of the partition
        until the group has settled an event there. Called between events: no coroutine, and must return at once."""
        if self._on_trimmed is not None:
            self._on_trimmed(trimmed)

    def on_opened(self, function: OnOpened) -> OnOpened:
        """Decorates the function that decides about connections that open."""
        self._on_opened = _coroutine(function)
        return function

    def on_message(self, function: OnMessage) -> OnMessage:
        """Decorates the function that handles messages."""
        self._on_message = _coroutine(function)
        return function

    def on_closed(self, function: OnClosed) -> OnClosed:
        """Decorates the function that is told of connections that closed."""
        self._on_closed = _coroutine(function)
        return function

    def on_trimmed(self, function: OnTrimmed) -> OnTrimmed:
        """Decorates the function, no coroutine, that is told of events that retention has taken."""
        if inspect.iscoroutinefunction(function):
            raise TypeError(f"{function!r} must not be written `async def`: it is called between events")
        self._on_trimmed = function
        return function


Function = TypeVar("Function", bound=Callable[..., object])


def _coroutine(function: Function) -> Function:
    if not inspect.iscoroutinefunction(function) and not inspect.iscoroutinefunction(getattr(function, "__call__", None)):
        raise TypeError(f"{function!r} must be written `async def`: a handler that blocks would stop all others")
    return function


def decide(cx: Context, decider: str, registration: Registration) -> str | None:
    """Turns a registration into commands: a decision if this group is asked for one. Elsewhere the connection is open already:
    channels and attributes are applied to it, and a rejection closes it, unless another group decides. Returns a warning."""
    decides = decider == cx.group
    if registration.rejected is not None:
        if decides:
            cx.decide(Command.reject(cx.connection, *registration.rejected))
        elif decider:
            return f"the group {decider} decides about this connection"
        else:
            cx.close(1008, "rejected")
    elif decides:
        accept = Command.accept(
            cx.connection,
            subprotocol=registration.subprotocol,
            headers=registration.headers,
            attributes=registration.attributes,
            channels=registration.channels,
        )
        cx.decide(accept)
    else:
        if registration.attributes:
            cx.command(Command.set_attributes(cx.connection, registration.attributes))
        for channel in registration.channels:
            cx.join(channel)
    return None
