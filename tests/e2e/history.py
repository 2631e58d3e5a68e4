"""What a run leaves behind: the records of the log, what each client sent and received, what was submitted.

Pure data and parsing; `checker.py` judges it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

EVENTS = frozenset({"connection_opened", "message_received", "connection_closed"})

Offset = tuple[int, int]


def parse_offset(text: str) -> Offset:
    """`index.position` as a pair that orders like the log."""
    index, position = text.split(".")
    return int(index), int(position)


def show_offset(offset: Offset) -> str:
    return f"{offset[0]}.{offset[1]}"


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a partition's log, as `trunkline tail --json` prints it."""

    partition: int
    offset: Offset
    time: str
    kind: str
    connection: str | None = None
    fields: dict = field(default_factory=dict)

    @property
    def payload(self) -> bytes:
        if "text" in self.fields:
            return self.fields["text"].encode()
        return base64.b64decode(self.fields.get("base64", ""))

    @property
    def text(self) -> str:
        return self.payload.decode("utf-8", "replace")

    @property
    def place(self) -> str:
        return f"{self.partition}/{show_offset(self.offset)}"

    @property
    def refused(self) -> bool:
        return bool(self.fields.get("refused"))


def parse_record(shown: str | dict) -> Record:
    """A record as JSON, or as what JSON says."""
    fields = json.loads(shown) if isinstance(shown, str) else dict(shown)
    return Record(
        partition=fields.pop("partition"),
        offset=parse_offset(fields.pop("offset")),
        time=fields.pop("time"),
        kind=fields.pop("kind"),
        connection=fields.pop("connection", None),
        fields=fields,
    )


def parse_tail(text: str) -> list[Record]:
    """The output of `trunkline tail --json`; a torn last line is an error, as it would be for a user's script."""
    return [parse_record(line) for line in text.splitlines() if line.strip()]


@dataclass
class Session:
    """One WebSocket as its client saw it. Its messages are `NAME#NUMBER`, numbered from 0."""

    name: str
    sent: int = 0
    """Messages handed to the client library; the log may hold a prefix of them."""
    acks: list[int] = field(default_factory=list)
    """Numbers in the pushes received, in order of arrival."""
    published: list[str] = field(default_factory=list)
    """Texts of the publishes received, in order of arrival."""
    end: str = "open"
    """`open` while connected, `clean` when this client closed and got the answer, `lost` for everything else."""
    close_code: int | None = None


def message(name: str, number: int) -> str:
    return f"{name}#{number}"


def parse_message(text: str) -> tuple[str, int] | None:
    name, mark, number = text.rpartition("#")
    if not mark or not name or not number.isdigit():
        return None
    return name, int(number)


@dataclass
class Submit:
    """One submitted publish. Its payload is unique in the run."""

    payload: str
    outcome: str
    """`acked`, `refused` (it had and will have no effect) or `unknown` (it may have)."""
    place: str | None = None
    """`partition/index.position` as acknowledged."""
    begun: float = 0
    """Monotonic seconds when it was first sent."""
    ended: float = 0
    """And when its outcome was known."""


@dataclass(frozen=True, slots=True)
class Handled:
    """One event as the handler process wrote it down before it answered."""

    group: str
    partition: int
    offset: Offset
    attempt: int
    kind: str
    connection: str
    text: str


def parse_journal(lines: Iterable[str]) -> list[Handled]:
    """The journal of the test handler. A line torn by `kill -9` can only be the last of a process: it is skipped."""
    handled = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        handled.append(
            Handled(
                group=row["group"],
                partition=row["partition"],
                offset=parse_offset(row["offset"]),
                attempt=row["attempt"],
                kind=row["kind"],
                connection=row["connection"],
                text=row.get("text", ""),
            )
        )
    return handled
