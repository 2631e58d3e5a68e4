"""Keys, tokens and certificates that change while the edge runs: nothing is restarted, and who came in by what is no more is closed (A30)."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest
import requests
import websockets.exceptions

import wire
from credentials import RsaKey, certificate, encoded, jwt, mint
from harness import Dev, free_port, until
from test_auth import connect, status

pytestmark = pytest.mark.short

REVOKED = (1008, "token revoked")


def replace(path: Path, text: str) -> None:
    """As whoever is careful writes a file that others read."""
    other = path.with_suffix(".new")
    other.write_text(text)
    os.replace(other, path)


def closed(client) -> tuple[int, str]:
    with pytest.raises(websockets.exceptions.ConnectionClosed) as ended:
        client.recv(timeout=60)
    return ended.value.rcvd.code, ended.value.rcvd.reason


def is_served(client) -> bool:
    return client.ping().wait(timeout=10)


def reloads(node, what: str, outcome: str) -> int:
    text = requests.get(node.edge.http("edge-http") + "/metrics", timeout=10).text
    found = re.search(rf'trunkline_edge_reloads_total{{what="{what}",outcome="{outcome}"}} (\d+)', text)
    return int(found[1]) if found else 0


class Provider:
    """An identity provider's key set, by HTTP."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.port, self.context = port, context
        self.keys: list[dict] = []
        self.asked: list[str] = []
        self.server = None

    def start(self) -> None:
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append(self.path)
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        if self.context:
            self.server.socket = self.context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def count(self, path: str) -> int:
        return self.asked.count(path)


def jwks_api(name: str, url: str, more: str = "") -> str:
    return f"""
[[api]]
name = "{name}"
path = "/{name}"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["RS256"], jwks_url = "{url}"{more} }}
"""


def test_keys_are_fetched_and_nothing_of_a_token_leads_anywhere(folder):
    ca = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    plain, safe = Provider(free_port()), Provider(free_port(), context)
    base = f"http://127.0.0.1:{plain.port}"
    text = jwks_api("steady", f"{base}/steady?secret=HUSH")
    text += jwks_api("quick", f"{base}/quick", ', jwks_refresh = "1s", jwks_max_age = "4s"')
    text += jwks_api("private", f"https://127.0.0.1:{safe.port}/private", f', jwks_ca_file = "{ca}"')
    text += jwks_api("distrusted", f"https://127.0.0.1:{safe.port}/distrusted")
    old, new = RsaKey(folder, "old"), RsaKey(folder, "new")
    plain.keys = safe.keys = [old.jwk()]
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    apis = ["steady", "quick", "private", "distrusted"]
    path = lambda api, token: f"/{api}?access_token={token}"  # noqa: E731

    # the provider is away, and the edge has started all the same: tokens are not refused for good
    for api in apis:
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            connect(node, path(api, old.token())).__enter__()
        assert refused.value.response.status_code == 503 and refused.value.response.headers["Retry-After"], api
        assert status(node, path(api, "x.y.z")) == 401
    until(lambda: reloads(node, "jwks", "failed") >= 4, "a failure is counted")

    plain.start(), safe.start()
    for api in apis[:3]:
        until(lambda api=api: status(node, path(api, old.token())) == 101, f"the keys of {api}", every=0.2)
    assert status(node, path("distrusted", old.token())) == 503, "signed by nobody the system trusts"
    assert safe.count("/distrusted") == 0

    with contextlib.ExitStack() as stack:
        clients = {api: stack.enter_context(connect(node, path(api, old.token()))) for api in ["steady", "quick"]}
        # the provider rotates: a token that names the new key has the set fetched, and the old key's connections end
        fetched = plain.count("/steady?secret=HUSH")
        assert fetched == 1
        plain.keys = [new.jwk()]
        assert status(node, path("steady", new.token())) == 401
        until(lambda: status(node, path("steady", new.token())) == 101, "the new key")
        assert closed(clients["steady"]) == REVOKED
        assert status(node, path("steady", old.token())) == 401
        assert closed(clients["quick"]) == REVOKED

    # whoever makes up keys has the set fetched once in thirty seconds, if at all, and nothing else
    begun = time.monotonic()
    evil = Provider(free_port())
    evil.start()
    for n in range(100):
        assert status(node, path("steady", new.token(f"made-up-{n}"))) == 401
    aimed = {"sub": "ada", "exp": int(time.time()) + 600, "iss": f"http://127.0.0.1:{evil.port}"}
    header = {"alg": "RS256", "kid": "evil", "jku": f"http://127.0.0.1:{evil.port}/jwks", "x5u": f"http://127.0.0.1:{evil.port}/x5u"}
    assert status(node, path("steady", jwt(aimed, header))) == 401
    early = plain.count("/steady?secret=HUSH") - 1
    assert 1 <= early <= 2 + (time.monotonic() - begun) / 30, early
    assert evil.asked == []
    evil.stop()

    # away again: what was fetched counts on, for its time, and then connections stay and nobody new comes
    until(lambda: status(node, path("quick", new.token())) == 101, "the new key")
    with connect(node, path("quick", new.token())) as client:
        plain.stop()
        failed = reloads(node, "jwks", "failed")
        until(lambda: reloads(node, "jwks", "failed") > failed, "a fetch that fails")
        assert status(node, path("steady", new.token())) == 101
        until(lambda: status(node, path("quick", new.token())) == 503, "the end of jwks_max_age")
        assert is_served(client)
        plain.start()
        until(lambda: status(node, path("quick", new.token())) == 101, "the provider's return", every=0.2)
        # a set that holds nothing of use is none
        plain.keys = [{"kty": "oct", "k": encoded(b"x" * 32)}]
        failed = reloads(node, "jwks", "failed")
        until(lambda: reloads(node, "jwks", "failed") > failed, "a set without a key")
        assert is_served(client)
    log = node.process.log_text()
    assert "HUSH" not in log and "made-up" not in log and new.token().split(".")[0] not in log
    assert node.process.stop() == 0
    plain.stop(), safe.stop()


def entries(*tokens: dict) -> str:
    return "".join(f'[[tokens]]\nsha256 = "{token["sha256"]}"\nprincipal = "{token["name"]}"\n' for token in tokens) or "tokens = []\n"


def test_files_that_change_count_without_a_restart(folder):
    tokens, secret = folder / "tokens.toml", folder / "secret"
    ada, bob, eve = (mint(name, "client") for name in ["ada", "bob", "eve"])
    first, second = "the first secret of this test, long enough", "the second secret of this test, long enough"
    replace(tokens, entries(ada, bob))
    replace(secret, first + "\n")
    text = f"""
[[api]]
name = "press"
path = "/press"
registration = "accept"
auth = {{ kind = "token", tokens_file = "{tokens}" }}

[[api]]
name = "jwt"
path = "/jwt"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ algorithm = "HS256", secret_file = "{secret}" }}] }}
"""
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    press = lambda token: f"/press?access_token={token['token']}"  # noqa: E731
    later = int(time.time()) + 600
    by = lambda key: f"/jwt?access_token={jwt({'sub': 'ada', 'exp': later}, secret=key)}"  # noqa: E731
    with connect(node, press(ada)) as by_ada, connect(node, press(bob)) as by_bob, connect(node, by(first)) as by_key:
        # half a list, and one that holds a token where its digest belongs: nothing changes but a line in the log
        for broken in ["", entries(ada)[:60], f'[[tokens]]\nsha256 = "{eve["token"]}"\nprincipal = "eve"\n']:
            failed = reloads(node, "auth", "failed")
            replace(tokens, broken)
            until(lambda failed=failed: reloads(node, "auth", "failed") > failed, "the broken list is looked at")
        assert is_served(by_ada) and status(node, press(bob)) == 101

        assert status(node, press(eve)) == 401
        begun = time.monotonic()
        replace(tokens, entries(bob, eve))
        assert closed(by_ada) == REVOKED
        assert time.monotonic() - begun < 60
        assert status(node, press(ada)) == 401 and status(node, press(eve)) == 101 and is_served(by_bob)

        # written in place, as editors do
        secret.write_text(second)
        assert closed(by_key) == REVOKED
        assert status(node, by(first)) == 401 and status(node, by(second)) == 101

        replace(tokens, entries())
        assert closed(by_bob) == REVOKED
    assert '"cause":"token_expired"' in node.tail_text() and "token revoked" in node.tail_text()
    log = node.process.log_text()
    for hidden in [ada["token"], bob["token"], eve["token"], first, second, ada["sha256"]]:
        assert hidden not in log
    assert node.process.stop() == 0


def test_a_certificate_is_replaced_and_connections_stay(folder):
    ca = certificate(folder)
    text = f"""
[edge]
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
[[api]]
name = "a"
path = "/a"
registration = "accept"
"""
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    address = node.edge.address("ws")

    @contextlib.contextmanager
    def come(ca: Path):
        raw = socket.create_connection(address, timeout=10)
        with ssl.create_default_context(cafile=ca).wrap_socket(raw, server_hostname="127.0.0.1") as client:
            client.sendall(wire.handshake(address, "/a"))
            assert client.recv(4096).startswith(b"HTTP/1.1 101 ")
            yield client

    fresh = folder / "fresh"
    fresh.mkdir()
    other = certificate(fresh)
    with come(ca) as client:
        # between the two files nothing fits together: the old pair is shown on
        replace(folder / "cert.pem", (fresh / "cert.pem").read_text())
        until(lambda: "the listeners' certificate has changed and cannot be used" in node.process.log_text(), "a line in the log")
        with come(ca):
            pass
        replace(folder / "key.pem", (fresh / "key.pem").read_text())
        shown = lambda listener: ssl.get_server_certificate(node.edge.address(listener)).strip()  # noqa: E731
        new = (fresh / "cert.pem").read_text().strip()
        until(lambda: shown("ws") == new, "the new certificate", every=0.2)
        assert shown("edge-http") == new
        with come(other), pytest.raises(ssl.SSLCertVerificationError), come(ca):
            pass
        client.sendall(bytes([0x89, 0x80, 0, 0, 0, 0]))
        assert client.recv(100) == b"\x8a\x00", "who was there is served as before"
    assert "BEGIN" not in node.process.log_text()
    assert node.process.stop() == 0


def test_messages_of_an_address_are_bounded_over_its_connections(folder):
    text = '[[api]]\nname = "a"\npath = "/a"\nregistration = "accept"\nmax_messages_per_address = 10\n'
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(node, "/a")) for _ in range(5)]
        for n, client in enumerate(clients):
            with contextlib.suppress(websockets.exceptions.ConnectionClosed):
                for _ in range(50):
                    client.send(f"{n}")
            assert closed(client) == (1008, "too many messages from this address")
    received = lambda: sum(1 for record in node.tail() if record.kind == "message_received")  # noqa: E731
    assert 20 <= until(lambda: (count := received()) >= 20 and count, "their messages") <= 21 + 10 * (time.monotonic() - begun)
    assert status(node, "/a") == 101
    assert node.process.stop() == 0
