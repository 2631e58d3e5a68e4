"""Clusters whose handlers are written with sdk/python."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import requests

from credentials import certificate, mint
from harness import Cluster, Dev, Process
from several import Broker, Several

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "sdk/python"
# Tests use the SDK's client in their own process, which then starts others: the harness forks, and what gRPC's core does in such a child
# may abort it before its program begins. Set before gRPC is imported; a child that only starts a program needs none of it.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
ENV = {"PYTHONPATH": str(SDK / "src"), "PYTHONUNBUFFERED": "1"}


def python(name: str, folder: Path, *words: str | Path, env: dict[str, str] | None = None) -> Process:
    """A Python process that finds the SDK."""
    return Process(name, [sys.executable, *words], folder, ENV | (env or {}))


class PythonHandlers:
    """Takes the place of a cluster's test handler."""

    folder: Path
    journal: Path
    numbers = 0

    def handler(self, behaviour: str, *, group: str, api: str, member: str | None = None, seed: str = "") -> Process:
        """`seed`: the brokers it is given; all of them otherwise."""
        self.numbers += 1
        member = member or f"member-{self.numbers}"
        words = [behaviour, "--broker", seed or self.grpc, "--group", group, "--api", api, "--member", member, "--journal", self.journal]
        return python(f"handler-{member}", self.folder, Path(__file__).parent / "python_handler.py", *words).start()


class PythonCluster(PythonHandlers, Cluster):
    pass


class PythonSeveral(PythonHandlers, Several):
    pass


class Safe:
    """An authority, a certificate of 127.0.0.1, and a token for each role: what brokers that are safe to reach from elsewhere have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = certificate(folder)
        self._made = {role: mint(role.replace("_", "-"), role) for role in ("handler", "publisher", "operator", "read_only")}
        self._made["chat"] = mint("chat", "handler", "--group", "chat")
        self.tokens: dict[str, str] = {role: made["token"] for role, made in self._made.items()}
        self.tls = f'tls = {{ cert = "{folder}/cert.pem", key = "{folder}/key.pem" }}\n'
        self.access = "".join(
            f'[[broker.tokens]]\nname = "{made["name"]}"\nsha256 = "{made["sha256"]}"\nrole = "{made["role"]}"\n'
            + ('groups = ["chat"]\n' if role == "chat" else "")
            for role, made in self._made.items()
        )

    def env(self, role: str) -> dict[str, str]:
        """What the SDK and the command line look for."""
        return {"TRUNKLINE_TOKEN": self.tokens[role], "TRUNKLINE_CA": str(self.ca)}


class SafeDev(PythonHandlers, Dev):
    """`trunkline dev` with TLS and tokens. Its verbs need `Safe.env` in this process's environment."""

    def __init__(self, folder: Path, apis: str, safe: Safe) -> None:
        super().__init__(folder, config=f"{apis}\n[broker]\n{safe.tls}{safe.access}", flags=["--no-handlers"])
        self.folder, self.journal = folder, folder / "journal.jsonl"

    @property
    def grpc(self) -> str:
        return super().grpc.replace("http://", "https://")


class SafeBroker(Broker):
    def __init__(self, broker: Broker, safe: Safe) -> None:
        super().__init__(broker.number, broker.process)
        self.safe = safe

    @property
    def grpc(self) -> str:
        return super().grpc.replace("http://", "https://")

    def get(self, path: str, timeout: float = 15, **params) -> requests.Response | None:
        headers = {"Authorization": f"Bearer {self.safe.tokens['operator']}"}
        url = self.process.http().replace("http://", "https://") + path
        with suppress(requests.RequestException):
            return requests.get(url, timeout=timeout, params=params, headers=headers, verify=str(self.safe.ca))
        return None


class SafeSeveral(PythonSeveral):
    """Several brokers with TLS and tokens."""

    def __init__(self, folder: Path, apis: str, safe: Safe, **options) -> None:
        super().__init__(folder, apis, **options)
        for broker in self.brokers:
            config = folder / f"broker-{broker.number}.toml"
            config.write_text(config.read_text().replace("[broker]\n", f"[broker]\n{safe.tls}", 1) + safe.access)
        self.brokers = [SafeBroker(broker, safe) for broker in self.brokers]

    @property
    def grpc(self) -> str:
        return ",".join(broker.grpc for broker in self.brokers)
