"""The attack list: what is measured around each of its rows.

Whatever is thrown at a server, afterwards it is the same process, its memory is back, a well-behaved client noticed nothing, one
metric was counted, and no log holds a secret or a raw control character. `attacked` checks all of that around one sub-case of a row;
what the sub-case itself must answer is said in its test. The rows and their tests: `attack_rows.py`.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import statistics
import sys
import textwrap
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from harness import Node, Process, until

RSS_KIB = 10 << 10
"""By so much a process may have grown when a row is over."""
RSS_SECONDS = 15
"""Allocators give memory back when they like."""
COUNT_SECONDS = 5
"""A metric may be counted a moment after the answer."""
ECHO_SECONDS = 5
"""The well-behaved client's every message must be back in this time, whatever goes on and however busy the machine is. That its p99
stays below twice what it was is printed, not asserted: on a shared machine that says more of the neighbours than of the server."""
CALM_SECONDS = 1.5
"""So long the well-behaved client is alone before the first attack."""

REFUSED = ("trunkline_edge_handshakes_total", {"outcome": "refused"})
ACCEPTED = ("trunkline_edge_handshakes_total", {"outcome": "accepted"})
ABANDONED = ("trunkline_edge_handshakes_total", {"outcome": "abandoned"})
UNAVAILABLE = ("trunkline_edge_handshakes_total", {"outcome": "unavailable"})
RATE_LIMITED = ("trunkline_edge_handshakes_total", {"outcome": "rate_limited"})
Metric = tuple[str, dict[str, str]]


def http_answers(surface: str, status: object) -> Metric:
    """The broker's answers of this status to what is asked on this surface."""
    return ("trunkline_http_requests_total", {"surface": surface, "status": str(status)})


@dataclass
class Outcome:
    """What one row came to, over all its sub-cases."""

    cases: int = 0
    failed: int = 0
    answers: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    rss_kib: int = 0
    calm: list[float] = field(default_factory=list)
    echoes: list[float] = field(default_factory=list)
    cpu_seconds: float = 0
    notes: list[str] = field(default_factory=list)


outcomes: dict[str, Outcome] = defaultdict(Outcome)
"""By row, for the table at the end of the run."""


class Bystander:
    """The well-behaved client of one server, from now on."""

    def __init__(self, node: Node, folder: Path, path: str, ca: Path | None) -> None:
        host, port = node.edge.address("ws")
        argv = [sys.executable, str(Path(__file__).with_name("bystander.py")), host, str(port), path, *([str(ca)] if ca else [])]
        self.process = Process("bystander", argv, folder)
        self.process.start(ready=False)
        self._read = 0
        self._echoes: list[tuple[float, float]] = []
        until(lambda: len(self.echoes()) >= 10, "the well-behaved client's first echoes", 20)
        time.sleep(CALM_SECONDS)
        self.calm = [took for _, took in self.echoes()[10:]]

    def echoes(self) -> list[tuple[float, float]]:
        """When each was sent and how long it took."""
        with contextlib.suppress(FileNotFoundError), open(self.process.stdout_path) as printed:
            printed.seek(self._read)
            new, _, _ = printed.read().rpartition("\n")
            self._read += len(new) + 1 if new else 0
            for line in new.splitlines():
                sent, took = line.split()
                assert took != "-", f"the well-behaved client lost its echo {len(self._echoes) + 1}\n{self.process.tail_of_log()}"
                self._echoes.append((float(sent), float(took)))
        return self._echoes

    def one_after(self, moment: float) -> None:
        """Waits for an echo that was sent after this moment."""
        until(lambda: any(sent > moment for sent, _ in self.echoes()[-50:]), "an echo of the well-behaved client", ECHO_SECONDS)


class Target:
    """A server under attack and what watches it."""

    def __init__(self, node: Node, folder: Path, *, path: str = "/echo", token: str | None = None, ca: Path | None = None) -> None:
        """`path`: where the well-behaved client echoes. `token`: for metrics, where they are not for everybody. `ca`: by which the
        edge's certificate is good, where it speaks TLS."""
        self.node = node
        self.token = token
        self.processes = list({id(process): process for process in (node.edge, node.broker)}.values())
        self.ca = ca
        self.bystander = Bystander(node, folder, path, ca)

    @property
    def ws(self) -> tuple[str, int]:
        return self.node.edge.address("ws")

    @property
    def http(self) -> tuple[str, int]:
        return self.node.broker.address("http")

    def metrics(self) -> dict[str, float]:
        """Every counter by its name and labels, as it is shown."""
        edge = self.node.edge.http("edge-http")
        edge = edge.replace("http:", "https:") if self.ca else edge
        pages = {self.node.broker.pid: self.node.broker.http(), self.node.edge.pid: edge}
        shown: dict[str, float] = {}
        for page in pages.values():
            headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
            answer = requests.get(f"{page}/metrics", headers=headers, verify=str(self.ca) if self.ca else None, timeout=10)
            assert answer.status_code == 200, f"{page}/metrics: {answer.status_code}"
            for line in answer.text.splitlines():
                if line and not line.startswith("#"):
                    name, _, value = line.rpartition(" ")
                    shown[name] = float(value)
        return shown

    def rss_kib(self) -> dict[str, int]:
        return {process.name: own_kib(process) for process in self.processes}

    def cpu_seconds(self) -> float:
        """Processor time of the edge's process so far."""
        # of all its threads; the kernel counts in nanoseconds
        total = 0
        for task in Path(f"/proc/{self.node.edge.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9

    def stop(self) -> None:
        self.bystander.process.kill9()


def own_kib(process: Process) -> int:
    """What the process has in memory of its own: the pages of its program's file are the system's to keep or drop."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return sum(int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) for name in ("RssAnon", "RssShmem"))


def sum_of(metrics: dict[str, float], metric: Metric) -> float:
    name, labels = metric
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(value for shown, value in metrics.items() if shown.partition("{")[0] == name and all(one in shown for one in wanted))


def raw_controls(text: str) -> list[str]:
    """Control characters that a terminal would obey."""
    return sorted({repr(character) for character in text if character not in "\n\t" and unicodedata.category(character) == "Cc"})


@dataclass
class Attack:
    """One sub-case of a row while it runs."""

    row: str
    target: Target
    secrets: list[str]
    counted: list[tuple[Metric, int]] = field(default_factory=list)

    def answered(self, got: object, *expected: object) -> None:
        """The answer to one bad input, and what it must be: one of these."""
        outcomes[self.row].answers[str(got)] += 1
        assert got in expected, f"row {self.row}: {got} instead of {' or '.join(map(str, expected))}"

    def costs(self, work: Callable[[], object], seconds: float, tries: int = 10) -> None:
        """The server may take so much processor time while this is done. The least of several, because the well-behaved client is served
        meanwhile."""
        taken = []
        for _ in range(tries):
            before = self.target.cpu_seconds()
            work()
            taken.append(self.target.cpu_seconds() - before)
        outcome = outcomes[self.row]
        outcome.cpu_seconds = max(outcome.cpu_seconds, min(taken))
        assert min(taken) < seconds, f"row {self.row}: {min(taken) * 1e3:.1f} ms of processor time"

    def counts(self, metric: Metric, times: int = 1) -> None:
        """This metric must be so much higher afterwards, at least."""
        self.counted.append((metric, times))

    def note(self, text: str) -> None:
        """A number for the table."""
        outcomes[self.row].notes.append(text)


@contextlib.contextmanager
def attacked(row: str, target: Target, *, metric: Metric | None = None, secrets: tuple[str, ...] = ()) -> Iterator[Attack]:
    """Around one sub-case of a row. `metric`: one that must be counted; a test may name more. `secrets`: what it sends that no log may hold."""
    attack = Attack(row, target, list(secrets))
    outcome = outcomes[row]
    outcome.cases += 1
    outcome.failed += 1
    if metric:
        attack.counts(metric)
    pids = {process.name: process.pid for process in target.processes}
    logged = {process.name: len(process.log_text()) for process in target.processes}
    rss, counted = target.rss_kib(), target.metrics()
    begun = time.monotonic()
    yield attack
    ended = time.monotonic()
    # a client that comes back after it all is served as before
    target.bystander.one_after(ended)
    for process in target.processes:
        assert process.alive and process.pid == pids[process.name], f"row {row}: {process.name} did not survive"
    echoes = [took for sent, took in target.bystander.echoes() if sent + took > begun and sent < ended]
    assert max(echoes, default=0) < ECHO_SECONDS, f"row {row}: an echo of the well-behaved client took {max(echoes):.1f} s"
    grown = lambda: max(now - rss[name] for name, now in target.rss_kib().items())  # noqa: E731
    until(lambda: grown() < RSS_KIB, f"row {row}: memory within {RSS_KIB >> 10} MiB of {rss} KiB; is {target.rss_kib()}", RSS_SECONDS, every=0.1)
    for wanted, times in attack.counted:
        rise = lambda wanted=wanted: sum_of(target.metrics(), wanted) - sum_of(counted, wanted)  # noqa: E731
        until(lambda rise=rise, times=times: rise() >= times, f"row {row}: {wanted} to count {times}", COUNT_SECONDS, every=0.1)
    for process in target.processes:
        said = process.log_text()[logged[process.name] :]
        for secret in attack.secrets:
            assert secret not in said, f"row {row}: the log of {process.name} holds {secret[:12]}…"
        assert not raw_controls(said), f"row {row}: the log of {process.name} holds {raw_controls(said)}"
    outcome.failed -= 1
    outcome.rss_kib = max(outcome.rss_kib, grown())
    outcome.calm += target.bystander.calm
    outcome.echoes += echoes


class Canary:
    """A listener that nobody may call."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    @property
    def was_called(self) -> bool:
        return bool(select.select([self.listener], [], [], 0)[0])

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *_) -> None:
        self.listener.close()


def connects_to(process: Process, address: str) -> bool:
    """Whether the process has, or is opening, a connection to this IPv4 address."""
    wanted = socket.inet_aton(address)[::-1].hex().upper()
    return any(line.split()[2].startswith(wanted) for line in Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:])


def p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100)[98] if len(times) >= 2 else sum(times)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """`work(n)` for each n, all at once; the first that failed is raised."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a thread hangs"
    if failures:
        raise failures[0]


def table(width: int) -> list[str]:
    """The rows that were run, for a terminal so wide."""
    lines = [f"{'row':4} {'cases':>5} {'failed':>6} {'memory':>8} {'p99 before':>10} {'during':>8} {'ratio':>5}  answers"]
    for row, outcome in sorted(outcomes.items(), key=lambda item: (len(item[0]), item[0])):
        before, during = p99(outcome.calm), p99(outcome.echoes)
        ratio = f"{during / before:5.1f}" if before and during else "    -"
        numbers = f"{row:4} {outcome.cases:5} {outcome.failed:6} {outcome.rss_kib / 1024:+4.1f} MiB {before * 1e3:7.1f} ms {during * 1e3:5.1f} ms {ratio}  "
        answers = " ".join(f"{answer}×{times}" if times > 1 else answer for answer, times in sorted(outcome.answers.items()))
        cpu = f"at most {outcome.cpu_seconds * 1e3:.1f} ms of processor time" if outcome.cpu_seconds else ""
        said = [line for text in filter(None, [answers, cpu, *outcome.notes]) for line in textwrap.wrap(text, max(width - len(numbers), 20))] or [""]
        lines += [(numbers if number == 0 else " " * len(numbers)) + line for number, line in enumerate(said)]
    return lines
