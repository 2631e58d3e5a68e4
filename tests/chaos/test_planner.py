"""The plan: a function of its seed, complete, and never a run that says nothing."""

from __future__ import annotations

import pytest

import planner
from faults import FAULTS
from leftovers import SEED_MAX, prefix_of


def plans(count: int = 300, **options):
    return [planner.plan(seed, **({"seconds": 200} | options)) for seed in range(count)]


def test_every_kind_has_its_fault():
    assert set(planner.KINDS) == set(FAULTS)
    assert set(planner.SHORT) <= set(planner.KINDS)


def test_the_same_seed_is_the_same_plan_and_another_is_another():
    assert str(planner.plan(5, seconds=200)) == str(planner.plan(5, seconds=200))
    assert len({str(plan) for plan in plans(50)}) == 50


def test_every_fault_asked_for_is_planned():
    for plan in plans():
        assert plan.kinds == set(planner.KINDS)
    for plan in plans(faults=["power-all", "edge-pause"], seconds=60):
        assert plan.kinds == {"power-all", "edge-pause"}
        assert len(plan.episodes) > 2, "the time is filled"


def test_with_one_broker_only_what_one_broker_can_show():
    for plan in plans(brokers=1):
        assert plan.settings.brokers == 1
        assert all(planner.KINDS[kind].brokers == 1 for kind in plan.kinds)
        assert all(fault.victim <= 1 for episode in plan.episodes for fault in episode.faults if planner.KINDS[fault.kind].on == "broker")


def test_faults_that_overlap_leave_a_majority():
    overlapped = 0
    for plan in plans():
        for episode in plan.episodes:
            kinds = [planner.KINDS[fault.kind] for fault in episode.faults]
            overlapped += len(kinds) > 1
            assert sum(kind.on == "broker" for kind in kinds) <= 1
            of_brokers = [kind for kind in kinds if kind.on in ("broker", "brokers")]
            assert len(of_brokers) == 1 or not any(kind.alone for kind in of_brokers)
            assert len(kinds) == 1 or all(kind.on != "all" for kind in kinds)
            assert sum(kind.costs_disk for kind in kinds) <= 1
            edges = [fault.victim for fault in episode.faults if planner.KINDS[fault.kind].on == "edge"]
            assert len(edges) == len(set(edges))
    assert overlapped > 300, "a mixed run is mixed"


def test_five_brokers_may_lose_two_at_once():
    most = max(sum(planner.KINDS[fault.kind].on == "broker" for fault in episode.faults) for plan in plans(brokers=5) for episode in plan.episodes)
    assert most == 2


def test_one_at_a_time_is_one_at_a_time():
    assert all(len(episode.faults) == 1 for plan in plans(mixed=False) for episode in plan.episodes)


def test_what_cannot_be_planned_is_refused():
    with pytest.raises(ValueError, match="no fault 'earthquake'"):
        planner.plan(1, seconds=10, faults=["earthquake"])
    with pytest.raises(ValueError, match="needs 3 brokers"):
        planner.plan(1, seconds=10, faults=["partition-full"], brokers=1)


def test_no_runs_prefix_begins_anothers():
    prefixes = {prefix_of(seed) for seed in [0, 1, 35, 36, 1296, SEED_MAX]}
    assert len(prefixes) == 6 and {len(prefix) for prefix in prefixes} == {8}
