"""What may be thrown at the reverse push address, at `@connections` and at whatever else the broker's HTTP and the edge's metrics
answer (attack rows A32 to A34 and A36): each has its answer, and the process stays as it was."""

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
import subprocess
import sys
import time
import uuid

import grpc
import pytest
import requests
import websockets.sync.client

import wire
from attack import Target, http_answers, sum_of
from harness import Dev, binary, until
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
    minted = {}
    for name, role in (("ops", "operator"), ("reader", "read_only")):
        argv = [str(binary()), "token", "new", "--name", name, "--role", role, "--json"]
        minted[name] = json.loads(subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout)
    config = SIGNED.format(sha256=minted["ops"]["sha256"], reader=minted["reader"]["sha256"])
    target = Target(Dev(folder, config=config).start(), folder, token=minted["ops"]["token"])
    target.reader = minted["reader"]["token"]
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
    ("head", "body"),
    [
        ("content-length: +5", EMPTY),
        ("content-length: 5\ncontent-length: 6", EMPTY),
        ("content-length: 18446744073709551616", EMPTY),
        ("transfer-encoding: chunked\ncontent-length: 5", EMPTY),
        ("transfer-encoding: gzip", EMPTY),
        ("transfer-encoding: chunked", b"10000000000000000\r\n{}"),
        ("transfer-encoding: chunked", b"-1\r\n{}\r\n"),
        ("transfer-encoding: chunked", b"2\r\n{}more"),
        ("name : value", b""),
        ("folded: a\n b", b""),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_lengths_that_two_readers_would_read_differently(target, under, head, body):
    """As row A6 has it for the edge."""
    with under(target) as attack:
        attack.answered(status(raw(target, f"POST /push/news HTTP/1.1\nhost: x\n{head}", body)), 400)


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


GUARDED = [("GET", "/metrics"), ("GET", "/v1/connections"), ("GET", "/v1/cluster"), ("GET", "/v1/log?partition=0"), ("GET", "/v1/groups"), ("POST", "/v1/channels/news/messages"), ("DELETE", f"/v1/connections/{ABSENT}"), ("POST", "/nowhere")]


@pytest.mark.attack("A36")
@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer tl_guess", "Basic b3BzOm9wcw==", "bearer {}x", "{}"])
def test_metrics_and_administration_ask_who_comes(signed, under, method, path, authorization):
    headers = {"Authorization": authorization.format(signed.token)} if authorization else {}
    surface = "api" if path.startswith("/v1/") else "other"
    with under(signed, metric=http_answers(surface, 401), secrets=(signed.token,)) as attack:
        answer = requests.request(method, url(signed, path), headers=headers, data=b"x", timeout=10)
        attack.answered(answer.status_code, 401)
        assert answer.headers["www-authenticate"] == "Bearer" and signed.token not in answer.text


@pytest.mark.attack("A36")
def test_who_may_look_may_not_act(signed, under):
    headers = {"Authorization": f"Bearer {signed.reader}"}
    with under(signed, metric=http_answers("api", 403), secrets=(signed.reader,)) as attack:
        attack.answered(requests.post(url(signed, "/v1/channels/news/messages"), data="x", headers=headers, timeout=10).status_code, 403)
        attack.answered(requests.delete(url(signed, f"/v1/connections/{ABSENT}"), headers=headers, timeout=10).status_code, 403)
        attack.answered(requests.get(url(signed, "/metrics"), headers=headers, timeout=10).status_code, 200)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("path", ["/metrics", "/v1/connections", "/v1/cluster", "/healthz", "/push/news", f"/prod/@connections/{ABSENT}"])
def test_the_public_listener_knows_nothing_of_it(target, under, path):
    with under(target, metric=("trunkline_edge_handshakes_total", {"outcome": "refused"})) as attack:
        for kwargs, status in (({}, 404), ({"drop": ["upgrade", "connection", "sec-websocket-key", "sec-websocket-version"]}, 426), ({"method": "POST"}, 405)):
            attack.answered(wire.request(target.ws, wire.handshake(target.ws, path, **kwargs)).status, status)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("path", ["/v1/connections", "/v1/cluster", "/push/news", f"/prod/@connections/{ABSENT}", "/v1/openapi.json"])
def test_the_edge_s_own_listener_has_health_and_metrics_only(target, under, path):
    with under(target) as attack:
        for method in ("GET", "POST"):
            attack.answered(requests.request(method, target.node.edge.http("edge-http") + path, timeout=10).status_code, 404)
        attack.answered(requests.post(target.node.edge.http("edge-http") + "/metrics", timeout=10).status_code, 405)


@pytest.mark.attack("A36")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://evil.127.0.0.1", "file://", "\xff", "http://{}@evil.example", "http://evil.example/{}"])
@pytest.mark.parametrize("path", [*PLACES, f"/v1/connections/{ABSENT}/messages"])
def test_a_page_of_another_site_does_nothing(target, under, path, origin):
    headers = {"origin": origin.format("%s:%d" % target.http).encode("latin-1"), "content-type": "text/plain"}
    with under(target, metric=http_answers(SURFACES.get(path, "api"), 403)) as attack:
        attack.answered(requests.post(url(target, path), data=b"{}", headers=headers, timeout=10).status_code, 403)


@pytest.mark.attack("A36")
def test_what_clients_say_of_themselves_is_shown_escaped(target, under):
    """Names, paths, reasons: a control character of any of them reaches no terminal, a tag no page."""
    ansi, single, tag = "\x1b[31mred\x1b[0m", "\u009b31mred", "<script>alert(1)</script>"
    agent = f"{single}{tag}".encode().decode("latin-1")
    with under(target) as attack:
        with wire.Socket(target.ws, f"/echo?q={tag.replace('<', '%3C')}", user_agent=agent) as client:
            rows = target.node.cli("connections").stdout.decode()
            client.send(wire.frame(wire.CLOSE, (4000).to_bytes(2, "big") + f"{ansi}{single}{tag}".encode()))
            attack.answered(client.expect_close(4000).close_code, 4000)
        body = {"websocket": {"action": f"{ansi}{single}{tag}", "secConnectionID": ABSENT}}
        with client_of(target, "news") as (_, id_):
            body["websocket"]["secConnectionID"] = id_
            answer = requests.post(url(target, "/push/news"), json=body, timeout=10)
            attack.answered(answer.status_code, 400)
        until(lambda: tag in target.node.cli("tail", "--from", "earliest", "--json", seconds=120).stdout.decode(), "the reason in the log", 20, every=0.2)
        shown = {
            "connections": rows,
            "tail": target.node.cli("tail", "--from", "earliest", seconds=120).stdout.decode(),
            "answer": answer.text,
            "log": target.node.process.log_text(),
            "api": requests.get(url(target, "/v1/connections"), timeout=10).text,
            "metrics": requests.get(url(target, "/metrics"), timeout=10).text,
        }
    assert tag in shown["tail"], "the reason is shown"
    for place, text in shown.items():
        assert "\x1b" not in text and "\u009b" not in text, f"{place} holds a control character"
    assert tag not in shown["metrics"]
    types = {path: requests.get(url(target, path), timeout=10).headers for path in ("/v1/connections", "/metrics", f"/v1/connections/{tag}")}
    for path, headers in types.items():
        assert not headers["content-type"].startswith("text/html") and headers["x-content-type-options"] == "nosniff", path


@pytest.mark.attack("A36")
def test_clients_make_no_labels(target, under):
    with under(target) as attack:
        # one of each kind first, so that what is new afterwards comes of the names
        for number in range(101):
            if number == 1:
                before = target.metrics()
            name = f"label{number}-{uuid.uuid4().hex}" if number else "label"
            statuses = [
                requests.get(url(target, f"/{name}"), timeout=10).status_code,
                requests.post(url(target, f"/push/{name}"), json=data_send(ABSENT, "x"), timeout=10).status_code,
                requests.post(url(target, f"/{name}/@connections/{ABSENT}"), data=b"x", timeout=10).status_code,
                requests.post(url(target, f"/v1/channels/{name}/messages"), data="x", headers={"idempotency-key": name}, timeout=10).status_code,
                wire.request(target.ws, wire.handshake(target.ws, f"/{name}", origin=f"https://{name}", host=name, user_agent=name)).status,
            ]
            for got, expected in zip(statuses, [404, 410, 410, 200, 404], strict=True):
                attack.answered(got, expected)
        after = target.metrics()
    assert not [series for series in after if "label" in series]
    assert len(after.keys() - before.keys()) == 0, after.keys() - before.keys()
    assert sum_of(after, http_answers("push", 410)) - sum_of(before, http_answers("push", 410)) >= 100


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
