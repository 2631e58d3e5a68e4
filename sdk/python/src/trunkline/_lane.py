"""A lane of the schedule: one connection's events in order, and what the handler made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire

DELAY_MS_MAX = 2**32 - 1


@dataclass(slots=True)
class Settled:
    """What the handler made of an event."""

    offset: int
    attempt: int
    since: float
    outcome: records.Outcome
    commands: Sequence[wire.Command]
    bytes: int

    @classmethod
    def new(cls, offset: int, attempt: int, since: float, outcome: records.Outcome, commands: Sequence[wire.Command] = ()) -> Settled:
        size = 32 + sum(command.ByteSize() + 32 for command in commands)
        return cls(offset, attempt, since, outcome, commands, size)

    @classmethod
    def acknowledged(cls, offset: int, attempt: int, since: float, commands: Sequence[wire.Command]) -> Settled:
        outcome = records.Outcome(offset=offset, acknowledged=records.Acknowledged())
        return cls.new(offset, attempt, since, outcome, commands)

    @classmethod
    def parked(cls, offset: int, attempt: int, since: float, reason: str) -> Settled:
        return cls.new(offset, attempt, since, records.Outcome(offset=offset, parked=records.Parked(reason=reason, attempt=attempt)))

    @classmethod
    def refused(cls, offset: int, attempt: int, since: float, delay: float) -> Settled:
        delay_ms = int(min(max(delay, 0.0) * 1000, DELAY_MS_MAX))
        return cls.new(offset, attempt, since, records.Outcome(offset=offset, refused=records.Refused(delay_ms=delay_ms)))

    @classmethod
    def released(cls, offset: int, attempt: int, since: float) -> Settled:
        return cls.new(offset, attempt, since, records.Outcome(offset=offset, refused=records.Refused(released=True)))

    @property
    def is_refused(self) -> bool:
        return self.outcome.HasField("refused")


@dataclass(slots=True)
class Lane:
    """One connection of one partition."""

    queue: deque[tuple[wire.Event, float]] = field(default_factory=deque)
    running: int | None = None
    """Number of the run."""
    settled: deque[Settled] = field(default_factory=deque)
    """Outcomes that wait to be sent, in order."""
    committing: int = 0
    """Outcomes in a commit without an answer."""
    listed: bool = False
    """In `sendable`."""
    ready: bool = False
    """In `ready`."""
    newest: int = 0
    """Highest offset seen: what comes above it cannot be held already."""
    refused: int | None = None
    """This event was refused, and the broker may not know yet: later ones that still come are given back."""
    alone: bool = False
    """Send outcomes one by one: a commit with several was refused for one of them."""

    def is_idle(self) -> bool:
        return not self.queue and self.running is None and not self.settled and self.committing == 0 and not self.ready

    def release(self) -> None:
        """Gives back what the lane has not begun."""
        while self.queue:
            event, since = self.queue.popleft()
            self.settled.append(Settled.released(event.offset, event.attempt, since))

    def release_settled(self) -> None:
        """Gives back what waits to be sent, in place of what the handler made of it."""
        self.settled = deque(Settled.released(later.offset, later.attempt, later.since) for later in self.settled)
