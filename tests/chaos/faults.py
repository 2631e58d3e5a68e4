"""What each fault of the plan does, how it is healed, and the proof that it happened.

`apply` and `heal` run on the main thread: a process started here dies with the thread that started it. `evidence` says what
was seen; empty means that the fault did not happen, and then the run does not count. What a fault sees that must not be goes
to `violations`.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from contextlib import suppress
from pathlib import Path

import requests

from checker import Violation
from harness import Process, Timeout, until
from network import Host
from nodes import GROUP, Broker, Cluster, offset
from planner import Planned

NOTICE_SECONDS = 12
"""How long a broker may take to notice and say that its disk is full, failing or damaged."""

TERMS_MAX = 4
"""Elections of a partition that a cut between brokers may cause, in the seconds it lasts."""


class Fault:
    def __init__(self, cluster: Cluster, planned: Planned) -> None:
        self.cluster = cluster
        self.planned = planned
        self.chance = random.Random(planned.salt)
        self.tag = f"{planned.kind}-{planned.salt}"
        self.evidence = ""
        self.violations: list[Violation] = []

    def prepare(self) -> None:
        """Looks around, while the cluster is still whole: the episode begins after this."""

    def apply(self) -> None:
        raise NotImplementedError

    def heal(self) -> None:
        raise NotImplementedError

    def pick_broker(self) -> Broker:
        if self.planned.victim:
            return self.cluster.broker(self.planned.victim)
        return self.cluster.leader(self.planned.partition)

    def must_not(self, what: str) -> None:
        self.violations.append(Violation(self.planned.kind, "fault", what))


    def no_endless_elections(self, before: dict[int, int]) -> None:
        """One that hears less than it says must not unseat leader after leader."""
        for partition, term in self.cluster.terms().items():
            grown = term - before.get(partition, 0)
            if grown > TERMS_MAX:
                self.must_not(f"partition {partition} went through {grown} terms in {self.planned.hold:.1f} s")


class OneBroker(Fault):
    """A fault of one broker, chosen when it begins."""

    def apply(self) -> None:
        self.broker = self.pick_broker()
        self.hit()

    def hit(self) -> None:
        raise NotImplementedError

    @property
    def hosts(self) -> list[Host]:
        return [other.host for other in self.cluster.others(self.broker)]


class KillOne(OneBroker):
    def hit(self) -> None:
        pid = self.broker.process.pid
        self.broker.process.kill9()
        self.evidence = f"{self.broker.name} (pid {pid}) killed"

    def heal(self) -> None:
        self.broker.process.start(ready=False)


class KillAll(Fault):
    def apply(self) -> None:
        begun = time.monotonic()
        for broker in self.cluster.brokers:
            broker.process.popen.kill()
        took = time.monotonic() - begun
        for broker in self.cluster.brokers:
            broker.process.kill9()
        self.evidence = f"all killed within {took * 1000:.0f} ms"

    def heal(self) -> None:
        for broker in self.cluster.brokers:
            broker.process.start(ready=False)


class PowerOne(OneBroker):
    def hit(self) -> None:
        self.broker.disk.cut(self.broker.process.popen)
        self.broker.process.kill9()
        self.evidence = f"{self.broker.name} without power"

    def heal(self) -> None:
        self.broker.disk.power_on()
        self.broker.process.start(ready=False)


class PowerAll(Fault):
    def apply(self) -> None:
        begun = time.monotonic()
        for broker in self.cluster.brokers:
            broker.disk.cut(broker.process.popen)
        took = time.monotonic() - begun
        for broker in self.cluster.brokers:
            broker.process.kill9()
        self.evidence = f"all without power within {took * 1000:.0f} ms"

    def heal(self) -> None:
        for broker in self.cluster.brokers:
            broker.disk.power_on()
        for broker in self.cluster.brokers:
            broker.process.start(ready=False)


class PauseLeader(Fault):
    def apply(self) -> None:
        self.broker = self.cluster.leader(self.planned.partition)
        self.before = self.cluster.terms()
        self.broker.process.pause()
        until(lambda: self.broker.process.paused, f"{self.broker.name} to be stopped", 5)

    def heal(self) -> None:
        paused = self.broker.process.paused
        terms = self.cluster.terms()
        self.broker.process.resume()
        moved = [partition for partition, term in terms.items() if term > self.before.get(partition, 0)]
        if paused and moved:
            self.evidence = f"{self.broker.name} stopped, {len(moved)} partitions elected anew"


class PauseCutPause(Fault):
    """A stopped while B and C go on; B loses power; C is stopped, A goes on and B comes back: A and B are the majority, and
    what B and C acknowledged must be there."""

    def apply(self) -> None:
        self.a, self.b, self.c = self.chance.sample(self.cluster.brokers, 3)
        self.a.process.pause()

    def heal(self) -> None:
        paused = [self.a.process.paused]
        self.b.disk.cut(self.b.process.popen)
        self.b.process.kill9()
        self.c.process.pause()
        self.a.process.resume()
        self.b.disk.power_on()
        self.b.process.start(ready=False)
        # A and B must find each other without C
        until(lambda: self.b.ready() and self.a.ready(), f"{self.a.name} and {self.b.name} to be ready", 40)
        paused.append(self.c.process.paused)
        self.c.process.resume()
        if all(paused):
            self.evidence = f"{self.a.name} stopped, {self.b.name} cut, {self.c.name} stopped"


class PartitionFull(Fault):
    """A leader alone. Nobody but the other brokers is cut from it: it must refuse by its own knowledge."""

    def apply(self) -> None:
        self.broker = self.cluster.leader(self.planned.partition)
        self.others = self.cluster.others(self.broker)
        self.broker.host.drop_from(self.tag, *(other.host for other in self.others))
        for other in self.others:
            other.host.drop_from(self.tag, self.broker.host)

    def heal(self) -> None:
        self._ask_the_minority()
        dropped = sum(broker.host.heal(self.tag) for broker in [self.broker, *self.others])
        if dropped:
            self.evidence = f"{self.broker.name} alone, {dropped} packets dropped"

    def _ask_the_minority(self) -> None:
        if self.broker.ready():
            self.must_not(f"{self.broker.name} was alone for {self.planned.hold:.1f} s and said that it is ready")
        channel = self.cluster.channels[self.planned.partition]
        with suppress(requests.RequestException):
            answer = self.broker.post(f"/v1/channels/{channel}/messages", "to a minority", timeout=2)
            if answer.status_code == 200:
                self.must_not(f"{self.broker.name} was alone and acknowledged a publish at {answer.json()}")


class PartitionOneWay(Fault):
    def apply(self) -> None:
        self.broker = self.cluster.leader(self.planned.partition)
        self.before = self.cluster.terms()
        self.broker.host.drop_from(self.tag, *(other.host for other in self.cluster.others(self.broker)))

    def heal(self) -> None:
        self.no_endless_elections(self.before)
        dropped = self.broker.host.heal(self.tag)
        if dropped:
            self.evidence = f"{self.broker.name} deaf, {dropped} packets dropped"


class PartitionBridge(Fault):
    def apply(self) -> None:
        self.a, self.b, self.c = self.chance.sample(self.cluster.brokers, 3)
        self.before = self.cluster.terms()
        self.a.host.drop_from(self.tag, self.b.host)
        self.b.host.drop_from(self.tag, self.a.host)

    def heal(self) -> None:
        self.no_endless_elections(self.before)
        dropped = self.a.host.heal(self.tag) + self.b.host.heal(self.tag)
        if dropped:
            self.evidence = f"{self.a.name} and {self.b.name} cut, both see {self.c.name}; {dropped} packets dropped"


class Loss(Fault):
    def apply(self) -> None:
        self.percent = self.chance.randint(20, 30)
        names = [name for name in self.cluster.network.hosts if name[0] in "be"]
        self.hosts = [self.cluster.network[name] for name in names]
        for host in self.hosts:
            host.lose(self.tag, self.percent, *(other for other in self.hosts if other is not host))

    def heal(self) -> None:
        dropped = sum(host.heal(self.tag) for host in self.hosts)
        if dropped:
            self.evidence = f"{self.percent} % lost between brokers and edges, {dropped} packets"


class SlowLink(OneBroker):
    def hit(self) -> None:
        self.broker.host.slow("1mbit")

    def heal(self) -> None:
        waited = self.broker.host.unslow()
        if waited:
            self.evidence = f"{self.broker.name} at 1 Mbit/s, packets waited {waited} times"


class BadDisk(OneBroker):
    """The broker must notice: not ready any more, or ended."""

    def noticed(self) -> str | None:
        if not self.broker.process.alive:
            return f"ended with {self.broker.process.popen.returncode}"
        answer = self.broker.get("/readyz")
        if answer is not None and answer.status_code == 503:
            return "says that it is not ready"
        return None

    def wait_until_noticed(self, what: str) -> None:
        try:
            how = until(self.noticed, f"{self.broker.name} to notice that {what}", NOTICE_SECONDS, every=0.1)
        except Timeout as error:
            self.must_not(str(error))
            return
        self.evidence = f"{what}, {self.broker.name} {how}"


class NoSpace(BadDisk):
    def hit(self) -> None:
        self.taken = self.broker.disk.fill()

    def heal(self) -> None:
        self.wait_until_noticed(f"its disk is full (the last {self.taken >> 20} MiB taken)")
        self.broker.disk.free()
        # the store stays closed: a restart opens it again
        if self.broker.process.alive:
            self.broker.process.kill9()
        self.broker.process.start(ready=False)


class SyncFails(BadDisk):
    def hit(self) -> None:
        self.broker.disk.fail()

    def heal(self) -> None:
        self.wait_until_noticed("writes and syncs fail")
        if self.broker.process.alive:
            self.broker.process.kill9()
        self.broker.disk.power_on()
        self.broker.process.start(ready=False)
        # a sync that was under way may have been answered wrongly (README): then the others know more than the disk
        until(lambda: self.broker.ready() or self.is_older(), f"{self.broker.name} to be ready, or to know that its disk has lied", 40)
        if self.is_older():
            self.evidence += ", its disk had lied, it was rebuilt"
            self.cluster.wipe_and_rejoin(self.broker)

    def is_older(self) -> bool:
        return "is an older copy" in said(self.broker.process)


def said(process: Process) -> str:
    """What it has logged since it was last started."""
    return process.stderr_path.read_text(errors="replace")


class LostData(OneBroker):
    """What a broker had acknowledged is not there when it comes back. It must say so, and is rebuilt."""

    what = ""

    def heal(self) -> None:
        process = self.broker.process
        process.start(ready=False)
        try:
            until(lambda: "damaged" in said(process), f"{self.broker.name} to say that it lost something: {self.what}", NOTICE_SECONDS + 10, every=0.1)
        except Timeout as error:
            self.must_not(str(error))
            return
        if process.alive and self.broker.ready():
            self.must_not(f"{self.broker.name} says that it is damaged, and that it is ready: {self.what}")
        how = "closed itself" if process.alive else "refused to start"
        self.cluster.wipe_and_rejoin(self.broker)
        self.evidence = f"{self.broker.name}: {self.what}; it {how} and was rebuilt"


class CutLog(LostData):
    """The larger part of the write-ahead log is gone: more than the second by which marks may be behind."""

    def hit(self) -> None:
        self.broker.process.kill9()
        self.what = cut(max((self.broker.data / "db").glob("*.log")), self.chance.uniform(0.6, 0.9))


class CutTable(LostData):
    def hit(self) -> None:
        process = self.broker.process
        # a restart writes the log to tables
        process.kill9()
        process.start(ready=False)
        process.wait_ready(20)
        process.kill9()
        self.what = cut(self.chance.choice(sorted((self.broker.data / "db").glob("*.sst"))), self.chance.uniform(0.05, 0.9))


def cut(path: Path, part: float) -> str:
    """Takes this part off the end of a file; says so."""
    size = path.stat().st_size
    os.truncate(path, int(size * (1 - part)))
    return f"{part * 100:.0f} % of {path.name} ({size} bytes) cut off"


class OlderCopy(LostData):
    """Its folder is put back to what it was, marks and all: only the others can tell."""

    def hit(self) -> None:
        process, copy = self.broker.process, self.broker.disk.at / "copy"
        process.kill9()
        shutil.copytree(self.broker.data, copy)
        process.start(ready=False)
        process.wait_ready(20)
        until(self.broker.ready, f"{self.broker.name} to be ready", 30)
        before = {row["partition"]: offset(row["applied"])[0] for row in self.broker.partitions()}

        def has_more() -> bool:
            now = {row["partition"]: offset(row["applied"])[0] for row in self.broker.partitions()}
            return len(now) == len(before) and all(now[partition] >= applied + 20 for partition, applied in before.items())

        until(has_more, f"{self.broker.name} to acknowledge more", 30)
        process.kill9()
        shutil.rmtree(self.broker.data)
        copy.rename(self.broker.data)
        self.what = "its folder is an older copy"


class BitFlip(OneBroker):
    """In the text of a submitted payload, in the write-ahead log or (`tables`) a table. The broker must refuse to start and is rebuilt.
    One that starts all the same serves what is compared at the end."""

    tables = False

    def hit(self) -> None:
        process = self.broker.process
        if self.tables:
            # a restart writes the log to tables
            process.kill9()
            process.start(ready=False)
            process.wait_ready(20)
        process.kill9()
        self.where = flip(self.broker.data / "db", "sst" if self.tables else "log", self.chance)

    def heal(self) -> None:
        process = self.broker.process
        process.start(ready=False)
        end = time.monotonic() + NOTICE_SECONDS + 10
        while process.alive and not self.broker.ready() and "is damaged" not in said(process) and time.monotonic() < end:
            time.sleep(0.1)
        if process.alive and self.broker.ready():
            self.evidence = f"{self.where} of {self.broker.name}; it did not notice"
            return
        if "damaged" not in said(process):
            self.must_not(f"{self.broker.name} does not run and does not say what is damaged: {process.tail_of_log(3)}")
        self.evidence = f"{self.where} of {self.broker.name}; it refused and was rebuilt"
        self.cluster.wipe_and_rejoin(self.broker)


def flip(db: Path, suffix: str, chance: random.Random) -> str:
    """Flips one bit of a submitted payload's text in a file of `db`; where that was."""
    candidates = []
    for path in sorted(db.glob(f"*.{suffix}")):
        content = path.read_bytes()
        at = content.find(b"p0-")
        while at >= 0:
            # p0-NUMBER-32 digits
            end = content.find(b"-", at + 3)
            if 0 < end - at < 12 and content[end + 1 : end + 9].isalnum():
                candidates.append((path, end + 1 + chance.randrange(8)))
            at = content.find(b"p0-", at + 1)
    if not candidates:
        raise RuntimeError(f"no file *.{suffix} in {db} holds a submitted payload")
    path, at = chance.choice(candidates)
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    return f"one bit at {at} of {path.name}"


class BitFlipTable(BitFlip):
    tables = True


class EmptyDisk(OneBroker):
    """A broker that comes back with nothing must neither vote nor serve until it is removed and added again."""

    def hit(self) -> None:
        self.broker.process.kill9()
        shutil.rmtree(self.broker.data)
        self.broker.process.start(ready=False)

    def heal(self) -> None:
        if self.broker.process.alive and self.broker.ready():
            self.must_not(f"{self.broker.name} lost its disk and says that it is ready")
        until(lambda: "cluster remove" in said(self.broker.process), f"{self.broker.name} to say how it can rejoin", NOTICE_SECONDS)
        self.cluster.wipe_and_rejoin(self.broker)
        self.evidence = f"{self.broker.name} emptied, it refused, was removed and added"


class Membership(OneBroker):
    """Out and in again under load, with leadership moved to and fro."""

    def hit(self) -> None:
        partition = str(self.planned.partition)
        self.cluster.admin("transfer", "--partition", partition, "--to", str(self.broker.number))
        self.cluster.wipe_and_rejoin(self.broker)

    def heal(self) -> None:
        self.cluster.caught_up()
        other = self.chance.choice(self.cluster.others(self.broker))
        self.cluster.admin("transfer", "--partition", str(self.planned.partition), "--to", str(other.number))
        self.evidence = f"{self.broker.name} led, was removed, emptied and added; {other.name} leads"


class EdgeKill(Fault):
    def apply(self) -> None:
        self.edge = self.cluster.edges[self.planned.victim - 1]
        self.edge.kill9()
        self.evidence = f"{self.edge.name} killed"

    def heal(self) -> None:
        self.edge.start(ready=False)


class EdgePause(Fault):
    """Beyond its grace: the brokers end its connections, and what it says afterwards in their name is refused."""

    def prepare(self) -> None:
        self.edge = self.cluster.edges[self.planned.victim - 1]
        self.name = f"edge-{self.planned.victim}"
        self.before = until(self._incarnation, f"{self.name} to be known", 10)

    def apply(self) -> None:
        self.edge.pause()

    def heal(self) -> None:
        paused = self.edge.paused
        self.edge.resume()
        try:
            after = until(self._replaced, f"{self.edge.name} to begin a new incarnation", 20, every=0.1)
        except Timeout as error:
            self.must_not(str(error))
            return
        if paused:
            self.evidence = f"{self.edge.name} stopped beyond its grace, incarnation {self.before} → {after}"

    def _replaced(self) -> int:
        now = self._incarnation()
        return now if now > self.before else 0

    def _incarnation(self) -> int:
        """The newest that any broker knows: one that is cut off knows an old one."""
        newest = 0
        for broker in self.cluster.alive():
            answer = broker.get("/v1/cluster", local="true")
            if answer is not None and answer.status_code == 200:
                newest = max([newest, *(row["incarnation"] for row in answer.json()["edges"] if row["edge"] == self.name)])
        return newest


class EdgeCut(Fault):
    """From all brokers or from one, for less or for more than its grace: it must come back without losing what it read."""

    def apply(self) -> None:
        self.host = self.cluster.network[f"e{self.planned.victim}"]
        brokers = [broker.host for broker in self.cluster.brokers]
        self.others = brokers if self.chance.random() < 0.5 else [self.chance.choice(brokers)]
        self.host.drop_from(self.tag, *self.others)
        for other in self.others:
            other.drop_from(self.tag, self.host)

    def heal(self) -> None:
        dropped = sum(host.heal(self.tag) for host in [self.host, *self.others])
        if dropped:
            names = ", ".join(other.name for other in self.others)
            self.evidence = f"{self.host.name} cut from {names} for {self.planned.hold:.1f} s, {dropped} packets dropped"


class ClientDeaf(Fault):
    """What clients submit arrives and takes effect, its answer does not; so they submit it again, under the same key."""

    def apply(self) -> None:
        self.host = self.cluster.network["c1"]
        self.host.drop_from(self.tag, *(broker.host for broker in self.cluster.brokers))

    def heal(self) -> None:
        dropped = self.host.heal(self.tag)
        if dropped:
            self.evidence = f"clients heard no broker for {self.planned.hold:.1f} s, {dropped} packets dropped"


class OneMember(Fault):
    """A fault of the handler member that works on a partition."""

    def prepare(self) -> None:
        name = until(lambda: self.owner(self.planned.partition), f"a member for partition {self.planned.partition}", 30)
        self.name = name
        self.member = self.cluster.members[int(name.removeprefix("member-")) - 1]

    def owner(self, partition: int) -> str | None:
        """By the word of the partition's leader: a follower knows nothing of members."""
        for broker in self.cluster.alive():
            if any(row["partition"] == partition and row["leader"] == broker.number for row in broker.partitions()):
                answer = broker.get("/v1/groups")
                rows = answer.json()["groups"] if answer is not None and answer.status_code == 200 else []
                return next((row["member"] for row in rows if row["group"] == GROUP and row["partition"] == partition), None)
        return None


class HandlerKill(OneMember):
    def apply(self) -> None:
        self.member.kill9()
        self.evidence = f"{self.member.name} killed"

    def heal(self) -> None:
        self.member.start(ready=False)


class HandlerPause(OneMember):
    """Beyond its lease: another member takes its partitions, and what it commits afterwards is refused."""

    def apply(self) -> None:
        self.member.pause()

    def heal(self) -> None:
        paused, owner = self.member.paused, self.owner(self.planned.partition)
        self.member.resume()
        if owner == self.name:
            self.must_not(f"{self.name} was stopped for {self.planned.hold:.1f} s and still has partition {self.planned.partition}")
        elif paused and owner:
            self.evidence = f"{self.member.name} stopped beyond its lease, {owner} went on with partition {self.planned.partition}"


class Rolling(Fault):
    """As an operator restarts a cluster: one after the other, each by SIGTERM, waiting until all is well."""

    def apply(self) -> None:
        took = []
        for process, broker in [*((broker.process, broker) for broker in self.cluster.brokers), *((edge, None) for edge in self.cluster.edges)]:
            took.append(self._restart(process))
            if broker:
                self.cluster.until_ready(f"all brokers to be ready after the restart of {process.name}", 60)
        self.evidence = f"each ended by SIGTERM with 0, the slowest after {max(took):.1f} s"

    def _restart(self, process: Process) -> float:
        begun = time.monotonic()
        code = process.stop(35)
        took = time.monotonic() - begun
        if code != 0:
            self.must_not(f"{process.name} ended with {code} on SIGTERM")
        process.start(ready=False)
        process.wait_ready(60)
        return took

    def heal(self) -> None:
        pass


FAULTS: dict[str, type[Fault]] = {
    "kill-one": KillOne,
    "kill-all": KillAll,
    "power-one": PowerOne,
    "power-all": PowerAll,
    "pause-leader": PauseLeader,
    "pause-cut-pause": PauseCutPause,
    "partition-full": PartitionFull,
    "partition-one-way": PartitionOneWay,
    "partition-bridge": PartitionBridge,
    "loss": Loss,
    "slow-link": SlowLink,
    "no-space": NoSpace,
    "sync-fails": SyncFails,
    "bit-flip-log": BitFlip,
    "bit-flip-table": BitFlipTable,
    "cut-log": CutLog,
    "cut-table": CutTable,
    "older-copy": OlderCopy,
    "empty-disk": EmptyDisk,
    "edge-kill": EdgeKill,
    "edge-pause": EdgePause,
    "edge-cut": EdgeCut,
    "client-deaf": ClientDeaf,
    "handler-kill": HandlerKill,
    "handler-pause": HandlerPause,
    "membership": Membership,
    "rolling": Rolling,
}
