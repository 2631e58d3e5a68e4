"""What may be thrown at the reverse push address and `@connections` (attack rows 32 to 36): each has its answer, and the process stays
as it was."""

from __future__ import annotations

import concurrent.futures
import gzip
import json
import socket
import time

import pytest
import requests
import websockets.sync.client

from harness import Dev, until

pytestmark = pytest.mark.short

ABSENT = "AAAAAAAAAAAAAAAAAAAAAB"


@pytest.fixture(scope="module")
def node(module_folder):
    node = Dev(module_folder).start()
    yield node
    node.process.stop()


@pytest.fixture(autouse=True)
def the_process_stays_as_it_was(node):
    """The same process, its memory within 10 MiB once things have settled, and a well-behaved client that notices nothing."""
    pid, before = node.process.pid, node.process.rss_kib()
    with websockets.sync.client.connect(node.ws("/echo"), compression=None, legacy=True) as bystander:
        yield
        bystander.send("still here?")
        assert bystander.recv(timeout=10) == "still here?"
    assert node.process.alive and node.process.pid == pid
    until(lambda: node.process.rss_kib() < before + 10 * 1024, "memory as before", 20, every=0.2)


def raw(node, head: str, body: bytes = b"", *, endless: bool = False, seconds: float = 15) -> bytes:
    """The first bytes of the answer, to a request written byte for byte."""
    with socket.create_connection(node.process.address("http"), timeout=seconds) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        if endless:
            # until the other side has had enough
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                try:
                    connection.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                except OSError:
                    break
                connection.settimeout(0.001)
                try:
                    if answer := connection.recv(4096):
                        return answer
                except TimeoutError:
                    pass
                connection.settimeout(seconds)
        try:
            return connection.recv(4096)
        except ConnectionResetError:
            return b"reset"


@pytest.mark.parametrize("path", ["/push/echo", f"/prod/@connections/{ABSENT}"])
def test_a_body_without_end_is_cut(node, path):
    declared = raw(node, f"POST {path} HTTP/1.1\nhost: x\ncontent-length: 1073741824")
    assert declared.startswith(b"HTTP/1.1 413"), declared
    endless = raw(node, f"POST {path} HTTP/1.1\nhost: x\ntransfer-encoding: chunked", endless=True)
    assert endless.startswith(b"HTTP/1.1 413") or endless in (b"", b"reset"), endless


@pytest.mark.parametrize("head", ["content-length: +5", "content-length: 5\ncontent-length: 6", "transfer-encoding: chunked\ncontent-length: 5", "transfer-encoding: gzip"])
def test_lengths_that_two_readers_would_read_differently(node, head):
    answer = raw(node, f"POST /push/echo HTTP/1.1\nhost: x\n{head}", b"5\r\nhello\r\n0\r\n\r\n")
    # 400 by the parser, or the body read as one of them and refused as no JSON
    assert answer.startswith(b"HTTP/1.1 400") or answer == b"", answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * 100_000,
        b'{"websocket":' * 5_000,
        b'{"websocket":{"action":"data send","action":"closing","secConnectionID":"x"}}',
        b'{"websocket":{"action":1e999,"secConnectionID":"x"}}',
        b'{"websocket":{"action":"data send","secConnectionID":"' + b"\\ud800" + b'"}}',
        b'\xff\xfe{"websocket"',
        gzip.compress(b"x" * 10_000_000),
    ],
    ids=["nothing", "deep", "deep objects", "twice", "number", "half a character", "no text", "bomb"],
)
def test_what_is_no_push_gets_400_at_once(node, body):
    begun = time.monotonic()
    answer = requests.post(node.process.http() + "/push/echo", data=body, headers={"content-encoding": "gzip"}, timeout=10)
    assert (answer.status_code, answer.json()["errNo"]) == (400, 400)
    assert time.monotonic() - begun < 1


def test_ids_are_no_oracle(node):
    """Who asks for another API's connection, or for one that never was, gets the same bytes."""
    with websockets.sync.client.connect(node.ws("/echo"), compression=None, legacy=True):
        (live, *_) = [row["connection"] for row in node.connections("--api", "echo")]
        answers = {
            requests.post(node.process.http() + "/push/chat", json={"websocket": {"action": "closing", "secConnectionID": id_}}, timeout=10).content
            for id_ in (live, ABSENT, "", "../../etc/passwd", "x" * 10_000, "'; drop table connections; --")
        }
        assert len(answers) == 1 and json.loads(answers.pop())["errNo"] == 410


def test_one_key_a_hundred_times_at_once_is_one_push(node):
    with websockets.sync.client.connect(node.ws("/news"), compression=None, legacy=True) as client:
        (id_, *_) = [row["connection"] for row in node.connections("--api", "news")]

        def push(_: int) -> int:
            body = {"websocket": {"action": "data send", "secConnectionID": id_, "dataType": "text", "data": "once"}}
            return requests.post(node.process.http() + "/push/news", json=body, headers={"idempotency-key": "one"}, timeout=10).json()["errNo"]

        with concurrent.futures.ThreadPoolExecutor(20) as pool:
            assert set(pool.map(push, range(100))) == {0}
        other = {"websocket": {"action": "data send", "secConnectionID": id_, "dataType": "text", "data": "other"}}
        url = node.process.http() + "/push/news"
        assert requests.post(url, json=other, headers={"idempotency-key": "one"}, timeout=10).json()["errNo"] == 422
        assert requests.post(url, json=other, timeout=10).json()["errNo"] == 0
        assert [client.recv(timeout=10), client.recv(timeout=10)] == ["once", "other"]


def test_a_page_of_another_site_pushes_nothing(node):
    headers = {"origin": "https://evil.example", "content-type": "text/plain"}
    for path in ("/push/echo", f"/prod/@connections/{ABSENT}"):
        assert requests.post(node.process.http() + path, data=b"{}", headers=headers, timeout=10).status_code == 403


def test_what_is_wrong_is_shown_without_control_characters(node):
    body = json.dumps({"websocket": {"action": "\x1b[31mred\x1b[0m\n<script>", "secConnectionID": ABSENT}})
    answer = requests.post(node.process.http() + "/push/echo", data=body, timeout=10)
    assert b"\x1b" not in answer.content
    assert "\x1b" not in node.process.log_text()
