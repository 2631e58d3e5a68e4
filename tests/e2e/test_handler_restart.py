"""A handler that stops leaves its clients connected, and gets everything when it returns."""

from __future__ import annotations

import pytest
import websockets.sync.client

import checker
from harness import Cluster, until

pytestmark = pytest.mark.short

APIS = """
[[api]]
name = "echo"
path = "/echo"
"""
CLIENTS = 20
MESSAGES = 25


def connect(cluster):
    return websockets.sync.client.connect(cluster.ws("/echo"), compression=None, legacy=True)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
def test_clients_stay_and_the_handler_gets_everything_when_it_returns(folder, how):
    cluster = Cluster(folder, APIS).start()
    handler = cluster.handler("echo", group="echo", api="echo")
    clients = [connect(cluster) for _ in range(CLIENTS)]
    for client in clients:
        client.send("before")
        assert client.recv(timeout=10) == "before"
    if how == "SIGTERM":
        assert handler.stop() == 0
    else:
        handler.kill9()
    for number in range(MESSAGES):
        for client in clients:
            client.send(f"m{number}")
    for client in clients:
        assert client.ping().wait(5), "a connection hangs while its handler is away"
    messages = CLIENTS * (MESSAGES + 1)
    until(lambda: sum(r.kind == "message_received" for r in cluster.tail()) == messages, "all messages in the log", 20)
    assert not any(record.kind == "connection_closed" for record in cluster.tail()), "a client lost its connection"
    assert cluster.lag("echo") >= CLIENTS * MESSAGES
    handler.start()
    for client in clients:
        assert [client.recv(timeout=20) for _ in range(MESSAGES)] == [f"m{number}" for number in range(MESSAGES)]
    for client in clients:
        client.close()
    until(lambda: cluster.lag("echo") == 0, "the group to have settled everything")
    found = checker.handled(cluster.tail(), cluster.handled(), group="echo", api="echo") + checker.life(cluster.tail())
    assert not found, checker.report(found)


def test_a_second_member_takes_over_when_the_first_is_killed(folder):
    cluster = Cluster(folder, APIS, partitions=8).start()
    first = cluster.handler("echo", group="echo", api="echo")
    second = cluster.handler("echo", group="echo", api="echo")
    clients = [connect(cluster) for _ in range(CLIENTS)]
    members = until(lambda: {row["member"] for row in cluster.groups() if row["member"]} if len(cluster.groups()) >= 2 else None, "the group to have members")
    assert members, cluster.groups()
    first.kill9()
    for client in clients:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
    assert second.alive
    for client in clients:
        client.close()


def test_a_broker_that_restarts_keeps_the_clients_connected(folder):
    cluster = Cluster(folder, APIS).start()
    cluster.handler("echo", group="echo", api="echo")
    with websockets.sync.client.connect(cluster.ws("/echo"), compression=None) as client:
        client.send("one")
        assert client.recv(timeout=10) == "one"
        assert cluster.broker.stop() == 0
        client.send("two")
        cluster.start_broker()
        assert client.recv(timeout=20) == "two"
