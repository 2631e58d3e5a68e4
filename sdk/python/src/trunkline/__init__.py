"""Write handlers for Trunkline, and send commands to it.

A **handler** consumes the events of connections (opened, message, closed) and answers with commands (push, publish, close, join,
leave, set attributes). What it answers and the acknowledgement of the event are one entry of the log: both happen, or neither does.

    import trunkline

    handler = trunkline.Handler()

    @handler.on_message
    async def echo(cx: trunkline.Context, message: trunkline.Message) -> None:
        cx.push(message)

    trunkline.run(trunkline.Subscriber("127.0.0.1:7070", group="echo", apis=["echo"]), handler)

Events of one connection are handled in order, one at a time; those of different connections in parallel. An event is delivered at
least once: after a crash the same one may come again, with the same `Context.idempotency_key`. Commands collected in the `Context`
happen once even then.

A service that only sends uses the `Client`.
"""

from trunkline import _quiet as _quiet  # isort: skip
from trunkline._client import Applied, Client, Connection, Result
from trunkline._command import Command
from trunkline._context import Context
from trunkline._errors import (
    Code,
    CommandError,
    CommandFailure,
    Denied,
    NoAnswer,
    Refused,
    Retry,
    SettingError,
    TrunklineError,
    Unreachable,
    Untrusted,
)
from trunkline._event import CloseCause, Closed, EventKind, Message, Opened
from trunkline._handler import Handler, HandlerError, Registration, Trimmed
from trunkline._ids import ConnectionId, Offset
from trunkline._settings import StartAt
from trunkline._subscriber import Subscriber, run

__version__ = "0.1.0"

__all__ = [
    "Applied",
    "Client",
    "CloseCause",
    "Closed",
    "Code",
    "Command",
    "CommandError",
    "CommandFailure",
    "Connection",
    "ConnectionId",
    "Context",
    "Denied",
    "EventKind",
    "Handler",
    "HandlerError",
    "Message",
    "NoAnswer",
    "Offset",
    "Opened",
    "Refused",
    "Registration",
    "Result",
    "Retry",
    "SettingError",
    "StartAt",
    "Subscriber",
    "Trimmed",
    "TrunklineError",
    "Unreachable",
    "Untrusted",
    "run",
]
