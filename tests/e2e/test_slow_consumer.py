"""A client that stops reading is closed with 1013; it slows nobody down and costs bounded memory."""

from __future__ import annotations

import threading
import time

import pytest

import wire
from harness import until

pytestmark = pytest.mark.short

CHANNEL = "news"
PAYLOAD = 32 << 10


class Reader(threading.Thread):
    """Reads as fast as it can, and remembers when each publish arrived."""

    def __init__(self, address) -> None:
        super().__init__(daemon=True)
        self.socket = wire.Socket(address, "/news")
        self.arrived: dict[int, float] = {}
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            while True:
                got = self.socket.receive(60)
                if got.opcode == wire.TEXT:
                    self.arrived[int(got.payload.split(b" ", 1)[0])] = time.monotonic()
        except Exception as error:
            self.failed = error


def test_who_does_not_read_is_closed_and_the_others_get_everything_in_time(dev):
    address = dev.edge.address("ws")
    readers = [Reader(address) for _ in range(5)]
    for reader in readers:
        reader.start()
    # a small receive buffer, so that the server's side fills soon
    slow = wire.Socket(address, "/news", receive_buffer=4096)
    slow_port = slow.sock.getsockname()[1]
    before = dev.process.rss_kib()
    sent: dict[int, float] = {}
    number = 0

    def slow_closed() -> list:
        opened = {r.connection for r in dev.tail("--api", "news") if r.kind == "connection_opened" and r.fields.get("peer", "").endswith(f":{slow_port}")}
        return [r for r in dev.tail("--api", "news") if r.kind == "connection_closed" and r.connection in opened]

    closed = []
    end = time.monotonic() + 60
    while not closed and time.monotonic() < end:
        for _ in range(40):
            sent[number] = time.monotonic()
            dev.publish(CHANNEL, f"{number} " + "x" * PAYLOAD)
            number += 1
        closed = slow_closed()
    assert closed, f"not closed after {number} publishes of {PAYLOAD >> 10} KiB"
    assert closed[0].fields["code"] == 1013 and closed[0].fields["cause"] == "slow_consumer", closed[0]
    for reader in readers:
        until(lambda reader=reader: len(reader.arrived) == number, f"all {number} publishes at a reader (has {len(reader.arrived)})", 10)
        assert list(reader.arrived) == list(range(number)), "out of order"
        assert reader.failed is None, reader.failed
    delays = sorted(reader.arrived[n] - sent[n] for reader in readers for n in sent)
    p99 = delays[len(delays) * 99 // 100]
    assert p99 < 0.5, f"p99 from publish to a good reader is {p99:.3f} s"
    grown = dev.process.rss_kib() - before
    assert grown < 100 << 10, f"memory grew by {grown >> 10} MiB"
    # the one that was too slow finds its connection ended once it reads
    slow.expect_end(15)
    slow.sock.close()
    for reader in readers:
        reader.socket.sock.close()


def test_who_reads_on_after_a_pause_within_the_bound_misses_nothing(dev):
    with wire.Socket(dev.edge.address("ws"), "/news") as socket:
        for number in range(200):
            dev.publish(CHANNEL, f"pause {number}")
        assert [socket.receive_text() for _ in range(200)] == [f"pause {number}" for number in range(200)]
        socket.close()
