"""Bad handshakes get a clear HTTP answer and change nothing (attack rows A1 to A7 and A10 to A12; A8 and A9: test_handshake_load.py)."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import time

import pytest

import wire
from attack import ACCEPTED, REFUSED, Canary, Target, connects_to, sum_of
from harness import Dev

pytestmark = pytest.mark.short

GOOD_KEY = "dGhlIHNhbXBsZSBub25jZQ=="
PROXY = "127.0.0.9"
CONFIG = f"""
[edge]
headers = ["host", "origin", "user-agent", "cookie"]
trusted_proxies = ["{PROXY}"]
[broker]
tail_bytes = "1MiB"
[[api]]
name = "listed"
path = "/listed"
registration = "accept"
origins = ["https://good.com"]
[[api]]
name = "pages"
path = "/pages"
registration = "accept"
origins = ["https://good.com"]
origin_required = true
"""


@pytest.fixture(scope="module")
def target(module_folder):
    target = Target(Dev(module_folder, config=CONFIG).start(), module_folder)
    yield target
    target.stop()
    assert target.node.process.stop() == 0


@pytest.fixture
def refused(under, target):
    """Around what must be refused: nobody came in."""

    @contextlib.contextmanager
    def refused(**kwargs):
        before = sum_of(target.metrics(), ACCEPTED)
        with under(target, metric=REFUSED, **kwargs) as attack:
            yield attack
        assert sum_of(target.metrics(), ACCEPTED) == before, "what must be refused came in"

    return refused


def answer_to(address, raw: bytes, *, source: str | None = None) -> wire.Answer:
    """The one answer to these bytes, after which the server closes."""
    with socket.create_connection(address, timeout=10, source_address=(source, 0) if source else None) as sock:
        with contextlib.suppress(OSError):
            sock.sendall(raw)
        answer, rest = wire.read_answer(sock, seconds=10)
        with contextlib.suppress(ConnectionResetError):
            while more := sock.recv(65536):
                rest += more
        assert rest == b"", f"more than one answer: {rest[:200]!r}"
        return answer


def ask(target, path="/echo", *, source: str | None = None, **kwargs) -> wire.Answer:
    return answer_to(target.ws, wire.handshake(target.ws, path, **kwargs), source=source)


@pytest.mark.attack("A1")
@pytest.mark.parametrize("version", ["8", "12", "14", "013", "13, 8", "x", "", ["13", "13"], ["8", "13"], None])
def test_another_version_is_426_and_names_the_right_one(target, refused, version):
    kwargs = {"drop": ["sec-websocket-version"]} if version is None else {"sec_websocket_version": version}
    with refused() as attack:
        answer = ask(target, **kwargs)
        attack.answered(answer.status, 426)
        assert answer.headers["sec-websocket-version"] == "13", answer


@pytest.mark.attack("A2")
@pytest.mark.parametrize(
    ("kwargs", "status"),
    [
        ({"method": "POST"}, 405),
        ({"method": "CONNECT"}, 405),
        ({"version": "HTTP/1.0"}, 400),
        ({"drop": ["upgrade", "connection"]}, 426),
        ({"drop": ["upgrade"]}, 426),
        ({"drop": ["connection"]}, 426),
        ({"upgrade": "h2c"}, 426),
        ({"connection": "keep-alive"}, 426),
    ],
    ids=str,
)
def test_another_method_or_no_upgrade(target, refused, kwargs, status):
    with refused() as attack:
        answer = ask(target, **kwargs)
        attack.answered(answer.status, status)
        assert status != 405 or answer.headers["allow"] == "GET"
        assert status != 426 or answer.headers["upgrade"] == "websocket"


@pytest.mark.attack("A2")
def test_connection_is_a_list_and_upgrade_is_case_insensitive(target, under):
    with under(target, metric=ACCEPTED) as attack:
        with wire.Socket(target.ws, "/echo", connection="keep-alive, Upgrade", upgrade="WebSocket") as client:
            attack.answered(client.answer.status, 101)
            assert client.answer.headers["sec-websocket-accept"]
            client.close()


@pytest.mark.attack("A3")
@pytest.mark.parametrize("key", ["", "short", GOOD_KEY.rstrip("="), "A" * 20, "A" * 24, "!" * 22 + "==", GOOD_KEY + "x", "dGhlIHNhbXBsZSBub25jZR==", [GOOD_KEY] * 2, None])
def test_a_key_that_is_not_16_bytes_of_base64_is_400(target, refused, key):
    kwargs = {"drop": ["sec-websocket-key"]} if key is None else {"sec_websocket_key": key}
    with refused() as attack:
        attack.answered(ask(target, **kwargs).status, 400)


@pytest.mark.attack("A3")
@pytest.mark.parametrize("host", [None, "", ["a", "b"], ["a", "a"]])
def test_no_host_or_two_is_400(target, refused, host):
    kwargs = {"drop": ["host"]} if host is None else {"host": host}
    with refused() as attack:
        attack.answered(ask(target, **kwargs).status, 400)


@pytest.mark.attack("A4")
@pytest.mark.parametrize(
    ("path", "extra", "status"),
    [
        ("/echo", [f"x-{number}: y" for number in range(200)], 431),
        ("/echo", ["x-large: " + "y" * 70_000], 431),
        ("/echo", ["x-huge: " + "y" * (1 << 20)], 431),
        ("/echo?" + "q" * 65_536, [], 414),
    ],
    ids=["200-fields", "70-kib", "1-mib", "target-of-64-kib"],
)
def test_too_much_head_is_refused_cheaply(target, refused, path, extra, status):
    with refused() as attack:
        raw = wire.handshake(target.ws, path, extra=extra)
        attack.costs(lambda: attack.answered(answer_to(target.ws, raw).status, status), 0.05)


@pytest.mark.attack("A5")
@pytest.mark.parametrize(
    ("value", "status"),
    [
        # the head is too long, whatever is in it
        ("b" + " " * 60_000 + "x", 431),
        ("b" + " " * 12_000 + "x", 400),
        ("b," + " " * 12_000 + "x", 101),
        ("b" + "\t" * 12_000 + "x", 400),
        ("b" * 9_000, 400),
        ("\xff\xfe", 400),
        ("\u00fc", 400),
        (", ,", 400),
        (",".join(f"p{number}" for number in range(1000)), 400),
        ("b\u00a0x", 400),
        ('b"x', 400),
    ],
    ids=["60000-spaces", "12000-spaces", "12000-spaces-in-a-list", "tabs", "9000-letters", "no-text", "no-ascii", "nothing", "1000-names", "another-space", "quote"],
)
def test_a_strange_list_of_subprotocols_is_refused_cheaply(target, under, value, status):
    with under(target, metric=ACCEPTED if status == 101 else REFUSED) as attack:
        raw = wire.handshake(target.ws, "/listed", sec_websocket_protocol=value)

        def once() -> None:
            with socket.create_connection(target.ws, timeout=10) as sock:
                sock.sendall(raw)
                answer = wire.read_answer(sock)[0]
            attack.answered(answer.status, status)
            assert "sec-websocket-protocol" not in answer.headers

        # whoever is let in costs more than the head: a record, and the end of the connection
        attack.costs(once, 0.01 if status != 101 else 0.05)


CHUNKED = "Transfer-Encoding: chunked"


@pytest.mark.attack("A6")
@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Content-Length: 5", CHUNKED], b""),
        (["Content-Length: 5", CHUNKED], b"0\r\n\r\n"),
        ([CHUNKED], b""),
        ([CHUNKED], b"10000000000000000\r\nx"),
        (["Content-Length: +5"], b""),
        (["Content-Length: 5"], b""),
        (["Content-Length: 0", "Content-Length: 5"], b""),
        (["folded: a\r\n b"], b""),
        ([" x: starts with a space"], b""),
        (["name : value"], b""),
        (["bad\x00name: x"], b""),
        (["x: a\x01b"], b""),
        (["x: a\x1b[31mb"], b""),
        (["x: a\rb"], b""),
        (["no colon"], b""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_smuggling_tricks_are_400(target, refused, lines, body):
    with refused() as attack:
        attack.answered(answer_to(target.ws, wire.handshake(target.ws, "/echo", extra=lines) + body).status, 400)


@pytest.mark.attack("A6")
@pytest.mark.parametrize("line", range(7))
def test_a_line_that_ends_without_carriage_return_is_400(target, refused, line):
    lines = wire.handshake(target.ws, "/echo").split(b"\r\n")
    raw = b"\r\n".join(lines[: line + 1]) + b"\n" + b"\r\n".join(lines[line + 1 :])
    if raw.endswith(b"\n\r\n\n"):
        raw = raw[:-1]
    with refused() as attack:
        attack.answered(answer_to(target.ws, raw).status, 400)


@pytest.mark.attack("A7")
@pytest.mark.parametrize("version", ["13", "8"])
@pytest.mark.parametrize("behind", ["frame", "request", "body"])
def test_bytes_behind_the_head_are_400_and_reach_nothing(target, refused, behind, version):
    """A client may send nothing before it has seen 101 (RFC 6455 section 4.1). With a version that nobody speaks it hopes for a proxy that
    opens its tunnel before the answer."""
    bytes_behind = {"frame": wire.frame(wire.TEXT, b"early"), "request": wire.handshake(target.ws, "/news"), "body": b"hello"}[behind]
    extra = ["Content-Length: 5"] if behind == "body" else []
    with refused() as attack:
        attack.answered(answer_to(target.ws, wire.handshake(target.ws, "/echo", sec_websocket_version=version, extra=extra) + bytes_behind).status, 400)


@pytest.mark.attack("A7")
def test_after_a_refusal_nothing_is_read_any_more(target, refused):
    """Only a real 101 switches protocols: the request that comes after another answer is none."""
    with refused() as attack, socket.create_connection(target.ws, timeout=10) as sock:
        sock.sendall(wire.handshake(target.ws, "/echo", sec_websocket_version="8"))
        attack.answered(wire.read_answer(sock)[0].status, 426)
        with contextlib.suppress(OSError):
            sock.sendall(wire.handshake(target.ws, "/news"))
            assert sock.recv(4096) == b"", "a second answer"


ORIGINS = [
    "null",
    "https://evil.com",
    "https://good.com.evil.com",
    "https://evilgood.com",
    "http://good.com",
    "https://good.com:444",
    "https://good.com:443",
    "https://GOOD.com",
    "HTTPS://good.com",
    "https://good.com/",
    "https://good.com.",
    "https://user@good.com",
    "https://good.com https://evil.com",
    "",
]


@pytest.mark.attack("A10")
@pytest.mark.parametrize("origin", ORIGINS)
def test_every_origin_but_the_listed_one_is_403(target, refused, origin):
    with refused() as attack:
        attack.answered(ask(target, "/listed", origin=origin).status, 403)
        attack.answered(ask(target, "/pages", origin=origin).status, 403)


@pytest.mark.attack("A10")
def test_no_origin_is_403_where_only_pages_may_come(target, refused):
    with refused() as attack:
        attack.answered(ask(target, "/pages").status, 403)


@pytest.mark.attack("A10")
def test_two_origins_are_400(target, refused):
    with refused() as attack:
        attack.answered(ask(target, "/listed", origin=["https://good.com", "https://evil.com"]).status, 400)


@pytest.mark.attack("A10")
def test_a_browser_from_the_listed_origin_and_a_program_without_one_come_in(target, under):
    with under(target) as attack:
        attack.counts(ACCEPTED, 3)
        for path, headers in (("/listed", {"origin": "https://good.com"}), ("/pages", {"origin": "https://good.com"}), ("/listed", {})):
            with wire.Socket(target.ws, path, **headers) as client:
                attack.answered(client.answer.status, 101)
                client.close()


@pytest.mark.attack("A11")
@pytest.mark.parametrize("origin", ORIGINS[:4])
def test_a_good_cookie_from_a_foreign_page_is_403(target, refused, origin):
    """The cookie that the listed page's socket was let in with, which a browser sends whoever asks it to."""
    cookie = "session=7d0a1c55-a-cookie-of-this-test"
    with wire.Socket(target.ws, "/listed", origin="https://good.com", cookie=cookie) as good:
        with refused(secrets=(cookie,)) as attack:
            attack.answered(ask(target, "/listed", origin=origin, cookie=cookie).status, 403)
        good.close()


def peer_of(target, **kwargs) -> str:
    """What the log says of where this client came from."""
    with wire.Socket(target.ws, "/listed", **kwargs) as client:
        (row,) = target.node.connections("--api", "listed")
        client.close()
        return row["peer"].rpartition(":")[0]


@pytest.mark.attack("A12")
@pytest.mark.parametrize("headers", [{"x_forwarded_for": "6.6.6.6"}, {"forwarded": "for=6.6.6.6"}, {"x_real_ip": "6.6.6.6"}, {"x_forwarded_for": ["6.6.6.6", PROXY]}], ids=str)
def test_who_is_no_trusted_proxy_speaks_for_itself(target, under, headers):
    with under(target, metric=ACCEPTED) as attack:
        attack.answered(peer_of(target, **headers), "127.0.0.1")


@pytest.mark.attack("A12")
@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ({"x_forwarded_for": "6.6.6.6"}, "6.6.6.6"),
        # what stands before the address that the proxy saw is the client's own word
        ({"x_forwarded_for": "9.9.9.9, 6.6.6.6"}, "6.6.6.6"),
        ({"x_forwarded_for": ["9.9.9.9", "6.6.6.6"]}, "6.6.6.6"),
        ({"forwarded": "for=6.6.6.6"}, PROXY),
        ({"x_forwarded_for": "\x5b31mred"}, PROXY),
        ({}, PROXY),
    ],
    ids=str,
)
def test_a_trusted_proxy_is_believed_what_it_saw(target, under, headers, peer):
    with under(target, metric=ACCEPTED) as attack:
        attack.answered(peer_of(target, source=PROXY, **headers), peer)


@pytest.mark.attack("A12")
def test_a_target_that_is_an_address_is_400_and_called_by_nobody(target, refused):
    with Canary() as canary, refused() as attack:
        for path in (f"{canary.url}/echo", f"ws://{canary.address}/echo", f"//{canary.address}/echo", "http://169.254.169.254/latest/meta-data/", canary.address):
            # the third is a path, of no API
            attack.answered(ask(target, path).status, 404 if path.startswith("//") else 400)
        assert not canary.was_called and not connects_to(target.node.edge, "169.254.169.254")


@pytest.mark.attack("A12")
def test_a_host_is_called_by_nobody(target, under):
    with Canary() as canary, under(target, metric=ACCEPTED) as attack:
        for host in (canary.address, "169.254.169.254", "[::ffff:169.254.169.254]:80"):
            with wire.Socket(target.ws, "/echo", host=host, x_forwarded_host=host) as client:
                attack.answered(client.answer.status, 101)
                client.send_text("who answers?")
                assert client.receive_text() == "who answers?"
                client.close()
        assert not canary.was_called and not connects_to(target.node.edge, "169.254.169.254")


@pytest.mark.parametrize("path", ["/", "/nowhere", "/echo/", "/echo/more", "/ECHO", "/echo%2f", "/../echo", "/metrics", "/healthz"])
def test_an_unknown_path_is_404(target, path):
    assert ask(target, path).status == 404


@pytest.mark.parametrize("garbage", [b"\0" * 64, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET /echo HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
def test_what_is_no_http_at_all_is_400_or_closed(target, garbage):
    with socket.create_connection(target.ws, timeout=5) as sock:
        sock.sendall(garbage)
        sock.shutdown(socket.SHUT_WR)
        assert wire.read_answer(sock)[0].status in {0, 400, 505}


def test_requests_changed_at_random_are_answered_or_waited_for(target, under):
    seed = int(os.environ.get("TRUNKLINE_FUZZ_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with under(target, row="fuzz", metric=REFUSED) as attack:
        end = time.monotonic() + float(os.environ.get("TRUNKLINE_FUZZ_SECONDS", "5"))
        tried = 0
        while time.monotonic() < end:
            raw = bytearray(wire.handshake(target.ws, "/listed", origin="https://good.com", extra=["Sec-WebSocket-Protocol: a, b", "X-Forwarded-For: 1.2.3.4"]))
            mutate(raw, chance)
            with socket.create_connection(target.ws, timeout=10) as sock:
                sock.sendall(raw)
                # what is no whole head any more is waited for, and ended here
                if not select.select([sock], [], [], 0.05)[0]:
                    sock.shutdown(socket.SHUT_WR)
                attack.answered(wire.read_answer(sock, seconds=10)[0].status, 0, 101, 400, 403, 404, 405, 414, 426, 431, 505)
            tried += 1
        attack.note(f"{tried} random requests, seed {seed}")


def mutate(data: bytearray, chance: random.Random) -> None:
    """A few changes: bytes replaced, inserted, taken away, doubled."""
    words = [b"\r\n", b"\n", b"\0", b":", b" ", b"\x1b[31m", b"\xff", b"HTTP/1.1", b"Content-Length: 5\r\n", b"Upgrade: websocket\r\n", b"%00", b",", b"a" * 5000]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if at < len(data):
                data[at] = chance.randrange(256)
            case 1:
                data[at:at] = chance.choice(words)
            case 2:
                del data[at : at + chance.choice([1, 2, 10, 40])]
            case 3:
                data[at:at] = data[at : at + chance.choice([2, 20, 60])]
            case _:
                data[at:at] = chance.randbytes(chance.choice([1, 4, 16]))
