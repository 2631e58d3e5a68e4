"""Strangers in numbers: slow ones and many at once (attack rows A8 and A9)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

import wire
from attack import ABANDONED, ACCEPTED, RATE_LIMITED, REFUSED, UNAVAILABLE, Target, sum_of
from credentials import certificate
from harness import Dev, until

pytestmark = pytest.mark.short

SLOW = 2000
HANDSHAKE_SECONDS = 10
"""What a handshake may take."""
RATE, FLOOD_SECONDS = 2000, float(os.environ.get("TRUNKLINE_FLOOD_SECONDS", "5"))
PER_SECOND = 100
PER_ADDRESS = 50
ELSEWHERE = "127.0.0.7"
"""Where those come from who are too many: the well-behaved client is another address."""
CONFIG = f"""
[edge]
max_connections_per_address = {PER_ADDRESS}
max_handshakes_per_address = {PER_SECOND}
[broker]
tail_bytes = "1MiB"
"""
FLOODED = f"""
[broker]
tail_bytes = "1MiB"
[[api]]
name = "flooded"
path = "/flooded"
registration = "accept"
max_handshakes = {PER_SECOND}
"""


@pytest.fixture(scope="module")
def flooded(module_folder):
    with serving(module_folder / "flooded", FLOODED) as target:
        yield target


@pytest.fixture(scope="module")
def bounded(module_folder):
    with serving(module_folder / "bounded", CONFIG) as target:
        yield target


@contextlib.contextmanager
def serving(folder: Path, config: str, ca: Path | None = None):
    target = Target(Dev(folder, config=config).start(), folder, ca=ca)
    yield target
    target.stop()
    assert target.node.process.stop() == 0


@dataclass
class Slow:
    """One that takes its time: what it has to say, of which it says `at_once` first and then a byte a second."""

    sock: socket.socket
    rest: bytes
    opened: float
    closed: float = 0
    answer: bytes = b""

    def drip(self) -> None:
        if self.rest and not self.closed:
            with contextlib.suppress(OSError):
                self.sock.send(self.rest[:1])
            self.rest = self.rest[1:]

    def look(self) -> None:
        if self.closed:
            return
        try:
            more = self.sock.recv(4096)
            self.answer += more
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self.closed = time.monotonic()
            self.sock.close()


def slow(address: tuple[str, int], count: int, at_once: bytes, rest: bytes) -> list[Slow]:
    started = []
    for _ in range(count):
        sock = socket.create_connection(address, timeout=10)
        sock.sendall(at_once)
        sock.setblocking(False)
        started.append(Slow(sock, rest, time.monotonic()))
    return started


def watch(strangers: list[Slow], while_waiting) -> list[float]:
    """Until all are closed: after how many seconds each was."""
    end = time.monotonic() + 3 * HANDSHAKE_SECONDS
    next_drip = time.monotonic() + 1
    while any(not one.closed for one in strangers):
        assert time.monotonic() < end, f"{sum(not one.closed for one in strangers)} of {len(strangers)} are open still"
        if time.monotonic() >= next_drip:
            next_drip += 1
            for one in strangers:
                one.drip()
            while_waiting()
        for one in strangers:
            one.look()
        time.sleep(0.02)
    return [one.closed - one.opened for one in strangers]


def comes_in(target: Target, **kwargs) -> None:
    with wire.Socket(target.ws, "/echo", **kwargs) as client:
        client.send_text("in")
        assert client.receive_text() == "in"
        client.close()


@pytest.mark.attack("A8")
def test_2000_slow_strangers_are_closed_at_ten_seconds_and_keep_nobody_out(flooded, under):
    head = wire.handshake(flooded.ws, "/echo", extra=["x-slow: " + "y" * 100])
    # once before, so that what the allocator keeps for the next time is no growth: what is lost would be lost again
    for one in slow(flooded.ws, SLOW, head[:-60], b""):
        one.sock.close()
    abandoned = lambda: sum_of(flooded.metrics(), ABANDONED) >= SLOW  # noqa: E731
    until(abandoned, "the end of the first 2000", 20, every=0.2)
    with under(flooded) as attack:
        attack.counts(REFUSED, SLOW)
        attack.counts(ACCEPTED, 5)
        strangers = slow(flooded.ws, SLOW // 2, b"", b"")
        strangers += slow(flooded.ws, SLOW // 4, b"", head)
        strangers += slow(flooded.ws, SLOW // 4, head[:-60], b"z" * 40)
        took = watch(strangers, lambda: comes_in(flooded))
        for one in strangers:
            attack.answered(one.answer[9:12].decode(), "408")
        # the clock begins when the server accepts; a busy machine is late to close, never early
        assert min(took) > HANDSHAKE_SECONDS - 1 and max(took) < HANDSHAKE_SECONDS + 5, f"{min(took):.1f} to {max(took):.1f} s"
        attack.note(f"closed after {min(took):.1f} to {max(took):.1f} s")


@pytest.mark.attack("A8")
def test_slow_tls_handshakes_are_closed_at_ten_seconds_and_a_split_one_is_no_slow_one(folder, under):
    ca = certificate(folder)
    tls = f'[edge]\ntls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}\n'
    context = ssl.create_default_context(cafile=ca)
    hello = client_hello(context)
    with serving(folder, tls, ca) as target, under(target) as attack:
        attack.counts(ABANDONED, 150)
        strangers = slow(target.ws, 50, b"", b"") + slow(target.ws, 50, b"", hello) + slow(target.ws, 50, hello[: len(hello) // 2], b"")

        def others_get_in() -> None:
            comes_in(target, tls=context)
            split(target, context)

        took = watch(strangers, others_get_in)
        for one in strangers:
            attack.answered(len(one.answer), 0)
        assert min(took) > HANDSHAKE_SECONDS - 1 and max(took) < HANDSHAKE_SECONDS + 5, f"{min(took):.1f} to {max(took):.1f} s"


def client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def split(target: Target, context: ssl.SSLContext) -> None:
    """A ClientHello in pieces (rustls CVE-2024-11738: an empty rest of one) and a handshake that goes on from there."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(target.ws, timeout=10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def step(action, *words):
            while True:
                try:
                    return action(*words)
                except ssl.SSLWantReadError:
                    flush()
                    data = sock.recv(65536)
                    assert data, "closed in the middle"
                    incoming.write(data)

        def flush() -> None:
            data = outgoing.read()
            for at in range(0, len(data), 100):
                sock.sendall(data[at : at + 100])

        step(tls.do_handshake)
        tls.write(wire.handshake(target.ws, "/echo"))
        flush()
        assert step(tls.read, 4096).startswith(b"HTTP/1.1 101 ")


@pytest.mark.attack("A8")
def test_an_address_has_so_many_strangers_at_once(bounded, under):
    more = 20
    with under(bounded) as attack:
        attack.counts(RATE_LIMITED, more)
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(bounded.ws, timeout=5, source_address=(ELSEWHERE, 0))) for _ in range(PER_ADDRESS)]
            for _ in range(more):
                with socket.create_connection(bounded.ws, timeout=5, source_address=(ELSEWHERE, 0)) as sock:
                    answer, _ = wire.read_answer(sock)
                    attack.answered(answer.status, 429)
                    assert answer.headers["retry-after"]
            comes_in(bounded)
            for sock in silent:
                sock.settimeout(0.001)
                with pytest.raises(TimeoutError):
                    sock.recv(1)
        # their places are given back
        until(lambda: comes_in_from_elsewhere(bounded), "a place of that address", 5)


def comes_in_from_elsewhere(target: Target) -> bool:
    with contextlib.suppress(AssertionError):
        comes_in(target, source=ELSEWHERE)
        return True
    return False


def flood(target: Target, path: str, *source: str) -> tuple[dict[int, int], float]:
    """How often each status came, and how many were opened a second."""
    host, port = target.ws
    argv = [sys.executable, str(Path(__file__).with_name("flood.py")), host, str(port), path, str(RATE), str(FLOOD_SECONDS), *source]
    done = subprocess.run(argv, capture_output=True, timeout=120, check=True)
    came = json.loads(done.stdout)
    return {int(status): times for status, times in came["statuses"].items()}, RATE * FLOOD_SECONDS / came["seconds"]


def judge(attack, statuses: dict[int, int], rate: float, refusal: int) -> None:
    total = int(RATE * FLOOD_SECONDS)
    for status, times in statuses.items():
        for _ in range(times):
            attack.answered(status, 101, refusal)
    assert sum(statuses.values()) == total, statuses
    # so many a second and twice as many at once; those who are let in may come as long as the flood lasts
    seconds = total / rate + 10
    assert 0 < statuses[101] <= PER_SECOND * (seconds + 2) and statuses[refusal] > total / 2, statuses
    attack.note(f"{rate:.0f}/s")


@pytest.mark.attack("A9")
def test_a_flood_of_handshakes_is_refused_above_the_api_s_bound(flooded, under):
    with under(flooded, metric=UNAVAILABLE) as attack:
        judge(attack, *flood(flooded, "/flooded"), 503)
        comes_in(flooded)


@pytest.mark.attack("A9")
def test_a_flood_from_one_address_is_refused_above_its_bound(bounded, under):
    with under(bounded, metric=RATE_LIMITED) as attack:
        judge(attack, *flood(bounded, "/echo", ELSEWHERE), 429)
        comes_in(bounded)
