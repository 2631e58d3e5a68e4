"""Which event runs when, and which outcomes go into which commit. Pure: no task, no clock; the twin of sdk/rust/src/schedule.rs.

A **lane** is one connection of one partition. Its rules:
- one event of a lane runs at a time, in the order they came;
- outcomes of a lane that are on their way in a commit hold back its later ones, so that a commit that has to be sent again
  cannot be overtaken; commits of different lanes are pipelined;
- when an event is refused, everything the lane holds after it is given back untried (`released`), because the broker sends
  those again behind the refused one; so it is when an outcome came too late, and its event is to come again.

Bounds: events held ≤ twice the credit (a broker that does not keep to it is disconnected), running ≤ `workers`, commits in
flight ≤ `commits_max`, a commit ≤ the wire's limits. Times are seconds of one clock that does not go back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from trunkline._commits import Assignment, Commits, Running
from trunkline._lane import Lane, Settled
from trunkline.v1 import trunkline_pb2 as wire

@dataclass(frozen=True, slots=True)
class Bounds:
    """What bounds a schedule."""

    workers: int
    """Events that run at the same time."""
    credit: int
    """Events the broker may have on the way to this member. Up to as many again are held while the answers to their commits are
    on the way: the broker counts them settled already."""
    commits_max: int
    """Commits without an answer."""
    extend_every: float
    """How often events that are held are reported as worked on."""


@dataclass(frozen=True, slots=True)
class Work:
    """An event to run the handler on."""

    number: int
    partition: int
    event: wire.Event


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The event was handled; the commands happen together with its acknowledgement."""

    commands: Sequence[wire.Command] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """The event is to come again after so many seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Park:
    """The event is set aside as a dead letter."""

    reason: str


Verdict: TypeAlias = Acknowledge | Refuse | Park


class Overflow(Exception):
    """The broker sends more than it was given credit for."""

    def __init__(self, held_max: int) -> None:
        super().__init__(f"the broker sent more than {held_max} events at once")


@dataclass(slots=True)
class _Extending:
    at: float | None = None
    requests: deque[wire.Extend] = field(default_factory=deque)


class Schedule(Commits):
    """One member's events from one broker."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__()
        self.bounds = bounds
        self._ready: deque[tuple[int, bytes]] = deque()
        self._extending = _Extending()
        # gives the credit back once, when stopping
        self._credit_back: int | None = None
        self._stopping = False

    # ---- inputs --------------------------------------------------------------------------------------------------------

    def handle_assigned(self, partition: int, epoch: int) -> None:
        """The partition is this member's."""
        self._forget(partition)
        self.partitions[partition] = Assignment(epoch, self._number())

    def handle_revoked(self, partition: int, epoch: int) -> None:
        """The partition is another member's: what is held of it is dropped; runs go on and come to nothing."""
        assignment = self.partitions.get(partition)
        if assignment is not None and assignment.epoch <= epoch:
            self._forget(partition)

    def handle_disconnected(self) -> None:
        """The stream has ended, and with it the lease."""
        for partition in list(self.partitions):
            self._forget(partition)
        self._extending.requests.clear()

    def handle_events(self, now: float, events: wire.Events) -> None:
        """Events from the broker. Raises `Overflow` if they are more than it may send."""
        assignment = self.partitions.get(events.partition)
        if assignment is None or assignment.epoch != events.epoch:
            return
        for event in events.events:
            self._handle_event(now, events.partition, event)
        if self._extending.at is None:
            self._extending.at = now + self.bounds.extend_every
        if self.held > (held_max := self.bounds.credit * 2):
            raise Overflow(held_max)

    def _handle_event(self, now: float, partition: int, event: wire.Event) -> None:
        connection = event.connection
        if self._holds(partition, connection, event.offset):
            return
        self.held += 1
        lane = self.lanes.setdefault(partition, {}).setdefault(connection, Lane())
        lane.newest = max(lane.newest, event.offset)
        if lane.refused == event.offset:
            lane.refused = None
        if self._stopping or lane.refused is not None:
            lane.settled.append(Settled.released(event.offset, event.attempt, now))
            self._list(partition, connection)
        else:
            lane.queue.append((event, now))
            self._make_ready(partition, connection)

    def _holds(self, partition: int, connection: bytes, offset: int) -> bool:
        """A late redelivery of what is still here: the outcome to come settles it. A refused one is no longer here once its
        commit is on the way."""
        lane = self._lane(partition, connection)
        if lane is None or offset > lane.newest:
            return False
        if any(settled.offset == offset for settled in lane.settled) or any(event.offset == offset for event, _ in lane.queue):
            return True
        run = None if lane.running is None else self.running.get(lane.running)
        if run is not None and run.offset == offset and self._is_current(partition, run.generation):
            return True
        return lane.committing > 0 and any(
            key == connection and settled.offset == offset and not settled.is_refused
            for commit in self.in_flight.values()
            if commit.partition == partition
            for key, settled in commit.settled
        )

    def handle_finished(self, number: int, verdict: Verdict) -> None:
        """A run has ended."""
        run = self.running.pop(number, None)
        if run is None:
            return
        partition, connection = run.partition, run.connection
        lane = self._lane(partition, connection)
        if lane is None:
            return
        lane.running = None
        if not self._is_current(partition, run.generation):
            self._make_ready(partition, connection)
            self._drop_if_idle(partition, connection)
            return
        at = (run.offset, run.attempt, run.since)
        if run.given_back:
            lane.settled.append(Settled.released(*at))
            lane.release()
        elif lane.refused is not None:
            # a commit before this one came back refused for good: this event follows it
            lane.settled.append(Settled.released(*at))
        elif isinstance(verdict, Acknowledge):
            lane.settled.append(Settled.acknowledged(*at, verdict.commands))
        elif isinstance(verdict, Park):
            lane.settled.append(Settled.parked(*at, verdict.reason))
        else:
            lane.settled.append(Settled.refused(*at, verdict.delay))
            lane.refused = run.offset
            lane.release()
        self._list(partition, connection)
        self._make_ready(partition, connection)

    def handle_committed(self, now: float, number: int, code: int) -> int | None:
        """The broker's answer to a commit. Returns the code of a commit that was given up, for the log."""
        commit = self.in_flight.pop(number, None)
        if commit is None:
            return None
        if code in (wire.CODE_APPLIED, wire.CODE_FORWARDED):
            self._settle(now, commit)
        elif code == wire.CODE_STALE_EPOCH:
            self._forget(commit.partition)
        elif code in (wire.CODE_THROTTLED, wire.CODE_NO_LEADER, wire.CODE_UNKNOWN):
            # nothing happened, or nobody knows: the same again. If it had happened, it will not be open any more
            self._send_again(now, commit, alone=False)
        elif len(commit.settled) > 1:
            self._send_again(now, commit, alone=True)
        elif code == wire.CODE_NOT_OPEN:
            # too late: the broker gives it to somebody again, and then what comes after it
            self._give_back_later(commit)
            self._settle(now, commit)
        else:
            self._refuse_malformed(now, commit)
            return code
        return None

    def handle_stop(self) -> None:
        """Takes no more work, gives back what has not begun."""
        if self._stopping:
            return
        self._stopping = True
        self._credit_back = -self.bounds.credit
        self._ready.clear()
        for partition, lanes in self.lanes.items():
            for connection, lane in lanes.items():
                lane.ready = False
                lane.release()
                self._list(partition, connection)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        # else the timer would be due for as long as commits find no room
        for assignment in self.partitions.values():
            if assignment.pause_until is not None and assignment.pause_until <= now:
                assignment.pause_until = None
        if self._extending.at is None or self._extending.at > now:
            return
        self._extending.at = now + self.bounds.extend_every if self.held else None
        since = now - self.bounds.extend_every / 2
        self._extending.requests.clear()
        for partition, assignment in self.partitions.items():
            if offsets := list(self._held_before(partition, assignment.generation, since)):
                request = wire.Extend(partition=partition, epoch=assignment.epoch, offsets=offsets)
                self._extending.requests.append(request)

    # ---- outputs -------------------------------------------------------------------------------------------------------

    def next_work(self) -> Work | None:
        """The next event to run the handler on; `None` while every worker is busy or nothing waits."""
        while len(self.running) < self.bounds.workers and self._ready:
            partition, connection = self._ready.popleft()
            lane = self._lane(partition, connection)
            assignment = self.partitions.get(partition)
            if lane is None:
                continue
            lane.ready = False
            if not lane.queue or assignment is None:
                continue
            event, since = lane.queue.popleft()
            number = self._number()
            lane.running = number
            self.running[number] = Running(partition, connection, assignment.generation, event.offset, event.attempt, since)
            return Work(number, partition, event)
        return None

    def has_request(self, now: float) -> bool:
        """Whether `next_request` has something."""
        if self._credit_back is not None or self._extending.requests:
            return True
        return len(self.in_flight) < self.bounds.commits_max and any(
            assignment.may_commit(now) for assignment in self.partitions.values()
        )

    def next_request(self, now: float) -> wire.SubscribeRequest | None:
        """The next request to the broker."""
        if self._credit_back is not None:
            amount, self._credit_back = self._credit_back, None
            return wire.SubscribeRequest(credit=wire.Credit(amount=amount))
        if self._extending.requests:
            return wire.SubscribeRequest(extend=self._extending.requests.popleft())
        if len(self.in_flight) >= self.bounds.commits_max:
            return None
        commit = self._next_commit(now)
        return None if commit is None else wire.SubscribeRequest(commit=commit)

    def next_timer(self) -> float | None:
        """When `handle_timer` or `next_request` wants to be asked again."""
        times = [
            assignment.pause_until
            for assignment in self.partitions.values()
            if assignment.sendable and assignment.pause_until is not None
        ]
        if self._extending.at is not None:
            times.append(self._extending.at)
        return min(times, default=None)

    def is_drained(self) -> bool:
        """Whether nothing runs and nothing waits for an answer."""
        return self.held == 0 and not self.running and self._credit_back is None

    # ---- lanes ---------------------------------------------------------------------------------------------------------

    def _is_current(self, partition: int, generation: int) -> bool:
        assignment = self.partitions.get(partition)
        return assignment is not None and assignment.generation == generation

    def _make_ready(self, partition: int, connection: bytes) -> None:
        lane = self._lane(partition, connection)
        if lane is not None and lane.running is None and not lane.ready and lane.queue:
            lane.ready = True
            self._ready.append((partition, connection))

    def _forget(self, partition: int) -> None:
        """Drops everything held of a partition but the runs, which nobody can call back."""
        if self.partitions.pop(partition, None) is None and partition not in self.lanes:
            return
        self.in_flight = {number: commit for number, commit in self.in_flight.items() if commit.partition != partition}
        self._ready = deque(key for key in self._ready if key[0] != partition)
        self._extending.requests = deque(extend for extend in self._extending.requests if extend.partition != partition)
        lanes = self.lanes.pop(partition, {})
        running = {connection: Lane(running=lane.running) for connection, lane in lanes.items() if lane.running is not None}
        if running:
            self.lanes[partition] = running
        self.held = self._count_held()

    def _count_held(self) -> int:
        waiting = sum(
            len(lane.queue) + len(lane.settled) + lane.committing for lanes in self.lanes.values() for lane in lanes.values()
        )
        return waiting + sum(self._is_current(run.partition, run.generation) for run in self.running.values())

    def _held_before(self, partition: int, generation: int, since: float) -> Iterator[int]:
        for lane in self.lanes.get(partition, {}).values():
            yield from (event.offset for event, held in lane.queue if held <= since)
            yield from (settled.offset for settled in lane.settled if settled.since <= since)
        for run in self.running.values():
            if run.partition == partition and run.generation == generation and run.since <= since:
                yield run.offset
        for commit in self.in_flight.values():
            if commit.partition == partition:
                yield from (settled.offset for _, settled in commit.settled if settled.since <= since)

    def _settled_some(self, now: float) -> None:
        if self.held == 0:
            self._extending.at = None
        elif self._extending.at is None:
            self._extending.at = now + self.bounds.extend_every
