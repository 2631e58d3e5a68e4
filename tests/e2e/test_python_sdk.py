"""Handlers and clients written with sdk/python against real brokers: the same promises as with the Rust SDK."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading

import pytest
import test_kills
import websockets.exceptions
import websockets.sync.client

from harness import Dev, until
from python_sdk import SDK, PythonCluster, PythonSeveral, python

sys.path.insert(0, str(SDK / "src"))
import trunkline  # noqa: E402

pytestmark = pytest.mark.short


def connect(url: str, **options):
    return websockets.sync.client.connect(url, compression=None, legacy=True, **options)


@pytest.mark.timeout(300)
def test_kills_of_a_python_handler_lose_nothing_and_repeat_no_effect(folder):
    seed = int(os.environ.get("TRUNKLINE_SEED", random.randrange(1 << 32)))
    print(f"TRUNKLINE_SEED={seed} repeats the order and the delays")
    kinds = [("handler",), ("handler",), ("broker",), ("broker", "handler")]
    cluster = PythonCluster(folder, test_kills.APIS, partitions=4, snapshot_entries=300)
    test_kills.run(cluster, rounds=8, seed=seed, writers=60, kinds=kinds)


def test_a_stopped_handler_gives_back_what_it_has_and_the_next_one_goes_on(folder):
    cluster = PythonCluster(folder, test_kills.APIS).start()
    handler = cluster.handler("effects", group="effects", api="effects")
    with connect(cluster.ws("/effects")) as client:
        client.send("w0#0")
        assert client.recv(timeout=10) == "ack w0#0"
        assert handler.stop() == 0
        for number in range(1, 50):
            client.send(f"w0#{number}")
        handler.start()
        assert [client.recv(timeout=20) for _ in range(49)] == [f"ack w0#{number}" for number in range(1, 50)]
    until(lambda: cluster.lag("effects") == 0, "everything to be settled")
    handler.stop()
    assert max(row.attempt for row in cluster.handled()) == 1, "what was given back was not tried"


def test_two_python_members_share_partitions_and_one_takes_over(folder):
    cluster = PythonCluster(folder, test_kills.APIS, partitions=8).start()
    first = cluster.handler("echo", group="effects", api="effects")
    cluster.handler("echo", group="effects", api="effects")
    until(lambda: len({row["member"] for row in cluster.groups() if row["member"]}) == 2, "both to have partitions")
    clients = [connect(cluster.ws("/effects")) for _ in range(20)]
    first.kill9()
    for client in clients:
        client.send("hello")
        assert client.recv(timeout=20) == "hello"
        client.close()


def test_a_python_handler_decides_who_gets_in(folder):
    cluster = PythonCluster(folder, '[[api]]\nname = "gate"\npath = "/gate"\n').start()
    cluster.handler("gate", group="gate", api="gate")
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        connect(cluster.ws("/gate?reject=418"))
    assert (refused.value.response.status_code, refused.value.response.body) == (418, b"not today")
    with connect(cluster.ws("/gate?protocol=b&attribute=user:ada&channel=lobby"), subprotocols=["a", "b"]) as client:
        assert client.subprotocol == "b"
        row = cluster.connections()[0]
        assert (row["attributes"], row["channels"]) == ({"user": "ada"}, ["lobby"])


def test_a_client_does_what_it_says_once_over_a_broker_restart(folder):
    cluster = PythonCluster(folder, test_kills.APIS).start()
    watcher = connect(cluster.ws("/watch"))

    async def main() -> None:
        async with trunkline.Client(cluster.grpc, timeout=30) as client:
            connection = (await client.connections(api="watch"))[0]
            assert connection.channels == ("effects",) and not connection.is_pending
            await client.push(connection.id, "one")
            await client.publish("effects", b"\0two", key="k")
            again = await client.publish("effects", b"\0two", key="k")
            with pytest.raises(trunkline.TrunklineError) as reused:
                await client.publish("effects", "other", key="k")
            assert reused.value.code is trunkline.Code.KEY_REUSED
            await client.join(connection.id, "more")
            await client.set_attributes(connection.id, {"user": "ada"})
            await client.leave(connection.id, "effects")
            found = await client.connection(str(connection.id))
            assert (found.channels, found.attributes) == (("more",), {"user": "ada"})
            # a broker that is away for a moment
            cluster.broker.kill9()
            threading.Timer(0.5, cluster.start_broker).run()
            assert (await client.publish("effects", b"\0two", key="k")).offset == again.offset, "the first result, kept over the restart"
            await client.publish_to_api("watch", "three", key="k3")
            await client.close(connection.id, 4000, "bye")
            until(lambda: not cluster.connections(), "the close")
            with pytest.raises(trunkline.CommandFailure) as gone:
                await client.push(connection.id, "late")
            assert gone.value.is_gone

    asyncio.run(main())
    received = []
    with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
        while True:
            received.append(watcher.recv(timeout=10))
    assert received == ["one", b"\0two", "three"] and closed.value.rcvd.code == 4000


@pytest.mark.timeout(240)
def test_a_member_given_one_broker_of_three_goes_on_when_leaders_die(folder):
    cluster = PythonSeveral(folder, test_kills.APIS, partitions=4).start()
    cluster.handler("effects", group="effects", api="effects")
    until(lambda: cluster.members("effects"), "every partition to be served", 30)
    clients = [connect(cluster.ws("/effects"), open_timeout=30) for _ in range(12)]

    def answered(number: int) -> None:
        for at, client in enumerate(clients):
            client.send(f"w{at}#{number}")
        for at, client in enumerate(clients):
            assert client.recv(timeout=40) == f"ack w{at}#{number}"

    answered(0)
    victim = cluster.leader(0)
    victim.process.kill9()
    answered(1)

    async def submit() -> None:
        # the first address is the dead one's
        addresses = [victim.process.http("grpc"), *(broker.process.http("grpc") for broker in cluster.running)]
        async with trunkline.Client(addresses, timeout=30) as client:
            assert (await client.publish("effects", "x", key="after")).offset > 0

    asyncio.run(submit())
    cluster.restart(victim)
    answered(2)
    for client in clients:
        client.close()


@pytest.mark.parametrize("example", ["echo", "chat"])
def test_the_examples_do_what_they_say(folder, example, monkeypatch):
    node = Dev(folder, flags=["--no-handlers"]).start()
    monkeypatch.chdir(SDK)
    process = python(example, folder, "-m", f"examples.{example}", node.grpc).start()
    with connect(node.ws(f"/{example}")) as ada, connect(node.ws(f"/{example}")) as bob:
        if example == "echo":
            ada.send("hello")
            assert ada.recv(timeout=10) == "hello"
        else:
            for client, name in ((ada, "ada"), (bob, "bob")):
                client.send(name)
                assert client.recv(timeout=10) == f"* {name} joined"
            assert ada.recv(timeout=10) == "* bob joined"
            # a nickname is known in the log, not in this process
            process.kill9()
            ada.send("hello")
            process.start()
            assert ada.recv(timeout=20) == bob.recv(timeout=20) == "ada: hello"
            ada.close()
            assert bob.recv(timeout=10) == "* ada left"
    assert process.stop() == 0
