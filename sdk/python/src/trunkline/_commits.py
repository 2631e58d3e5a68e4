"""Which outcomes go into which commit, and what its answer means for the lanes. The state that a schedule is made of."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from trunkline import _limits as limits
from trunkline._backoff import exponential, refuse_delay
from trunkline._lane import Lane, Settled
from trunkline.v1 import trunkline_pb2 as wire

COMMIT_BYTES_MAX = limits.ENTRY_BYTES_MAX - (64 << 10)
"""Bytes a commit's outcomes and commands may have together, unless one event's alone are more: with the records' headers it
stays about one log entry."""
COMMIT_RETRY = (0.05, 5.0)
"""First and longest wait before a commit that nothing came of is sent again."""


@dataclass(slots=True)
class Assignment:
    """An assignment of a partition. `generation` is never reused, an epoch may be seen again after a reconnect."""

    epoch: int
    generation: int
    pause_until: float | None = None
    """No commit before this moment: the last one came to nothing."""
    failures: int = 0
    sendable: deque[bytes] = field(default_factory=deque)
    """Lanes with outcomes to send, each once."""

    def may_commit(self, now: float) -> bool:
        return bool(self.sendable) and (self.pause_until is None or self.pause_until <= now)


@dataclass(slots=True)
class Running:
    """A run of the handler."""

    partition: int
    connection: bytes
    generation: int
    offset: int
    attempt: int
    since: float
    given_back: bool = False
    """An event before it comes again: so must this one."""


@dataclass(slots=True)
class InFlight:
    """A commit without an answer: lane by lane, each lane's outcomes in order."""

    partition: int
    settled: list[tuple[bytes, Settled]]


class Commits:
    """The part of a schedule that makes commits."""

    def __init__(self) -> None:
        self.partitions: dict[int, Assignment] = {}
        self.lanes: dict[int, dict[bytes, Lane]] = {}
        """By partition and connection."""
        self.running: dict[int, Running] = {}
        self.in_flight: dict[int, InFlight] = {}
        self.held = 0
        # partitions in turn, so that a busy one does not starve the others
        self._last_served = -1
        self._last_number = 0

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _lane(self, partition: int, connection: bytes) -> Lane | None:
        lanes = self.lanes.get(partition)
        return None if lanes is None else lanes.get(connection)

    def _list(self, partition: int, connection: bytes) -> None:
        lane, assignment = self._lane(partition, connection), self.partitions.get(partition)
        if lane is None or assignment is None:
            return
        if not lane.listed and lane.committing == 0 and lane.settled:
            lane.listed = True
            assignment.sendable.append(connection)

    def _drop_if_idle(self, partition: int, connection: bytes) -> None:
        lane = self._lane(partition, connection)
        if lane is not None and lane.is_idle():
            del self.lanes[partition][connection]
            if not self.lanes[partition]:
                del self.lanes[partition]

    def _next_commit(self, now: float) -> wire.Commit | None:
        may = [partition for partition, assignment in self.partitions.items() if assignment.may_commit(now)]
        if not may:
            return None
        partition = min(may, key=lambda partition: (partition <= self._last_served, partition))
        self._last_served = partition
        settled = self._collect(partition)
        if not settled:
            return None
        number = self._number()
        self.in_flight[number] = InFlight(partition, settled)
        return wire.Commit(
            id=number,
            partition=partition,
            epoch=self.partitions[partition].epoch,
            outcomes=[settled.outcome for _, settled in settled],
            commands=[command for _, settled in settled for command in settled.commands],
        )

    def _collect(self, partition: int) -> list[tuple[bytes, Settled]]:
        """Takes what fits one commit from the lanes whose turn it is."""
        taken: list[tuple[bytes, Settled]] = []
        commands = size = 0
        sendable = self.partitions[partition].sendable
        while sendable:
            connection = sendable[0]
            lane = self._lane(partition, connection)
            if lane is None or not lane.settled:
                sendable.popleft()
                if lane is not None:
                    lane.listed = False
                continue
            if lane.alone and taken:
                return taken  # next time
            while lane.settled:
                following = lane.settled[0]
                fits = (
                    len(taken) < limits.OUTCOMES_MAX
                    and commands + len(following.commands) <= limits.COMMANDS_MAX
                    and size + following.bytes <= COMMIT_BYTES_MAX
                )
                if taken and (not fits or lane.alone):
                    break
                commands += len(following.commands)
                size += following.bytes
                lane.committing += 1
                taken.append((connection, lane.settled.popleft()))
            if lane.committing == 0:
                return taken  # full before this lane's first: it stays in front
            sendable.popleft()
            lane.listed = False
            if lane.alone or lane.settled:
                return taken
        return taken

    def _settle(self, now: float, commit: InFlight) -> None:
        partition = commit.partition
        if (assignment := self.partitions.get(partition)) is not None:
            assignment.failures, assignment.pause_until = 0, None
        for connection, settled in commit.settled:
            self.held = max(self.held - 1, 0)
            lane = self._lane(partition, connection)
            if lane is None:
                continue
            lane.committing = max(lane.committing - 1, 0)
            if lane.refused == settled.offset:
                lane.refused = None
            lane.alone = lane.alone and bool(lane.settled)
            self._list(partition, connection)
            self._drop_if_idle(partition, connection)
        self._settled_some(now)

    def _settled_some(self, now: float) -> None:
        """Fewer events are held."""

    def _send_again(self, now: float, commit: InFlight, *, alone: bool) -> None:
        """Puts a commit's outcomes back where they came from."""
        assignment = self.partitions.get(commit.partition)
        if assignment is not None and not alone:
            pause = exponential(*COMMIT_RETRY, assignment.failures)
            assignment.failures += 1
            assignment.pause_until = now + pause
        for connection, settled in reversed(commit.settled):
            lane = self._lane(commit.partition, connection)
            if lane is not None:
                lane.committing = max(lane.committing - 1, 0)
                lane.alone = lane.alone or alone
                lane.settled.appendleft(settled)
                self._list(commit.partition, connection)

    def _give_back_later(self, commit: InFlight) -> None:
        """What its lane holds after the one event of this commit."""
        connection = commit.settled[0][0]
        lane = self._lane(commit.partition, connection)
        if lane is None:
            return
        lane.release_settled()
        run = None if lane.running is None else self.running.get(lane.running)
        if run is None:
            lane.release()
        else:
            # in order: what is queued goes back behind it
            run.given_back = True

    def _refuse_malformed(self, now: float, commit: InFlight) -> None:
        """The one outcome of this commit cannot be taken as it is: it becomes a refusal without commands, once."""
        connection, settled = commit.settled[0]
        if settled.is_refused:
            self._settle(now, commit)
            return
        refused = Settled.refused(settled.offset, settled.attempt, settled.since, refuse_delay(settled.attempt))
        commit.settled[0] = (connection, refused)
        lane = self._lane(commit.partition, connection)
        if lane is not None:
            lane.refused = settled.offset
            lane.release_settled()
            lane.release()
        self._send_again(now, commit, alone=False)
