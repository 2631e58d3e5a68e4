"""SIGTERM: clients are told 1012, the log says why they ended, and the process is gone within 30 seconds."""

from __future__ import annotations

import asyncio
import time

import pytest
import websockets

import checker
from harness import Cluster, Dev

pytestmark = pytest.mark.short

APIS = """
[[api]]
name = "open"
path = "/open"
registration = "accept"
"""
CLIENTS = 100


def test_a_drained_edge_tells_its_clients_and_the_log(folder):
    cluster = Cluster(folder, APIS).start()
    codes = asyncio.run(drain(cluster))
    assert codes == [1012] * CLIENTS, codes
    log = cluster.tail()
    causes = [record.fields["cause"] for record in log if record.kind == "connection_closed"]
    assert causes == ["edge_drained"] * CLIENTS, causes
    assert sum(record.kind == "message_received" for record in log) == CLIENTS, "a message the edge had read is lost"
    found = checker.life(log)
    assert not found, checker.report(found)


async def drain(cluster: Cluster) -> list[int]:
    clients = [await websockets.connect(cluster.ws("/open"), compression=None) for _ in range(CLIENTS)]
    for client in clients:
        await client.send("last words")
        # what was read before this answer came is what the drain must not lose
        await asyncio.wait_for(await client.ping(), 10)
    started = time.monotonic()
    cluster.edge.terminate()
    for client in clients:
        await asyncio.wait_for(client.wait_closed(), 30)
    code = await asyncio.to_thread(cluster.edge.wait)
    assert code == 0, cluster.edge.tail_of_log()
    assert time.monotonic() - started < 30
    return [client.close_code for client in clients]


def test_nobody_comes_in_during_a_drain(folder):
    cluster = Cluster(folder, APIS).start()

    async def run() -> None:
        clients = [await websockets.connect(cluster.ws("/open"), compression=None) for _ in range(20)]
        cluster.edge.terminate()
        await asyncio.wait_for(asyncio.wait([asyncio.ensure_future(c.wait_closed()) for c in clients], return_when="FIRST_COMPLETED"), 20)
        with pytest.raises((OSError, websockets.exceptions.WebSocketException)):
            await websockets.connect(cluster.ws("/open"), open_timeout=5)

    asyncio.run(run())
    assert cluster.edge.wait() == 0


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGINT"])
def test_dev_drains_too(folder, signal):
    import signal as signals

    node = Dev(folder).start()

    async def run() -> int:
        client = await websockets.connect(node.ws("/echo"), compression=None)
        await client.send("x")
        assert await asyncio.wait_for(client.recv(), 10) == "x"
        node.process.popen.send_signal(getattr(signals, signal))
        await asyncio.wait_for(client.wait_closed(), 30)
        return client.close_code

    assert asyncio.run(run()) == 1012
    assert node.process.wait() == 0, node.process.tail_of_log()
    # what the drain wrote is in the log of the next start
    node.start()
    found = checker.life(node.tail())
    assert not found, checker.report(found)
    assert node.process.stop() == 0
