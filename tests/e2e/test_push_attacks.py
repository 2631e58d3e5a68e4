"""What may be thrown at the reverse push address, at `@connections` and at the broker's other HTTP (attack rows A32 to A34, and A36 in
test_admin_attacks.py): each has its answer, and the process stays as it was."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import gzip
import hmac
import json
import os
import random
import socket
import sys
import time
import uuid

import grpc
import pytest
import requests
import websockets.sync.client

from attack import Target, http_answers
from credentials import mint
from harness import Dev, until
from python_sdk import SDK
from test_handshake import mutate

sys.path.insert(0, str(SDK / "src"))
from trunkline.v1 import records_pb2, trunkline_pb2, trunkline_pb2_grpc  # noqa: E402

pytestmark = pytest.mark.short

ABSENT = "AAECAwQFBgcICQoLDA0ODw"
OLD, NEW, ANOTHER = ("whsec_" + base64.b64encode(name.encode() * 8).decode() for name in ("old.", "new.", "none"))
SIGNED = f"""
[broker]
tail_bytes = "1MiB"
push.secrets = ["{OLD}", "{NEW}"]
[[broker.tokens]]
name = "ops"
sha256 = "{{sha256}}"
role = "operator"
[[broker.tokens]]
name = "reader"
sha256 = "{{reader}}"
role = "read_only"
"""


@pytest.fixture(scope="module")
def target(module_folder):
    """Nobody is asked for anything: a listener on loopback."""
    folder = module_folder / "open"
    target = Target(Dev(folder, config='[broker]\ntail_bytes = "1MiB"\n').start(), folder)
    yield target
    target.stop()
    assert target.node.process.stop() == 0


@pytest.fixture(scope="module")
def signed(module_folder):
    """Pushes must be signed, with one of two secrets; everything else asks for a token."""
    folder = module_folder / "signed"
    ops, reader = mint("ops", "operator"), mint("reader", "read_only")
    config = SIGNED.format(sha256=ops["sha256"], reader=reader["sha256"])
    target = Target(Dev(folder, config=config).start(), folder, token=ops["token"])
    target.reader = reader["token"]
    yield target
    target.stop()
    assert target.node.process.stop() == 0


def url(target, path: str) -> str:
    return target.node.broker.http() + path


@contextlib.contextmanager
def client_of(target, api: str):
    """A client and its id."""
    with websockets.sync.client.connect(target.node.ws(f"/{api}"), compression=None, proxy=None, legacy=True) as client:
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        ours = client.local_address[1]
        rows = until(
            lambda: [row for row in requests.get(url(target, f"/v1/connections?api={api}&limit=1000"), headers=headers, timeout=10).json()["connections"] if row["peer"].endswith(f":{ours}")],
            "the connection in the list",
        )
        yield client, rows[0]["connection"]


def data_send(id_: str, data: str, **more) -> dict:
    return {"websocket": {"action": "data send", "secConnectionID": id_, "dataType": "text", "data": data} | more}


def signature(secret: str, id_: str, timestamp: object, body: bytes) -> str:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, f"{id_}.{timestamp}.".encode() + body, "sha256")).decode()


def push(target, body: bytes, *, id_="msg", timestamp: object = None, signatures: str | None = None, secret=OLD, drop=(), api="news") -> requests.Response:
    """A signed push, unless told otherwise."""
    timestamp = int(time.time()) if timestamp is None else timestamp
    headers = {"webhook-id": id_, "webhook-timestamp": str(timestamp)}
    headers["webhook-signature"] = signature(secret, id_, timestamp, body) if signatures is None else signatures
    return requests.post(url(target, f"/push/{api}"), data=body, headers={name: value for name, value in headers.items() if name not in drop}, timeout=10)


def wrongly_signed(body: bytes, good: str, now: int) -> dict[str, dict]:
    """By what is wrong: what is sent instead."""
    tag = good.removeprefix("v1,")
    other = json.dumps(json.loads(body), indent=1).encode()
    return {
        "none": {"drop": ["webhook-signature"]},
        "no headers": {"drop": ["webhook-signature", "webhook-id", "webhook-timestamp"]},
        "no id": {"drop": ["webhook-id"]},
        "no timestamp": {"drop": ["webhook-timestamp"]},
        "empty": {"signatures": ""},
        "another's": {"secret": ANOTHER},
        "truncated": {"signatures": good[:30]},
        "no base64": {"signatures": good[:-3] + "!!="},
        "of another version": {"signatures": f"v1a,{tag}"},
        "without its version": {"signatures": tag},
        "longer": {"signatures": good + "AAAA"},
        "a byte changed": {"body": body.replace(b"signed", b"Signed")},
        "a byte more": {"body": body + b" "},
        "of the same JSON written otherwise": {"body": other, "signatures": good},
        "6 minutes old": {"timestamp": now - 360},
        "of 6 minutes from now": {"timestamp": now + 360},
        "of another time": {"timestamp": now - 1, "signatures": good},
        "a time that is none": {"timestamp": "soon"},
        "a negative time": {"timestamp": -1},
        "a time beyond all": {"timestamp": 2**64},
        "of another id": {"id_": "other", "signatures": good},
        "no id in it": {"id_": ""},
        "seventeenth": {"signatures": " ".join(["v1,AAAA"] * 16 + [good])},
    }


WRONG = list(wrongly_signed(b'{"signed":1}', "v1," + "A" * 44, 0))


@pytest.mark.attack("A32")
@pytest.mark.parametrize("wrong", WRONG)
def test_a_push_that_is_not_signed_as_it_must_be_is_401(signed, under, wrong):
    with client_of(signed, "news") as (client, id_):
        body, now = json.dumps(data_send(id_, "signed")).encode(), int(time.time())
        good = signature(OLD, "msg", now, body)
        sent = {"timestamp": now} | wrongly_signed(body, good, now)[wrong]
        if "body" in sent:
            sent["signatures"] = good
        with under(signed, metric=http_answers("push", 401), secrets=(OLD, OLD.removeprefix("whsec_"), good)) as attack:
            answer = push(signed, sent.pop("body", body), **sent)
            attack.answered(answer.status_code, 401)
            assert answer.json()["errNo"] == 401 and good not in answer.text
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.05)


@pytest.mark.attack("A32")
def test_two_secrets_are_good_while_one_is_replaced(signed, under):
    with client_of(signed, "news") as (client, id_), under(signed) as attack:
        attack.counts(http_answers("push", 200), 4)
        for number, secret in enumerate((OLD, NEW)):
            attack.answered(push(signed, json.dumps(data_send(id_, f"{number}")).encode(), id_=uuid.uuid4().hex, secret=secret).status_code, 200)
            assert client.recv(timeout=10) == f"{number}"
        # by a sender that signs with both, and by one that the server does not know in part
        for others in (NEW, ANOTHER):
            body, now, name = json.dumps(data_send(id_, others)).encode(), int(time.time()), uuid.uuid4().hex
            both = f"{signature(others, name, now, body)} {signature(OLD, name, now, body)}"
            attack.answered(push(signed, body, id_=name, timestamp=now, signatures=both).status_code, 200)
            assert client.recv(timeout=10) == others


@pytest.mark.attack("A32")
def test_a_push_that_was_overheard_does_nothing_again(signed, under):
    """Byte for byte it is what a sender sends again that got no answer, and so it is answered as the first; it has no effect."""
    with client_of(signed, "news") as (client, id_), under(signed) as attack:
        body, now, name = json.dumps(data_send(id_, "once")).encode(), int(time.time()), uuid.uuid4().hex
        for _ in range(5):
            attack.answered(push(signed, body, id_=name, timestamp=now).status_code, 200)
        # the same id is no way to another effect either
        other = json.dumps(data_send(id_, "twice")).encode()
        attack.answered(push(signed, other, id_=name, timestamp=now).status_code, 422)
        end = json.dumps(data_send(id_, "end")).encode()
        attack.answered(push(signed, end, id_=uuid.uuid4().hex).status_code, 200)
        assert [client.recv(timeout=10), client.recv(timeout=10)] == ["once", "end"]


def raw(target, head: str, body: bytes = b"", *, endless: bytes = b"", seconds: float = 15) -> bytes:
    """The first bytes of the answer, to a request written byte for byte; `endless` is sent until the server has had enough."""
    with socket.create_connection(target.http, timeout=seconds) as connection:
        connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        end = time.monotonic() + seconds
        answer = b""
        connection.settimeout(0.001)
        while endless and time.monotonic() < end and not answer:
            try:
                connection.settimeout(seconds)
                connection.sendall(endless)
                connection.settimeout(0.001)
                answer = connection.recv(4096)
                break
            except TimeoutError:
                continue
            except OSError:
                break
        connection.settimeout(seconds)
        try:
            return answer or connection.recv(4096)
        except ConnectionResetError:
            return b"reset"


def status(answer: bytes) -> object:
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else answer


PLACES = ["/push/news", f"/prod/@connections/{ABSENT}", "/v1/channels/news/messages"]
SURFACES = {"/push/news": "push", f"/prod/@connections/{ABSENT}": "aws", "/v1/channels/news/messages": "api"}


@pytest.mark.attack("A33")
@pytest.mark.parametrize("path", PLACES)
def test_a_body_of_1_gib_is_413_before_it_is_sent(target, under, path):
    with under(target, metric=http_answers(SURFACES[path], 413)) as attack:
        answer = raw(target, f"POST {path} HTTP/1.1\nhost: x\ncontent-length: 1073741824")
        attack.answered(status(answer), 413)


@pytest.mark.attack("A33")
@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("chunk", [b"10000\r\n" + b"x" * 0x10000 + b"\r\n", b"4\r\nxxxx\r\n" * 10_000], ids=["64-kib-chunks", "4-byte-chunks"])
def test_a_body_without_end_is_413(target, under, path, chunk):
    with under(target, metric=http_answers(SURFACES[path], 413)) as attack:
        answer = raw(target, f"POST {path} HTTP/1.1\nhost: x\ntransfer-encoding: chunked", endless=chunk)
        attack.answered(status(answer), 413)


@pytest.mark.attack("A33")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
@pytest.mark.parametrize("path", PLACES)
def test_a_bomb_is_415_and_not_inflated(target, under, path, encoding):
    bomb = gzip.compress(b"\0" * (64 << 20))
    with under(target, metric=http_answers(SURFACES[path], 415)) as attack:
        attack.answered(requests.post(url(target, path), data=bomb, headers={"content-encoding": encoding}, timeout=10).status_code, 415)


NO_PUSHES = {
    "nothing": b"",
    "no text": b'\xff\xfe{"websocket"',
    "100000 deep": b"[" * 100_000,
    "5000 objects deep": b'{"websocket":' * 5_000,
    "deep inside": b'{"websocket":{"action":"closing","secConnectionID":"x","data":' + b"[" * 10_000 + b"]" * 10_000 + b"}}",
    "a field twice": b'{"websocket":{"action":"data send","action":"closing","secConnectionID":"x"}}',
    "a number": b'{"websocket":{"action":1e999,"secConnectionID":"x"}}',
    "half a character": b'{"websocket":{"action":"data send","secConnectionID":"\\ud800"}}',
    "a list": b'[{"websocket":{"action":"closing","secConnectionID":"x"}}]',
    "no object": b'"websocket"',
    "null": b'{"websocket":null}',
    "ids as a list": json.dumps({"websocket": {"action": "closing", "secConnectionID": [ABSENT]}}).encode(),
    "100000 at once": json.dumps([data_send(ABSENT, "x")] * 10_000 + [0] * 90_000).encode(),
    "100000 ids at once": json.dumps({"websocket": {"action": "closing", "secConnectionID": [ABSENT] * 100_000}}).encode(),
    "more after it": json.dumps(data_send(ABSENT, "x")).encode() * 2,
    "a bomb": gzip.compress(b"x" * 10_000_000),
}


@pytest.mark.attack("A33")
@pytest.mark.parametrize("body", NO_PUSHES)
def test_what_is_no_push_is_400_at_once(target, under, body):
    with under(target, metric=http_answers("push", 400)) as attack:
        answer = requests.post(url(target, "/push/news"), data=NO_PUSHES[body], timeout=10)
        attack.answered(answer.status_code, 400)
        assert answer.json()["errNo"] == 400 and answer.elapsed.total_seconds() < 5


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    ("more", "status"),
    [({"dataType": "binary", "data": "no base64!"}, 400), ({"dataType": "image"}, 400), ({"dataType": None}, 400), ({"data": None}, 400), ({"data": 5}, 400), ({"action": "open"}, 400), ({"data": "x" * ((1 << 20) + 1)}, 413)],
    ids=["no-base64", "no-type", "none", "no-data", "number", "action", "too-large"],
)
def test_a_push_of_another_kind_is_refused(target, under, more, status):
    with client_of(target, "news") as (client, id_), under(target, metric=http_answers("push", status)) as attack:
        body = data_send(id_, "x")
        body["websocket"] |= more
        attack.answered(requests.post(url(target, "/push/news"), json=body, timeout=10).status_code, status)
        # the connection is as it was
        attack.answered(requests.post(url(target, "/push/news"), json=data_send(id_, "after"), timeout=10).status_code, 200)
        assert client.recv(timeout=10) == "after"


@pytest.mark.attack("A33")
def test_a_batch_for_100000_connections_is_refused_whole(target, under):
    """The one place that takes a batch: `Submit` of gRPC."""
    with client_of(target, "news") as (client, id_), under(target) as attack:
        push = trunkline_pb2.Command(connection=base64.urlsafe_b64decode(id_ + "=="), push=records_pb2.Pushed(kind=1, payload=b"x"))
        request = trunkline_pb2.SubmitRequest(commands=[push] * 100_000)
        with grpc.insecure_channel("%s:%d" % target.node.broker.address("grpc")) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                trunkline_pb2_grpc.HandlersStub(channel).Submit(request, timeout=30)
        attack.answered(refused.value.code().name, "INVALID_ARGUMENT")
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.1)


EMPTY = b"2\r\n{}\r\n0\r\n\r\n"


@pytest.mark.attack("A33")
@pytest.mark.parametrize(
    "head", ["content-length: +5", "content-length: 5\ncontent-length: 6", "content-length: 18446744073709551616", "transfer-encoding: gzip", "name : value", "folded: a\n b"]
)
def test_a_head_that_two_readers_would_read_differently_is_400(target, under, head):
    """As row A6 has it for the edge: before anything reads the body."""
    with under(target, metric=http_answers("other", "malformed")) as attack:
        attack.answered(status(raw(target, f"POST /push/news HTTP/1.1\nhost: x\n{head}", EMPTY)), 400)


@pytest.mark.attack("A33")
@pytest.mark.parametrize("body", [b"10000000000000000\r\n{}", b"-1\r\n{}\r\n", b"2\r\n{}more", b"2\n{}\r\n0\r\n\r\n"])
def test_chunks_that_are_none_are_400(target, under, body):
    with under(target, metric=http_answers("push", 400)) as attack:
        answer = raw(target, "POST /push/news HTTP/1.1\nhost: x\ntransfer-encoding: chunked", body)
        attack.answered(status(answer), 400)


@pytest.mark.attack("A33")
@pytest.mark.parametrize("lengths", ["content-length: 5\ntransfer-encoding: chunked", "transfer-encoding: chunked\ncontent-length: 5"])
def test_behind_a_request_with_two_lengths_nothing_is_read(target, under, lengths):
    """RFC 9112 section 6.3: whoever stands before us may have gone by the other length, so what follows may be somebody else's."""
    hidden = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with under(target, metric=http_answers("push", 400)) as attack, socket.create_connection(target.http, timeout=10) as connection:
        head = f"POST /push/news HTTP/1.1\nhost: x\n{lengths}\n\n".replace("\n", "\r\n").encode()
        connection.sendall(head + EMPTY + hidden)
        answers = b""
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(4096):
                answers += more
        attack.answered(status(answers), 400)
        assert answers.count(b"HTTP/1.1 ") == 1, answers


def keyed(target, where: str, id_: str, text: str, key: str) -> requests.Response:
    """The same push by one of three ways."""
    headers = {"idempotency-key": key, "content-type": "text/plain"}
    if where == "push":
        return requests.post(url(target, "/push/news"), json=data_send(id_, text), headers={"idempotency-key": key}, timeout=30)
    path = f"/prod/@connections/{id_}" if where == "aws" else f"/v1/connections/{id_}/messages"
    return requests.post(url(target, path), data=text, headers=headers, timeout=30)


@pytest.mark.attack("A34")
@pytest.mark.parametrize("where", ["push", "api", "aws"])
def test_one_key_a_hundred_times_at_once_is_one_effect(target, under, where):
    key = uuid.uuid4().hex
    with client_of(target, "news") as (client, id_), under(target) as attack:
        attack.counts(http_answers(where, 200), 103)
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            for answer in pool.map(lambda _: keyed(target, where, id_, "once", key), range(100)):
                attack.answered(answer.status_code, 200)
        # and once more when it is long done
        attack.answered(keyed(target, where, id_, "once", key).status_code, 200)
        # the AWS shape has no 422
        attack.answered(keyed(target, where, id_, "another body", key).status_code, 422)
        for text in ("two", "three"):
            attack.answered(keyed(target, where, id_, text, uuid.uuid4().hex).status_code, 200)
        assert [client.recv(timeout=10) for _ in range(3)] == ["once", "two", "three"]


@pytest.mark.attack("A31")
def test_ids_are_no_oracle(target, under):
    """Who asks for another API's connection, or for one that never was, gets the same bytes."""
    with client_of(target, "echo") as (client, live), under(target, metric=http_answers("push", 410)) as attack:
        for action in ("closing", "data send"):
            answers = set()
            for id_ in (live, ABSENT, "", "A" * 22, "../../etc/passwd", "x" * 10_000, "'; drop table connections; --", "\x1b[31m", "\u009b31m"):
                body = data_send(id_, "x", action=action)
                answer = requests.post(url(target, "/push/chat"), json=body, timeout=10)
                attack.answered(answer.status_code, 410)
                answers.add(answer.content)
            assert len(answers) == 1, answers
        client.send("unharmed")
        assert client.recv(timeout=10) == "unharmed"


def test_pushes_changed_at_random_are_answered(target, under):
    seed = int(os.environ.get("TRUNKLINE_FUZZ_SEED") or random.randrange(1 << 32))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with client_of(target, "news") as (client, id_), under(target, row="fuzz", metric=http_answers("push", 400)) as attack:
        # the client takes what gets through
        received = concurrent.futures.ThreadPoolExecutor(1).submit(lambda: sum(1 for _ in client))
        session = requests.Session()
        end = time.monotonic() + float(os.environ.get("TRUNKLINE_FUZZ_SECONDS", "5"))
        tried = done = 0
        while time.monotonic() < end:
            body = bytearray(json.dumps(data_send(id_, "x\u00e9\u2028" * chance.randrange(20))).encode())
            mutate(body, chance)
            answer = session.post(url(target, "/push/news"), data=bytes(body), timeout=10)
            attack.answered(answer.status_code, 200, 400, 410)
            assert answer.json()["errNo"] == (0 if answer.status_code == 200 else answer.status_code)
            assert "\x1b" not in answer.text
            done += answer.status_code == 200
            tried += 1
        attack.note(f"{tried} random pushes, seed {seed}")
        client.close()
        assert received.result(timeout=10) <= done
