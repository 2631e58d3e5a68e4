"""Brokers, edges and handlers of a cluster that end one after the other, while a crowd of clients goes on."""

from __future__ import annotations

import time

import pytest

from clients import Crowd, Submitters
from harness import until
from several import EDGE_GRACE_SECONDS, Several
from verdict import APIS, end_and_judge

pytestmark = pytest.mark.timeout(420)

WRITERS, WATCHERS = 100, 3
EVERYBODY = WRITERS + WATCHERS
PAUSE = 1.0
"""Seconds between two messages of a writer."""


def pause_of(crowd: Crowd, what: str) -> None:
    """Waits until the crowd is answered again, and says how long that took."""
    begun, answered = time.monotonic(), crowd.received
    until(lambda: crowd.received > answered + WRITERS, f"answers to everybody after {what}", 60)
    print(f"{what}: as many answers as writers after {time.monotonic() - begun:.1f} s")


def on_edge(cluster: Several, edge: str) -> set[str]:
    return {row["connection"] for row in cluster.connections("--limit", "1000") if row["edge"] == edge}


def test_everything_is_restarted_one_after_the_other_and_nothing_is_lost_or_repeated(folder):
    cluster = Several(folder, APIS).start()
    members = [cluster.handler("effects", group="effects", api="effects") for _ in range(2)]
    crowd = Crowd(cluster.ws_all, writers=WRITERS, watchers=WATCHERS, pause=PAUSE).start()
    http = [broker.process.http() for broker in cluster.brokers]
    submitters = Submitters(http, channel="submits", threads=2, pause=0.1).start()
    until(lambda: crowd.connected == EVERYBODY and crowd.received > WRITERS, "all clients connected and answered", 60)
    until(lambda: cluster.members("effects") == {"member-1", "member-2"}, "both members to have work", 30)

    leader = cluster.leader(0)
    leader.process.kill9()
    pause_of(crowd, f"the leader of partition 0, broker {leader.number}, was killed")
    cluster.restart(leader)
    for broker in cluster.brokers:
        broker.process.terminate()
        pause_of(crowd, f"broker {broker.number} was asked to end")
        assert broker.process.wait() == 0
        cluster.restart(broker)
    assert len(crowd.sessions) + len(crowd.watching) == EVERYBODY, "a client lost its connection though no edge ended"

    for ending, staying, how in [(0, 1, "SIGTERM"), (1, 0, "SIGKILL")]:
        kept = on_edge(cluster, f"edge-{staying + 1}")
        if how == "SIGTERM":
            # the second time everybody may be at the edge that ends: nobody goes back to one that was restarted
            assert kept
            assert cluster.edges[ending].stop() == 0
        else:
            cluster.edges[ending].kill9()
        until(lambda: crowd.connected == EVERYBODY, "those who lost their edge to be connected at the other", 60)
        until(lambda ending=ending: not on_edge(cluster, f"edge-{ending + 1}"), "the lost edge's connections closed in the log", EDGE_GRACE_SECONDS + 30)
        assert kept <= on_edge(cluster, f"edge-{staying + 1}"), "a client of the edge that stayed lost its connection"
        cluster.edges[ending].start(seconds=60)
    members[0].kill9()
    pause_of(crowd, "a member was killed")

    end_and_judge(cluster, crowd, submitters)


def test_a_killed_edges_connections_are_closed_once_and_soon(folder):
    cluster = Several(folder, APIS).start()
    crowd = Crowd(cluster.ws_all[:1], writers=0, watchers=40, pause=PAUSE).start()
    until(lambda: len(on_edge(cluster, "edge-1")) == 40, "all clients in the log", 60)
    lost = on_edge(cluster, "edge-1")
    killed = time.monotonic()
    cluster.edges[0].kill9()
    until(lambda: not on_edge(cluster, "edge-1"), "the lost edge's connections closed", EDGE_GRACE_SECONDS + 30)
    print(f"closed {time.monotonic() - killed:.1f} s after the kill; the grace is {EDGE_GRACE_SECONDS} s")
    closes = [record for record in cluster.tail() if record.kind == "connection_closed"]
    assert sorted(record.connection for record in closes) == sorted(lost)
    assert {record.fields["cause"] for record in closes} == {"edge_lost"}
    crowd.finish()


def test_a_member_that_hangs_past_its_lease_is_replaced_and_repeats_nothing(folder):
    cluster = Several(folder, APIS).start()
    first = cluster.handler("effects", group="effects", api="effects")
    cluster.handler("effects", group="effects", api="effects")
    crowd = Crowd(cluster.ws_all, writers=20, watchers=WATCHERS, pause=0.2).start()
    until(lambda: crowd.connected == 20 + WATCHERS and crowd.received > 100, "all clients connected and answered", 60)
    until(lambda: cluster.members("effects") == {"member-1", "member-2"}, "both members to have work", 30)
    before = {row["partition"]: row["epoch"] for row in cluster.groups() if row["member"] == "member-1"}
    first.pause()
    until(lambda: cluster.members("effects") == {"member-2"}, "the other member to have every partition", 30)
    after = {row["partition"]: row["epoch"] for row in cluster.groups()}
    assert all(after[partition] > epoch for partition, epoch in before.items())
    pause_from = crowd.received
    until(lambda: crowd.received > pause_from + 100, "answers by the other member", 30)
    first.resume()
    until(lambda: cluster.members("effects") == {"member-1", "member-2"}, "the member to have its partitions back", 60)
    # every effect once: what the paused member had in hand it could not commit any more
    end_and_judge(cluster, crowd)
