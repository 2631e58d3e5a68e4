"""The caller's side of HTTP functions: who consents to calls, where calls may go, how they are signed, and a hub written for Azure."""

from __future__ import annotations

import base64
import hmac
import json
import sys
from pathlib import Path

import pytest
import websockets.sync.client
from websockets.exceptions import InvalidStatus

from harness import Dev, Process, Timeout, binary, free_port, until
from node_sdk import sdk_for_node

pytestmark = pytest.mark.short

HERE = Path(__file__).parent
KEYS = ["a primary access key", "the secondary access key"]
HUB = """
[[api]]
name = "hub"
path = "/hub"

[api.functions]
dialect = "cloudevents"
registration = "http://127.0.0.1:{port}/eventhandler"
connected = "http://127.0.0.1:{port}/eventhandler"
transmission = "http://127.0.0.1:{port}/eventhandler"
cleanup = "http://127.0.0.1:{port}/eventhandler"
domain = "chat.example.com"
secrets = ["{keys[0]}", "{keys[1]}"]
"""
SCF = """
[[api]]
name = "hub"
path = "/hub"

[api.functions]
dialect = "scf"
registration = "http://{host}:{port}/registration"
transmission = "http://{host}:{port}/transmission"
cleanup = "http://{host}:{port}/cleanup"
backoff = "50ms"
retries = 0
{more}
"""


def connect(dev: Dev, path: str = "/hub", **kwargs):
    return websockets.sync.client.connect(dev.ws(path), compression=None, legacy=True, open_timeout=20, **kwargs)


def events(journal: Path) -> list[dict]:
    # the last line may be half written
    return [json.loads(line) for line in journal.read_text().split("\n")[:-1]] if journal.exists() else []


def test_a_hub_written_for_azure_runs_as_it_is(folder, need):
    packages = sdk_for_node(need, HERE / "node" / "azure_hub.mjs")
    port, journal = free_port(), folder / "hub.jsonl"
    config = HUB.format(port=port, keys=KEYS)
    (folder / "hub.toml").write_text(config)
    # its functions are called by a process of their own, which can be replaced
    dev = Dev(folder, config=config.split("[api.functions]")[0]).start()
    Process("hub", ["node", packages / "azure_hub.mjs", port, journal], folder).start()
    bridge = Process("bridge", [binary(), "functions", "--config", folder / "hub.toml", "--broker", dev.grpc], folder).start()
    with pytest.raises(InvalidStatus) as refused:
        connect(dev, "/hub?refuse=1")
    assert (refused.value.response.status_code, refused.value.response.body) == (401, b"not today")
    with connect(dev, "/hub?a=1&a=2", subprotocols=["v1", "v2"]) as client:
        assert client.subprotocol == "v1"
        client.send("hello")
        assert client.recv(timeout=20) == "1: hello"
        client.send(b"\0\xff")
        assert client.recv(timeout=20) == b"\0\xff"
        dev.publish("room", "to all in the group")
        assert client.recv(timeout=20) == "to all in the group"
        assert dev.connections()[0]["attributes"]["userId"] == "ada"
        # the state is the log's, not the bridge's
        assert bridge.stop() == 0
        bridge.start()
        client.send("hello again")
        assert client.recv(timeout=20) == "3: hello again"
        client.close(1000, "bye")
    told = until(lambda: [event for event in events(journal) if event["eventName"] == "disconnected"] and events(journal), "disconnected")
    told = told[1:]
    assert [event["eventName"] for event in told] == ["connect", "connected", "message", "message", "message", "disconnected"]
    (connection,) = {event["connectionId"] for event in told}
    assert (told[0]["queries"], told[0]["subprotocols"]) == ({"a": ["1", "2"]}, ["v1", "v2"])
    assert told[-1]["reason"] == "bye"
    assert [event["states"].get("messages") for event in told] == [None, 0, 0, 1, 2, 3]
    assert {event.get("userId") for event in told[1:]} == {"ada"}
    assert {(event["hub"], event["origin"]) for event in told} == {("hub", "chat.example.com")}
    signatures = [f"sha256={hmac.digest(key.encode(), connection.encode(), 'sha256').hex()}" for key in KEYS]
    assert {event["signature"] for event in told} == {",".join(signatures)}
    assert bridge.stop() == 0
    assert dev.process.stop() == 0


def test_a_bridge_that_gets_a_connection_back_has_not_kept_an_old_state(folder, need):
    packages = sdk_for_node(need, HERE / "node" / "azure_hub.mjs")
    port = free_port()
    config = HUB.format(port=port, keys=KEYS)
    (folder / "hub.toml").write_text(config)
    dev = Dev(folder, config=config.split("[api.functions]")[0]).start()
    Process("hub", ["node", packages / "azure_hub.mjs", port, folder / "hub.jsonl"], folder).start()
    argv = [binary(), "functions", "--config", folder / "hub.toml", "--broker", dev.grpc, "--member"]
    first, second = (Process(name, [*argv, name], folder) for name in ("first", "second"))
    first.start()
    with connect(dev) as client:
        client.send("one")
        assert client.recv(timeout=20) == "1: one"
        second.start()
        first.pause()
        client.send("two")
        assert client.recv(timeout=90) == "2: two"
        # of which the first bridge hears nothing: the one before may wait in its socket
        client.send("three")
        assert client.recv(timeout=20) == "3: three"
        first.resume()
        assert second.stop() == 0
        client.send("four")
        assert client.recv(timeout=90) == "4: four"
    assert first.stop() == 0
    assert dev.process.stop() == 0


class Calls:
    """A `dev` whose functions are on a server that keeps a journal of the calls."""

    def __init__(self, folder: Path, more: str, host: str = "127.0.0.1") -> None:
        port, self.journal = free_port(), folder / "journal.jsonl"
        self.dev = Dev(folder, config=SCF.format(host=host, port=port, more=more)).start()
        argv = [sys.executable, HERE / "function_server.py", port, self.journal, self.dev.process.http() + "/push/hub"]
        Process("functions", argv, folder).start()


@pytest.mark.attack("A35")
def test_a_server_that_never_heard_of_consent_is_not_called_where_that_is_asked_for(folder):
    calls = Calls(folder, "consent = true")
    for _ in range(2):
        with pytest.raises(InvalidStatus) as refused:
            connect(calls.dev)
        assert refused.value.response.status_code == 502
    assert events(calls.journal) == []
    log = calls.dev.process.log_text()
    assert "not called: no consent" in log and "OPTIONS with 501" in log
    assert calls.dev.process.stop() == 0


@pytest.mark.attack("A35")
def test_a_name_that_leads_to_this_machine_is_not_called_where_only_public_addresses_may_be(folder):
    calls = Calls(folder, "private_addresses = false", host="localhost")
    with pytest.raises(InvalidStatus) as refused:
        connect(calls.dev)
    assert refused.value.response.status_code == 502
    assert events(calls.journal) == []
    assert "which may not be called" in calls.dev.process.log_text()
    assert calls.dev.process.stop() == 0


@pytest.mark.attack("A35")
@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"])
def test_a_private_address_in_the_configuration_is_refused_before_anything_starts(folder, host):
    with pytest.raises(Timeout) as refused:
        Dev(folder, config=SCF.format(host=host, port=1, more="private_addresses = false")).start()
    assert "ended with 64" in str(refused.value) and "private_addresses = false" in str(refused.value)


def verify(secret: str, headers: dict[str, str], body: str) -> bool:
    """As the specification of Standard Webhooks has it."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body}".encode()
    expected = base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    versions = [signature.split(",", 1) for signature in headers["webhook-signature"].split(" ")]
    return any(version == "v1" and hmac.compare_digest(signature, expected) for version, signature in versions)


def test_calls_are_signed_so_that_old_and_new_secret_both_verify_them(folder):
    new, old, other = ("whsec_" + base64.b64encode(bytes([n]) * 24).decode() for n in (251, 2, 3))
    calls = Calls(folder, f'secrets = ["{new}", "{old}"]')
    with connect(calls.dev) as client:
        client.send('{"a":  1.0, "text": "wörld 🌍 \\u00e9"}')
        until(lambda: len(events(calls.journal)) == 2, "the message")
    until(lambda: len(events(calls.journal)) == 3, "the cleanup")
    told = events(calls.journal)
    for call in told:
        headers, body = call["headers"], call["body"]
        assert verify(new, headers, body) and verify(old, headers, body)
        assert not verify(other, headers, body)
        assert not verify(new, headers, body + " ") and not verify(new, headers | {"webhook-id": "x"}, body)
        # over the bytes that came, not over JSON that was written again
        assert not verify(new, headers, json.dumps(json.loads(body)))
    assert len({call["headers"]["webhook-id"] for call in told}) == 3
    assert calls.dev.process.stop() == 0
