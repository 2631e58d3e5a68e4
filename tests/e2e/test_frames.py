"""Broken frames: the close code that says what was wrong, TCP closed soon after, a record that says the same, and nobody else
affected."""

from __future__ import annotations

import random
import struct
import time

import pytest

import wire
from harness import Dev, until
from wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, frame

pytestmark = pytest.mark.short

LIMIT = 1 << 20
"""`max_message` of `/small`; that of `/echo` is 16 MiB."""
API = f"""
[[api]]
name = "small"
path = "/small"
registration = "accept"
max_message = "{LIMIT >> 10}KiB"
"""


@pytest.fixture(scope="module")
def dev(module_folder):
    node = Dev(module_folder, config=API).start()
    yield node
    node.process.stop()


@pytest.fixture
def small(dev):
    with wire.Socket(dev.edge.address("ws"), "/small") as sock:
        yield sock


@pytest.fixture
def sock(dev):
    """A fresh connection. Afterwards: the same process, its memory back, and a bystander who noticed nothing."""
    pid, rss = dev.process.pid, dev.process.rss_kib()
    with wire.Socket(dev.edge.address("ws"), "/echo") as bystander:
        with wire.Socket(dev.edge.address("ws"), "/echo") as victim:
            yield victim
        bystander.send_text("still there")
        assert bystander.receive_text() == "still there"
        bystander.close()
    assert dev.process.alive and dev.process.pid == pid
    until(lambda: dev.process.rss_kib() - rss < 40 << 10, f"memory to come back ({rss >> 10} MiB before)", 10)


def close_record(dev, sock) -> dict:
    """The close record of this socket's connection."""
    port = sock.sock.getsockname()[1]

    def find():
        log = dev.tail()
        names = [r.connection for r in log if r.kind == "connection_opened" and r.fields["peer"].endswith(f":{port}")]
        rows = [r.fields for r in log if r.kind == "connection_closed" and r.connection in names[-1:]]
        return rows[0] if rows else None

    return until(find, "the close record")


PROTOCOL_ERRORS = {
    "unmasked": frame(TEXT, b"hello", masked=False),
    "rsv1": frame(TEXT, b"hello", rsv=4),
    "rsv2": frame(TEXT, b"hello", rsv=2),
    "rsv3": frame(TEXT, b"hello", rsv=1),
    "rsv1-on-a-ping": frame(PING, b"", rsv=4),
    "opcode-3": frame(3, b"hello"),
    "opcode-7": frame(7),
    "opcode-11": frame(11, b"hello"),
    "opcode-15": frame(15),
    "fragmented-ping": frame(PING, b"p", fin=False),
    "ping-of-126-bytes": frame(PING, b"p" * 126),
    "close-of-126-bytes": frame(CLOSE, b"\x03\xe8" + b"r" * 124),
    "continuation-of-nothing": frame(CONTINUATION, b"hello"),
    "text-inside-a-message": frame(TEXT, b"one", fin=False) + frame(TEXT, b"two"),
    "length-with-the-top-bit": frame(BINARY, b"", declared=1 << 63, width=64),
    "length-in-16-bits-that-fits-7": frame(TEXT, b"hello", width=16),
    "length-in-64-bits-that-fits-16": frame(TEXT, b"x" * 200, width=64),
    "close-of-one-byte": frame(CLOSE, b"\x03"),
}


@pytest.mark.parametrize("raw", PROTOCOL_ERRORS.values(), ids=PROTOCOL_ERRORS.keys())
def test_a_protocol_error_is_1002(dev, sock, raw):
    sock.send(raw)
    sock.expect_close(1002)
    record = close_record(dev, sock)
    assert (record["code"], record["cause"]) == (1002, "protocol_error"), record


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_code_that_must_not_be_sent_is_1002(sock, code):
    sock.send(frame(CLOSE, struct.pack("!H", code)))
    sock.expect_close(1002)


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 3000, 4999])
def test_a_good_close_is_answered_with_the_same_code_and_recorded(dev, sock, code):
    sock.send(frame(CLOSE, struct.pack("!H", code) + b"bye"))
    sock.expect_close(code)
    record = close_record(dev, sock)
    assert (record["code"], record["reason"], record["cause"]) == (code, "bye", "client"), record


def test_a_close_without_a_code_is_answered_without_one(sock):
    sock.send(frame(CLOSE))
    got = sock.receive()
    assert got.opcode == CLOSE and got.payload in {b"", b"\x03\xe8"}
    sock.expect_end()


BAD_UTF8 = {
    "lone-byte": [frame(TEXT, b"\xff")],
    "overlong": [frame(TEXT, b"\xc0\xaf")],
    "surrogate": [frame(TEXT, b"\xed\xa0\x80")],
    "beyond-unicode": [frame(TEXT, b"\xf4\x90\x80\x80")],
    "cut-short": [frame(TEXT, b"\xe2\x82")],
    "split-over-fragments": [frame(TEXT, b"ok \xe2", fin=False), frame(CONTINUATION, b"\x28\xa1")],
    "close-reason": [frame(CLOSE, b"\x03\xe8\xff\xfe")],
}


@pytest.mark.parametrize("frames", BAD_UTF8.values(), ids=BAD_UTF8.keys())
def test_text_that_is_not_utf8_is_1007(sock, frames):
    for raw in frames:
        sock.send(raw)
    sock.expect_close(1007)


def test_utf8_split_over_fragments_is_one_text(sock):
    whole = "split € sign".encode()
    sock.send(frame(TEXT, whole[:7], fin=False) + frame(CONTINUATION, whole[7:8], fin=False) + frame(CONTINUATION, whole[8:]))
    assert sock.receive_text() == "split € sign"
    sock.close()


def test_a_message_at_the_limit_passes(dev, small):
    small.send(frame(BINARY, b"x" * LIMIT))
    small.close()
    assert close_record(dev, small)["code"] == 1000
    assert any(record.kind == "message_received" and record.payload == b"x" * LIMIT for record in dev.tail("--api", "small"))


def test_one_byte_more_is_1009(dev, small):
    small.send(frame(BINARY, b"", declared=LIMIT + 1))
    small.expect_close(1009)
    record = close_record(dev, small)
    assert (record["code"], record["cause"]) == (1009, "too_large"), record


def test_one_byte_more_over_two_fragments_is_1009(small):
    small.send(frame(BINARY, b"x" * LIMIT, fin=False) + frame(CONTINUATION, b"y"))
    small.expect_close(1009)


def test_who_sends_all_of_a_message_that_is_too_large_reads_its_1009(small):
    """What is refused by its first bytes still comes: the server must read it and throw it away, for a socket closed with
    unread bytes is reset, and the close frame lost with it."""
    small.send(frame(BINARY, b"x" * (2 * LIMIT)))
    small.expect_close(1009)


@pytest.mark.parametrize("declared", [1 << 30, (1 << 63) - 1])
def test_a_huge_declared_length_is_1009_at_once_and_allocates_nothing(dev, declared):
    before = dev.process.rss_kib()
    sockets = [wire.Socket(dev.edge.address("ws"), "/echo") for _ in range(50)]
    for sock in sockets:
        sock.send(frame(BINARY, b"", declared=declared))
    for sock in sockets:
        sock.expect_close(1009)
        sock.sock.close()
    assert dev.process.rss_kib() - before < 32 << 10


def test_a_declared_message_within_the_limit_of_which_nothing_comes_allocates_little(dev):
    before = dev.process.rss_kib()
    sockets = [wire.Socket(dev.edge.address("ws"), "/echo") for _ in range(100)]
    for sock in sockets:
        sock.send(frame(BINARY, b"", declared=16 << 20) + b"x")
    with wire.Socket(dev.edge.address("ws"), "/echo") as good:
        good.send_text("read after the others")
        assert good.receive_text() == "read after the others"
        good.close()
    assert dev.process.rss_kib() - before < 32 << 10, "a declared length was allocated"
    for sock in sockets:
        sock.sock.close()


def test_256_fragments_pass_and_257_are_1008(dev, sock):
    with wire.Socket(dev.edge.address("ws"), "/echo") as other:
        other.send(fragments(256))
        assert other.receive_text() == "x" * 256
        other.close()
    sock.send(fragments(257))
    sock.expect_close(1008)


def test_endless_empty_fragments_are_1008(sock):
    try:
        sock.send(frame(TEXT, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 5000)
    except OSError:
        pass  # it may close before it has read all of them
    sock.expect_close(1008)


def fragments(count: int) -> bytes:
    return frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * (count - 2) + frame(CONTINUATION, b"x")


def test_what_comes_after_a_close_is_ignored(dev, sock):
    sock.send(frame(CLOSE, b"\x03\xe8") + frame(TEXT, b"too late"))
    sock.expect_close(1000)
    close_record(dev, sock)
    assert not any(record.kind == "message_received" and record.text == "too late" for record in dev.tail("--api", "echo"))


def test_pings_are_answered_in_order_and_unasked_pongs_ignored(sock):
    sock.send(frame(PONG, b"unasked") + frame(PING, b"one"))
    got = sock.receive()
    assert (got.opcode, got.payload) == (PONG, b"one")
    sock.send(frame(PING, b"p" * 125))
    assert sock.receive().payload == b"p" * 125
    sock.close()


def test_a_flood_of_pings_whose_answers_are_never_read_stays_bounded(dev):
    before = dev.process.rss_kib()
    with wire.Socket(dev.edge.address("ws"), "/echo", receive_buffer=4096) as sock:
        sock.sock.settimeout(0.5)
        flood = b"".join(frame(PING, b"p" * 125) for _ in range(500))
        end = time.monotonic() + 3
        try:
            while time.monotonic() < end:
                sock.send(flood)
        except OSError:
            pass  # it stopped reading, or closed: both are bounds
        assert dev.process.rss_kib() - before < 32 << 10


def test_a_frame_that_arrives_byte_by_byte_is_a_message(sock):
    for byte in frame(TEXT, b"slowly"):
        sock.send(bytes([byte]))
    assert sock.receive_text() == "slowly"
    sock.close()


def test_a_client_that_vanishes_is_1006_in_the_log(dev, sock):
    sock.sock.setsockopt(wire.socket.SOL_SOCKET, wire.socket.SO_LINGER, struct.pack("ii", 1, 0))
    name = sock.sock.getsockname()
    sock.sock.close()  # a reset

    class Gone:
        class sock:
            getsockname = staticmethod(lambda: name)

    record = close_record(dev, Gone)
    assert (record["code"], record["cause"]) == (1006, "client_vanished"), record


def test_random_mutations_end_in_a_code_that_is_meant_for_them(dev):
    """No panic, nothing hangs, no other code."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    pid = dev.process.pid
    codes = set()
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with wire.Socket(dev.edge.address("ws"), "/echo") as sock:
            good = b"".join(chance.choice([frame(TEXT, "text é".encode()), frame(BINARY, b"\0" * 200), frame(PING, b"p"), fragments(3)]) for _ in range(4))
            bad = bytearray(good)
            for _ in range(chance.randrange(1, 6)):
                bad[chance.randrange(len(bad))] = chance.randrange(256)
            try:
                sock.send(bytes(bad) + frame(CLOSE, b"\x03\xe8"))
                while True:
                    got = sock.receive(2)
                    if got.opcode == CLOSE:
                        codes.add(got.close_code)
                        break
            except (wire.Closed, TimeoutError, OSError):
                continue  # a mutated length swallowed the close: nothing to answer yet
    assert codes <= {1000, 1002, 1005, 1007, 1008, 1009} | set(range(3000, 5000)) | {1001, 1003, 1010, 1011, 1012, 1013, 1014}, codes
    assert 1002 in codes
    assert dev.process.alive and dev.process.pid == pid
    assert "panicked" not in dev.process.log_text()
