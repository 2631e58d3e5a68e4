"""Handlers and clients written with sdk/python against real brokers: the same promises as with the Rust SDK."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import sys
import threading
import traceback
from pathlib import Path

import pytest
import requests
import test_kills
import websockets.exceptions
import websockets.sync.client

from harness import Dev, Process, free_port, until
from python_sdk import ROOT, SDK, PythonCluster, PythonSeveral, Safe, SafeDev, SafeSeveral, python

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


def answered(clients: list, number: int) -> None:
    """Each sends a message and gets the handler's answer."""
    for at, client in enumerate(clients):
        client.send(f"w{at}#{number}")
    for at, client in enumerate(clients):
        assert client.recv(timeout=40) == f"ack w{at}#{number}"


@pytest.mark.timeout(240)
def test_a_member_given_one_broker_of_three_goes_on_when_leaders_die(folder):
    cluster = PythonSeveral(folder, test_kills.APIS, partitions=4).start()
    cluster.handler("effects", group="effects", api="effects")
    until(lambda: cluster.members("effects"), "every partition to be served", 30)
    clients = [connect(cluster.ws("/effects"), open_timeout=30) for _ in range(12)]

    answered(clients, 0)
    victim = cluster.leader(0)
    victim.process.kill9()
    answered(clients, 1)

    async def submit() -> None:
        # the first address is the dead one's
        addresses = [victim.process.http("grpc"), *(broker.process.http("grpc") for broker in cluster.running)]
        async with trunkline.Client(addresses, timeout=30) as client:
            assert (await client.publish("effects", "x", key="after")).offset > 0

    asyncio.run(submit())
    cluster.restart(victim)
    answered(clients, 2)
    for client in clients:
        client.close()


# ---- TLS and tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture
def safe(folder) -> Safe:
    return Safe(folder)


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.timeout(240)
def test_over_tls_a_member_given_one_broker_of_three_goes_on_when_leaders_die(folder, safe, monkeypatch):
    set_environment(monkeypatch, safe.env("operator"))
    cluster = SafeSeveral(folder, test_kills.APIS, safe, partitions=4).start()
    monkeypatch.setenv("TRUNKLINE_TOKEN", safe.tokens["handler"])
    handler = cluster.handler("effects", group="effects", api="effects", seed=cluster.brokers[0].grpc)
    monkeypatch.setenv("TRUNKLINE_TOKEN", safe.tokens["operator"])
    until(lambda: cluster.members("effects"), "every partition to be served", 30)
    clients = [connect(cluster.ws("/effects"), open_timeout=30) for _ in range(12)]

    answered(clients, 0)
    victim = cluster.leader(0)
    victim.process.kill9()
    answered(clients, 1)

    async def submit() -> None:
        addresses = [victim.grpc, *(broker.grpc for broker in cluster.running)]
        async with trunkline.Client(addresses, token=safe.tokens["publisher"], ca=safe.ca, timeout=30) as client:
            assert (await client.publish("effects", "x", key="after")).offset > 0

    asyncio.run(submit())
    for client in clients:
        client.close()
    assert safe.tokens["handler"] not in handler.log_text() and handler.stop() == 0


def test_who_may_not_is_told_at_once_and_no_token_is_shown(folder, safe, monkeypatch):
    node = SafeDev(folder, test_kills.APIS, safe).start()
    monkeypatch.setenv("TRUNKLINE_CA", str(safe.ca))

    async def main() -> None:
        async def denied(token: str | None, **settings) -> str:
            with pytest.raises(trunkline.Denied) as refused:
                async with asyncio.timeout(20):
                    await trunkline.Subscriber(node.grpc, token=token, **settings).run(trunkline.Handler())
            assert token is None or token not in "".join(traceback.format_exception(refused.value))
            return str(refused.value)

        for token in (None, "tl_unknown"):
            assert "asks for a token" in await denied(token)
        for role in ("publisher", "read_only"):
            assert "role" in await denied(safe.tokens[role])
        assert "handler group" in await denied(safe.tokens["chat"], group="effects")
        for role, may in (("handler", True), ("publisher", True), ("read_only", False)):
            async with trunkline.Client(node.grpc, token=safe.tokens[role]) as client:
                assert await client.connections() == []
                if may:
                    await client.publish("room", "x")
                    continue
                with pytest.raises(trunkline.Denied):
                    await client.publish("room", "x", key="k")
        async with trunkline.Client(node.grpc, token=safe.tokens["publisher"], ca=b"") as client:
            # the system does not trust this test's authority
            with pytest.raises(trunkline.Untrusted):
                await client.publish("room", "x")

    asyncio.run(main())
    # a program of its own ends
    words = ["effects", "--broker", node.grpc, "--group", "g", "--api", "effects", "--member", "m", "--journal", node.journal]
    env = {"TRUNKLINE_TOKEN": safe.tokens["publisher"]}
    handler = python("handler", folder, Path(__file__).parent / "python_handler.py", *words, env=env).start(ready=False)
    assert handler.wait(20) == 1
    assert "does not allow this" in handler.log_text() and safe.tokens["publisher"] not in handler.log_text()
    assert node.process.alive


def test_functions_run_over_tls_with_a_token_from_a_file(folder, safe):
    apis = '[[api]]\nname = "room"\npath = "/room"\nhandler_group = "room"\n'
    node = SafeDev(folder, apis, safe).start()
    (folder / "function.py").write_text("def main_handler(event, context):\n    return event['websocket']['data']\n")
    (folder / "token").write_text(f"{safe.tokens['handler']}\n")
    words = ["-m", "trunkline.functions", "run", "--broker", node.grpc, "--api", "room", "--transmission", folder / "function.py"]
    proof = ["--ca", safe.ca, "--token-file", folder / "token"]
    functions = python("functions", folder, *words, "--integration-response", *proof).start()
    with connect(node.ws("/room")) as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"
    assert functions.stop() == 0
    (folder / "token").write_text(safe.tokens["read_only"])
    refused = python("refused", folder, *words, *proof).start(ready=False)
    assert refused.wait(20) == 1
    said = refused.log_text()
    assert said.splitlines()[-1].startswith("trunkline-functions: the broker does not allow this") and "Traceback" not in said
    assert not any(token in said for token in safe.tokens.values())


# ---- what the page shows -------------------------------------------------------------------------------------------------


def test_the_programs_of_the_page_do_what_it_says(folder, monkeypatch):
    page = (ROOT / "docs/python.md").read_text()
    config = re.search(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[1]
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    node = Dev(folder, config=config, flags=["--no-handlers"]).start()
    port = free_port()
    env = {"TRUNKLINE_BROKER": node.grpc, "PORT": str(port)}

    def program(name: str, holds: str) -> Process:
        (found,) = [each for each in programs if holds in each]
        (folder / f"{name}.py").write_text(found.replace('["127.0.0.1:7070", "127.0.0.1:7071"]', f'["{node.grpc}"]'))
        return python(name, folder, folder / f"{name}.py", env=env).start(ready=False)

    handler = program("handler", "@handler.on_closed")
    until(lambda: node.groups(), "the handler to join")
    with pytest.raises(websockets.exceptions.InvalidStatus):
        connect(node.ws("/orders"))
    with connect(node.ws("/orders?user=ada")) as ada, connect(node.ws("/orders?user=bob")) as bob:
        ada.send("soup")
        assert (ada.recv(timeout=10), bob.recv(timeout=10)) == ("thanks for soup", "soup")
        assert program("client", "last-orders/").wait(20) == 0
        assert [bob.recv(timeout=10) for _ in range(3)] == ["the kitchen closes", "last orders", "one"]
        web = program("web", "make_server")
        for _ in range(2):
            until(lambda: reached(port), "the web application")
            assert requests.get(f"http://127.0.0.1:{port}/paid/7", timeout=10).text.startswith("told, at ")
        assert bob.recv(timeout=10) == "7 is paid"
        ada.close()
        assert bob.recv(timeout=10) == "somebody left: client", "and it was told once that 7 is paid"
        web.kill9()
    assert handler.stop() == 0


def reached(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


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
