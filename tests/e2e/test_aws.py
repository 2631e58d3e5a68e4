"""The shape of AWS: Lambda's events, and `@connections` by the official SDK with only its endpoint set."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import sys
from datetime import datetime
from pathlib import Path

import boto3
import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed, InvalidStatus

from harness import Dev, Process, free_port, until
from node_sdk import sdk_for_node

pytestmark = pytest.mark.short

CONFIG = """
[[api]]
name = "lchat"
path = "/prod"
preset = "aws"
text_only = false

[api.functions]
dialect = "aws"
stage = "prod"
route_selection = "$request.body.action"

[api.functions.routes]
{routes}

{broker}
"""
KEYS = """
[[broker.aws.keys]]
id = "AKIDEXAMPLE"
secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
"""
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}


class Chat:
    """The backend of lambda_chat.py behind an API; requests to `@connections` must be signed."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        keys = ["$connect", "$disconnect", "$default", "sendmessage", "whoami", "kick"]
        routes = "\n".join(f'"{key}" = "http://127.0.0.1:{port}/"' for key in keys)
        self.dev = Dev(folder, config=CONFIG.format(routes=routes, broker=KEYS)).start()
        self.endpoint = self.dev.process.http() + "/prod"
        self.database = folder / "chat.sqlite"
        argv = [sys.executable, str(Path(__file__).with_name("lambda_chat.py")), str(port), str(self.database), self.endpoint]
        self.process = Process("lambda", argv, folder, os.environ | CREDENTIALS).start()

    def rows(self, query: str) -> list[tuple]:
        with sqlite3.connect(self.database, timeout=10) as table:
            return table.execute(query).fetchall()

    def connect(self, name: str, **kwargs):
        return websockets.sync.client.connect(f"{self.dev.ws('/prod')}?name={name}", compression=None, legacy=True, **kwargs)

    def client(self, **kwargs):
        keys = {"aws_access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"], "aws_secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}
        return boto3.client("apigatewaymanagementapi", endpoint_url=self.endpoint, region_name="eu-central-1", **keys | kwargs)


@pytest.fixture(scope="module")
def chat(module_folder):
    chat = Chat(module_folder)
    yield chat
    chat.process.kill9()
    chat.dev.process.stop()


def test_a_lambda_shaped_chat_works_unchanged(chat):
    with chat.connect("ada", subprotocols=["other", "chat"]) as ada, chat.connect("bob") as bob:
        assert (ada.subprotocol, bob.subprotocol) == ("chat", None)
        ada.send(json.dumps({"action": "sendmessage", "text": "hello"}))
        assert [socket.recv(timeout=10) for socket in (ada, bob)] == ["ada: hello"] * 2
        # a connection of the table that is gone is taken out by the exception's name
        with sqlite3.connect(chat.database) as table:
            table.execute("insert into connections values ('AAAAAAAAAAAAAAAAAAAAAA', 'ghost'), ('L0SM9cOFvHcCIhw=', 'other cloud')")
        bob.send(json.dumps({"action": "sendmessage", "text": "anybody?"}))
        assert [socket.recv(timeout=10) for socket in (ada, bob)] == ["bob: anybody?"] * 2
        until(lambda: len(chat.rows("select * from connections")) == 2, "the ghosts are gone", 10)
        bob.send("no json")
        assert bob.recv(timeout=10) == "no route for no json"
        bob.send(json.dumps({"action": "whoami"}))
        me = json.loads(bob.recv(timeout=10))
        assert me["ip"] == "127.0.0.1" and "websockets" in me["agent"] and me["at"].startswith("20")

        def active() -> datetime:
            bob.send(json.dumps({"action": "whoami"}))
            return datetime.fromisoformat(json.loads(bob.recv(timeout=10))["active"])

        connected = datetime.fromisoformat(me["at"])
        assert datetime.fromisoformat(me["active"]) >= connected and connected.tzinfo is not None
        until(lambda: active() > connected, "a message a second after the connection", 10)
        ((bobs,),) = chat.rows("select id from connections where name = 'bob'")
        ada.send(json.dumps({"action": "kick", "id": bobs}))
        with pytest.raises(ConnectionClosed):
            bob.recv(timeout=10)
        until(lambda: chat.rows(f"select code from gone where id = '{bobs}'") == [(1000,)], "the disconnect of bob", 10)
        ((adas,),) = chat.rows("select id from connections where name = 'ada'")
        ada.close(4000, "enough")
    until(lambda: chat.rows(f"select code, reason from gone where id = '{adas}'") == [(4000, "enough")], "the disconnect of ada", 10)
    assert chat.rows("select * from connections") == []


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("", 401, b"who are you?"),
        ("403", 403, b'{"message": "no"}'),
        ("429", 429, b'{"message": "no"}'),
        ("500", 500, b'{"message": "no"}'),
        # no handshake may be answered with it
        ("302", 403, b'{"message": "no"}'),
        ("error", 502, b"the registration function failed"),
        ("wrong", 502, b"the registration function failed"),
    ],
)
def test_connect_may_refuse(chat, name, status, body):
    with pytest.raises(InvalidStatus) as refused:
        chat.connect(name, open_timeout=20)
    assert (refused.value.response.status_code, refused.value.response.body) == (status, body)


def test_what_connect_posts_is_delivered_once_the_client_is_in(chat):
    with chat.connect("early") as client:
        assert client.recv(timeout=10) == "welcome"
    until(lambda: chat.rows("select * from connections") == [], "the disconnect", 10)


def test_errors_are_the_sdk_s_own_exceptions(chat):
    client = chat.client()
    gone = {"ConnectionId": "AAAAAAAAAAAAAAAAAAAAAA"}
    for call in (lambda: client.post_to_connection(**gone, Data=b"x"), lambda: client.get_connection(**gone), lambda: client.delete_connection(**gone)):
        with pytest.raises(client.exceptions.GoneException):
            call()
    with pytest.raises(client.exceptions.PayloadTooLargeException):
        client.post_to_connection(**gone, Data=b"x" * (128 * 1024 + 1))
    with chat.connect("eve") as eve:
        ((id_,),) = chat.rows("select id from connections where name = 'eve'")
        client.post_to_connection(ConnectionId=id_, Data=b"x" * (128 * 1024))
        assert eve.recv(timeout=10) == "x" * (128 * 1024)
        with pytest.raises(client.exceptions.PayloadTooLargeException):
            client.post_to_connection(ConnectionId=id_, Data=b"x" * (128 * 1024 + 1))
        shown = client.get_connection(ConnectionId=id_)
        assert shown["LastActiveAt"] == shown["ConnectedAt"], "it has said nothing"
        assert client.delete_connection(ConnectionId=id_)["ResponseMetadata"]["HTTPStatusCode"] == 204
        with pytest.raises(ConnectionClosed) as closed:
            eve.recv(timeout=10)
        assert closed.value.rcvd.code == 1000
    until(lambda: ("eve",) not in chat.rows("select name from connections"), "the disconnect", 10)
    # ids of other gateways are padded, and clients encode them
    with pytest.raises(client.exceptions.GoneException):
        client.post_to_connection(ConnectionId="L0SM9cOFvHcCIhw=", Data=b"x")


def frames(message: str) -> list[str]:
    """As long as a frame may be."""
    return [message[at : at + 32 * 1024] for at in range(0, len(message), 32 * 1024)]


def test_the_preset_s_limits_hold(chat):
    with chat.connect("dora") as dora:
        asked = json.dumps({"action": "whoami", "padding": ""})
        dora.send(frames(asked[:-2] + "x" * (128 * 1024 - len(asked)) + asked[-2:]))
        assert json.loads(dora.recv(timeout=10))["ip"] == "127.0.0.1"
        # it may be closed before all of it is sent
        with pytest.raises(ConnectionClosed) as end:
            dora.send(frames("x" * (128 * 1024 + 1)))
            dora.recv(timeout=10)
        assert end.value.rcvd.code == 1009
    until(lambda: ("dora",) not in chat.rows("select name from connections"), "the disconnect", 10)


@pytest.mark.parametrize("keys", [{"aws_secret_access_key": "another"}, {"aws_access_key_id": "NOBODY"}])
def test_who_signs_with_other_keys_is_forbidden(chat, keys):
    client = chat.client(**keys)
    with pytest.raises(client.exceptions.ForbiddenException):
        client.post_to_connection(ConnectionId="AAAAAAAAAAAAAAAAAAAAAA", Data=b"x")


def test_binary_goes_both_ways(chat):
    with chat.connect("carl") as carl:
        ((id_,),) = chat.rows("select id from connections where name = 'carl'")
        chat.client().post_to_connection(ConnectionId=id_, Data=b"\xff\x00")
        assert carl.recv(timeout=10) == b"\xff\x00"
        carl.send(b"\x00\x01")
        assert carl.recv(timeout=10) == "no route for AAE=", "base64, as Lambda gets it"
    until(lambda: chat.rows("select * from connections") == [], "the disconnect", 10)


def test_two_way_routes_answer_and_a_message_without_a_route_is_forbidden(folder):
    port = free_port()
    routes = f'"$connect" = "http://127.0.0.1:{port}/"\n"chat/echo" = "http://127.0.0.1:{port}/"'
    config = CONFIG.format(routes=routes, broker="").replace("$request.body.action", "${request.body.service}/${request.body.action}")
    dev = Dev(folder, config=config.replace('stage = "prod"', 'stage = "prod"\nintegration_response = true')).start()
    argv = [sys.executable, str(Path(__file__).with_name("lambda_chat.py")), str(port), str(folder / "two.sqlite"), dev.process.http() + "/prod"]
    process = Process("lambda", argv, folder, os.environ | CREDENTIALS).start()
    with websockets.sync.client.connect(f"{dev.ws('/prod')}?name=ada", compression=None, legacy=True, open_timeout=20) as ada:
        # what has no body is answered with nothing: the next answer is the next one's
        for text in ("", "hellö"):
            ada.send(json.dumps({"service": "chat", "action": "echo", "text": text}))
        assert ada.recv(timeout=10) == "hellö"
        for nothing in ('{"action": "echo"}', '{"service": "chat", "action": 7}', "no json", "[]", b"\x00"):
            ada.send(nothing)
            answer = json.loads(ada.recv(timeout=10))
            assert answer.keys() == {"message", "connectionId", "requestId"} and answer["message"] == "Forbidden", nothing
    process.kill9()
    dev.process.stop()


def test_a_bound_that_is_hit_is_the_sdk_s_exception_too(folder):
    dev = Dev(folder, flags=["--set", "broker.limits.http_concurrency=1"]).start()
    client = boto3.client(
        "apigatewaymanagementapi", endpoint_url=dev.process.http() + "/s", region_name="r", aws_access_key_id="a", aws_secret_access_key="b",
        config=boto3.session.Config(retries={"max_attempts": 1}),
    )
    # one request that never ends takes the only place
    address = dev.process.address("http")
    with socket.create_connection(address) as hold:
        hold.sendall(b"POST /s/@connections/AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nx")

        def refused() -> bool:
            try:
                client.get_connection(ConnectionId="AAAAAAAAAAAAAAAAAAAAAB")
            except client.exceptions.LimitExceededException:
                return True
            except client.exceptions.GoneException:
                return False

        until(refused, "a request too many", 10)
    dev.process.stop()


def test_the_same_from_node_with_the_official_sdk(folder, need):
    packages = sdk_for_node(need, Path(__file__).with_name("node") / "lambda_chat.mjs")
    port = free_port()
    keys = ["$connect", "$disconnect", "$default", "sendmessage", "whoami", "errors", "leave"]
    routes = "\n".join(f'"{key}" = "http://127.0.0.1:{port}/"' for key in keys)
    dev = Dev(folder, config=CONFIG.format(routes=routes, broker=KEYS)).start()
    argv = ["node", str(packages / "lambda_chat.mjs"), str(port), dev.process.http() + "/prod"]
    process = Process("node", argv, folder, os.environ | CREDENTIALS | {"AWS_REGION": "us-east-1"}).start()

    def connect(name: str):
        return websockets.sync.client.connect(f"{dev.ws('/prod')}?name={name}", compression=None, legacy=True, subprotocols=["chat"])

    with pytest.raises(InvalidStatus) as refused:
        websockets.sync.client.connect(dev.ws("/prod"), compression=None, legacy=True)
    assert refused.value.response.status_code == 401
    with connect("ada") as ada, connect("bob") as bob:
        assert ada.subprotocol == "chat"
        ada.send(json.dumps({"action": "sendmessage", "text": "hello"}))
        assert [socket.recv(timeout=10) for socket in (ada, bob)] == ["ada: hello"] * 2
        ghost = "AAAAAAAAAAAAAAAAAAAAAB"
        ada.send(json.dumps({"action": "sendmessage", "text": "boo", "ghost": ghost}))
        for client in (ada, bob):
            assert {client.recv(timeout=10), client.recv(timeout=10)} == {"ada: boo", f"gone: {ghost}"}
        bob.send(json.dumps({"action": "whoami"}))
        me = json.loads(bob.recv(timeout=10))
        assert me["ip"] == "127.0.0.1" and datetime.fromisoformat(me["active"]) >= datetime.fromisoformat(me["at"])
        bob.send(json.dumps({"action": "errors"}))
        gone = {"error": "GoneException", "status": 410, "own": True}
        too_large = {"error": "PayloadTooLargeException", "status": 413, "own": True}
        forbidden = {"error": "ForbiddenException", "status": 403, "own": True}
        assert json.loads(bob.recv(timeout=10)) == [gone, gone, gone, too_large, forbidden]
        bob.send("x")
        assert bob.recv(timeout=10) == "no route for x"
        bob.send(json.dumps({"action": "leave"}))
        with pytest.raises(ConnectionClosed):
            bob.recv(timeout=10)
        assert ada.recv(timeout=10) == "bob left: 1000 Connection Closed Normally"
    process.kill9()
    dev.process.stop()
