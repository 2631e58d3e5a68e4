"""What a handler acts through while it handles one event. Nothing is sent before it returns: commands and acknowledgement are
one commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline import _limits as limits
from trunkline._command import Command
from trunkline._errors import CommandError
from trunkline._event import Message
from trunkline._ids import ConnectionId, Offset
from trunkline.v1 import trunkline_pb2 as wire

COMMAND_BYTES_MAX = limits.RECORD_BYTES_MAX
"""Most bytes of commands of one event: one largest message and what describes it must fit a commit."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an event comes from."""

    group: str
    partition: int
    offset: Offset
    time: int
    attempt: int
    connection: ConnectionId
    api: str


class Context:
    """The event being handled, and the commands it causes.

    The commands and the event's acknowledgement are one atomic commit: after the handler returns both happen, once, even if the
    event was delivered twice; after an exception none of them does. Commands to a connection that has gone meanwhile are refused
    alone and hold up nothing. A malformed command (a channel name with control characters, say) raises `CommandError`, and fails
    the event even if that is caught.
    """

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._commands: list[wire.Command] = []
        self._bytes = 0
        self._malformed: CommandError | None = None

    @property
    def connection(self) -> ConnectionId:
        """The connection the event belongs to."""
        return self._origin.connection

    @property
    def api(self) -> str:
        """The API the connection came in by."""
        return self._origin.api

    @property
    def group(self) -> str:
        """The handler group this handler is a member of."""
        return self._origin.group

    @property
    def partition(self) -> int:
        """The partition the event is in."""
        return self._origin.partition

    @property
    def offset(self) -> Offset:
        """The event's position in its partition's log."""
        return self._origin.offset

    @property
    def attempt(self) -> int:
        """How often the event has been delivered, this time included; from 1."""
        return self._origin.attempt

    @property
    def time(self) -> float:
        """When the event was put into the log, in seconds since the epoch."""
        return self._origin.time / 1_000_000

    @property
    def idempotency_key(self) -> str:
        """Names this event for good, whichever member handles it, however often: `group/partition/index.position`. Give it to
        other systems as the idempotency key of side effects."""
        return f"{self.group}/{self.partition}/{self.offset}"

    def push(self, message: Message) -> None:
        """Sends a message to this connection."""
        self.push_to(self.connection, message)

    def push_to(self, connection: ConnectionId | str, message: Message) -> None:
        """Sends a message to another connection."""
        self._make(lambda: Command.push(connection, message))

    def publish(self, channel: str, message: Message) -> None:
        """Sends a message to every connection of a channel."""
        self._make(lambda: Command.publish(channel, message))

    def publish_to_others(self, channel: str, message: Message) -> None:
        """Sends a message to every connection of a channel but this one."""
        self._make(lambda: Command.publish(channel, message, but_not=[self.connection]))

    def publish_to_api(self, api: str, message: Message) -> None:
        """Sends a message to every connection of an API."""
        self._make(lambda: Command.publish_to_api(api, message))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes this connection, after everything pushed to it before."""
        self._make(lambda: Command.close(self.connection, code, reason))

    def join(self, channel: str) -> None:
        """Puts this connection into a channel."""
        self._make(lambda: Command.join(self.connection, channel))

    def leave(self, channel: str) -> None:
        """Takes this connection out of a channel."""
        self._make(lambda: Command.leave(self.connection, channel))

    def set_attribute(self, key: str, value: str) -> None:
        """Sets one attribute of this connection."""
        self._make(lambda: Command.set_attributes(self.connection, {key: value}))

    def command(self, command: Command) -> None:
        """Any command, for this connection or another."""
        self._make(lambda: command)

    def _make(self, make: Callable[[], Command]) -> None:
        try:
            self._add(make())
        except CommandError as error:
            self._malformed = self._malformed or error
            raise

    def _add(self, command: Command) -> None:
        if command.wire.unlogged:
            raise CommandError("an unlogged publish has no acknowledgement to be part of: send it with a Client")
        if len(self._commands) >= limits.COMMANDS_MAX:
            raise CommandError(f"more than {limits.COMMANDS_MAX} commands for one event")
        size = command.wire.ByteSize()
        if self._bytes + size > COMMAND_BYTES_MAX:
            raise CommandError(f"the commands of one event exceed {COMMAND_BYTES_MAX} bytes together")
        self._bytes += size
        self._commands.append(command.wire)

    def decide(self, decision: Command) -> None:
        """Puts the decision about a connection before the other commands: welcome pushes follow it. What `Handler.opened` returns
        becomes one."""
        self._make(lambda: decision)
        self._commands.insert(0, self._commands.pop())

    def finish(self) -> Sequence[wire.Command]:
        """What was collected; raises what is wrong with it."""
        if self._malformed is not None:
            raise self._malformed
        return self._commands
