"""What a handler is given: the three kinds of events, and messages."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import parse_qsl

from trunkline.v1 import records_pb2 as records

Message: TypeAlias = str | bytes
"""A WebSocket message: text as `str`, binary as `bytes`."""


class EventKind(enum.IntEnum):
    """The kinds of events a handler may subscribe to."""

    OPENED = 1
    MESSAGE = 2
    CLOSED = 3


def received(message: records.MessageReceived) -> Message:
    """Text that is not UTF-8 cannot come from an edge; from elsewhere it is handed over as binary."""
    if message.kind == records.MESSAGE_KIND_TEXT:
        try:
            return message.payload.decode()
        except UnicodeDecodeError:
            pass
    return message.payload


def encoded(message: Message) -> tuple[records.MessageKind, bytes]:
    """Kind and payload on the wire. `ValueError` for text that has no UTF-8."""
    if isinstance(message, str):
        return records.MESSAGE_KIND_TEXT, message.encode()
    if isinstance(message, (bytes, bytearray, memoryview)):
        return records.MESSAGE_KIND_BINARY, bytes(message)
    raise TypeError(f"a message is str or bytes, not {type(message).__name__}")


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection as it was opened."""

    edge: str
    peer: str
    """`address:port` of the client."""
    path: str
    """As requested, without the query."""
    query: str
    """Without the question mark."""
    headers: tuple[tuple[str, str], ...]
    """Those that the edge hands on, names in lower case."""
    subprotocols: tuple[str, ...]
    """Offered by the client, in its order."""
    principal: str
    """Who the client proved to be; empty: nobody."""
    channels: tuple[str, ...]
    """Joined at once."""
    handler_group: str
    """Decides about the connection; empty: it was accepted at once."""
    subprotocol: str
    """Chosen at once; empty: none."""
    parameters: tuple[tuple[str, str], ...]
    """Of the path."""

    @classmethod
    def of(cls, opened: records.ConnectionOpened) -> Opened:
        def pairs(headers: Iterable[records.Header]) -> tuple[tuple[str, str], ...]:
            return tuple((header.name, header.value) for header in headers)

        return cls(
            edge=opened.edge,
            peer=opened.peer,
            path=opened.path,
            query=opened.query,
            headers=pairs(opened.headers),
            subprotocols=tuple(opened.subprotocols),
            principal=opened.principal,
            channels=tuple(opened.channels),
            handler_group=opened.handler_group,
            subprotocol=opened.subprotocol,
            parameters=pairs(opened.parameters),
        )

    def header(self, name: str) -> str | None:
        """The value of a header; names in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def parameter(self, name: str) -> str | None:
        """The value of a path parameter."""
        return next((value for key, value in self.parameters if key == name), None)

    def query_parameter(self, name: str) -> str | None:
        """The first value of a query parameter, percent-decoded; `+` is a space."""
        return self.query_parameters().get(name)

    def query_parameters(self) -> dict[str, str]:
        """All of them, of each the first value."""
        pairs = parse_qsl(self.query, keep_blank_values=True, errors="replace")
        return dict(reversed(pairs))


class CloseCause(enum.IntEnum):
    """Who or what closed a connection."""

    UNSPECIFIED = 0
    CLIENT = 1
    CLIENT_VANISHED = 2
    HANDLER = 3
    IDLE = 4
    PING_TIMEOUT = 5
    MAX_LIFETIME = 6
    SLOW_CONSUMER = 7
    PROTOCOL_ERROR = 8
    TOO_LARGE = 9
    RATE_LIMITED = 10
    REJECTED = 11
    EDGE_DRAINED = 12
    EDGE_LOST = 13
    REGISTRATION_TIMEOUT = 14

    @classmethod
    def of_number(cls, number: int) -> CloseCause:
        """Of a newer version: unspecified."""
        try:
            return cls(number)
        except ValueError:
            return cls.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Closed:
    """Why and how a connection ended."""

    code: int
    """The close code; 1006 where no close frame was seen."""
    reason: str
    """The close frame's reason."""
    cause: CloseCause

    @classmethod
    def of(cls, closed: records.ConnectionClosed) -> Closed:
        return cls(closed.code, closed.reason, CloseCause.of_number(closed.cause))
