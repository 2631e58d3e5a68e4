"""Real processes under test: start, wait until ready, kill, restart, look at their log.

Everything listens on port 0 first and keeps the port it was given over restarts. Nothing here sleeps for luck: every
wait is for a condition, with a limit and a sentence that says what was awaited.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import requests

from history import Handled, Record, parse_journal, parse_tail, show_offset

READY_SECONDS = 30
STOP_SECONDS = 30

# ---- the words of the command line and the config that the suite relies on --------------------------------------------

DEV_FLAGS = ["--ws", "127.0.0.1:0", "--edge-http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--link", "127.0.0.1:0"]
CLUSTER_FLAG = "--broker"
"""Flag by which an operator's verb is told the gRPC address."""

BROKER_TOML = """\
[broker]
data = "{data}"
pki = "{pki}"
partitions = {partitions}
grpc = "{grpc}"
http = "{http}"
link = "{link}"
edge_grace = "{edge_grace}"

[broker.snapshots]
log_entries = {snapshot_entries}
"""

EDGE_TOML = """\
[edge]
name = "edge-1"
brokers = ["1@{link}"]
pki = "{pki}"
ws = "{ws}"
http = "{http}"
drain_window = "2s"

{apis}
"""


def certs(pki: Path) -> None:
    """A test CA, and certificates for broker 1 and edge `edge-1`."""
    argv = [str(binary()), "certs", "--out", str(pki), "--broker", "1", "--edge", "edge-1"]
    done = subprocess.run(argv, capture_output=True, timeout=30)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stderr.decode(errors='replace')}"


def binary() -> Path:
    path = os.environ.get("TRUNKLINE_BIN")
    if not path:
        raise RuntimeError("TRUNKLINE_BIN is not set: `make e2e` builds the binary and says where it is")
    return Path(path).resolve()


def test_handler() -> Path:
    """The handler program of this suite (tests/src/bin/e2e_handler.rs), built beside the binary."""
    return Path(os.environ.get("TRUNKLINE_E2E_HANDLER") or binary().parent / "e2e_handler")


class Timeout(AssertionError):
    pass


def until(condition: Callable[[], object], what: str, seconds: float = 20, every: float = 0.02):
    """The first true value of `condition`; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Timeout(f"waited {seconds:g} s for: {what}")
        time.sleep(every)


def _die_with_parent() -> None:
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """For a server that cannot be asked which port it took. Outside the range that outgoing connections and port 0 take theirs from: one
    of those might have it before the server does."""
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no free port found")


class Process:
    """One process. Start it from the main thread: it is killed when the thread that started it ends."""

    running: list[Process] = []
    started: list[Process] = []

    def __init__(
        self,
        name: str,
        argv: list[str],
        logs: Path,
        env: dict[str, str] | None = None,
        enter: Callable[[], None] | None = None,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """`enter` runs in the new process before its program: it may move it into a namespace."""
        self.name = name
        self.argv = [str(part) for part in argv]
        self.env = os.environ | {"RUST_BACKTRACE": "1"} | (env or {})
        self.enter = enter
        self.stdin = stdin
        self.logs = logs
        self.starts = 0
        self.popen: subprocess.Popen | None = None
        self.addresses: dict[str, str] = {}
        self._changed = threading.Condition()
        self._reader: threading.Thread | None = None
        self._ready = False
        self._ended = False

    def start(self, *, ready: bool = True, seconds: float = READY_SECONDS) -> Process:
        assert self.popen is None or self.popen.poll() is not None, f"{self.name} runs already"
        if self._reader:
            # it says that its process has ended, which must not be taken for the next one's end
            self._reader.join(10)
        self.starts += 1
        self._ready = self._ended = False
        self.stderr_path = self.logs / f"{self.name}.{self.starts}.err"
        self.stdout_path = self.logs / f"{self.name}.{self.starts}.out"
        with open(self.stderr_path, "wb") as stderr:
            self.popen = subprocess.Popen(
                self.argv, stdin=self.stdin, stdout=subprocess.PIPE, stderr=stderr, env=self.env, preexec_fn=self._before_exec
            )
        Process.running.append(self)
        if self not in Process.started:
            Process.started.append(self)
        self._reader = threading.Thread(target=self._read, args=(self.popen,), daemon=True)
        self._reader.start()
        if ready:
            self.wait_ready(seconds)
        return self

    def _before_exec(self) -> None:
        _die_with_parent()
        if self.enter:
            self.enter()

    def _read(self, popen: subprocess.Popen) -> None:
        with open(self.stdout_path, "wb") as copy:
            for line in popen.stdout:
                copy.write(line)
                copy.flush()
                words = line.decode("utf-8", "replace").split()
                with self._changed:
                    if len(words) == 3 and words[0] == "listening":
                        self.addresses[words[1]] = words[2]
                    if words == ["ready"]:
                        self._ready = True
                        self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_ready(self, seconds: float = READY_SECONDS) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._ended, seconds)
            if self._ready:
                return
        state = f"ended with {self.popen.wait()}" if self._ended else f"is not ready after {seconds:g} s"
        raise Timeout(f"{self.name} {state}\n{' '.join(self.argv)}\n{self.tail_of_log()}")

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def kill9(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self.popen.wait(10)
        self._forget()

    def pause(self) -> None:
        self.popen.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.popen.send_signal(signal.SIGCONT)

    @property
    def paused(self) -> bool:
        """Whether the kernel has stopped it (state `T`)."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """The exit code."""
        try:
            code = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Timeout(f"{self.name} did not end within {seconds:g} s\n{self.tail_of_log()}") from None
        self._forget()
        return code

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        self.terminate()
        return self.wait(seconds)

    def _forget(self) -> None:
        with suppress(ValueError):
            Process.running.remove(self)

    def rss_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise AssertionError(f"{self.name} has no VmRSS")

    def log_text(self) -> str:
        """Standard error of every start so far."""
        return "".join(path.read_text(errors="replace") for path in sorted(self.logs.glob(f"{self.name}.*.err")))

    def tail_of_log(self, lines: int = 25) -> str:
        text = self.stderr_path.read_text(errors="replace").splitlines()[-lines:]
        return f"--- end of {self.stderr_path}\n" + "\n".join(text)

    def http(self, listener: str = "http") -> str:
        return f"http://{self.addresses[listener]}"

    def address(self, listener: str) -> tuple[str, int]:
        host, _, port = self.addresses[listener].rpartition(":")
        return host.strip("[]"), int(port)

    @classmethod
    def kill_all(cls) -> None:
        for process in list(cls.running):
            with suppress(Exception):
                process.kill9()


class Node:
    """What the tests do to whatever runs a broker: ask its HTTP and its command line."""

    broker: Process

    @property
    def grpc(self) -> str:
        """What the command line is told to ask."""
        return self.broker.http("grpc")

    def cli(self, *words: str, ok: bool = True, seconds: float = 60, input: bytes | None = None) -> subprocess.CompletedProcess:
        argv = [str(binary()), *words, CLUSTER_FLAG, self.grpc]
        done = subprocess.run(argv, capture_output=True, timeout=seconds, input=input if input is not None else b"")
        if ok and done.returncode != 0:
            raise AssertionError(f"{' '.join(argv)} ended with {done.returncode}\n{done.stderr.decode(errors='replace')}")
        return done

    def cli_json(self, *words: str, seconds: float = 60) -> list[dict]:
        out = self.cli(*words, "--json", seconds=seconds).stdout.decode()
        return [json.loads(line) for line in out.splitlines() if line.strip()]

    def tail_text(self, *words: str) -> str:
        return self.cli("tail", "--from", "earliest", "--json", *words, seconds=180).stdout.decode()

    def tail(self, *words: str) -> list[Record]:
        """Every record, each where it was applied: one that was forwarded to another partition counts there."""
        return [record for record in parse_tail(self.tail_text(*words)) if not record.fields.get("forwarded")]

    def connections(self, *words: str) -> list[dict]:
        return self.cli_json("connections", *words)

    def groups(self) -> list[dict]:
        return self.cli_json("groups")

    def lag(self, group: str) -> int | None:
        """Events the group has still to settle; `None` while the group does not exist."""
        rows = [row for row in self.groups() if row["group"] == group]
        return sum(int(row["lag"]) + int(row.get("holes", 0)) for row in rows) if rows else None

    def post(self, path: str, data: bytes | str, *, key: str | None = None, timeout: float = 10, **params) -> requests.Response:
        headers = {"Content-Type": "text/plain; charset=utf-8" if isinstance(data, str) else "application/octet-stream"}
        if key:
            headers["Idempotency-Key"] = key
        body = data.encode() if isinstance(data, str) else data
        return requests.post(self.broker.http() + path, data=body, headers=headers, params=params, timeout=timeout)

    def request(self, method: str, path: str, **params) -> requests.Response:
        return requests.request(method, self.broker.http() + path, params=params, timeout=10)

    def publish(self, channel: str, data: bytes | str, **kwargs) -> dict:
        answer = self.post(f"/v1/channels/{channel}/messages", data, **kwargs)
        assert answer.status_code == 200, f"publish: {answer.status_code} {answer.text}"
        return answer.json()

    def ws(self, path: str) -> str:
        return f"ws://{self.edge.addresses['ws']}{path}"


class Dev(Node):
    """`trunkline dev`: broker, edge and demo handlers in one process."""

    def __init__(self, folder: Path, *, config: str | None = None, flags: list[str] | None = None, env=None, data: Path | None = None):
        folder.mkdir(parents=True, exist_ok=True)
        self.data = data or folder / "data"
        argv = [str(binary()), "dev", "--data", str(self.data), *DEV_FLAGS, *(flags or [])]
        if config is not None:
            path = folder / "dev.toml"
            path.write_text(config)
            argv += ["--config", str(path)]
        self.process = self.broker = self.edge = Process("dev", argv, folder, env)

    def start(self, **kwargs) -> Dev:
        self.process.start(**kwargs)
        return self


class Cluster(Node):
    """A broker and edges as processes of their own, joined by certificates made with `trunkline certs`."""

    def __init__(
        self,
        folder: Path,
        apis: str,
        *,
        partitions: int = 1,
        edge_grace: str = "5s",
        snapshot_entries: int = 100_000,
        data: Path | None = None,
        broker_env: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.apis = apis
        self.partitions = partitions
        self.edge_grace = edge_grace
        self.snapshot_entries = snapshot_entries
        self.data = data or folder / "data"
        self.pki = folder / "pki"
        self.journal = folder / "journal.jsonl"
        self.handlers = itertools.count(1)
        certs(self.pki)
        self.broker = Process("broker", [binary(), "broker", "--config", folder / "broker.toml"], folder, broker_env)
        self.edge = Process("edge", [binary(), "edge", "--config", folder / "edge.toml"], folder)

    def start(self) -> Cluster:
        self.start_broker()
        self.start_edge()
        return self

    def start_broker(self, **kwargs) -> None:
        old = self.broker.addresses
        config = BROKER_TOML.format(
            data=self.data,
            partitions=self.partitions,
            grpc=old.get("grpc", "127.0.0.1:0"),
            http=old.get("http", "127.0.0.1:0"),
            link=old.get("link", "127.0.0.1:0"),
            edge_grace=self.edge_grace,
            snapshot_entries=self.snapshot_entries,
            pki=self.pki,
        )
        (self.folder / "broker.toml").write_text(config)
        self.broker.start(**kwargs)

    def start_edge(self, **kwargs) -> None:
        old = self.edge.addresses
        config = EDGE_TOML.format(
            ws=old.get("ws", "127.0.0.1:0"),
            http=old.get("edge-http", "127.0.0.1:0"),
            link=self.broker.addresses["link"],
            pki=self.pki,
            apis=self.apis,
        )
        (self.folder / "edge.toml").write_text(config)
        self.edge.start(**kwargs)

    def handler(self, behaviour: str, *, group: str, api: str, member: str | None = None, flags: list[str] | None = None) -> Process:
        """A process of the test handler, started. All of a cluster's write to one journal."""
        member = member or f"member-{next(self.handlers)}"
        argv = [test_handler(), behaviour, "--broker", self.broker.http("grpc"), "--group", group, "--api", api]
        argv += ["--member", member, "--journal", self.journal, *(flags or [])]
        return Process(f"handler-{member}", argv, self.folder).start()

    def handled(self) -> list[Handled]:
        with suppress(FileNotFoundError):
            return parse_journal(self.journal.read_text().splitlines())
        return []


def state_at(node: Node, partition: int, offset: tuple[int, int]) -> list[dict]:
    return node.cli_json("state", "--partition", str(partition), "--at", show_offset(offset))


def copy_tree(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
