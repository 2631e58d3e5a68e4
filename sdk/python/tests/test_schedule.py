"""The schedule, without IO: the cases of sdk/rust/src/schedule/tests.rs, and whatever hypothesis finds."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trunkline import _limits as limits
from trunkline._schedule import Acknowledge, Bounds, Overflow, Park, Refuse, Schedule, Work
from trunkline.v1 import records_pb2 as records
from trunkline.v1 import trunkline_pb2 as wire

BOUNDS = Bounds(workers=4, credit=64, commits_max=2, extend_every=10.0)
NOW = 1000.0
APPLIED = wire.CODE_APPLIED


def event(offset: int, lane: int) -> wire.Event:
    return wire.Event(offset=offset, attempt=1, connection=bytes([lane]) * 16)


def events(partition: int, epoch: int, *of: wire.Event) -> wire.Events:
    return wire.Events(partition=partition, epoch=epoch, events=of)


def begin(*of: wire.Event) -> Schedule:
    schedule = Schedule(BOUNDS)
    schedule.handle_assigned(0, 1)
    if of:
        schedule.handle_events(NOW, events(0, 1, *of))
    return schedule


def work_of(schedule: Schedule) -> Work:
    work = schedule.next_work()
    assert work is not None
    return work


def commit_of(schedule: Schedule, now: float = NOW) -> wire.Commit:
    request = schedule.next_request(now)
    assert request is not None and request.HasField("commit"), request
    return request.commit


def acknowledge(schedule: Schedule, work: Work) -> None:
    schedule.handle_finished(work.number, Acknowledge([wire.Command()]))


def offsets(commit: wire.Commit) -> list[int]:
    return [outcome.offset for outcome in commit.outcomes]


def is_released(outcome: records.Outcome) -> bool:
    return outcome.HasField("refused") and outcome.refused.released


def test_one_event_of_a_connection_runs_at_a_time():
    schedule = begin(event(1, 1), event(2, 1), event(3, 2))
    first, other = work_of(schedule), work_of(schedule)
    assert (first.event.offset, other.event.offset) == (1, 3)
    assert schedule.next_work() is None
    acknowledge(schedule, first)
    assert work_of(schedule).event.offset == 2


def test_no_more_run_than_there_are_workers():
    schedule = begin(*(event(n, n) for n in range(1, 10)))
    runs = [work_of(schedule) for _ in range(4)]
    assert schedule.next_work() is None
    acknowledge(schedule, runs[2])
    assert work_of(schedule).event.offset == 5


def test_what_has_finished_goes_into_one_commit():
    schedule = begin(*(event(n, n) for n in range(1, 5)))
    for _ in range(4):
        acknowledge(schedule, work_of(schedule))
    commit = commit_of(schedule)
    assert (offsets(commit), len(commit.commands), commit.epoch) == ([1, 2, 3, 4], 4, 1)
    assert not schedule.has_request(NOW)
    assert schedule.handle_committed(NOW, commit.id, APPLIED) is None
    assert schedule.is_drained() and schedule.lanes == {}


def test_a_connection_s_later_outcome_waits_for_the_commit_before_it():
    schedule = begin(event(1, 1), event(2, 1))
    acknowledge(schedule, work_of(schedule))
    first = commit_of(schedule)
    acknowledge(schedule, work_of(schedule))
    assert not schedule.has_request(NOW)
    # came to nothing: both go together, in order, after a pause
    schedule.handle_committed(NOW, first.id, wire.CODE_THROTTLED)
    assert not schedule.has_request(NOW)
    later = schedule.next_timer()
    assert later is not None and later > NOW
    assert offsets(commit_of(schedule, later)) == [1, 2]


def test_the_pause_before_a_commit_grows_and_ends():
    schedule = begin(event(1, 1))
    acknowledge(schedule, work_of(schedule))
    now, pauses = NOW, []
    for _ in range(8):
        commit = commit_of(schedule, now)
        schedule.handle_committed(now, commit.id, wire.CODE_NO_LEADER)
        until = schedule.partitions[0].pause_until
        assert until is not None
        pauses.append(round(until - now, 3))
        now = until
        schedule.handle_timer(now)
    assert pauses[:3] == [0.05, 0.1, 0.2] and pauses[-1] == 5.0


def test_refusing_an_event_gives_back_the_later_ones():
    schedule = begin(event(1, 1), event(2, 1), event(3, 1))
    schedule.handle_finished(work_of(schedule).number, Refuse(0.7))
    refused = commit_of(schedule)
    assert offsets(refused) == [1, 2, 3]
    assert refused.outcomes[0].refused == records.Refused(delay_ms=700)
    assert all(map(is_released, refused.outcomes[1:]))
    # one more was on its way: it is given back too, and nothing runs
    schedule.handle_events(NOW, events(0, 1, event(4, 1)))
    assert schedule.next_work() is None
    schedule.handle_committed(NOW, refused.id, APPLIED)
    late = commit_of(schedule)
    assert offsets(late) == [4] and is_released(late.outcomes[0])
    schedule.handle_committed(NOW, late.id, APPLIED)
    # and then it all comes again
    schedule.handle_events(NOW, events(0, 1, event(1, 1), event(2, 1)))
    assert work_of(schedule).event.offset == 1


def test_a_refused_event_may_come_again_before_the_commit_s_answer():
    schedule = begin(event(1, 1))
    schedule.handle_finished(work_of(schedule).number, Refuse(0))
    refused = commit_of(schedule)
    schedule.handle_events(NOW, events(0, 1, event(1, 1), event(2, 1)))
    again = work_of(schedule)
    assert again.event.offset == 1
    schedule.handle_committed(NOW, refused.id, APPLIED)
    acknowledge(schedule, again)
    assert offsets(commit_of(schedule)) == [1]
    assert work_of(schedule).event.offset == 2


def test_a_parked_event_says_why_and_lets_the_next_one_run():
    schedule = begin(event(1, 1), event(2, 1))
    schedule.handle_finished(work_of(schedule).number, Park("poison"))
    assert work_of(schedule).event.offset == 2
    assert commit_of(schedule).outcomes[0].parked == records.Parked(reason="poison", attempt=1)


def test_a_redelivery_of_what_is_still_here_is_ignored():
    schedule = begin(event(1, 1), event(2, 1))
    work = work_of(schedule)
    schedule.handle_events(NOW, events(0, 1, event(1, 1), event(2, 1)))
    acknowledge(schedule, work)
    first = commit_of(schedule)
    schedule.handle_events(NOW, events(0, 1, event(1, 1)))
    schedule.handle_committed(NOW, first.id, APPLIED)
    work = work_of(schedule)
    assert work.event.offset == 2
    acknowledge(schedule, work)
    schedule.handle_committed(NOW, commit_of(schedule).id, APPLIED)
    assert schedule.is_drained()


def test_a_stale_epoch_drops_everything_but_the_runs():
    schedule = begin(*(event(n, n % 3) for n in range(1, 10)))
    work, still_running = work_of(schedule), work_of(schedule)
    acknowledge(schedule, work)
    schedule.handle_committed(NOW, commit_of(schedule).id, wire.CODE_STALE_EPOCH)
    assert not schedule.has_request(NOW) and schedule.next_work() is None
    schedule.handle_events(NOW, events(0, 1, event(10, 1)))
    assert schedule.next_work() is None, "events of an epoch that is over"
    # assigned again: the connection whose old run goes on waits for it
    schedule.handle_assigned(0, 2)
    schedule.handle_events(NOW, events(0, 2, event(still_running.event.offset, still_running.event.connection[0])))
    assert schedule.next_work() is None
    acknowledge(schedule, still_running)
    assert not schedule.has_request(NOW), "the old run comes to nothing"
    assert work_of(schedule).event.offset == still_running.event.offset


def test_a_partition_that_is_another_member_s_is_dropped_and_an_older_word_is_not_heard():
    schedule = begin(event(1, 1))
    schedule.handle_assigned(1, 5)
    schedule.handle_events(NOW, events(1, 5, event(1, 2)))
    schedule.handle_revoked(1, 4)
    assert 1 in schedule.partitions
    schedule.handle_revoked(1, 5)
    assert [work_of(schedule).partition] == [0]
    assert schedule.next_work() is None


def test_what_a_lost_stream_held_comes_to_nothing():
    schedule = begin(event(1, 1), event(2, 2))
    work = work_of(schedule)
    schedule.handle_disconnected()
    schedule.handle_assigned(0, 1)
    acknowledge(schedule, work)
    assert not schedule.has_request(NOW) and schedule.is_drained()


def test_one_outcome_that_is_not_open_does_not_hold_up_the_others():
    schedule = begin(event(1, 1), event(2, 2), event(3, 3))
    for _ in range(3):
        acknowledge(schedule, work_of(schedule))
    schedule.handle_committed(NOW, commit_of(schedule).id, wire.CODE_NOT_OPEN)
    sent = []
    while (request := schedule.next_request(NOW)) is not None:
        assert len(request.commit.outcomes) == 1
        sent.append(request.commit.outcomes[0].offset)
        schedule.handle_committed(NOW, request.commit.id, wire.CODE_NOT_OPEN if sent[-1] == 2 else APPLIED)
    assert sorted(sent) == [1, 2, 3]
    assert schedule.is_drained()


def test_events_after_one_whose_outcome_came_too_late_are_given_back_in_order():
    schedule = begin(event(1, 1), event(2, 1), event(3, 1))
    acknowledge(schedule, work_of(schedule))
    late, running = commit_of(schedule), work_of(schedule)
    assert (offsets(late), running.event.offset) == ([1], 2)
    schedule.handle_committed(NOW, late.id, wire.CODE_NOT_OPEN)
    assert not schedule.has_request(NOW), "3 goes back behind 2"
    acknowledge(schedule, running)
    assert schedule.next_work() is None
    back = commit_of(schedule)
    assert (offsets(back), len(back.commands)) == ([2, 3], 0)
    assert all(map(is_released, back.outcomes))
    schedule.handle_committed(NOW, back.id, APPLIED)
    schedule.handle_events(NOW, events(0, 1, event(1, 1), event(2, 1), event(3, 1)))
    for offset in (1, 2, 3):
        work = work_of(schedule)
        assert work.event.offset == offset
        acknowledge(schedule, work)


def test_an_answer_the_broker_finds_malformed_is_refused_without_its_commands():
    schedule = begin(event(1, 1), event(2, 1))
    acknowledge(schedule, work_of(schedule))
    bad, running = commit_of(schedule), work_of(schedule)
    assert schedule.handle_committed(NOW, bad.id, wire.CODE_INVALID) == wire.CODE_INVALID
    acknowledge(schedule, running)
    later = schedule.next_timer()
    assert later is not None
    again = commit_of(schedule, later)
    assert (offsets(again), len(again.commands)) == ([1, 2], 0)
    assert not is_released(again.outcomes[0]) and is_released(again.outcomes[1])
    # even that is not taken: it is the broker's to give it again
    schedule.handle_committed(later, again.id, wire.CODE_INVALID)
    while (request := schedule.next_request(later)) is not None:
        schedule.handle_committed(later, request.commit.id, wire.CODE_INVALID)
    assert schedule.is_drained()


def test_what_was_made_of_events_after_a_malformed_answer_is_given_back():
    schedule = begin(*(event(n, 1) for n in range(1, 5)))
    acknowledge(schedule, work_of(schedule))
    bad = commit_of(schedule)
    acknowledge(schedule, work_of(schedule))
    schedule.handle_committed(NOW, bad.id, wire.CODE_INVALID)
    later = schedule.next_timer()
    assert later is not None
    again = commit_of(schedule, later)
    assert (offsets(again), len(again.commands)) == ([1, 2, 3, 4], 0)
    assert [is_released(outcome) for outcome in again.outcomes] == [False, True, True, True]


def test_slow_events_are_extended():
    schedule = begin(event(1, 1), event(2, 1))
    work_of(schedule)
    later = schedule.next_timer()
    assert later == NOW + BOUNDS.extend_every
    schedule.handle_timer(later)
    request = schedule.next_request(later)
    assert request is not None and (request.extend.epoch, list(request.extend.offsets)) == (1, [2, 1])
    assert schedule.next_timer() == later + BOUNDS.extend_every


def test_commits_stay_within_the_limits():
    schedule = begin(event(1, 1), event(2, 2), event(3, 3))

    def large(size: int, count: int) -> list[wire.Command]:
        return [wire.Command(push=records.Pushed(kind=1, payload=bytes(size)))] * count

    for commands in (large(10, 1000), large(10, 100), large(3 << 20, 1)):
        schedule.handle_finished(work_of(schedule).number, Acknowledge(commands))
    assert offsets(commit_of(schedule)) == [1], "1,024 commands"
    assert offsets(commit_of(schedule)) == [2], "1 MiB"
    assert not schedule.has_request(NOW), "two commits are on their way"


def test_partitions_take_turns():
    schedule = Schedule(BOUNDS)
    for partition in range(3):
        schedule.handle_assigned(partition, 1)
        schedule.handle_events(NOW, events(partition, 1, event(1, 1), event(2, 2)))
    served = []
    for _ in range(6):
        work = work_of(schedule)
        acknowledge(schedule, work)
        commit = commit_of(schedule)
        served.append(commit.partition)
        schedule.handle_committed(NOW, commit.id, APPLIED)
    assert sorted(served) == [0, 0, 1, 1, 2, 2]
    for partition in range(3):
        schedule.handle_events(NOW, events(partition, 1, event(3, 1), event(4, 2)))
    for _ in range(2):
        acknowledge(schedule, work_of(schedule))
    acknowledge(schedule, work_of(schedule))
    order = []
    while (request := schedule.next_request(NOW)) is not None:
        order.append(request.commit.partition)
        schedule.handle_committed(NOW, request.commit.id, APPLIED)
    assert order == [0, 1], "after partition 2 the first one is served again"


def test_stopping_gives_back_what_has_not_begun():
    schedule = begin(event(1, 1), event(2, 1), event(3, 2))
    work = work_of(schedule)
    schedule.handle_stop()
    schedule.handle_stop()
    assert schedule.next_work() is None
    request = schedule.next_request(NOW)
    assert request is not None and request.credit.amount == -64
    given_back = commit_of(schedule)
    assert all(map(is_released, given_back.outcomes)) and len(given_back.outcomes) == 2
    schedule.handle_committed(NOW, given_back.id, APPLIED)
    assert not schedule.is_drained()
    # what was on its way is given back too
    schedule.handle_events(NOW, events(0, 1, event(4, 3)))
    schedule.handle_committed(NOW, commit_of(schedule).id, APPLIED)
    acknowledge(schedule, work)
    schedule.handle_committed(NOW, commit_of(schedule).id, APPLIED)
    assert schedule.is_drained()


def test_a_broker_that_ignores_the_credit_is_found_out():
    with pytest.raises(Overflow):
        begin(*(event(n, n % 7) for n in range(1, 130)))


def test_delays_fit_the_wire():
    schedule = begin(event(1, 1), event(2, 2))
    schedule.handle_finished(work_of(schedule).number, Refuse(1e12))
    schedule.handle_finished(work_of(schedule).number, Refuse(-5))
    assert [outcome.refused.delay_ms for outcome in commit_of(schedule).outcomes] == [2**32 - 1, 0]


class Model:
    """A broker in miniature: per connection an ordered list of events, redelivery of what was refused, leases that are lost."""

    def __init__(self) -> None:
        self.open: dict[tuple[int, int], list[int]] = {}
        self.given: set[tuple[int, int]] = set()
        self.settled: list[tuple[int, int]] = []

    def deliverable(self, partition: int, most: int) -> list[wire.Event]:
        """Of each connection the next few. What was refused waits until the member holds nothing later of its connection."""
        found = []
        for (of, lane), waiting in sorted(self.open.items()):
            if of != partition:
                continue
            fresh = [offset for offset in waiting if (partition, offset) not in self.given]
            if any((partition, offset) in self.given and offset > fresh[0] for offset in waiting if fresh):
                continue
            for offset in fresh[:most]:
                self.given.add((partition, offset))
                found.append(event(offset, lane))
        return found

    def apply(self, commit: wire.Commit) -> None:
        for outcome in commit.outcomes:
            waiting = next(at for (of, _), at in self.open.items() if of == commit.partition and outcome.offset in at)
            assert (commit.partition, outcome.offset) in self.given, "settled without being given"
            self.given.discard((commit.partition, outcome.offset))
            if not outcome.HasField("refused"):
                assert waiting[0] == outcome.offset, "settled out of order"
                waiting.pop(0)
                self.settled.append((commit.partition, outcome.offset))


# what moves things on comes more often, or little would be under way at once
CHOICES = [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 5, 6, 7, 8, 9, 10, 11]


# a slow machine is no fault of the schedule
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    lanes=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=20, max_size=60),
    choices=st.lists(st.tuples(st.sampled_from(CHOICES), st.integers(0, 2**16 - 1)), min_size=150, max_size=400),
)
def test_every_event_is_settled_once_and_in_order(lanes, choices):
    """Whatever finishes when, and whatever becomes of commits: order holds, everything is settled once, bounds hold."""
    now, schedule, model = NOW, Schedule(BOUNDS), Model()
    for number, key in enumerate(lanes):
        model.open.setdefault(key, []).append(number + 1)
    epochs = [1, 1, 1]
    for partition in range(3):
        schedule.handle_assigned(partition, 1)
    runs: list[Work] = []
    commits: deque[wire.Commit] = deque()
    # the generated chaos first, then a broker and a handler that behave, until nothing is left
    orderly = ((number % 5, number) for number in range(20_000))
    for choice, pick in (*choices, *orderly):
        if choice < 5 and not any(model.open.values()):
            break
        partition = pick % 3
        if choice == 0:
            schedule.handle_events(now, events(partition, epochs[partition], *model.deliverable(partition, 1 + pick // 3 % 4)))
        elif choice == 1:
            while (work := schedule.next_work()) is not None:
                for other in runs:
                    same = (other.partition, other.event.connection) == (work.partition, work.event.connection)
                    assert not same, "two runs of a connection"
                runs.append(work)
                assert len(runs) <= BOUNDS.workers
        elif choice in (2, 5, 6) and runs:
            work = runs.pop(pick % len(runs))
            verdict = {2: Acknowledge([wire.Command()] * (pick % 3)), 5: Refuse(0), 6: Park("no")}[choice]
            schedule.handle_finished(work.number, verdict)
        elif choice == 3:
            if (request := schedule.next_request(now)) is not None and request.HasField("commit"):
                assert 1 <= len(request.commit.outcomes) <= limits.OUTCOMES_MAX
                commits.append(request.commit)
                assert len(commits) <= BOUNDS.commits_max
        elif choice == 4 and commits:
            commit = commits.popleft()
            current = commit.epoch == epochs[commit.partition]
            if current:
                model.apply(commit)
            schedule.handle_committed(now, commit.id, APPLIED if current else wire.CODE_STALE_EPOCH)
        elif choice in (7, 8) and commits:
            schedule.handle_committed(now, commits.popleft().id, wire.CODE_THROTTLED if choice == 7 else wire.CODE_UNKNOWN)
        elif choice == 9:
            # the lease is lost and taken again: what was given is open again
            epochs[partition] += 1
            schedule.handle_revoked(partition, epochs[partition])
            schedule.handle_assigned(partition, epochs[partition])
            model.given = {key for key in model.given if key[0] != partition}
            commits = deque(commit for commit in commits if commit.partition != partition)
        elif choice == 10:
            now += 6
            schedule.handle_timer(now)
            assert schedule.held == schedule._count_held()
        else:
            now += 0.1
        if choice < 5 and pick % 50 == 0:
            now += 1
    assert not any(model.open.values()), f"left open: {model.open}"
    assert len(set(model.settled)) == len(model.settled) == len(lanes)
