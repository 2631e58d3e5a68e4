"""Ids and positions as types."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ConnectionId:
    """One WebSocket connection: 16 random bytes, shown as 22 characters of base64url. Opaque and unguessable."""

    bytes: bytes

    def __post_init__(self) -> None:
        if len(self.bytes) != 16:
            raise ValueError(f"a connection id is 16 bytes, not {len(self.bytes)}")

    @classmethod
    def parse(cls, text: str) -> ConnectionId:
        """From its 22 characters; `ValueError` for anything else."""
        try:
            if len(text) != 22 or not text.isascii():
                raise ValueError
            raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
            connection = cls(raw)
        except (ValueError, binascii.Error):
            raise ValueError(f"{text!r} is no connection id: 22 characters of base64url") from None
        if str(connection) != text:
            raise ValueError(f"{text!r} is no connection id: its last character has bits that mean nothing")
        return connection

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(self.bytes).rstrip(b"=").decode()

    def __repr__(self) -> str:
        return f"ConnectionId({str(self)!r})"


class Offset(int):
    """Position of a record in its partition: `raft index << 16 | position in the entry`, shown as `index.position`."""

    @classmethod
    def parse(cls, text: str) -> Offset:
        """From `index.position`; `ValueError` for anything else."""
        index, dot, position = text.partition(".")
        if not (dot and text.isascii() and index.isdigit() and position.isdigit()):
            raise ValueError(f"{text!r} is no offset: index.position is expected, for example 1042.0")
        if int(index) >> 48 or int(position) >> 16:
            raise ValueError(f"{text!r} is no offset: it is too large")
        return cls(int(index) << 16 | int(position))

    @property
    def index(self) -> int:
        """Of the log entry."""
        return int(self) >> 16

    @property
    def position(self) -> int:
        """Within the entry."""
        return int(self) & 0xFFFF

    def __str__(self) -> str:
        return f"{self.index}.{self.position}"

    def __repr__(self) -> str:
        return f"Offset({str(self)!r})"


def connection_id(connection: ConnectionId | str) -> ConnectionId:
    """The id, given as such or as text."""
    return connection if isinstance(connection, ConnectionId) else ConnectionId.parse(connection)
