"""docs/move.md as a reader follows it: its commands in their order, with the ports of this run in place of the default ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import boto3
import pytest
import websockets.sync.client

from harness import Process, binary, free_port
from node_sdk import sdk_for_node
from python_sdk import ENV, ROOT

pytestmark = pytest.mark.short

PAGE = (ROOT / "docs/move.md").read_text()
PORTS = {8080: "TRUNKLINE_EDGE__WS", 8081: "TRUNKLINE_EDGE__HTTP", 7070: "TRUNKLINE_BROKER__GRPC", 7080: "TRUNKLINE_BROKER__HTTP",
         7443: "TRUNKLINE_BROKER__LINK", 9000: None}
"""The ports that the page names, and the variable by which a server is given another one."""
PREREQUISITES = ("pip install ", "npm install")
"""Not run: the tests' own environment has what they install."""


def commands(chapter: str, section: str) -> list[str]:
    """Those of a section, in order, without comments."""
    text = PAGE.split(f"\n## {chapter}\n")[1].split("\n## ")[0].split(f"\n### {section}\n")[1].split("\n### ")[0]
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).replace("\\\n", " ").splitlines()
    found = [re.sub(r"\s+# .*", "", line).strip() for line in lines]
    assert found, f"{chapter}, {section}: no commands"
    return found


class Reader:
    """Somebody at the top of a clone who types what the page says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.logs = folder, folder / "logs"
        self.ports = {port: free_port() for port in PORTS}
        clone, programs = folder / "clone", folder / "bin"
        for path in (ROOT / "docs/examples").rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                copy = clone / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(self.with_ports(path.read_text()))
        programs.mkdir()
        self.logs.mkdir()
        (programs / "trunkline").symlink_to(binary())
        (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (programs / "trunkline-functions").write_text(f'#!/bin/sh\nexec {sys.executable} -m trunkline.functions "$@"\n')
        for program in ("python3", "trunkline-functions"):
            (programs / program).chmod(0o755)
        self.cwd = clone
        self.env = ENV | {"PATH": f"{programs}:{os.environ['PATH']}", "TRUNKLINE_BROKER": f"127.0.0.1:{self.ports[7070]}"}
        self.env |= {variable: f"127.0.0.1:{self.ports[port]}" for port, variable in PORTS.items() if variable}
        self.servers: list[Process] = []

    def with_ports(self, text: str) -> str:
        """An address as it is written in files and commands, and the port that a runtime is given."""
        for port, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}").replace(f"runtime.py {port}", f"runtime.py {own}")
            text = text.replace(f"runtime.mjs {port}", f"runtime.mjs {own}")
        return text

    def types(self, command: str) -> None:
        if command.startswith(PREREQUISITES):
            return
        command = self.with_ports(command)
        if command.endswith(" &"):
            name = f"{len(self.servers)}-{command.split()[0]}"
            argv = ["bash", "-c", f"cd {self.cwd} && exec {command.removesuffix(' &')}"]
            self.servers.append(Process(name, argv, self.logs, self.env).start())
            return
        # what it leaves behind in the shell: the folder and the variables
        left = self.folder / "left"
        argv = ["bash", "-c", f"{command}\n code=$?; {{ pwd; env -0; }} > {left}; exit $code"]
        done = subprocess.run(argv, cwd=self.cwd, env=os.environ | self.env, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{command}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        pwd, _, env = left.read_text().partition("\n")
        self.cwd = Path(pwd)
        self.env |= dict(pair.split("=", 1) for pair in env.split("\0") if "=" in pair)

    def connect(self, path: str, **options):
        return websockets.sync.client.connect(f"ws://127.0.0.1:{self.ports[8080]}{path}", compression=None, legacy=True, open_timeout=20, **options)

    def stop(self) -> None:
        for server in reversed(self.servers):
            if "node" in server.name or "python3" in server.name:
                server.kill9()
            else:
                assert server.stop() == 0, server.name


@pytest.fixture
def reader(folder):
    return Reader(folder)


@pytest.mark.parametrize("section", ["Try it", "In production"])
def test_three_functions_move(reader, section):
    for command in commands("Three functions and a reverse push address", section):
        reader.types(command)
    with reader.connect("/release/chatroom") as ada, reader.connect("/release/chatroom") as bob:
        ada.send("hello")
        assert {client.recv(timeout=20) for client in (ada, bob)} == {"guest 1: hello"}
        bob.close()
        assert ada.recv(timeout=20) == "guest 2 left"
    reader.stop()


@pytest.mark.parametrize("section", ["Try it", "Try it in JavaScript", "In production"])
def test_lambda_functions_move(reader, section, need):
    if "JavaScript" in section:
        (reader.cwd / "docs/examples/aws-chat/node_modules").symlink_to(sdk_for_node(need) / "node_modules")
    for command in commands("Lambda functions and `@connections`", section):
        reader.types(command)
    with reader.connect("/prod?name=ada", subprotocols=["chat"]) as ada, reader.connect("/prod?name=bob") as bob:
        assert ada.subprotocol == "chat"
        ada.send('{"action": "say", "text": "hello"}')
        for client in (ada, bob):
            assert json.loads(client.recv(timeout=20)) == {"from": "ada", "text": "hello"}
        bob.send('{"action": "who"}')
        assert sorted(json.loads(bob.recv(timeout=20))["members"]) == ["ada", "bob"]
        bob.close(4000, "enough")
        assert json.loads(ada.recv(timeout=20)) == {"left": "bob", "code": 4000, "reason": "enough"}
    reader.stop()


def test_a_key_makes_a_post_happen_once(reader):
    for command in commands("Lambda functions and `@connections`", "Try it"):
        reader.types(command)
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    endpoint = f"http://127.0.0.1:{reader.ports[7080]}/prod"
    gateway = boto3.client("apigatewaymanagementapi", endpoint_url=endpoint, region_name="r", aws_access_key_id="a", aws_secret_access_key="b")
    exec(compile(code, "docs/move.md", "exec"), {"gateway": gateway, "event_id": "event"})
    with reader.connect("/prod?name=ada") as ada:
        argv = ["trunkline", "connections", "--api", "awschat", "--json"]
        shown = subprocess.run(argv, env=os.environ | reader.env, capture_output=True, timeout=20, check=True).stdout
        connection = json.loads(shown)["connection"]
        for _ in range(2):
            gateway.post_to_connection(ConnectionId=connection, Data=b"one")
        ada.send('{"action": "who"}')
        assert [ada.recv(timeout=20), json.loads(ada.recv(timeout=20))["members"]] == ["one", ["ada"]]
    reader.stop()


def test_the_production_files_are_those_of_the_first_try_and_more():
    """So that what was tried is what is served."""
    for folder, name in (("scf-chat", "chatroom.toml"), ("aws-chat", "chat.toml")):
        tried, served = (tomllib.loads((ROOT / "docs/examples" / folder / file).read_text())["api"][0] for file in (name, "production.toml"))
        for key, value in tried.items():
            if isinstance(value, dict):
                assert value.items() <= served[key].items()
            elif (key, value) != ("registration", "handler"):
                assert served[key] == value


def test_what_the_page_links_to_and_calls_exists():
    page = ROOT / "docs/move.md"
    for target in re.findall(r"\]\(([^)#]+)", PAGE):
        assert (page.parent / target).exists(), target
    verbs = {" ".join(words) for words in re.findall(r"`trunkline ([a-z-]+)(?: (list|retry))?", PAGE)}
    assert {"groups ", "dead-letters list", "dead-letters retry"} <= verbs
    for words in verbs:
        assert subprocess.run([binary(), *words.split(), "--help"], capture_output=True, timeout=20).returncode == 0, words
