"""`kill -9` of the broker, the edge and the handler at random moments, while clients and services go on."""

from __future__ import annotations

import json
import os
import random
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

WRITERS = 200
WATCHERS = 5
PAUSE = 0.5
"""Seconds between two messages of a writer: 400 messages a second in all, each answered and fanned out."""


ONE = [("broker",), ("edge",), ("handler",)]
SEVERAL = [("broker", "edge"), ("broker", "handler"), ("edge", "handler"), ("broker", "edge", "handler")]


def run(cluster: Cluster, *, rounds: int, seed: int, writers: int = WRITERS, kinds=ONE) -> None:
    chance = random.Random(seed)
    cluster.start()
    handler = cluster.handler("effects", group="effects", api="effects")
    crowd = Crowd(cluster.ws(""), writers=writers, watchers=WATCHERS, pause=PAUSE).start()
    submitters = Submitters(cluster.broker.http(), channel="submits", threads=4, pause=0.02).start()
    until(lambda: crowd.connected == writers + WATCHERS and crowd.received > writers, "all clients connected and answered", 60)
    # every kind equally often, in random order
    planned = [kinds[number % len(kinds)] for number in range(rounds)]
    chance.shuffle(planned)
    for number, victims in enumerate(planned):
        time.sleep(chance.uniform(0.3, 2.5))  # the random moment
        for victim in victims:
            process = {"broker": cluster.broker, "edge": cluster.edge, "handler": handler}[victim]
            assert process.alive, f"{victim} died by itself before round {number}\n{process.tail_of_log()}"
            process.kill9()
        time.sleep(chance.uniform(0, 1))  # so long they are away
        if "broker" in victims:
            cluster.start_broker()
        if "edge" in victims:
            cluster.start_edge()
        if "handler" in victims:
            handler.start()
        answered, accepted = crowd.received, submitters.acked
        after = f"after round {number}, which killed {' and '.join(victims)}"
        until(lambda: crowd.received > answered + 50, f"answers {after}", 40)
        until(lambda: submitters.acked > accepted, f"a submit {after}", 40)
    until(lambda: crowd.connected == writers + WATCHERS, "all clients connected again", 60)
    submits = submitters.finish()
    crowd.quiet()
    judge_while_connected(cluster, crowd, submits)
    crowd.finish()
    until(lambda: not cluster.connections(), "every connection closed in the log", 40)
    judge_at_the_end(cluster, crowd)
    assert not crowd.errors, crowd.errors[:5]
    assert not submitters.errors, submitters.errors[:5]
    sent = sum(session.sent for session in crowd.sessions)
    print(f"{rounds} kills, {len(crowd.sessions)} sessions, {sent} messages sent, {len(submits)} submits, {submitters.retried} of them retried")


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


@pytest.mark.timeout(420)
def test_twenty_kills_break_no_promise(folder):
    seed = int(os.environ.get("TRUNKLINE_SEED", random.randrange(1 << 32)))
    print(f"TRUNKLINE_SEED={seed} repeats the order and the delays")
    run(Cluster(folder, APIS, snapshot_entries=500), rounds=20, seed=seed)


@pytest.mark.short
@pytest.mark.timeout(240)
def test_several_at_once_break_no_promise_with_eight_partitions(folder):
    seed = int(os.environ.get("TRUNKLINE_SEED", random.randrange(1 << 32)))
    print(f"TRUNKLINE_SEED={seed} repeats the order and the delays")
    run(Cluster(folder, APIS, partitions=8, snapshot_entries=200), rounds=14, seed=seed, writers=60, kinds=ONE + SEVERAL)
