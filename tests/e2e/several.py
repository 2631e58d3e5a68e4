"""Several brokers and edges as processes of their own on loopback, as an operator would start them."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

import requests

from harness import Node, Process, binary, test_handler, until
from history import Handled, parse_journal

# an edge may take 5 s to come back to a broker that was away: 3 s of an attempt that goes on, and 2 s until the next
EDGE_GRACE_SECONDS = 6


def free_ports(count: int, kind: int) -> list[int]:
    """Members know each other's ports before anybody listens, so these are looked for first."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(socket.AF_INET, kind)) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Broker(Node):
    """One of them; verbs and HTTP calls ask it alone."""

    def __init__(self, number: int, process: Process) -> None:
        self.number = number
        self.process = self.broker = process

    def get(self, path: str, timeout: float = 15, **params) -> requests.Response | None:
        """`None` if it does not answer."""
        with suppress(requests.RequestException):
            return requests.get(self.process.http() + path, params=params, timeout=timeout)
        return None

    @property
    def is_ready(self) -> bool:
        answer = self.get("/readyz", timeout=2)
        return answer is not None and answer.status_code == 200

    def leaders(self) -> dict[int, int | None]:
        """Who leads each partition, as it knows."""
        answer = self.get("/v1/cluster", timeout=2, local="true")
        return {row["partition"]: row["leader"] for row in answer.json()["partitions"]} if answer else {}


class Several(Node):
    """Brokers 1 to n, edges `edge-1` to `edge-m`. As a `Node` it asks whichever broker answers."""

    def __init__(self, folder: Path, apis: str, *, brokers: int = 3, edges: int = 2, partitions: int = 8) -> None:
        self.folder = folder
        self.journal = folder / "journal.jsonl"
        self.partitions = partitions
        pki, numbers = folder / "pki", range(1, brokers + 1)
        argv = [str(binary()), "certs", "--out", str(pki)]
        argv += [word for n in numbers for word in ("--broker", str(n))]
        argv += [word for n in range(1, edges + 1) for word in ("--edge", f"edge-{n}")]
        subprocess.run(argv, check=True, capture_output=True, timeout=30)
        links, tcp = free_ports(brokers, socket.SOCK_DGRAM), iter(free_ports(2 * brokers + 2 * edges, socket.SOCK_STREAM))
        members = "".join(f'[[broker.members]]\nid = {n}\nlink = "127.0.0.1:{port}"\n' for n, port in zip(numbers, links, strict=True))
        self.brokers = []
        for number, link in zip(numbers, links, strict=True):
            config = folder / f"broker-{number}.toml"
            config.write_text(
                f'[broker]\nnode_id = {number}\ncluster = "main"\ndata = "{folder}/data-{number}"\npki = "{pki}"\npartitions = {partitions}\n'
                f'grpc = "127.0.0.1:{next(tcp)}"\nhttp = "127.0.0.1:{next(tcp)}"\nlink = "127.0.0.1:{link}"\n'
                f'edge_grace = "{EDGE_GRACE_SECONDS}s"\nhandler_lease = "2s"\n{members}'
            )
            self.brokers.append(Broker(number, Process(f"broker-{number}", [binary(), "broker", "--config", config], folder)))
        self.edges = []
        for number in range(1, edges + 1):
            config = folder / f"edge-{number}.toml"
            # each is given one broker, and learns the others
            config.write_text(
                f'[edge]\nname = "edge-{number}"\nbrokers = ["1@127.0.0.1:{links[0]}"]\npki = "{pki}"\n'
                f'ws = "127.0.0.1:{next(tcp)}"\nhttp = "127.0.0.1:{next(tcp)}"\ndrain_window = "1s"\n{apis}'
            )
            self.edges.append(Process(f"edge-{number}", [binary(), "edge", "--config", config], folder))
        self._members = itertools.count(1)

    def start(self) -> Several:
        for broker in self.brokers:
            broker.process.start(ready=False)
        for broker in self.brokers:
            broker.process.wait_ready(60)
        until(lambda: all(broker.is_ready for broker in self.brokers), "every broker to know every leader", 60)
        for edge in self.edges:
            edge.start(seconds=60)
        return self

    @property
    def running(self) -> list[Broker]:
        return [broker for broker in self.brokers if broker.process.alive]

    @property
    def broker(self) -> Process:
        return self.running[0].process

    @property
    def edge(self) -> Process:
        return self.edges[0]

    @property
    def grpc(self) -> str:
        return ",".join(broker.process.http("grpc") for broker in self.brokers)

    @property
    def ws_all(self) -> list[str]:
        return [f"ws://{edge.addresses['ws']}" for edge in self.edges]

    def leader(self, partition: int, but: int = 0) -> Broker:
        """Waits until a running broker leads it; `but`: another than that."""

        def found() -> Broker | None:
            ids = {broker.leaders().get(partition) for broker in self.running}
            return next((broker for broker in self.running if ids == {broker.number} and broker.number != but), None)

        return until(found, f"a leader of partition {partition} whom all know", 30)

    def restart(self, broker: Broker, seconds: float = 60) -> None:
        broker.process.start(seconds=seconds)
        until(lambda: all(each.is_ready for each in self.running), "every broker to know every leader again", seconds)

    def handler(self, behaviour: str, *, group: str, api: str) -> Process:
        """A member in a process of its own, which is given one broker and learns the others."""
        number = next(self._members)
        seed = self.brokers[number % len(self.brokers)].process.http("grpc")
        argv = [test_handler(), behaviour, "--broker", seed, "--group", group, "--api", api]
        argv += ["--member", f"member-{number}", "--journal", self.journal]
        return Process(f"handler-{number}", argv, self.folder).start()

    def handled(self) -> list[Handled]:
        with suppress(FileNotFoundError):
            return parse_journal(self.journal.read_text().splitlines())
        return []

    def members(self, group: str) -> set[str]:
        """Who serves its partitions now, if every one is served."""
        rows = [row for row in self.groups() if row["group"] == group]
        return {row["member"] for row in rows} if len(rows) == self.partitions and all(row["member"] for row in rows) else set()

    def describe(self) -> dict:
        return json.loads(self.cli("cluster", "status", "--json").stdout)
