"""The processes of a run, each in its own namespace: brokers on disks of their own, edges, handler members, the clients."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from disk import Disk
from harness import Node, Process, Timeout, binary, test_handler, until
from network import Network

GRPC, HTTP, LINK, WS, EDGE_HTTP = 7070, 7080, 7443, 8080, 8081
GROUP = "effects"

APIS = """
[[api]]
name = "effects"
path = "/effects"
registration_timeout = "10s"

[[api]]
name = "watch"
path = "/watch"
registration = "accept"
channels = ["effects"]
"""


@dataclass(frozen=True)
class Settings:
    """How the cluster is set up; the planner derives them from the seed."""

    brokers: int
    edges: int = 2
    members: int = 2
    partitions: int = 3
    snapshot_entries: int = 300
    retention: str = ""
    """How long the log is kept; empty: for good."""
    edge_grace: str = "2s"
    handler_lease: str = "2s"
    handler_deadline: str = "10s"
    disk_mebibytes: int = 512
    writers: int = 16
    watchers: int = 3
    pause: float = 0.25
    """Seconds between two messages of a writer."""
    submit_pause: float = 0.02
    submitters: int = 1
    """Of each partition."""

    @property
    def names(self) -> list[str]:
        brokers = [f"b{number}" for number in range(1, self.brokers + 1)]
        edges = [f"e{number}" for number in range(1, self.edges + 1)]
        return [*brokers, *edges, *(f"h{number}" for number in range(1, self.members + 1)), "c1"]


class Broker(Node):
    """One broker: its disk, its process, what its own replicas say."""

    def __init__(self, number: int, folder: Path, network: Network, settings: Settings, env: dict[str, str]) -> None:
        self.number = number
        self.name = f"b{number}"
        self.host = network[self.name]
        self.disk = Disk(folder, settings.disk_mebibytes)
        self.data = self.disk.at / "data"
        config = folder / "broker.toml"
        self.process = self.broker = Process(self.name, [binary(), "broker", "--config", config], folder, env, self.host.enter)
        self.process.addresses = {"grpc": f"{self.host.address}:{GRPC}", "http": f"{self.host.address}:{HTTP}"}
        config.write_text(self._config(folder.parent / "pki", network, settings))

    def _config(self, pki: Path, network: Network, settings: Settings) -> str:
        address = self.host.address
        lines = [
            "[broker]",
            f"node_id = {self.number}",
            'cluster = "chaos"',
            f'data = "{self.data}"',
            f'pki = "{pki}"',
            f"partitions = {settings.partitions}",
            f'grpc = "{address}:{GRPC}"',
            f'http = "{address}:{HTTP}"',
            f'link = "{address}:{LINK}"',
            "insecure = true",
            f'edge_grace = "{settings.edge_grace}"',
            f'handler_lease = "{settings.handler_lease}"',
            "[broker.snapshots]",
            f"log_entries = {settings.snapshot_entries}",
            *(["[broker.retention]", f'time = "{settings.retention}"', 'check_every = "1s"'] if settings.retention else []),
            "[broker.limits]",
            f'handler_deadline = "{settings.handler_deadline}"',
        ]
        if settings.brokers > 1:
            for number in range(1, settings.brokers + 1):
                lines += ["[[broker.members]]", f"id = {number}", f'link = "{network[f"b{number}"].address}:{LINK}"']
        return "\n".join(lines) + "\n"

    @property
    def link(self) -> str:
        return f"{self.host.address}:{LINK}"

    def get(self, path: str, timeout: float = 2, **params) -> requests.Response | None:
        """`None` if it does not answer."""
        with suppress(requests.RequestException):
            return requests.get(self.process.http() + path, params=params, timeout=timeout)
        return None

    def ready(self) -> bool:
        answer = self.get("/readyz")
        return answer is not None and answer.status_code == 200

    def partitions(self) -> list[dict]:
        """What its replicas say of themselves: leader, term, applied, digest."""
        answer = self.get("/v1/cluster", local="true")
        return answer.json()["partitions"] if answer is not None and answer.status_code == 200 else []


class Cluster:
    """Everything that runs."""

    def __init__(self, folder: Path, network: Network, settings: Settings, env: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.network = network
        self.settings = settings
        self.journal = folder / "journal.jsonl"
        self.channels: dict[int, str] = {}
        self._certs()
        self.brokers: list[Broker] = []
        for number in range(1, settings.brokers + 1):
            self.brokers.append(Broker(number, self._folder(f"b{number}"), network, settings, env or {}))
        self.edges = [self._edge(number) for number in range(1, settings.edges + 1)]
        self.members = [self._member(number) for number in range(1, settings.members + 1)]

    def _folder(self, name: str) -> Path:
        path = self.folder / name
        path.mkdir()
        return path

    def _certs(self) -> None:
        argv = [str(binary()), "certs", "--out", str(self.folder / "pki")]
        for number in range(1, self.settings.brokers + 1):
            argv += ["--broker", str(number)]
        for number in range(1, self.settings.edges + 1):
            argv += ["--edge", f"edge-{number}"]
        subprocess.run(argv, check=True, capture_output=True, timeout=30)

    def _edge(self, number: int) -> Process:
        name = f"e{number}"
        host, folder = self.network[name], self._folder(name)
        brokers = ", ".join(f'"{broker.number}@{broker.link}"' for broker in self.brokers)
        lines = [
            "[edge]",
            f'name = "edge-{number}"',
            f"brokers = [{brokers}]",
            f'pki = "{self.folder / "pki"}"',
            f'ws = "{host.address}:{WS}"',
            f'http = "{host.address}:{EDGE_HTTP}"',
            'drain_window = "2s"',
            "insecure = true",
            APIS,
        ]
        (folder / "edge.toml").write_text("\n".join(lines))
        return Process(name, [binary(), "edge", "--config", folder / "edge.toml"], folder, enter=host.enter)

    def _member(self, number: int) -> Process:
        name = f"h{number}"
        argv = [test_handler(), "effects", "--group", GROUP, "--api", "effects", "--member", f"member-{number}", "--journal", self.journal]
        argv += ["--broker", ",".join(broker.process.http("grpc") for broker in self.brokers)]
        return Process(name, argv, self._folder(name), enter=self.network[name].enter)

    @property
    def processes(self) -> list[Process]:
        return [*(broker.process for broker in self.brokers), *self.edges, *self.members]

    def start(self) -> Cluster:
        for broker in self.brokers:
            broker.process.start(ready=False)
        for broker in self.brokers:
            broker.process.wait_ready()
        self.until_ready("the cluster to form", 60)
        self.channels = {partition: self._channel_of(partition) for partition in range(self.settings.partitions)}
        for process in [*self.edges, *self.members]:
            process.start(ready=False)
        for process in [*self.edges, *self.members]:
            process.wait_ready()
        return self

    def _channel_of(self, partition: int) -> str:
        """A channel whose publishes go through this partition."""
        for number in range(10_000):
            name = f"submits-{number}"
            for broker in self.brokers:
                answer = broker.get(f"/v1/channels/{name}")
                if answer is not None and answer.status_code == 200:
                    if answer.json()["partition"] == partition:
                        return name
                    break
        raise AssertionError(f"no channel of partition {partition} found")

    def broker(self, number: int) -> Broker:
        return self.brokers[number - 1]

    def others(self, broker: Broker) -> list[Broker]:
        return [other for other in self.brokers if other is not broker]

    def alive(self) -> list[Broker]:
        """Those whose process runs and is not stopped."""
        return [broker for broker in self.brokers if broker.process.alive and not broker.process.paused]

    def ask(self) -> Broker:
        """Any broker that is ready."""
        return until(lambda: next((broker for broker in self.alive() if broker.ready()), None), "a broker that is ready", 60)

    def leader(self, partition: int, seconds: float = 30) -> Broker:
        """Who leads `partition`, by its own word: another's may be old."""

        def find() -> Broker | None:
            for broker in self.alive():
                rows = broker.partitions()
                if partition < len(rows) and rows[partition]["leader"] == broker.number:
                    return broker
            return None

        return until(find, f"a leader of partition {partition}", seconds)

    def terms(self) -> dict[int, int]:
        """The highest term seen of each partition."""
        seen: dict[int, int] = {}
        for broker in self.alive():
            for row in broker.partitions():
                seen[row["partition"]] = max(seen.get(row["partition"], 0), row["term"] or 0)
        return seen

    def until_ready(self, what: str, seconds: float) -> None:
        def every() -> bool:
            return all(broker.process.alive and broker.ready() for broker in self.brokers)

        try:
            until(every, what, seconds, every=0.1)
        except Timeout as error:
            said = []
            for broker in self.brokers:
                answer = broker.get("/readyz")
                says = answer.text.strip()[:200] if answer is not None else "nothing"
                said.append(f"{broker.name}: says {says}" if broker.process.alive else f"{broker.name} ended: {broker.process.tail_of_log(2)[-600:]}")
            raise Timeout(f"{error}\n" + "\n".join(said)) from None

    def caught_up(self, seconds: float = 60) -> None:
        """Every broker has applied what each partition's leader had applied when this began."""
        target: dict[int, tuple[int, int]] = {}
        for broker in self.alive():
            for row in broker.partitions():
                target[row["partition"]] = max(target.get(row["partition"], (0, 0)), offset(row["applied"]))

        def every() -> bool:
            return all(
                len(rows := broker.partitions()) == self.settings.partitions
                and all(offset(row["applied"]) >= target[row["partition"]] for row in rows)
                for broker in self.brokers
            )

        until(every, "every broker to have caught up", seconds, every=0.2)

    def admin(self, *words: str, seconds: float = 90) -> subprocess.CompletedProcess:
        """`trunkline cluster …` at any ready broker, tried again while it is refused for a while."""
        end = time.monotonic() + seconds
        while True:
            try:
                done = self.ask().cli("cluster", *words, ok=False, seconds=60)
            except subprocess.TimeoutExpired as error:
                raise Timeout(f"cluster {' '.join(words)}: {error}") from error
            # a removal that was cut short is over when it is wished for again
            if done.returncode == 0 or (words[0] == "remove" and b"is no member" in done.stderr):
                return done
            if time.monotonic() > end:
                raise Timeout(f"cluster {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
            time.sleep(0.5)

    def wipe_and_rejoin(self, broker: Broker) -> None:
        """The documented way back for a broker whose disk is gone or damaged: out of the cluster, an empty folder, in again."""
        if broker.process.alive:
            broker.process.kill9()
        self.admin("remove", str(broker.number))
        subprocess.run(["rm", "-rf", str(broker.data)], check=True)
        broker.process.start(ready=False)
        self.admin("add", str(broker.number), "--link", broker.link)
        broker.process.wait_ready(60)

    def close(self) -> None:
        for process in self.processes:
            if process.alive:
                process.kill9()
        for broker in self.brokers:
            broker.disk.unmount()
            broker.disk.image.unlink(missing_ok=True)


def offset(text: str) -> tuple[int, int]:
    index, position = text.split(".")
    return int(index), int(position)


class Clients:
    """The process of the clients (crowd.py), told what to do by lines on its standard input; it answers with lines of JSON."""

    def __init__(self, cluster: Cluster) -> None:
        settings, network = cluster.settings, cluster.network
        self.folder = cluster.folder / "c1"
        self.folder.mkdir()
        task = {
            "edges": [f"ws://{network[f'e{number}'].address}:{WS}" for number in range(1, settings.edges + 1)],
            "brokers": [broker.process.http() for broker in cluster.brokers],
            "partitions": settings.partitions,
            "writers": settings.writers,
            "watchers": settings.watchers,
            "channels": list(cluster.channels.values()),
            "pause": settings.pause,
            "submit_pause": settings.submit_pause,
            "submitters": settings.submitters,
            "folder": str(self.folder),
        }
        script = Path(__file__).with_name("crowd.py")
        self.process = Process("c1", [sys.executable, script, json.dumps(task)], self.folder, enter=network["c1"].enter, stdin=subprocess.PIPE)
        self._answers = 0

    def start(self) -> Clients:
        self.process.start()
        return self

    def tell(self, word: str, seconds: float = 10) -> dict:
        """Sends one command and reads its answer."""
        assert self.process.alive, f"the clients ended\n{self.process.tail_of_log()}"
        self.process.popen.stdin.write(f"{word}\n".encode())
        self.process.popen.stdin.flush()
        self._answers += 1
        number = self._answers

        def answer() -> dict | None:
            # what stands behind the last end of a line is not whole yet
            whole = self.process.stdout_path.read_text().split("\n")[:-1]
            lines = [line for line in whole if line.startswith("{")]
            return json.loads(lines[number - 1]) if len(lines) >= number else None

        return until(answer, f"the clients' answer to {word!r}", seconds)

    def status(self) -> dict:
        """Counters: connected, received, answered, acked (a list, one a submitter), errors."""
        return self.tell("status")
