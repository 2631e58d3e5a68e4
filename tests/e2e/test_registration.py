"""A handler decides who comes in: accepts, chooses a subprotocol, rejects, or never answers."""

from __future__ import annotations

import time

import pytest

import checker
import wire
from harness import Cluster, until

pytestmark = pytest.mark.short

APIS = """
[[api]]
name = "gate"
path = "/gate"
registration_timeout = "3s"

[[api]]
name = "open"
path = "/open/{room}"
registration = "accept"
subprotocols = ["v2", "v1"]
channels = ["lobby"]
"""


@pytest.fixture(scope="module")
def cluster(module_folder):
    cluster = Cluster(module_folder, APIS).start()
    cluster.gate = cluster.handler("gate", group="gate", api="gate")
    yield cluster
    cluster.gate.kill9()  # it never gives up on the silent ones by itself
    for process in (cluster.edge, cluster.broker):
        process.stop()


def ask(cluster, path, **kwargs) -> wire.Answer:
    address = cluster.edge.address("ws")
    return wire.request(address, wire.handshake(address, path, **kwargs), seconds=10)


def opened(cluster, query: str) -> str:
    """The connection whose handshake carried this query."""
    found = [r.connection for r in cluster.tail() if r.kind == "connection_opened" and r.fields.get("query") == query]
    assert len(found) == 1, f"{len(found)} connections with query {query}"
    return found[0]


def test_accepted_with_a_subprotocol_of_the_offered(cluster):
    with wire.Socket(cluster.edge.address("ws"), "/gate?protocol=chat.v2", sec_websocket_protocol="chat.v1, chat.v2") as socket:
        assert socket.answer.headers["sec-websocket-protocol"] == "chat.v2"
        (row,) = [row for row in cluster.connections("--api", "gate") if row["subprotocol"] == "chat.v2"]
        assert row["edge"] == "edge-1"
        socket.close()


def test_accepted_without_a_subprotocol_says_none(cluster):
    with wire.Socket(cluster.edge.address("ws"), "/gate?n=1", sec_websocket_protocol="chat.v1") as socket:
        assert "sec-websocket-protocol" not in socket.answer.headers
        socket.close()


def test_a_subprotocol_the_client_did_not_offer_is_never_put_on_the_wire(cluster):
    # RFC 6455 section 4.2.2: a client would have to fail the connection
    answer = ask(cluster, "/gate?protocol=other&n=2", sec_websocket_protocol="chat.v1")
    assert answer.status == 101 and "sec-websocket-protocol" not in answer.headers or answer.status >= 500


def test_rejected_with_403_and_recorded(cluster):
    answer = ask(cluster, "/gate?reject=403&n=3")
    assert answer.status == 403, answer
    assert answer.body == b"not today"
    connection = opened(cluster, "reject=403&n=3")
    rows = until(lambda: closes(cluster, connection), "the rejected connection's close record")
    assert [row.fields["cause"] for row in rows] == ["rejected"]


def test_a_handler_that_never_answers_is_a_504_and_recorded(cluster):
    started = time.monotonic()
    answer = ask(cluster, "/gate?silent&n=4")
    took = time.monotonic() - started
    assert answer.status == 504, answer
    assert 2.5 <= took <= 6, f"after {took:.1f} s, registration_timeout is 3 s"
    connection = opened(cluster, "silent&n=4")
    rows = until(lambda: closes(cluster, connection), "the close record of the connection nobody decided about")
    assert [row.fields["cause"] for row in rows] == ["registration_timeout"]


def test_a_silent_handler_holds_up_no_other_registration(cluster):
    address = cluster.edge.address("ws")
    with wire.socket.create_connection(address) as waiting:
        waiting.sendall(wire.handshake(address, "/gate?silent&n=5"))
        started = time.monotonic()
        with wire.Socket(address, "/gate?n=6") as socket:
            assert time.monotonic() - started < 2
            socket.close()


def test_a_client_that_leaves_before_the_decision_is_closed_in_the_log(cluster):
    address = cluster.edge.address("ws")
    with wire.socket.create_connection(address) as waiting:
        waiting.sendall(wire.handshake(address, "/gate?silent&n=7"))
        until(lambda: any(r.fields.get("query") == "silent&n=7" for r in cluster.tail()), "the connection in the log")
    connection = opened(cluster, "silent&n=7")
    assert len(until(lambda: closes(cluster, connection), "its close record", seconds=10)) == 1


def test_accepted_at_once_with_the_first_offered_subprotocol_that_is_listed(cluster):
    with wire.Socket(cluster.edge.address("ws"), "/open/a?n=8", sec_websocket_protocol="v0, v1, v2") as socket:
        assert socket.answer.headers["sec-websocket-protocol"] == "v1"
        cluster.publish("lobby", "welcome")
        assert socket.receive_text() == "welcome"
        socket.close()


def test_attributes_and_channels_of_the_decision_are_there_when_the_client_sees_101(cluster):
    with wire.Socket(cluster.edge.address("ws"), "/gate?attribute=user:ada&channel=blue") as socket:
        (row,) = cluster.connections("--channel", "blue")
        assert row["attributes"] == {"user": "ada"} and row["channels"] == ["blue"]
        cluster.publish("blue", "to the blue ones")
        assert socket.receive_text() == "to the blue ones"
        socket.close()
    until(lambda: not cluster.connections("--channel", "blue"), "the channel to be empty")


def test_at_the_end_every_connection_has_its_life_in_the_log(cluster):
    until(lambda: not cluster.connections(), "all connections to be closed")
    found = checker.life(cluster.tail())
    assert not found, checker.report(found)


def closes(cluster, connection: str) -> list:
    return [record for record in cluster.tail() if record.kind == "connection_closed" and record.connection == connection]
