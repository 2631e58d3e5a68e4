"""Bad handshakes get a clear HTTP answer and change nothing."""

from __future__ import annotations

import socket
import time

import pytest

import wire

pytestmark = pytest.mark.short


@pytest.fixture
def edge(dev):
    """The edge's address. Afterwards: it lives, serves a good client, and the log did not grow by what was refused."""
    pid, last = dev.process.pid, last_offset(dev)
    yield dev.edge.address("ws")
    assert dev.process.alive and dev.process.pid == pid
    assert last_offset(dev) == last, "a refused handshake reached the log"
    with wire.Socket(dev.edge.address("ws"), "/echo") as good:
        good.send_text("still there")
        assert good.receive_text() == "still there"
        good.close()


def last_offset(dev):
    # records that the bad input could have made: other tests' closes may still come in
    return sum(record.kind == "connection_opened" for record in dev.tail())


def ask(edge, path="/echo", **kwargs) -> wire.Answer:
    return wire.request(edge, wire.handshake(edge, path, **kwargs))


@pytest.mark.parametrize("version", ["8", "12", "14", "013", "x", ""])
def test_a_wrong_version_is_426_and_names_the_right_one(edge, version):
    answer = ask(edge, sec_websocket_version=version)
    assert answer.status == 426 and answer.headers["sec-websocket-version"] == "13", answer


def test_a_missing_version_is_426(edge):
    answer = ask(edge, drop=["sec-websocket-version"])
    assert answer.status == 426 and answer.headers["sec-websocket-version"] == "13", answer


def test_a_doubled_version_is_refused(edge):
    assert ask(edge, sec_websocket_version=["13", "13"]).status in {400, 426}


@pytest.mark.parametrize("key", ["", "short", "dGhlIHNhbXBsZSBub25jZQ", "AAAAAAAAAAAAAAAAAAAAAAAA", "!!!!!!!!!!!!!!!!!!!!!!==", "dGhlIHNhbXBsZSBub25jZQ==x"])
def test_a_key_that_is_not_16_bytes_of_base64_is_400(edge, key):
    assert ask(edge, sec_websocket_key=key).status == 400


def test_a_missing_or_doubled_key_is_400(edge):
    good = "dGhlIHNhbXBsZSBub25jZQ=="
    assert ask(edge, drop=["sec-websocket-key"]).status == 400
    assert ask(edge, sec_websocket_key=[good, good]).status == 400


def test_a_missing_or_doubled_host_is_400(edge):
    assert ask(edge, drop=["host"]).status == 400
    assert ask(edge, host=["a", "b"]).status == 400


@pytest.mark.parametrize("path", ["/", "/nowhere", "/echo/", "/echo/more", "/ECHO", "/echo%2f", "/../echo"])
def test_an_unknown_path_is_404(edge, path):
    assert ask(edge, path).status == 404


def test_other_methods_and_no_upgrade(edge):
    assert ask(edge, method="POST").status in {400, 405}
    assert ask(edge, drop=["upgrade", "connection"]).status in {400, 426}
    assert ask(edge, version="HTTP/1.0").status in {400, 426, 505}
    assert ask(edge, upgrade="h2c").status in {400, 426}
    assert ask(edge, connection="keep-alive").status in {400, 426}


def test_too_much_head_is_431_or_414(edge):
    assert ask(edge, extra=[f"x-{number}: y" for number in range(200)]).status == 431
    assert ask(edge, extra=["x-large: " + "y" * 70_000]).status == 431
    assert ask(edge, extra=["x-huge: " + "y" * (1 << 20)]).status == 431
    assert ask(edge, "/echo?" + "q" * 65_536).status in {414, 431}


@pytest.mark.parametrize(
    "line",
    ["Content-Length: +5", "Content-Length: 5\r\nTransfer-Encoding: chunked", "name : value", "folded: a\r\n b", "bad\x00name: x", "x: a\x01b"],
    ids=["signed-length", "length-and-chunked", "space-before-colon", "folded", "nul-in-name", "control-in-value"],
)
def test_smuggling_tricks_are_400(edge, line):
    assert ask(edge, extra=[line]).status == 400


def test_a_body_with_an_upgrade_is_refused(edge):
    raw = wire.handshake(edge, "/echo", extra=["Content-Length: 5"]) + b"hello"
    assert wire.request(edge, raw).status == 400


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET /echo HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_http_at_all_is_400_or_closed(edge, garbage):
    with socket.create_connection(edge, timeout=5) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert wire.read_answer(sock)[0].status in {0, 400, 505}


def test_a_strange_list_of_subprotocols_is_survived(dev):
    edge = dev.edge.address("ws")
    started = time.monotonic()
    for value in ["b" + " " * 8000 + "x", "\xff\xfe", ", ,", ",".join(f"p{number}" for number in range(1000)), "a" * 8000]:
        assert ask(edge, sec_websocket_protocol=value).status in {400, 431, 101}
    assert time.monotonic() - started < 3


def test_a_slow_handshake_is_closed_at_ten_seconds_and_others_get_in(dev):
    edge = dev.edge.address("ws")
    silent = socket.create_connection(edge, timeout=20)
    dripping = socket.create_connection(edge, timeout=20)
    started = time.monotonic()
    request = wire.handshake(edge, "/echo", extra=["x-slow: " + "y" * 100])
    for byte in request[:200]:
        with wire.Socket(edge, "/echo") as good:
            assert good.answer.status == 101
        try:
            dripping.sendall(bytes([byte]))
        except OSError:
            break
        dripping.settimeout(0.5)
        try:
            if not dripping.recv(4096):
                break
        except TimeoutError:
            continue
        except ConnectionResetError:
            break
        else:
            break
    took = time.monotonic() - started
    assert 8 <= took <= 13, f"one byte at a time: ended after {took:.1f} s"
    answer, _ = wire.read_answer(silent, seconds=5)
    assert answer.status in {0, 408}
    assert time.monotonic() - started <= 15
    silent.close()
    dripping.close()


def test_many_silent_connections_keep_nobody_out(dev):
    edge = dev.edge.address("ws")
    idle = [socket.create_connection(edge, timeout=5) for _ in range(500)]
    started = time.monotonic()
    with wire.Socket(edge, "/echo") as good:
        good.send_text("hello")
        assert good.receive_text() == "hello"
        good.close()
    assert time.monotonic() - started < 3
    for sock in idle:
        sock.close()


def test_connection_is_a_list_and_upgrade_is_case_insensitive(dev):
    edge = dev.edge.address("ws")
    with wire.Socket(edge, "/echo", connection="keep-alive, Upgrade", upgrade="WebSocket") as socket_:
        assert socket_.answer.headers["sec-websocket-accept"]
        socket_.close()


@pytest.mark.parametrize("behind", [wire.frame(wire.TEXT, b"early"), b"GET /news HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["frame", "request"])
def test_bytes_behind_the_request_are_400(edge, behind):
    """A client may send nothing before it has seen 101 (RFC 6455 section 4.1): this is an attempt at smuggling."""
    assert wire.request(edge, wire.handshake(edge, "/echo") + behind).status == 400


@pytest.mark.parametrize("origin", ["https://evil.com", "null", "http://good.example", "https://good.example.evil.com", "https://evilgood.example", "https://good.example:444"])
def test_a_browser_from_elsewhere_is_403(origins, origin):
    edge = origins.edge.address("ws")
    assert wire.request(edge, wire.handshake(edge, "/listed", origin=origin)).status == 403


def test_a_browser_from_a_listed_origin_and_a_program_without_one_come_in(origins):
    edge = origins.edge.address("ws")
    for headers in ({"origin": "https://good.example"}, {}):
        with wire.Socket(edge, "/listed", **headers) as socket_:
            socket_.close()


@pytest.fixture(scope="module")
def origins(tmp_path_factory):
    from harness import Cluster

    apis = '[[api]]\nname = "listed"\npath = "/listed"\nregistration = "accept"\norigins = ["https://good.example"]\n'
    cluster = Cluster(tmp_path_factory.mktemp("origins"), apis).start()
    yield cluster
    cluster.edge.stop()
    cluster.broker.stop()
