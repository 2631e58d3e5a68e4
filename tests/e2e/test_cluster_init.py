"""`cluster init`: what it writes is started as it says, and is a cluster."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from harness import Process, binary, until
from several import Broker, free_ports

pytestmark = [pytest.mark.short, pytest.mark.timeout(120)]


def node(folder, row: dict, *flags: str) -> Process:
    """As the command says, but on ports nobody else has."""
    change, start = row["command"].split(" && ")
    start = start.replace("trunkline", str(binary()), 1)
    return Process(f"{row['role']}-{row['name']}", ["sh", "-c", " ".join([change, "&& exec", start, *flags])], folder)


def test_three_brokers_and_an_edge_form_a_cluster_from_what_was_written(folder, monkeypatch):
    links = free_ports(3, socket.SOCK_DGRAM)
    members = ",".join(f"127.0.0.1:{port}" for port in links)
    out = folder / "made"
    argv = [str(binary()), "cluster", "init", "--members", members, "--edge", "e1", "--partitions", "4", "--out", str(out), "--json"]
    made = subprocess.run(argv, check=True, capture_output=True, timeout=30)
    rows = [json.loads(line) for line in made.stdout.splitlines()]
    assert [(row["role"], row["name"]) for row in rows] == [("broker", "1"), ("broker", "2"), ("broker", "3"), ("edge", "e1")]
    again = subprocess.run(argv, capture_output=True, timeout=30)
    assert again.returncode == 1 and b"is there already" in again.stderr, again
    monkeypatch.chdir(out)
    brokers = [Broker(int(row["name"]), node(folder, row, "--grpc 127.0.0.1:0", "--http 127.0.0.1:0")) for row in rows[:3]]
    for broker in brokers:
        broker.process.start(ready=False)
    for broker in brokers:
        broker.process.wait_ready(60)
    until(lambda: all(broker.is_ready for broker in brokers), "every broker to know every leader", 60)
    status = json.loads(brokers[2].cli("cluster", "status", "--json").stdout)
    assert [(broker["standing"], broker["answered"]) for broker in status["brokers"]] == [("voter", True)] * 3
    assert status["partition_count"] == 4 and all(row["voters"] == [1, 2, 3] for row in status["partitions"])
    node(folder, rows[3], "--ws 127.0.0.1:0", "--edge-http 127.0.0.1:0").start(seconds=60)
    edges = until(lambda: brokers[1].get("/v1/cluster").json()["edges"], "the edge to be known", 30)
    assert [(edge["edge"], edge["attached"]) for edge in edges] == [("e1", True)]
