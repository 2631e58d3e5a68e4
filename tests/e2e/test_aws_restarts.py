"""What Lambda-shaped functions are told of a connection stays the same, whoever is restarted between its events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
import websockets.sync.client

from credentials import SECRET, jwt, mint
from harness import Process, binary, until
from several import Broker, Several
from test_functions import Functions

pytestmark = pytest.mark.short

API = """
[[api]]
name = "lambda"
path = "/prod"
auth = {{ kind = "jwt", algorithms = ["HS256"], keys = [{{ algorithm = "HS256", secret = "{secret}" }}], required = [], attributes = ["tenant"] }}

[api.functions]
dialect = "aws"
stage = "prod"
stage_variables = {{ table = "chat-prod" }}

[api.functions.routes]
"$connect" = "http://127.0.0.1:{port}/aws"
"$default" = "http://127.0.0.1:{port}/aws"
"$disconnect" = "http://127.0.0.1:{port}/aws"
"""
OWN = {"routeKey", "eventType", "requestTime", "requestTimeEpoch", "requestId", "extendedRequestId", "messageId", "disconnectStatusCode", "disconnectReason"}
"""What each event has for itself."""


class Lambda:
    """Three brokers that ask for tokens, an edge, and a bridge whose token is that of a handler of this API."""

    def __init__(self, folder: Path) -> None:
        self.functions = Functions(folder / "functions", "lambda")
        api = API.format(port=self.functions.port, secret=SECRET)
        self.cluster = Several(folder, 'headers = ["host", "user-agent", "x-room"]\n' + api, brokers=3, edges=1, partitions=1)
        tokens = {"handler": mint("handler", "handler", "--group", "lambda", "--api", "lambda"), "operator": mint("operator", "operator")}
        text = "".join(f'[[broker.tokens]]\nname = "{name}"\nsha256 = "{token["sha256"]}"\nrole = "{name}"\n' for name, token in tokens.items())
        text = text.replace('role = "handler"\n', 'role = "handler"\ngroups = ["lambda"]\napis = ["lambda"]\n')
        for number in (1, 2, 3):
            with open(folder / f"broker-{number}.toml", "a") as config:
                config.write(text)
        self.operator = tokens["operator"]["token"]
        self.cluster.start()
        self.functions.start(self.cluster.brokers[0].process.http())
        path = folder / "bridge.toml"
        path.write_text(f'[functions]\nbrokers = {json.dumps(self.cluster.grpc.split(","))}\ntoken = "{tokens["handler"]["token"]}"\n{api}')
        self.bridge = Process("bridge", [binary(), "functions", "--config", path], folder).start()

    def connect(self, **kwargs):
        token = jwt({"sub": "ada", "tenant": "acme"})
        return websockets.sync.client.connect(
            f"ws://{self.cluster.edge.addresses['ws']}/prod?room=7&access_token={token}",
            compression=None, legacy=True, open_timeout=30, user_agent_header="tests/1", additional_headers={"X-Room": "7"}, **kwargs,
        )

    def events(self) -> list[dict]:
        return [call["event"] for call in self.functions.calls("aws")]

    def wait(self, count: int) -> None:
        until(lambda: len(self.events()) >= count, f"{count} events", 40)

    def settled(self) -> None:
        """Everything the functions were given is committed: nothing comes again."""
        until(lambda: all(row["lag"] == 0 for row in self.groups()), "the group's end", 30)

    def groups(self) -> list[dict]:
        return self.cluster.cli_json("groups", "--token", self.operator)

    def connection(self, id_: str) -> requests.Response:
        return requests.get(f"{self.cluster.broker.http()}/v1/connections/{id_}", headers={"authorization": f"Bearer {self.operator}"}, timeout=10)

    def leader(self, but: Broker | None = None) -> Broker:
        """Waits until a running broker, another than `but`, leads the partition."""

        def found() -> Broker | None:
            rows = self.cluster.cli_json("cluster", "status", "--token", self.operator)
            leads = rows[0]["partitions"][0]["leader"]
            return next((broker for broker in self.cluster.running if broker.number == leads and broker is not but), None)

        return until(found, "a leader", 30)

    def stop(self) -> None:
        self.functions.process.kill9()
        for process in (self.bridge, self.cluster.edge, *(broker.process for broker in self.cluster.brokers)):
            process.stop()


@pytest.fixture
def system(folder):
    system = Lambda(folder)
    yield system
    system.stop()


def test_every_event_tells_the_same_of_its_connection_after_restarts_of_bridge_and_brokers(system):
    cluster = system.cluster
    with system.connect() as client:
        client.send("one")
        system.wait(2)
        system.settled()
        assert system.bridge.stop() == 0
        led = system.leader()
        led.process.kill9()
        system.leader(but=led)
        system.bridge.start()
        client.send("two")
        system.wait(3)
        system.settled()
        shown = system.connection(system.events()[0]["requestContext"]["connectionId"]).json()
        assert shown["opened_at"] <= shown["last_active_at"], shown
        cluster.restart(led)
        # a message and the end of its connection, which nobody handles for now
        assert system.bridge.stop() == 0
        client.send("three")
    id_ = system.events()[0]["requestContext"]["connectionId"]
    until(lambda: system.connection(id_).status_code == 410, "the end of the connection", 20)
    for broker in cluster.brokers:
        broker.process.kill9()
    for broker in cluster.brokers:
        broker.process.start(ready=False)
    for broker in cluster.brokers:
        broker.process.wait_ready(60)
    system.bridge.start()
    system.wait(5)
    system.settled()

    events = system.events()
    contexts = [event["requestContext"] for event in events]
    assert [context["eventType"] for context in contexts] == ["CONNECT", "MESSAGE", "MESSAGE", "MESSAGE", "DISCONNECT"]
    assert [event.get("body") for event in events] == [None, "one", "two", "three", None]
    common = [{name: value for name, value in context.items() if name not in OWN} for context in contexts]
    assert common == [common[0]] * 5
    assert common[0].pop("connectedAt") == contexts[0]["requestTimeEpoch"]
    host = cluster.edge.addresses["ws"].rpartition(":")[0]
    assert common[0] == {
        "messageDirection": "IN", "stage": "prod", "connectionId": id_, "apiId": "lambda", "domainName": host,
        "identity": {"sourceIp": "127.0.0.1", "userAgent": "tests/1"}, "authorizer": {"principalId": "ada", "tenant": "acme"},
    }
    assert (contexts[4]["disconnectStatusCode"], contexts[4]["disconnectReason"]) == (1000, "Connection Closed Normally")
    assert all(event["stageVariables"] == {"table": "chat-prod"} for event in events)
    assert events[0]["headers"]["X-Room"] == "7" and events[0]["queryStringParameters"] == {"room": "7"}
    assert events[4]["headers"] == {"Host": host, "x-api-key": "", "X-Forwarded-For": "127.0.0.1", "x-restapi": ""}
    assert len({context["requestId"] for context in contexts}) == 5


def test_an_edge_that_died_takes_nothing_of_what_is_told_with_it(system):
    clients = [system.connect() for _ in range(3)]
    system.wait(3)
    system.settled()
    assert system.bridge.stop() == 0
    system.cluster.edge.kill9()
    opened = {event["requestContext"]["connectionId"]: event["requestContext"] for event in system.events()}
    until(lambda: all(system.connection(id_).status_code == 410 for id_ in opened), "the connections to be closed", 30)
    system.bridge.start()
    system.wait(6)
    for event in system.events()[3:]:
        context = event["requestContext"]
        assert (context["eventType"], context["disconnectStatusCode"]) == ("DISCONNECT", 1006)
        before = opened.pop(context["connectionId"])
        for same in ("connectedAt", "identity", "domainName", "authorizer", "stage", "apiId"):
            assert context[same] == before[same], same
    assert opened == {} and len(clients) == 3
