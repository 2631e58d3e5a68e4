"""Who may come in, on every listener (attack rows A25, A29 to A31, A36): each refusal is what it should be, and the same process serves on."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
import time

import pytest
import requests
import websockets.exceptions
import websockets.sync.client

import wire
from credentials import SECRET, certificate, encoded, jwt, mint
from harness import Dev, Process, Timeout, binary, until

pytestmark = pytest.mark.short

ROLES = ["handler", "publisher", "operator", "read_only"]


def config(tokens: dict[str, dict], press: dict) -> str:
    text = f"""
[[api]]
name = "jwt"
path = "/jwt"
registration = "accept"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ algorithm = "HS256", secret = "{SECRET}" }}], attributes = ["role"] }}

[[api]]
name = "press"
path = "/press"
registration = "accept"
auth = {{ kind = "token", tokens = [{{ sha256 = "{press["sha256"]}", principal = "press-1" }}] }}

[[api]]
name = "signed"
path = "/signed"
registration = "accept"
auth = {{ kind = "hmac", keys = [{{ id = "k1", secret = "{SECRET}" }}] }}
"""
    for token in tokens.values():
        text += f'\n[[broker.tokens]]\nname = "{token["name"]}"\nsha256 = "{token["sha256"]}"\nrole = "{token["role"]}"\n'
    return text


@pytest.fixture(scope="module")
def node(module_folder):
    tokens = {role: mint(role.replace("_", "-"), role) for role in ROLES}
    press = mint("press-1", "client")
    node = Dev(module_folder, config=config(tokens, press)).start()
    node.tokens, node.press = tokens, press["token"]
    yield node
    assert node.process.stop() == 0


def connect(node, path: str, **kwargs):
    return websockets.sync.client.connect(node.ws(path), proxy=None, open_timeout=10, **kwargs)


def status(node, path: str, **kwargs) -> int:
    try:
        with connect(node, path, **kwargs):
            return 101
    except websockets.exceptions.InvalidStatus as refused:
        return refused.response.status_code


def cli(node, role: str | None, *words: str) -> subprocess.CompletedProcess:
    argv = [str(binary()), *words, "--broker", node.grpc]
    if role:
        argv += ["--token", node.tokens[role]["token"]]
    return subprocess.run(argv, capture_output=True, timeout=60, input=b"")


def ask(node, role: str | None, method: str, path: str, **kwargs) -> requests.Response:
    headers = {"Authorization": f"Bearer {node.tokens[role]['token']}"} if role else {}
    return requests.request(method, node.broker.http() + path, headers=headers, timeout=10, **kwargs)


def test_no_output_holds_a_token(node):
    good = jwt({"sub": "ada", "role": "admin", "exp": int(time.time()) + 600})
    bad = jwt({"sub": "ada", "exp": 1})
    with contextlib.ExitStack() as sockets:
        sockets.enter_context(connect(node, f"/jwt?room=7&access_token={good}"))
        sockets.enter_context(connect(node, "/jwt", additional_headers={"Authorization": f"Bearer {good}"}))
        assert sockets.enter_context(connect(node, "/jwt", subprotocols=["bearer", good])).subprotocol == "bearer"
        sockets.enter_context(connect(node, f"/press?access_token={node.press}"))
        look_everywhere(node, good, bad)


def look_everywhere(node, good: str, bad: str) -> None:
    assert status(node, f"/jwt?access_token={bad}") == 401
    assert status(node, f"/press?access_token={node.press}x") == 401
    token = node.tokens["operator"]["token"]
    shown = {
        "tail": cli(node, "operator", "tail", "--from", "earliest", "--json", "--raw").stdout.decode(),
        "tail for people": cli(node, "operator", "tail", "--from", "earliest").stdout.decode(),
        "connections": cli(node, "operator", "connections", "--json").stdout.decode(),
        "state": cli(node, "operator", "state", "--json").stdout.decode(),
        "http": ask(node, "operator", "GET", "/v1/connections").text,
        "log": ask(node, "operator", "GET", "/v1/log?partition=0").text,
        "metrics": ask(node, "operator", "GET", "/metrics").text,
        "edge metrics": requests.get(node.edge.http("edge-http") + "/metrics", timeout=10).text,
        "cluster": ask(node, "operator", "GET", "/v1/cluster").text,
    }
    assert '"principal":"ada"' in shown["tail"] and '"role":"admin"' in shown["tail"] and "room=7" in shown["tail"]
    assert '"principal":"press-1"' in shown["connections"]
    for place, text in shown.items():
        assert text, place
    files = [path for path in node.data.rglob("*") if path.is_file() and "pki" not in path.parts]
    assert files
    shown |= {str(path): path.read_bytes().decode("latin-1") for path in [*files, *node.process.logs.glob("dev.*")]}
    for place, text in shown.items():
        if place.endswith("dev.toml"):
            continue
        for secret in [good, good.rpartition(".")[2], bad.rpartition(".")[2], node.press, token, SECRET]:
            assert secret not in text, f"{place} holds {secret[:12]}…"
    dumped = subprocess.run([str(binary()), "dev", "--config", node.process.logs / "dev.toml", "--dump-config"], capture_output=True, timeout=20)
    assert dumped.returncode == 0 and SECRET.encode() not in dumped.stdout


def test_a_client_without_a_good_token_stays_out(node):
    later = int(time.time()) + 600
    good = {"sub": "ada", "exp": later}
    for token in [
        jwt(good, {"alg": "none"}),
        jwt(good, {"alg": "HS256", "jwk": {"kty": "oct", "k": encoded(b"x" * 32)}}, "x" * 32),
        jwt(good, {"alg": "HS256", "jku": f"{node.broker.http()}/jwks", "kid": "../../dev/null"}, "x" * 32),
        jwt({"sub": "ada", "exp": str(later)}),
        jwt({"sub": "ada"}),
        "x" * 1500,
        "..",
    ]:
        assert status(node, f"/jwt?access_token={token}") == 401
    query = f"user=ada&hmac_key=k1&hmac_timestamp={int(time.time())}"
    timestamp = query.rpartition("=")[2]
    text = f"trunkline-hmac-sha256\n/signed\n{query}\n{timestamp}"
    signature = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()
    assert status(node, f"/signed?{query}&hmac_signature={signature}") == 101
    assert status(node, f"/signed?{query.replace('ada', 'bob')}&hmac_signature={signature}") == 401
    assert status(node, "/signed") == 401
    assert status(node, "/jwt") == 401
    assert status(node, f"/jwt?access_token={jwt(good)}") == 101
    assert node.process.alive


def test_a_connection_ends_with_its_token(node):
    # exp in the past, within the leeway of 10 s
    with connect(node, f"/jwt?access_token={jwt({'sub': 'ada', 'exp': int(time.time()) - 7})}") as client:
        with pytest.raises(websockets.exceptions.ConnectionClosed) as closed:
            client.recv(timeout=20)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "token expired")
    records = lambda: cli(node, "operator", "tail", "--from", "earliest", "--json").stdout.decode()  # noqa: E731
    until(lambda: '"cause":"token_expired"' in records(), "the record of the close")


def test_each_role_may_do_its_own_over_http(node):
    table = [
        ("GET", "/v1/connections", {"handler", "publisher", "operator", "read_only"}),
        ("GET", "/v1/cluster", {"handler", "publisher", "operator", "read_only"}),
        ("GET", "/v1/log?partition=0", {"operator", "read_only"}),
        ("GET", "/v1/groups", {"operator", "read_only"}),
        ("GET", "/metrics", {"operator", "read_only"}),
        ("POST", "/v1/channels/room/messages", {"handler", "publisher", "operator"}),
    ]
    for method, path, allowed in table:
        refused = ask(node, None, method, path, data="x")
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer", path
        wrong = requests.request(method, node.broker.http() + path, headers={"Authorization": "Bearer tl_guess"}, timeout=10)
        assert wrong.status_code == 401, path
        for role in ROLES:
            answer = ask(node, role, method, path, data="x")
            assert answer.status_code == (200 if role in allowed else 403), f"{role} {method} {path}: {answer.text}"
    for path in ["/healthz", "/readyz", "/demo/chat"]:
        assert ask(node, None, "GET", path).status_code == 200


def test_an_id_alone_is_no_authority(node):
    with connect(node, f"/press?access_token={node.press}"):
        listed = ask(node, "read_only", "GET", "/v1/connections?api=press").json()
        connection = listed["connections"][0]["connection"]
        for guess in [connection, "A" * 22]:
            assert ask(node, None, "POST", f"/v1/connections/{guess}/messages", data="x").status_code == 401
            assert ask(node, "read_only", "POST", f"/v1/connections/{guess}/messages", data="x").status_code == 403
        assert ask(node, "publisher", "POST", f"/v1/connections/{connection}/messages", data="x").status_code == 200


def test_each_role_may_do_its_own_over_grpc(node):
    for words, allowed in [
        (["connections"], set(ROLES)),
        (["tail", "--from", "earliest"], {"operator", "read_only"}),
        (["groups"], {"operator", "read_only"}),
        (["publish", "room", "x"], {"handler", "publisher", "operator"}),
        (["groups", "reset", "echo", "--to", "latest"], {"operator"}),
    ]:
        assert cli(node, None, *words).returncode == 1, words
        for role in ROLES:
            done = cli(node, role, *words)
            assert done.returncode == (0 if role in allowed else 1), f"{role} {words}: {done.stderr.decode()}"
            assert node.tokens[role]["token"].encode() not in done.stdout + done.stderr
    # the demo's own handlers have a token of their own
    with connect(node, "/echo") as client:
        client.send("hello")
        assert client.recv(timeout=10) == "hello"


def test_tokens_are_listed_without_themselves(node):
    argv = [str(binary()), "token", "list", "--config", str(node.process.logs / "dev.toml"), "--json"]
    listed = [json.loads(line) for line in subprocess.run(argv, capture_output=True, timeout=20, check=True).stdout.splitlines()]
    assert [token["role"] for token in listed] == [*ROLES, "client"]
    assert listed[0]["sha256"] == hashlib.sha256(node.tokens["handler"]["token"].encode()).hexdigest()


def test_what_listens_beyond_loopback_is_refused_unless_safe_or_insecure(folder):
    path = folder / "open.toml"
    path.write_text("")
    argv = [str(binary()), "broker", "--config", str(path), "--check-config", "--set"]
    for key in ["broker.grpc", "broker.http"]:
        done = subprocess.run([*argv, f"{key}=0.0.0.0:7999"], capture_output=True, timeout=20)
        said = done.stderr.decode()
        assert done.returncode == 64 and "broker.tls.cert" in said and "broker.insecure = true" in said, said
        done = subprocess.run([*argv, f"{key}=0.0.0.0:7999", "--set", "broker.insecure=true"], capture_output=True, timeout=20)
        assert done.returncode == 0, done.stderr.decode()


def test_silent_tls_sockets_of_an_address_are_bounded_as_plain_ones_are(folder):
    certificate(folder)
    text = f"""
[edge]
max_connections_per_address = 2
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
"""
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    silent = [socket.create_connection(node.process.address("ws"), timeout=5) for _ in range(6)]
    for client in silent[2:]:
        # a TimeoutError unless they are turned away long before the ten seconds that a handshake may take
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b"", "an answer without a handshake"
    for client in silent[:2]:
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.close()
    assert node.process.alive


def test_tls_on_the_function_bridge_s_listener(folder):
    ca = certificate(folder)
    path = folder / "bridge.toml"
    path.write_text(f"""
[functions]
brokers = ["http://127.0.0.1:9"]
http = "127.0.0.1:0"
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
[[api]]
name = "a"
path = "/a"
[api.functions]
dialect = "scf"
transmission = "http://127.0.0.1:9/"
""")
    bridge = Process("bridge", [str(binary()), "functions", "--config", str(path)], folder).start()
    plain = bridge.http("functions-http")
    assert requests.get(f"{plain.replace('http://', 'https://')}/healthz", verify=str(ca), timeout=10).status_code == 200
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"{plain}/healthz", timeout=10)
    assert bridge.stop() == 0


def test_tls_on_the_brokers_listeners(folder):
    ca = certificate(folder)
    token = mint("ops", "operator")
    text = f"""
[edge]
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
[[api]]
name = "safe"
path = "/safe"
registration = "accept"
channels = ["safe"]
max_queue = "16MiB"
[broker]
tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}
[[broker.tokens]]
name = "ops"
sha256 = "{token["sha256"]}"
role = "operator"
"""
    node = Dev(folder, config=text, flags=["--no-handlers"]).start()
    https = node.broker.http().replace("http://", "https://")
    assert requests.get(f"{https}/readyz", verify=str(ca), timeout=10).status_code == 200
    assert requests.get(f"{https}/v1/cluster", verify=str(ca), timeout=10).status_code == 401
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"{node.broker.http()}/readyz", timeout=10)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{https}/readyz", timeout=10)
    assert ssl.get_server_certificate(node.broker.address("grpc"), ca_certs=str(ca))
    address = node.grpc.replace("http://", "")
    verb = [str(binary()), "cluster", "status", "--broker", address]
    run = lambda *words: subprocess.run([*verb, *words], capture_output=True, timeout=60)  # noqa: E731
    safe = run("--ca", str(ca), "--token", token["token"])
    assert safe.returncode == 0, safe.stderr.decode()
    assert run("--ca", str(ca)).returncode == 1, "no token"
    assert run("--token", token["token"]).returncode != 0, "plain text is not answered"

    def post(text: str) -> None:
        headers = {"Authorization": f"Bearer {token['token']}", "Content-Type": "text/plain"}
        answer = requests.post(f"{https}/v1/channels/safe/messages", data=text, headers=headers, verify=str(ca), timeout=10)
        assert answer.status_code == 200, answer.text

    context = ssl.create_default_context(cafile=ca)
    wss = node.ws("/safe").replace("ws://", "wss://")
    with websockets.sync.client.connect(wss, ssl=context, proxy=None) as client:
        client.send("x" * 300_000)
        big = "y" * 900_000
        for n in range(5):
            assert run_verb("publish", "safe", f"{n}", address, ca, token).returncode == 0
            post(big)
            assert [client.recv(timeout=10), client.recv(timeout=10)] == [f"{n}", big]
    a_reader_that_was_slow_is_sent_the_next_message(node, context, post)
    with pytest.raises(websockets.exceptions.InvalidStatus):
        websockets.sync.client.connect(wss.replace("/safe", "/nowhere"), ssl=context, proxy=None).__enter__()
    with pytest.raises((websockets.exceptions.InvalidMessage, OSError)):
        websockets.sync.client.connect(node.ws("/safe"), proxy=None).__enter__()
    assert requests.get(node.edge.http("edge-http").replace("http:", "https:") + "/readyz", verify=str(ca), timeout=10).status_code == 200
    assert node.process.stop() == 0


def a_reader_that_was_slow_is_sent_the_next_message(node, context, publish) -> None:
    """What TLS held back while the socket was full goes out, and so does what comes after it, though the client says nothing."""
    address = node.edge.address("ws")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.settimeout(10)
    raw.connect(address)
    big = 900_000
    with context.wrap_socket(raw, server_hostname="127.0.0.1") as tls:
        tls.sendall(wire.handshake(address, "/safe"))
        data = b""

        def take(done) -> None:
            nonlocal data
            while not done():
                more = tls.recv(65536)
                assert more
                data += more

        take(lambda: b"\r\n\r\n" in data)
        assert data.startswith(b"HTTP/1.1 101 ")
        data = data.partition(b"\r\n\r\n")[2]
        # more than the system's buffers take
        for _ in range(10):
            publish("z" * big)
        # each is a frame with ten bytes before it
        take(lambda: len(data) >= 10 * (big + 10))
        publish("after")
        take(lambda: data.endswith(b"\x81\x05after"))


def run_verb(verb: str, channel: str, text: str, address: str, ca, token: dict) -> subprocess.CompletedProcess:
    argv = [str(binary()), verb, channel, text, "--broker", address, "--ca", str(ca), "--token", token["token"]]
    return subprocess.run(argv, capture_output=True, timeout=60)


def test_a_key_that_is_not_there_is_said(folder):
    text = '[[api]]\nname = "a"\npath = "/a"\nauth = { kind = "jwt", algorithms = ["RS256"], jwks_file = "/nowhere.json" }\n'
    node = Dev(folder, config=text)
    with pytest.raises(Timeout):
        node.start(seconds=20)
    assert "/nowhere.json" in node.process.log_text()
