"""HTTP functions: three functions of the `scf` dialect behind an API, killed and started again, and their dead letters."""

from __future__ import annotations

import base64
import hmac
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from credentials import certificate
from harness import Cluster, Dev, Process, Timeout, binary, until

pytestmark = pytest.mark.short

CONFIG = """
[[api]]
name = "{name}"
path = "/{name}"
registration_timeout = "5s"

[api.functions]
dialect = "scf"
registration = "http://127.0.0.1:{port}/registration"
transmission = "http://127.0.0.1:{port}/transmission"
cleanup = "http://127.0.0.1:{port}/cleanup"
backoff = "50ms"
on_failure = "{on_failure}"
"""


class Functions:
    """The function server as a process, on a port of its own that it keeps."""

    def __init__(self, folder: Path, api: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = folder / "journal.jsonl"
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.folder, self.api = folder, api
        self.process: Process | None = None

    def start(self, http: str, *tls: str) -> Functions:
        script = Path(__file__).with_name("function_server.py")
        argv = [sys.executable, str(script), str(self.port), str(self.journal), f"{http}/push/{self.api}", *tls]
        self.process = self.process or Process("functions", argv, self.folder)
        self.process.start()
        return self

    def calls(self, function: str | None = None) -> list[dict]:
        if not self.journal.exists():
            return []
        # the last line may be half written
        lines = self.journal.read_text().split("\n")[:-1]
        calls = [json.loads(line) for line in lines]
        return [call for call in calls if function in (None, call["function"])]


def start(folder: Path, name: str, on_failure: str = "retry") -> tuple[Dev, Functions]:
    functions = Functions(folder / "functions", name)
    config = CONFIG.format(name=name, port=functions.port, on_failure=on_failure)
    dev = Dev(folder, config=config).start()
    return dev, functions.start(dev.process.http())


def connect(dev: Dev, path: str, **kwargs):
    return websockets.sync.client.connect(dev.ws(path), compression=None, legacy=True, **kwargs)


@pytest.fixture(scope="module")
def chat(module_folder):
    dev, functions = start(module_folder, "fchat")
    yield dev, functions
    functions.process.kill9()
    dev.process.stop()


def test_registration_transmission_push_and_cleanup(chat):
    dev, functions = chat
    before = len(functions.calls())
    with connect(dev, "/fchat", subprotocols=["binary", "text"]) as client:
        assert client.subprotocol == "binary", "the function echoes what was offered"
        client.send("echo hello")
        assert client.recv(timeout=10) == "echo hello"
        client.send(b"\x00\xff\x01")
        assert client.recv(timeout=10) == "AP8B"
        client.close(4001, "bye")
    until(lambda: [call for call in functions.calls("cleanup")[-1:] if call["event"]["websocket"]["closeReason"] == "bye"], "the cleanup", 10)
    calls = functions.calls()[before:]
    assert [call["function"] for call in calls] == ["registration", "transmission", "transmission", "cleanup"]
    (connection,) = {call["connection"] for call in calls}
    opened, text, binary_, closed = (call["event"] for call in calls)
    context = opened["requestContext"]
    assert set(context) == {"serviceName", "path", "httpMethod", "requestId", "identity", "sourceIp", "stage", "websocketEnable"}
    assert (context["serviceName"], context["path"], context["sourceIp"], context["stage"]) == ("fchat", "/fchat", "127.0.0.1", "release")
    assert opened["websocket"] == {"action": "connecting", "secConnectionID": connection, "secWebSocketProtocol": "binary,text"}
    assert text == {"websocket": {"action": "data send", "secConnectionID": connection, "dataType": "text", "data": "echo hello"}}
    assert binary_ == {"websocket": {"action": "data send", "secConnectionID": connection, "dataType": "binary", "data": "AP8B"}}
    assert closed["websocket"] == {
        "action": "closing", "secConnectionID": connection, "closeCode": "4001", "closeReason": "bye", "closeCause": "client"
    }


def test_extensions_are_told_only_when_offered(chat):
    dev, functions = chat
    with websockets.sync.client.connect(dev.ws("/fchat"), compression="deflate", legacy=True):
        opened = functions.calls("registration")[-1]["event"]["websocket"]
    assert opened["secWebSocketExtensions"].startswith("permessage-deflate")
    assert "secWebSocketProtocol" not in opened


@pytest.mark.parametrize(("offer", "status", "body"), [("refuse", 403, {"errNo": 101, "errMsg": "not today"}), ("break", 502, None)])
def test_who_is_refused_is_told_and_never_cleaned_up(chat, offer, status, body):
    dev, functions = chat
    with pytest.raises(InvalidStatus) as refused:
        connect(dev, "/fchat", subprotocols=[offer])
    assert refused.value.response.status_code == status
    if body:
        assert json.loads(refused.value.response.body) == body
    refused_id = functions.calls("registration")[-1]["connection"]
    # a later connection's cleanup comes after what would have been this one's
    connect(dev, "/fchat").close()
    until(lambda: functions.calls("cleanup")[-1]["connection"] == functions.calls("registration")[-1]["connection"], "a cleanup", 10)
    assert refused_id not in {call["connection"] for call in functions.calls("cleanup")}


def test_a_close_by_the_function_and_a_vanished_client_are_cleaned_up(chat):
    dev, functions = chat
    closed, vanished = connect(dev, "/fchat"), connect(dev, "/fchat")
    first, second = [call["connection"] for call in functions.calls("registration")[-2:]]
    body = {"websocket": {"action": "closing", "secConnectionID": first}}
    assert requests.post(dev.process.http() + "/push/fchat", json=body, timeout=10).json() == {"errNo": 0, "errMsg": "ok"}
    with pytest.raises(ConnectionClosed) as end:
        closed.recv(timeout=10)
    assert end.value.rcvd.code == 1000
    vanished.socket.shutdown(socket.SHUT_RDWR)

    def causes() -> dict[str, str]:
        return {call["connection"]: call["event"]["websocket"]["closeCause"] for call in functions.calls("cleanup")}

    until(lambda: {first, second} <= set(causes()), "both cleanups", 20)
    assert (causes()[first], causes()[second]) == ("handler", "client_vanished")


def test_a_registration_that_is_answered_when_its_client_has_gone_is_cleaned_up(chat):
    dev, functions = chat
    with pytest.raises(InvalidStatus) as refused:
        connect(dev, "/fchat", subprotocols=["late"])
    assert refused.value.response.status_code == 504
    late = functions.calls("registration")[-1]["connection"]

    def cleanups() -> list[dict]:
        return [call["event"]["websocket"] for call in functions.calls("cleanup") if call["connection"] == late]

    until(cleanups, "the cleanup", 20)
    # edge and bridge give up after the same time: whoever is first says why
    [call] = cleanups()
    assert (call["closeCode"], call["closeCause"]) in {("1006", "registration_timeout"), ("1006", "rejected")}


FLOOD = 3000


def test_one_client_that_floods_a_slow_function_keeps_nobody_else_waiting(folder):
    dev, functions = start(folder, "flood")
    with connect(dev, "/flood") as flooding:
        for message in range(FLOOD):
            flooding.send(f"slow {message}")
        until(lambda: dev.lag("flood") > FLOOD * 0.9, "the messages in the log", 30)
        for number in range(3):
            with connect(dev, "/flood", open_timeout=5) as other:
                other.send(f"echo {number}")
                assert other.recv(timeout=5) == f"echo {number}"
        until(lambda: len(functions.calls("cleanup")) == 3, "their cleanups", 10)
        assert dev.lag("flood") > FLOOD * 0.7, "it floods still"
        handled = len(functions.calls("transmission"))
        until(lambda: len(functions.calls("transmission")) > handled + 10, "its own go on", 20)
    slow = [call["data"] for call in functions.calls("transmission") if call["data"].startswith("slow")]
    assert slow == [f"slow {message}" for message in range(len(slow))], "in order, each once"
    functions.process.kill9()
    dev.process.stop()


CLIENTS = 16
MESSAGES = 120


def test_nothing_is_lost_and_order_holds_when_the_function_server_is_killed_under_load(folder):
    dev, functions = start(folder, "load")
    clients = [connect(dev, "/load") for _ in range(CLIENTS)]
    errors: list[str] = []

    def send(number: int) -> None:
        try:
            for message in range(MESSAGES):
                clients[number].send(f"m {number} {message}")
                time.sleep(0.02)
        except Exception as error:  # noqa: BLE001 told by the test's own thread
            errors.append(repr(error))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for kill in range(3):
        seen = len(functions.calls("transmission"))
        until(lambda: len(functions.calls("transmission")) > seen + 50, "calls under way", 30)
        functions.process.kill9()
        # calls fail meanwhile, and the log keeps what comes
        before = dev.lag("load")
        until(lambda: dev.lag("load") > before, "events that wait", 30)
        functions.start(dev.process.http())
    for thread in threads:
        thread.join()
    assert not errors
    until(lambda: dev.lag("load") == 0, "everything handled", 90, every=0.2)
    for client in clients:
        client.close()
    until(lambda: len({call["connection"] for call in functions.calls("cleanup")}) == CLIENTS, "every cleanup", 60)
    by_connection: dict[str, list[dict]] = {}
    for call in functions.calls():
        by_connection.setdefault(call["connection"], []).append(call)
    assert len(by_connection) == CLIENTS
    for calls in by_connection.values():
        # a call that was cut short is made again, before any later one
        kept = [call for n, call in enumerate(calls) if n == 0 or calls[n - 1]["key"] != call["key"]]
        assert len({call["key"] for call in kept}) == len(kept), "an event came again after a later one"
        assert [call["function"] for call in kept] == ["registration"] + ["transmission"] * MESSAGES + ["cleanup"]
        assert [int(call["data"].split()[2]) for call in kept[1:-1]] == list(range(MESSAGES))
    functions.process.kill9()
    assert dev.process.stop() == 0


def test_what_a_function_refuses_becomes_a_dead_letter_that_is_listed_shown_and_retried(folder):
    dev, functions = start(folder, "letters", on_failure="dead_letter")

    def letters() -> list[dict]:
        return dev.cli_json("dead-letters", "list", "letters")

    assert letters() == []
    with connect(dev, "/letters") as client:
        for text in ["one", "bad two", "echo three", "fail four", "echo five"]:
            client.send(text)
        assert [client.recv(timeout=20), client.recv(timeout=20)] == ["echo three", "echo five"], "later ones go on"
        listed = until(lambda: len(letters()) == 2 and letters(), "two dead letters", 20)
        assert [(row["attempts"], row["failure"]) for row in listed] == [
            (1, "the function answered 400 Bad Request"),
            (1, "the function answered 500 Internal Server Error"),
        ]
        shown = dev.cli_json("dead-letters", "show", "letters", "0", listed[0]["offset"])
        assert shown[0]["text"] == "bad two" and shown[0]["kind"] == "message_received"
        # they are in the log: a kill forgets none
        text = [row["offset"] for row in listed]
        functions.journal.with_name("mended").touch()
        dev.cli("dead-letters", "retry", "letters", "0", text[1])
        again = until(lambda: [call for call in functions.calls("transmission") if call["data"] == "fail four"][3:], "the retried call", 20)
        assert again[0]["connection"] == functions.calls("registration")[0]["connection"]
        until(lambda: [row["offset"] for row in letters()] == text[:1], "one dead letter left", 20)
        # what fails again comes back
        dev.cli("dead-letters", "retry", "letters", "--all")
        until(lambda: len([call for call in functions.calls("transmission") if call["data"] == "bad two"]) == 2, "the second try", 20)
        until(lambda: len(letters()) == 1, "it is a dead letter again", 20)
    dev.process.kill9()
    dev.start()
    assert [row["offset"] for row in letters()] == text[:1], "dead letters survive a kill"
    dev.cli("dead-letters", "discard", "letters", "--all")
    assert letters() == []
    gone = dev.cli("dead-letters", "retry", "letters", "0", text[0], ok=False)
    assert gone.returncode != 0 and b"no such dead letter" in gone.stderr
    functions.process.kill9()
    assert dev.process.stop() == 0


@pytest.mark.parametrize("on_failure", ["close"])
def test_a_failing_function_closes_its_connection_where_that_is_asked_for(folder, on_failure):
    dev, functions = start(folder, "strict", on_failure=on_failure)
    with connect(dev, "/strict") as client:
        client.send("bad x")
        with pytest.raises(ConnectionClosed) as end:
            client.recv(timeout=10)
        assert end.value.rcvd.code == 1011
    until(lambda: functions.calls("cleanup"), "the cleanup", 10)
    functions.process.kill9()
    dev.process.stop()


def test_the_bridge_as_a_process_of_its_own(folder):
    functions = Functions(folder / "functions", "apart")
    config = CONFIG.format(name="apart", port=functions.port, on_failure="retry")
    path = folder / "apart.toml"
    path.write_text(config)
    # its functions are called by the process, not by dev: dev is told of the API alone
    dev = Dev(folder, config=config.split("[api.functions]")[0]).start()
    functions.start(dev.process.http())
    argv = [binary(), "functions", "--config", path, "--broker", dev.grpc, "--http", "127.0.0.1:0"]
    bridge = Process("bridge", argv, folder).start()
    health = bridge.http("functions-http")
    assert [requests.get(f"{health}/{path}", timeout=10).status_code for path in ("healthz", "readyz")] == [200, 200]
    with connect(dev, "/apart", open_timeout=20) as client:
        client.send("echo one")
        assert client.recv(timeout=10) == "echo one"
        until(lambda: dev.lag("apart") == 0, "the bridge has told the log", 10)
        bridge.kill9()
        client.send("echo two")
        with pytest.raises(TimeoutError):
            client.recv(timeout=0.5)
        bridge.start()
        assert client.recv(timeout=30) == "echo two"
    # counted when the function has answered, which it does after its push
    counted = 'trunkline_function_calls_total{api="apart",function="transmission",outcome="ok"} 1'
    until(lambda: counted in requests.get(bridge.http("functions-http") + "/metrics", timeout=10).text, "the call to be counted")
    assert bridge.stop() == 0
    functions.process.kill9()
    dev.process.stop()


def test_secrets_are_used_and_shown_nowhere(folder):
    secrets = {"signing": "a secret that signs calls", "header": "Bearer a-secret-of-ours", "push": "a secret that signs pushes"}
    functions = Functions(folder / "functions", "secret")
    config = CONFIG.format(name="secret", port=functions.port, on_failure="retry") + f"""
secrets = ["{secrets["signing"]}"]
headers = {{ authorization = "{secrets["header"]}" }}

[broker.push]
secrets = ["{secrets["push"]}"]
"""
    dev = Dev(folder, config=config, env={"TRUNKLINE_LOG": "debug"}).start()
    functions.start(dev.process.http())
    with connect(dev, "/secret") as client:
        client.send("hello")
        until(lambda: functions.calls("transmission"), "the call", 10)
    headers = functions.calls("transmission")[0]["headers"]
    assert headers["authorization"] == secrets["header"]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + functions.calls("transmission")[0]["body"].encode()
    expected = base64.b64encode(hmac.digest(secrets["signing"].encode(), signed, "sha256")).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    body = {"websocket": {"action": "closing", "secConnectionID": "x"}}
    assert requests.post(dev.process.http() + "/push/secret", json=body, timeout=10).json()["errNo"] == 401
    functions.process.kill9()
    assert dev.process.stop() == 0
    dump = subprocess.run([*dev.process.argv, "--dump-config"], capture_output=True, timeout=30)
    assert dump.returncode == 0 and b"[broker.push]" in dump.stdout
    shown = dump.stdout.decode() + dump.stderr.decode() + dev.process.log_text()
    assert not [name for name, secret in secrets.items() if secret in shown]


def test_wrong_settings_are_refused_before_anything_starts(folder):
    config = CONFIG.format(name="x", port=1, on_failure="retry")
    for wrong, problem in [
        (config.replace("http://127.0.0.1:1/t", "file:///t"), "functions.transmission"),
        (config.replace("http://127.0.0.1:1/t", "http://169.254.169.254/t"), "link-local"),
        (config.replace('"50ms"', '"0s"'), "functions.backoff"),
        (config.replace("cleanup =", "cleanpu ="), "cleanpu"),
    ]:
        with pytest.raises(Timeout) as refused:
            Dev(folder, config=wrong).start()
        assert "ended with 64" in str(refused.value) and problem in str(refused.value)


AWS = """
[[api]]
name = "lambda"
path = "/lambda"

[api.functions]
dialect = "aws"

[api.functions.routes]
"$connect" = "http://127.0.0.1:{port}/aws"
"$default" = "http://127.0.0.1:{port}/aws"
"$disconnect" = "http://127.0.0.1:{port}/aws"
"""


def test_a_bridge_that_did_not_see_a_connection_open_tells_who_it_is_all_the_same(folder):
    functions = Functions(folder / "functions", "lambda")
    config = AWS.format(port=functions.port)
    path = folder / "lambda.toml"
    path.write_text(config)
    dev = Dev(folder, config=config.split("[api.functions]")[0]).start()
    functions.start(dev.process.http())
    bridge = Process("bridge", [binary(), "functions", "--config", path, "--broker", dev.grpc], folder).start()

    def contexts() -> list[dict]:
        return [call["event"]["requestContext"] for call in functions.calls("aws")]

    with connect(dev, "/lambda", open_timeout=20, user_agent_header="tests/1") as client:
        client.send("one")
        until(lambda: len(contexts()) == 2 and dev.lag("lambda") == 0, "the message", 10)
        assert bridge.stop() == 0
        bridge.start()
        client.send("two")
        until(lambda: len(contexts()) == 3, "the message to the other bridge", 20)
    until(lambda: len(contexts()) == 4, "the disconnect", 10)
    assert [context["eventType"] for context in contexts()] == ["CONNECT", "MESSAGE", "MESSAGE", "DISCONNECT"]
    for same in ("identity", "connectedAt", "connectionId", "domainName", "apiId", "stage"):
        assert len({json.dumps(context[same]) for context in contexts()}) == 1, same
    assert contexts()[2]["identity"] == {"sourceIp": "127.0.0.1", "userAgent": "tests/1"}
    assert contexts()[3]["disconnectStatusCode"] == 1000
    assert bridge.stop() == 0
    functions.process.kill9()
    dev.process.stop()


def test_functions_behind_tls_are_called_if_the_system_trusts_them(folder):
    authority, pem = certificate(folder), folder / "function.pem"
    pem.write_bytes((folder / "key.pem").read_bytes() + (folder / "cert.pem").read_bytes())
    functions = Functions(folder / "functions", "tls")
    config = CONFIG.format(name="tls", port=functions.port, on_failure="retry").replace("http://", "https://")
    for trusted in (True, False):
        env = {"SSL_CERT_FILE": str(authority)} if trusted else {}
        dev = Dev(folder / str(trusted), config=config, env=env).start()
        functions.start(dev.process.http(), str(pem))
        if trusted:
            with connect(dev, "/tls") as client:
                client.send("echo over tls")
                assert client.recv(timeout=10) == "echo over tls"
        else:
            with pytest.raises(InvalidStatus) as refused:
                connect(dev, "/tls")
            assert refused.value.response.status_code == 502
            assert "certificate" in dev.process.log_text()
        functions.process.kill9()
        functions.process = None
        dev.process.stop()


def test_nothing_is_lost_when_the_broker_is_killed_under_load(folder):
    """Broker, edge and bridge as processes of their own, in four partitions."""
    functions = Functions(folder / "functions", "four")
    config = CONFIG.format(name="four", port=functions.port, on_failure="retry")
    cluster = Cluster(folder, config, partitions=4).start()
    functions.start(cluster.broker.http())
    path = folder / "four.toml"
    path.write_text(config)
    bridges = [
        Process(f"bridge-{number}", [binary(), "functions", "--config", path, "--broker", cluster.grpc, "--member", f"b{number}"], folder).start()
        for number in range(2)
    ]
    clients = [connect(cluster, "/four", open_timeout=30) for _ in range(CLIENTS)]
    for message in range(MESSAGES):
        for number, client in enumerate(clients):
            client.send(f"m {number} {message}")
        if message == MESSAGES // 3:
            cluster.broker.kill9()
            cluster.start_broker()
        if message == 2 * MESSAGES // 3:
            bridges[0].kill9()
    until(lambda: cluster.lag("four") == 0, "everything handled", 120, every=0.2)
    for client in clients:
        client.close()
    until(lambda: len({call["connection"] for call in functions.calls("cleanup")}) == CLIENTS, "every cleanup", 60)
    by_connection: dict[str, list[dict]] = {}
    for call in functions.calls():
        by_connection.setdefault(call["connection"], []).append(call)
    assert len(by_connection) == CLIENTS
    for calls in by_connection.values():
        # after a kill what had not been acknowledged comes again, in order: each event's first call stands in its place
        first = {call["key"]: call for call in reversed(calls)}
        ordered = sorted(first.values(), key=lambda call: calls.index(call))
        assert [call["function"] for call in ordered] == ["registration"] + ["transmission"] * MESSAGES + ["cleanup"]
        assert [int(call["data"].split()[2]) for call in ordered[1:-1]] == list(range(MESSAGES))
    assert bridges[1].stop() == 0
    functions.process.kill9()
    for process in (cluster.edge, cluster.broker):
        process.stop()


def test_connections_of_an_edge_that_died_are_cleaned_up(folder):
    functions = Functions(folder / "functions", "lost")
    config = CONFIG.format(name="lost", port=functions.port, on_failure="retry")
    cluster = Cluster(folder, config, edge_grace="1s").start()
    functions.start(cluster.broker.http())
    path = folder / "lost.toml"
    path.write_text(config)
    bridge = Process("bridge", [binary(), "functions", "--config", path, "--broker", cluster.grpc], folder).start()
    clients = [connect(cluster, "/lost", open_timeout=30) for _ in range(5)]
    clients[0].send("before")
    until(lambda: functions.calls("transmission"), "the message", 10)
    cluster.edge.kill9()
    until(lambda: len(functions.calls("cleanup")) == 5, "the cleanups", 30)
    causes = {(call["event"]["websocket"]["closeCause"], call["event"]["websocket"]["closeCode"]) for call in functions.calls("cleanup")}
    assert causes == {("edge_lost", "1006")}
    assert {call["connection"] for call in functions.calls("cleanup")} == {call["connection"] for call in functions.calls("registration")}
    assert bridge.stop() == 0
    functions.process.kill9()
    cluster.broker.stop()
