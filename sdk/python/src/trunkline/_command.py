"""Commands, checked when they are made: what a broker would refuse as malformed never becomes part of a commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from trunkline import _limits as limits
from trunkline._errors import CommandError
from trunkline._event import Message, encoded
from trunkline._ids import ConnectionId, connection_id
from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire

_CLOSE_CODES = frozenset({1000, 1001, 1008, 1011, 1012, 1013})


class Command:
    """One command: something to be done to a connection, a channel or an API. `CommandError` where it is malformed.

    >>> Command.publish("lobby", "someone came")
    Command(publish)
    """

    __slots__ = ("_wire",)

    def __init__(self, command: wire.Command) -> None:
        self._wire = command

    @property
    def wire(self) -> wire.Command:
        """As it is sent."""
        return self._wire

    def __repr__(self) -> str:
        return f"Command({self._wire.WhichOneof('command')})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Command) and self._wire == other._wire

    def __hash__(self) -> int:
        return hash(self._wire.SerializeToString(deterministic=True))

    @classmethod
    def push(cls, connection: ConnectionId | str, message: Message) -> Command:
        """Sends a message to one connection."""
        kind, payload = _checked(message)
        return cls(wire.Command(connection=_id(connection), push=records.Pushed(kind=kind, payload=payload)))

    @classmethod
    def publish(
        cls, channel: str, message: Message, *, but_not: Iterable[ConnectionId | str] = (), unlogged: bool = False
    ) -> Command:
        """Sends a message to every connection of a channel, except those in `but_not`.

        `unlogged` skips the log: at most once, for what the next one replaces anyway. By a `Client` only."""
        _check_channel(channel)
        return cls._published(message, but_not, unlogged, channel=channel)

    @classmethod
    def publish_to_api(
        cls, api: str, message: Message, *, but_not: Iterable[ConnectionId | str] = (), unlogged: bool = False
    ) -> Command:
        """Sends a message to every connection of an API, except those in `but_not`."""
        if not limits.is_name(api):
            raise CommandError(f"{api!r} is no API name: 1 to {limits.NAME_BYTES_MAX} of [A-Za-z0-9._-]")
        return cls._published(message, but_not, unlogged, api=api)

    @classmethod
    def _published(
        cls, message: Message, but_not: Iterable[ConnectionId | str], unlogged: bool, *, channel: str = "", api: str = ""
    ) -> Command:
        kind, payload = _checked(message)
        excepted = [_id(connection) for connection in but_not]
        if len(excepted) > limits.EXCEPT_MAX:
            raise CommandError(f"{len(excepted)} excepted connections exceed the limit of {limits.EXCEPT_MAX}")
        published = records.Published(channel=channel, api=api, kind=kind, payload=payload)
        # the field's name is a word of the language
        getattr(published, "except").extend(excepted)
        return cls(wire.Command(publish=published, unlogged=unlogged))

    @classmethod
    def close(cls, connection: ConnectionId | str, code: int = 1000, reason: str = "") -> Command:
        """Closes a connection: what was pushed before is sent first."""
        if code not in _CLOSE_CODES and not 3000 <= code <= 4999:
            raise CommandError(f"close code {code} may not be asked for: 1000, 1001, 1008, 1011, 1012, 1013 or 3000 to 4999")
        if (size := len(_utf8(reason, "the close reason"))) > limits.CLOSE_REASON_BYTES_MAX:
            raise CommandError(f"close reason of {size} bytes exceeds the limit of {limits.CLOSE_REASON_BYTES_MAX} bytes")
        return cls(wire.Command(connection=_id(connection), close=records.CloseRequested(code=code, reason=reason)))

    @classmethod
    def join(cls, connection: ConnectionId | str, channel: str) -> Command:
        """Puts a connection into a channel."""
        _check_channel(channel)
        return cls(wire.Command(connection=_id(connection), join=records.ChannelJoined(channel=channel)))

    @classmethod
    def leave(cls, connection: ConnectionId | str, channel: str) -> Command:
        """Takes a connection out of a channel."""
        _check_channel(channel)
        return cls(wire.Command(connection=_id(connection), leave=records.ChannelLeft(channel=channel)))

    @classmethod
    def set_attributes(
        cls, connection: ConnectionId | str, attributes: Mapping[str, str], *, removed: Iterable[str] = ()
    ) -> Command:
        """Sets attributes of a connection and removes others."""
        _check_attributes(attributes)
        changed = records.AttributesSet(set=dict(attributes), removed=list(removed))
        return cls(wire.Command(connection=_id(connection), attributes=changed))

    @classmethod
    def accept(
        cls,
        connection: ConnectionId | str,
        *,
        subprotocol: str = "",
        headers: Iterable[tuple[str, str]] = (),
        attributes: Mapping[str, str] | None = None,
        channels: Iterable[str] = (),
    ) -> Command:
        """Lets a connection in; what a registration turns into."""
        joined = list(channels)
        if len(joined) > limits.CHANNELS_PER_CONNECTION_MAX:
            raise CommandError(f"{len(joined)} channels exceed the limit of {limits.CHANNELS_PER_CONNECTION_MAX} a connection")
        for channel in joined:
            _check_channel(channel)
        _check_attributes(attributes or {})
        accepted = records.ConnectionAccepted(
            subprotocol=subprotocol,
            headers=[records.Header(name=name, value=value) for name, value in headers],
            attributes=dict(attributes or {}),
            channels=joined,
        )
        return cls(wire.Command(connection=_id(connection), accept=accepted))

    @classmethod
    def reject(cls, connection: ConnectionId | str, status: int, body: bytes = b"") -> Command:
        """Turns a connection away; what a registration turns into."""
        if not 400 <= status <= 599:
            raise CommandError(f"a rejection answers with an HTTP status of 400 to 599, not {status}")
        _check_payload(len(body))
        return cls(wire.Command(connection=_id(connection), reject=records.ConnectionRejected(status=status, body=body)))


def _id(connection: ConnectionId | str) -> bytes:
    try:
        return connection_id(connection).bytes
    except ValueError as error:
        raise CommandError(str(error)) from None


def _checked(message: Message) -> tuple[records.MessageKind, bytes]:
    try:
        kind, payload = encoded(message)
    except UnicodeEncodeError as error:
        raise CommandError(f"a text message has no UTF-8: {error}") from None
    _check_payload(len(payload))
    return kind, payload


def _check_payload(size: int) -> None:
    if size > limits.MESSAGE_BYTES_MAX:
        raise CommandError(f"payload of {size} bytes exceeds the limit of {limits.MESSAGE_BYTES_MAX} bytes")


def _check_channel(channel: str) -> None:
    if not limits.is_channel(channel):
        raise CommandError(
            f"{channel!r} is no channel name: 1 to {limits.CHANNEL_BYTES_MAX} bytes of UTF-8 without control characters"
        )


def _check_attributes(attributes: Mapping[str, str]) -> None:
    size = sum(len(_utf8(key, "an attribute")) + len(_utf8(value, "an attribute")) for key, value in attributes.items())
    if size > limits.ATTRIBUTES_BYTES_MAX:
        raise CommandError(f"attributes of {size} bytes exceed the limit of {limits.ATTRIBUTES_BYTES_MAX} bytes")


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise CommandError(f"{what} has no UTF-8: {error}") from None
