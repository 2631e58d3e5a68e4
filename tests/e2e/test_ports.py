"""Garbage on the QUIC and gRPC ports: the process lives, the service goes on, nothing reaches the log."""

from __future__ import annotations

import os
import random
import socket
import struct

import pytest
import requests

import wire
from harness import until

pytestmark = pytest.mark.short

UNKNOWN = "AAECAwQFBgcICQoLDA0ODw"
"""An id that no connection has."""
ZEROS = "A" * 22
"""An id that no connection can have: it means none."""


@pytest.fixture
def unharmed(dev):
    pid, rss = dev.process.pid, dev.process.rss_kib()
    count = len(dev.tail())
    with wire.Socket(dev.edge.address("ws"), "/echo") as bystander:
        yield dev
        bystander.send_text("still there")
        assert bystander.receive_text() == "still there"
        bystander.close()
    assert dev.process.alive and dev.process.pid == pid
    assert "panicked" not in dev.process.log_text()
    until(lambda: dev.process.rss_kib() - rss < 32 << 10, "memory to come back", 10)
    log = dev.tail()
    mine = [record for record in log[count:] if record.kind not in {"connection_opened", "message_received", "pushed", "handler_committed", "connection_closed", "connection_accepted", "handler_assigned"}]
    assert not mine, mine[:3]


def test_random_datagrams_on_the_link(unharmed):
    chance = random.Random(1)
    address = unharmed.broker.address("link")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _ in range(3000):
            sock.sendto(chance.randbytes(chance.randrange(0, 1400)), address)


def test_things_that_look_like_quic_on_the_link(unharmed):
    address = unharmed.broker.address("link")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        for version in [0, 1, 0x6B3343CF, 0x0A0A0A0A, 0xFFFFFFFF]:
            for size in [21, 100, 1200, 1400]:
                head = struct.pack("!BI", 0xC0, version) + bytes([8]) + os.urandom(8) + bytes([8]) + os.urandom(8)
                sock.sendto((head + os.urandom(size))[: max(size, len(head))], address)
        for _ in range(500):
            sock.sendto(bytes([0x40 | random.randrange(64)]) + os.urandom(40), address)


@pytest.mark.parametrize(
    "garbage",
    [b"\0" * 1000, os.urandom(5000), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(500), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
    ids=["zeros", "random", "http1", "preface-and-random", "tls"],
)
def test_garbage_on_grpc(unharmed, garbage):
    for _ in range(20):
        with socket.create_connection(unharmed.broker.address("grpc"), timeout=5) as sock:
            try:
                sock.sendall(garbage)
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
            except OSError:
                pass  # reset, or "not connected" where the reset came before the shutdown


def grpc_call(address, path: str, body: bytes) -> bytes:
    """One gRPC call in raw HTTP/2 frames, without a header compressor: literals only. Gives back all bytes of the answer."""

    def literal(name: str, value: str) -> bytes:
        return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()

    def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream) + payload

    headers = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers")]
    raw = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2(4, 0, 0, b"")
    raw += h2(1, 4, 1, b"".join(literal(*header) for header in headers)) + h2(0, 1, 1, body)
    with socket.create_connection(address, timeout=3) as sock:
        sock.sendall(raw)
        answer = b""
        try:
            while len(answer) < 65536 and (more := sock.recv(4096)):
                answer += more
                if b"grpc-status" in answer or h2_ended(answer):
                    break
        except (ConnectionError, TimeoutError):
            pass
        return answer


def h2_ended(data: bytes) -> bool:
    """Whether stream 1 ended: END_STREAM on headers or data, a reset, or a goodbye."""
    at = 0
    while at + 9 <= len(data):
        length = int.from_bytes(data[at : at + 3], "big")
        kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big")
        if kind in (3, 7) or (stream == 1 and kind in (0, 1) and flags & 1):
            return True
        at += 9 + length
    return False


@pytest.mark.parametrize(
    "body",
    [struct.pack("!BI", 0, 0xFFFFFFFF), struct.pack("!BI", 1, 5) + b"hello", struct.pack("!BI", 7, 5) + b"hello", struct.pack("!BI", 0, 50) + os.urandom(50), b"\x0a" * 100],
    ids=["4-gib", "compressed", "bad-flag", "random-protobuf", "truncated"],
)
def test_malformed_grpc_messages_get_an_answer(unharmed, body):
    for path in ["/trunkline.v1.Handlers/Submit", "/trunkline.v1.Handlers/Subscribe", "/trunkline.v1.Log/Read", "/trunkline.v1.Nothing/Here"]:
        assert h2_ended(grpc_call(unharmed.broker.address("grpc"), path, body)), f"no answer to {path}"


@pytest.mark.parametrize(
    ("method", "path", "statuses"),
    [
        ("GET", "/v1/connections/nonsense", {400, 404, 410}),
        ("GET", f"/v1/connections/{UNKNOWN}", {410}),
        ("POST", f"/v1/connections/{UNKNOWN}/messages", {410}),
        ("DELETE", f"/v1/connections/{UNKNOWN}", {204, 410}),
        ("DELETE", f"/v1/connections/{UNKNOWN}?code=1", {400}),
        ("POST", f"/v1/connections/{ZEROS}/messages", {400}),
        ("DELETE", f"/v1/connections/{ZEROS}", {400}),
        ("POST", "/v1/channels/%00/messages", {400}),
        ("POST", "/v1/channels/" + "x" * 300 + "/messages", {400, 414}),
        ("GET", "/v1/connections?limit=x", {400}),
        ("GET", "/v1/connections?limit=99999999999999999999", {400}),
        ("GET", "/v1/log?partition=70000", {400, 404}),
        ("GET", "/v1/log?partition=0&from=zero", {400}),
        ("GET", "/nowhere", {404}),
        ("PATCH", "/v1/cluster", {405}),
    ],
)
def test_bad_http_requests_get_a_status_that_says_so(unharmed, method, path, statuses):
    answer = requests.request(method, unharmed.broker.http() + path, data=b"x" if method == "POST" else None, timeout=5)
    assert answer.status_code in statuses, f"{answer.status_code} {answer.text[:300]}"
    if answer.status_code >= 400 and path.startswith("/v1") and answer.status_code != 405:
        assert answer.headers["content-type"].startswith("application/problem+json"), answer.headers


def test_a_body_that_is_too_large_is_413(unharmed):
    answer = unharmed.post("/v1/channels/news/messages", b"x" * ((16 << 20) + 1))
    assert answer.status_code == 413


def test_the_health_and_the_metrics_answer(dev):
    assert requests.get(dev.broker.http() + "/healthz", timeout=5).status_code == 200
    assert requests.get(dev.broker.http() + "/readyz", timeout=5).status_code == 200
    text = requests.get(dev.broker.http() + "/metrics", timeout=5).text
    for name in ["trunkline_log_sync_seconds", "trunkline_partition_applied_offset"]:
        assert name in text, f"{name} is not in /metrics"
