"""What every session of a subscription shares."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trunkline import _limits as limits
from trunkline._credentials import Credentials
from trunkline._errors import SettingError
from trunkline._event import EventKind
from trunkline._ids import Offset
from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire


@dataclass(frozen=True, slots=True)
class StartAt:
    """Where a new group begins. One that exists goes on where it was."""

    _start: tuple[str, int]

    @classmethod
    def earliest(cls) -> StartAt:
        """With the first event still there."""
        return cls(("earliest", 1))

    @classmethod
    def latest(cls) -> StartAt:
        """With the next event."""
        return cls(("latest", 1))

    @classmethod
    def offset(cls, offset: Offset) -> StartAt:
        """With the event at this offset (of every partition)."""
        return cls(("offset", int(offset)))

    @classmethod
    def time(cls, time: float) -> StartAt:
        """With the first event stamped at or after this time, in seconds since the epoch."""
        return cls(("time", int(time * 1_000_000)))

    @property
    def wire(self) -> records.Start:
        """As it is sent."""
        kind, value = self._start
        match kind:
            case "earliest":
                return records.Start(earliest=True)
            case "latest":
                return records.Start(latest=True)
            case "offset":
                return records.Start(offset=value)
            case _:
                return records.Start(time=value)


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a subscriber; their meaning and defaults are in its class."""

    credentials: Credentials
    group: str
    member: str
    apis: tuple[str, ...]
    kinds: tuple[EventKind, ...]
    start: StartAt
    credit: int
    max_attempts: int
    workers: int
    timeout: float
    extend_every: float
    grace: float

    def check(self) -> None:
        """Raises `SettingError` for what cannot be."""
        names: Iterable[tuple[str, str]] = [("handler group", self.group), ("member", self.member)]
        for what, name in [*names, *(("API", api) for api in self.apis)]:
            if not limits.is_name(name):
                raise SettingError(f"{name!r} is no name for a {what}: 1 to {limits.NAME_BYTES_MAX} of [A-Za-z0-9._-]")
        _in_range("the credit", self.credit, 1, limits.CREDIT_MAX)
        _in_range("the number of workers", self.workers, 1, 100_000)
        _in_range("the number of attempts", self.max_attempts, 0, 2**32 - 1)
        _in_range("the handler's timeout in seconds", self.timeout, 0.001, 24 * 3600)
        _in_range("the interval of extensions in seconds", self.extend_every, 0.001, 3600)
        _in_range("the grace in seconds", self.grace, 0, 24 * 3600)

    def join(self) -> wire.Join:
        """The first request of a stream."""
        return wire.Join(
            group=self.group,
            member=self.member,
            apis=self.apis,
            kinds=[int(kind) for kind in self.kinds],
            start=self.start.wire,
            credit=self.credit,
            max_attempts=self.max_attempts,
        )


def _in_range(what: str, value: float, least: float, most: float) -> None:
    # a NaN is in no range
    if not least <= value <= most:
        raise SettingError(f"{what} must be {least:g} to {most:g}, not {value:g}")
