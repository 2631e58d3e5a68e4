"""Time travel: `state --at X` at 50 random offsets against a model that folds `tail --json`."""

from __future__ import annotations

import os
import random

import pytest

from harness import Cluster, state_at, until
from history import show_offset
from model import connections_at, differences
import wire

APIS = """
[[api]]
name = "gate"
path = "/gate"

[[api]]
name = "open"
path = "/open"
registration = "accept"
subprotocols = ["v1"]
channels = ["lobby", "news"]
"""
OFFSETS = 50
STEPS = 300


def live(cluster: Cluster, chance: random.Random) -> None:
    """Connections come, join, leave, get attributes and go, in random order."""
    address = cluster.edge.address("ws")
    sockets: list[wire.Socket] = []
    for step in range(STEPS):
        action = chance.choice(["open", "accept", "command", "command", "command", "http", "close", "vanish"])
        if action == "open" or not sockets:
            sockets.append(wire.Socket(address, "/open", **({"sec_websocket_protocol": "v1"} if chance.random() < 0.5 else {})))
            sockets[-1].decided = False
        elif action == "accept":
            query = chance.choice(["protocol=v9", "attribute=user:ada", "channel=blue", "attribute=a:b&channel=red&protocol=v9"])
            sockets.append(wire.Socket(address, f"/gate?{query}", sec_websocket_protocol="v9"))
            sockets[-1].decided = True
        elif action == "command":
            gated = [socket for socket in sockets if socket.decided]
            if gated:
                command = chance.choice(["join red", "join blue", "leave red", "leave blue", f"set k{step % 3} v{step}", "publish red hello"])
                chance.choice(gated).send_text(command)
        elif action == "http":
            rows = cluster.connections("--api", "open")
            if rows:
                channel, row = chance.choice(["green", "lobby"]), chance.choice(rows)
                method = chance.choice(["PUT", "DELETE"])
                answer = cluster.request(method, f"/v1/channels/{channel}/connections/{row['connection']}")
                assert answer.status_code in {204, 410}, answer.text
        else:
            socket = sockets.pop(chance.randrange(len(sockets)))
            if action == "close":
                socket.send(wire.frame(wire.CLOSE, b"\x03\xe8"))
            else:
                socket.sock.close()
    cluster.sockets = sockets  # some stay open, so that the present has connections too


@pytest.mark.short
@pytest.mark.parametrize("partitions", [1, 8])
def test_fifty_random_offsets_agree_with_a_replay_of_the_log(folder, partitions):
    seed = int(os.environ.get("TRUNKLINE_SEED", random.randrange(1 << 32)))
    print(f"TRUNKLINE_SEED={seed} repeats it")
    chance = random.Random(seed)
    # small snapshots, so that some offsets start from one
    cluster = Cluster(folder, APIS, partitions=partitions, snapshot_entries=100).start()
    cluster.handler("gate", group="gate", api="gate")
    live(cluster, chance)
    until(lambda: cluster.lag("gate") == 0, "the handler group to have settled everything")
    compare(cluster, chance, OFFSETS)
    # and after a restart, from disk alone
    cluster.broker.kill9()
    cluster.start_broker()
    compare(cluster, chance, 5)


def compare(cluster: Cluster, chance: random.Random, count: int) -> None:
    log = cluster.tail()
    assert len(log) > STEPS
    for _ in range(count):
        record = chance.choice(log)
        expected = connections_at(log, record.partition, record.offset)
        printed = state_at(cluster, record.partition, record.offset)
        found = differences(printed, expected)
        assert not found, f"partition {record.partition} at {show_offset(record.offset)}:\n" + "\n".join(found[:10])


@pytest.mark.short
def test_an_offset_that_is_not_there_yet_is_refused(dev):
    done = dev.cli("state", "--partition", "0", "--at", "999999999.0", "--json", ok=False)
    assert done.returncode != 0 and done.stderr, done
