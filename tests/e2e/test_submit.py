"""Commands over HTTP: once per idempotency key, and an answer that says what became of them."""

from __future__ import annotations

import threading
import uuid

import pytest
import websockets.sync.client

from harness import until

pytestmark = pytest.mark.short


def published(dev, text: str) -> list:
    return [record for record in dev.tail() if record.kind == "published" and record.text == text]


def test_the_same_key_twice_is_one_publish_with_one_answer(dev):
    key = uuid.uuid4().hex
    first, second = (dev.post("/v1/channels/once/messages", key, key=key) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert first.json() == second.json()
    (record,) = published(dev, key)
    assert record.place == f"{first.json()['partition']}/{first.json()['offset']}"


def test_a_hundred_at_once_with_one_key_are_one_publish(dev):
    key = uuid.uuid4().hex
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(dev.post("/v1/channels/once/messages", key, key=key))) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answer.status_code for answer in answers} <= {200, 409, 429, 503}
    assert len({answer.text for answer in answers if answer.status_code == 200}) == 1
    assert len(published(dev, key)) == 1


def test_the_same_key_with_another_body_is_422(dev):
    key = uuid.uuid4().hex
    assert dev.post("/v1/channels/once/messages", key, key=key).status_code == 200
    assert dev.post("/v1/channels/once/messages", key + "!", key=key).status_code == 422
    assert not published(dev, key + "!")


def test_a_key_outlives_the_broker(folder):
    from harness import Cluster

    cluster = Cluster(folder, "", snapshot_entries=100)
    cluster.start_broker()
    first = cluster.publish("once", "body", key="the key")
    for number in range(300):  # so that the key is in a snapshot, not only in the log
        cluster.publish("other", str(number))
    cluster.broker.kill9()
    cluster.start_broker()
    assert cluster.publish("once", "body", key="the key") == first


def test_push_publish_and_close_reach_their_connection(dev):
    with websockets.sync.client.connect(dev.ws("/news"), compression=None) as client:
        port = client.socket.getsockname()[1]
        rows = [r for r in dev.tail("--api", "news") if r.kind == "connection_opened" and r.fields["peer"].endswith(f":{port}")]
        name = rows[-1].connection
        assert dev.request("GET", f"/v1/connections/{name}").json()["connection"] == name
        assert dev.post(f"/v1/connections/{name}/messages", "pushed text").status_code == 200
        assert client.recv(timeout=5) == "pushed text"
        assert dev.post(f"/v1/connections/{name}/messages", b"\0\1").status_code == 200
        assert client.recv(timeout=5) == b"\0\1"
        dev.cli("push", name, "from the command line")
        assert client.recv(timeout=5) == "from the command line"
        dev.cli("publish", "news", "to all")
        assert client.recv(timeout=5) == "to all"
        assert dev.request("PUT", f"/v1/channels/extra/connections/{name}").status_code == 204
        dev.publish("extra", "to the extra channel")
        assert client.recv(timeout=5) == "to the extra channel"
        assert [row["connection"] for row in dev.connections("--channel", "extra")] == [name]
        assert dev.request("DELETE", f"/v1/connections/{name}", code=4001, reason="enough").status_code == 204
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            client.recv(timeout=5)
        assert (client.protocol.close_code, client.protocol.close_reason) == (4001, "enough")
    until(lambda: dev.post(f"/v1/connections/{name}/messages", "too late").status_code == 410, "410 for a closed connection")
    closed = [r for r in dev.tail() if r.kind == "connection_closed" and r.connection == name]
    assert [(r.fields["code"], r.fields["cause"]) for r in closed] == [(4001, "handler")]
