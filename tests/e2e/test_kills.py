"""`kill -9` of the broker, the edge and the handler at random moments, while clients and services go on."""

from __future__ import annotations

import os
import random
import time

import pytest

from clients import Crowd, Submitters
from harness import Cluster, until
from verdict import APIS, end_and_judge

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
    submits = end_and_judge(cluster, crowd, submitters)
    sent = sum(session.sent for session in crowd.sessions)
    print(f"{rounds} kills, {len(crowd.sessions)} sessions, {sent} messages sent, {len(submits)} submits, {submitters.retried} of them retried")


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
