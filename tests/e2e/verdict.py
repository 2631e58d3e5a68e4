"""How a run with faults ends: its clients and services finish, and everything they saw is judged (checker.py), first while the
clients are still connected, then when all is closed."""

from __future__ import annotations

import json
import time

import pytest

import checker
from clients import Crowd, Submitters
from harness import Cluster, until

APIS = """
[[api]]
name = "effects"
path = "/effects"

[[api]]
name = "watch"
path = "/watch"
registration = "accept"
channels = ["effects"]
"""
"""What such a run needs: an API whose handler has effects, and one that watches their channel."""


def end_and_judge(cluster: Cluster, crowd: Crowd, submitters: Submitters | None = None) -> list:
    """Ends a run and judges it. The submits there were."""
    submits = submitters.finish() if submitters else []
    crowd.quiet()
    judge_while_connected(cluster, crowd, submits)
    crowd.finish()
    until(lambda: not cluster.connections(), "every connection closed in the log", 40)
    judge_at_the_end(cluster, crowd)
    assert not crowd.errors, crowd.errors[:5]
    if submitters:
        assert not submitters.errors, submitters.errors[:5]
    return submits


def judge_while_connected(cluster: Cluster, crowd: Crowd, submits) -> None:
    """Deliveries: those who stayed connected must have everything, once what is under way has arrived."""
    end = time.monotonic() + 30
    while not crowd.answered and time.monotonic() < end:
        time.sleep(0.1)
    until(lambda: cluster.lag("effects") == 0, "the handler group to have settled everything", 30)
    end = time.monotonic() + 20
    while True:
        # read anew: an edge that was cut off brings what it holds when it is back, and that may be now
        log = cluster.tail()
        found = checker.deliveries(log, crowd.sessions) + checker.fan_out(log, crowd.watching, channel="effects")
        if not found or time.monotonic() > end:
            break
        time.sleep(0.2)
    found += checker.submits(log, submits, channel="submits")
    found += checker.effects(log, channel="effects", api="effects")
    found += checker.life(log, all_closed=False)
    found += [
        checker.Violation("answered", session.name, f"stayed connected, sent {session.sent} and got {len(session.acks)} answers")
        for session in crowd.sessions
        if session.end == "open" and len(session.acks) != session.sent
    ]
    fail_with(cluster, crowd, found)


def judge_at_the_end(cluster: Cluster, crowd: Crowd) -> None:
    log = cluster.tail()
    found = checker.log_order(log) + checker.life(log)
    found += checker.prefix(log, [*crowd.sessions, *crowd.watching])
    found += checker.handled(log, cluster.handled(), group="effects", api="effects")
    found += checker.deliveries(log, crowd.sessions) + checker.fan_out(log, crowd.watching, channel="effects")
    fail_with(cluster, crowd, found)


def fail_with(cluster: Cluster, crowd: Crowd, found: list[checker.Violation]) -> None:
    if not found:
        return
    (cluster.folder / "tail.jsonl").write_text(cluster.tail_text("--raw"))
    sessions = [session.__dict__ for session in [*crowd.sessions, *crowd.watching]]
    (cluster.folder / "sessions.json").write_text(json.dumps(sessions))
    pytest.fail(f"{checker.report(found)}\nhistories are in {cluster.folder}", pytrace=False)
