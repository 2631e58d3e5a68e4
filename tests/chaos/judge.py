"""What a run is judged by, when its faults are over: first while the clients are still connected, then when all is closed,
then after every broker was restarted. The rules are checker.py's (records and clients) and agreement.py's (brokers)."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import agreement
import checker
from checker import Violation
from harness import Timeout, until
from history import Record, Session, Submit, parse_journal, parse_record, parse_tail
from nodes import GROUP, Broker, Clients, Cluster, offset

LOG_BYTES_MAX = 8 << 20
"""Of one start of a process. More is no log but a loop."""
RULES = [
    ("submits", "acknowledged submits: none lost, none twice (total queue, at every broker)"),
    ("one_log", "every broker holds the same log"),
    ("reading", "readers saw only what is in the log, in order, without gaps"),
    ("digests", "equal digests at equal applied index, also after a restart of all"),
    ("log_order", "offsets rise, time never goes back"),
    ("life", "each connection: opened, events, exactly one close"),
    ("prefix", "a connection's messages are an unbroken prefix of what was sent"),
    ("handled", "every message reached the group, in order"),
    ("effects", "what the handler committed exists once"),
    ("deliveries", "each push reached its socket once, in order"),
    ("fan_out", "each publish reached each member once, in order"),
    ("answered", "who stayed connected has every answer"),
    ("settled", "after the faults everything comes to rest"),
    ("processes", "no process ended or panicked by itself, or filled its log"),
    ("clients", "no client saw what makes no sense"),
]


@dataclass
class Histories:
    """What the clients wrote down."""

    sessions: list[Session] = field(default_factory=list)
    watching: list[Session] = field(default_factory=list)
    submits: dict[str, list[Submit]] = field(default_factory=lambda: defaultdict(list))
    """by channel"""

    @classmethod
    def read(cls, folder: Path) -> Histories:
        histories = cls()
        for row in _rows(folder / "sessions.jsonl"):
            into = histories.sessions if row.pop("of") == "writer" else histories.watching
            into.append(Session(**row))
        for row in _rows(folder / "submits.jsonl"):
            histories.submits[row.pop("channel")].append(Submit(**row))
        return histories

    @property
    def acked(self) -> int:
        return sum(submit.outcome == "acked" for submits in self.submits.values() for submit in submits)


def _rows(path: Path) -> Iterable[dict]:
    with open(path) as lines:
        for line in lines:
            yield json.loads(line)


def longest_gap(histories: Histories, begin: float, end: float) -> float:
    """The longest time without an acknowledgement, of any channel, that touches the span."""
    longest = 0.0
    for submits in histories.submits.values():
        ends = sorted(submit.ended for submit in submits if submit.outcome == "acked")
        for before, after in zip(ends, ends[1:], strict=False):
            if after > begin and before < end:
                longest = max(longest, after - before)
    return longest


class Judge:
    def __init__(self, cluster: Cluster, clients: Clients, patience: float) -> None:
        """`patience`: seconds in which everything must come to rest."""
        self.cluster = cluster
        self.patience = patience
        self.clients = clients
        self.found: list[Violation] = []
        self.histories = Histories()
        self.records: list[Record] = []

    def all(self) -> None:
        self.while_connected()
        self.at_the_end()
        self.after_a_restart()

    def wreck(self) -> None:
        """After a run that broke off: what can still be said of what was acknowledged."""
        self.clients.tell("dump", 30)
        self.histories = Histories.read(self.clients.folder)
        for broker in self.cluster.brokers:
            if not broker.process.alive or not broker.ready():
                continue
            try:
                log = self._log(broker)
            except AssertionError as error:
                # it says that it is ready and is not; another one's log is as good
                self.found.append(Violation("settled", broker.name, str(error)))
                continue
            for channel, submits in self.histories.submits.items():
                for violation in checker.submits(log, submits, channel=channel):
                    # what is under way is not in the history yet
                    if "never submitted" not in violation.detail:
                        self.found.append(Violation(violation.rule, f"{broker.name}: {violation.subject}", violation.detail))

    def settle(self, condition, what: str) -> None:
        try:
            until(condition, what, self.patience, every=0.2)
        except Timeout as error:
            self.found.append(Violation("settled", "the cluster", str(error)))

    # ---- while the clients are connected -------------------------------------------------------------------------------

    def while_connected(self) -> None:
        self.clients.tell("quiet", 200)
        node = self.cluster.ask()
        self.settle(lambda: self.clients.status()["answered"], "every message of those who are connected to be answered")
        self.settle(lambda: node.lag(GROUP) == 0, "the handler group to have settled everything")
        self.settle(self._agree, "every broker to have applied the same")
        # deliveries under way arrive; histories are written anew by each `quiet`
        end = time.monotonic() + 20
        while True:
            self.clients.tell("quiet", 30)
            histories = Histories.read(self.clients.folder)
            log = self._log(node)
            found = checker.deliveries(log, histories.sessions) + checker.fan_out(log, histories.watching, channel="effects")
            if not found or time.monotonic() > end:
                break
            time.sleep(0.5)
        found += checker.effects(log, channel="effects", api="effects")
        found += checker.life(log, all_closed=False)
        for session in histories.sessions:
            if session.end == "open" and len(session.acks) != session.sent:
                found.append(Violation("answered", session.name, f"sent {session.sent}, has {len(session.acks)} answers"))
        self.found += found

    # ---- when all is closed --------------------------------------------------------------------------------------------

    def at_the_end(self) -> None:
        status = self.clients.tell("finish", 120)
        self.found += [Violation("clients", "client", error) for error in status["errors"]]
        node = self.cluster.ask()
        self.settle(lambda: not node.connections(), "every connection to be closed in the log")
        self.settle(lambda: node.lag(GROUP) == 0, "the handler group to have settled the closes")
        self.settle(self._agree, "every broker to have applied the same")
        histories = self.histories = Histories.read(self.clients.folder)
        log = self.records = self._log(node)
        journal = parse_journal(self.cluster.journal.read_text().splitlines())
        self.found += checker.log_order(log) + checker.life(log)
        self.found += checker.prefix(log, [*histories.sessions, *histories.watching])
        self.found += checker.handled(log, journal, group=GROUP, api="effects")
        self.found += checker.deliveries(log, histories.sessions)
        self.found += checker.fan_out(log, histories.watching, channel="effects")
        self._every_broker()

    def _every_broker(self) -> None:
        logs, through = {}, self._applied_everywhere()
        for broker in self.cluster.brokers:
            own = self._log(broker)
            for channel, submits in self.histories.submits.items():
                for violation in checker.submits(own, submits, channel=channel):
                    self.found.append(Violation(violation.rule, f"{broker.name}: {violation.subject}", violation.detail))
            logs[broker.name] = agreement.log_of(_pages(broker, self.cluster.settings.partitions))
        self.found += agreement.one_log(logs, through)
        everything: agreement.Log = {}
        for held in logs.values():
            for partition, offsets in held.items():
                everything.setdefault(partition, {}).update(offsets)
        self.found += agreement.reading(_rows(self.clients.folder / "reads.jsonl"), everything)
        self._digests()

    def _applied_everywhere(self) -> dict[int, tuple[int, int]]:
        rows = [row for broker in self.cluster.brokers for row in broker.partitions()]
        partitions = range(self.cluster.settings.partitions)
        return {partition: min(offset(row["applied"]) for row in rows if row["partition"] == partition) for partition in partitions}

    def _digests(self) -> None:
        rows = [(broker.name, row) for broker in self.cluster.brokers for row in broker.partitions()]
        self.found += agreement.digests(rows)

    def _agree(self) -> bool:
        """All brokers have applied the same, of every partition."""
        applied = defaultdict(set)
        for broker in self.cluster.brokers:
            rows = broker.partitions()
            if len(rows) != self.cluster.settings.partitions:
                return False
            for row in rows:
                applied[row["partition"]].add(row["applied"])
        return all(len(values) == 1 for values in applied.values())

    # ---- after a restart -----------------------------------------------------------------------------------------------

    def after_a_restart(self) -> None:
        """What a broker replays from its disk must be the state it had."""
        self._processes()
        for broker in self.cluster.brokers:
            broker.process.kill9()
        for broker in self.cluster.brokers:
            broker.process.start(ready=False)
        try:
            self.cluster.until_ready("all brokers to be ready after the last restart", 60)
        except Timeout as error:
            self.found.append(Violation("settled", "the cluster", str(error)))
            return
        self.settle(self._agree, "every broker to have applied the same after the restart")
        self._digests()
        through = self._applied_everywhere()
        again = {broker.name: agreement.log_of(_pages(broker, self.cluster.settings.partitions)) for broker in self.cluster.brokers}
        self.found += agreement.one_log(again, through)

    def _processes(self) -> None:
        for process in [*self.cluster.processes, self.clients.process]:
            if process is not self.clients.process and not process.alive:
                self.found.append(Violation("processes", process.name, f"ended by itself\n{process.tail_of_log(5)}"))
            for path in sorted(process.logs.glob(f"{process.name}.*.err")):
                if path.stat().st_size > LOG_BYTES_MAX:
                    self.found.append(Violation("processes", process.name, f"logged {path.stat().st_size >> 20} MiB in {path.name}: something is tried again without a pause"))
                elif "panicked at" in path.read_text(errors="replace"):
                    self.found.append(Violation("processes", process.name, f"panicked, see {path}"))

    def _log(self, broker: Broker) -> list[Record]:
        """All that was ever in the log, each record where it was applied: what a broker holds, and before it what the readers
        were given and retention has deleted since."""
        held = parse_tail(broker.tail_text())
        earliest: dict[int, tuple[int, int]] = {}
        for record in held:
            earliest.setdefault(record.partition, record.offset)
        trimmed = {}
        for row in _rows(self.clients.folder / "reads.jsonl") if self.cluster.settings.retention else ():
            for fields in row.get("records", ()):
                record = parse_record(fields)
                if record.offset < earliest.get(record.partition, (0, 0)):
                    trimmed[(record.partition, record.offset)] = record
        log = [*(trimmed[key] for key in sorted(trimmed)), *held]
        return [record for record in log if not record.fields.get("forwarded")]


def _pages(broker: Broker, partitions: int) -> Iterable[dict]:
    """All that a broker's own replicas hold, read from this broker."""
    for partition in range(partitions):
        records: list[dict] = []
        after = "earliest"
        while True:
            page = _page(broker, partition, after)
            if page is None:
                # retention goes on meanwhile and has taken what would come next
                records, after = [], "earliest"
                continue
            records += page["records"]
            if not page["records"]:
                break
            after = page["next"]
        yield from records


def _page(broker: Broker, partition: int, after: str) -> dict | None:
    """Records from `after` on; `None` where that is trimmed."""
    refused = "no answer"

    def ask() -> list:
        nonlocal refused
        answer = broker.get("/v1/log", 20, partition=partition, **{"from": after}, limit=1000)
        if answer is None or answer.status_code not in (200, 410):
            refused = "no answer" if answer is None else f"{answer.status_code} {answer.text}"
            return []
        # in a list, for an answer that refuses is false
        return [answer]

    try:
        (answer,) = until(ask, f"{broker.name}'s log", 40)
    except Timeout as error:
        raise Timeout(f"{error}, partition {partition} from {after}: {refused}") from None
    return None if answer.status_code == 410 else answer.json()


def verdicts(found: list[Violation]) -> str:
    """One line a rule."""
    counts = Counter(violation.rule for violation in found)
    known = [rule for rule, _ in RULES]
    lines = []
    for rule, promise in RULES:
        lines.append(f"  {'ok  ' if not counts[rule] else 'FAIL'}  {rule:<10}  {promise}" + (f": {counts[rule]} violations" if counts[rule] else ""))
    for rule, count in counts.items():
        if rule not in known:
            lines.append(f"  FAIL  {rule:<10}  {count} violations")
    return "\n".join(lines)
