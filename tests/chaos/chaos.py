"""`make chaos`: a cluster of real processes in namespaces of their own, faults by a plan drawn from a seed, clients that write
down all they did and saw, and a verdict. A run counts only if every planned fault happened and enough operations succeeded."""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import checker
import disk
import leftovers
import planner
from checker import Violation
from faults import FAULTS, Fault
from harness import Process, Timeout, until
from judge import Judge, longest_gap, verdicts
from network import Network
from nodes import Clients, Cluster
from planner import Episode, Plan

RECOVER_SECONDS = 60
ACKED_MIN = 20
"""Acknowledged submits an episode below which a run says nothing."""
SHORT_SECONDS = 150


@dataclass
class Outcome:
    found: list[Violation] = field(default_factory=list)
    did_not_happen: list[str] = field(default_factory=list)
    happened: int = 0
    acked: int = 0
    acked_min: int = ACKED_MIN
    note: str = ""

    @property
    def green(self) -> bool:
        return not self.found and not self.did_not_happen and self.acked >= self.acked_min


class Run:
    """One plan, carried out. Everything it makes is gone when it is left, however that is."""

    def __init__(self, plan: Plan, *, env: dict[str, str] | None = None, keep: bool = False, patience: float = RECOVER_SECONDS, say=print) -> None:
        self.plan = plan
        self.patience = patience
        self.env = env
        self.keep = keep
        self.say = say
        self.outcome = Outcome(acked_min=ACKED_MIN * len(plan.episodes))
        self.spans: list[tuple[str, float, float]] = []
        """Each episode, when it began and when all was whole again."""
        self.good = False
        """Nothing of it is worth keeping."""
        self.clients: Clients | None = None
        self.prefix = leftovers.prefix_of(plan.seed)
        self.begun = time.monotonic()

    def __enter__(self) -> Run:
        self._turn = leftovers.take_turn(self.say)
        parent = Path(os.environ.get("TMPDIR", "/tmp"))
        self.folder = Path(tempfile.mkdtemp(prefix=f"trunkline-{self.prefix}.", dir=parent))
        leftovers.claim(self.prefix, self.folder)
        try:
            network = Network(self.prefix, self.plan.settings.names).make()
            network.enter_switch()
            self.cluster = Cluster(self.folder, network, self.plan.settings, self.env)
        except BaseException:
            self._leave(failed=True)
            raise
        return self

    def __exit__(self, kind, *_) -> None:
        self._leave(failed=kind is not None or not self.good)

    def _leave(self, *, failed: bool) -> None:
        Process.kill_all()
        leftovers.clean(self.prefix)
        self._turn.close()
        if failed or self.keep:
            for image in self.folder.glob("*/disk.img"):
                image.unlink(missing_ok=True)
            self.say(f"histories and logs: {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    def progress(self, text: str) -> None:
        self.say(f"[{time.monotonic() - self.begun:6.1f}s] {text}")

    # ---- the run -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        self.cluster.start()
        self.clients = Clients(self.cluster).start()
        self.wait_for_traffic(0)
        self.progress(f"{len(self.cluster.brokers)} brokers, {len(self.cluster.edges)} edges, {len(self.cluster.members)} members; all clients connected")

    def wait_for_traffic(self, more: int) -> float:
        """Until all is well and every partition has acknowledged anew; how long that took."""
        begun = time.monotonic()
        settings = self.plan.settings
        before = self.clients.status()
        self.cluster.until_ready("all brokers to be ready", self.patience)

        def flows() -> bool:
            now = self.clients.status()
            acked = all(after > was + 3 for after, was in zip(now["acked"], before["acked"], strict=True))
            return acked and now["received"] > before["received"] + more and now["connected"] == settings.writers + settings.watchers

        try:
            until(flows, "every partition to acknowledge, all clients to be connected and answered", self.patience, every=0.2)
        except Timeout as error:
            raise Timeout(f"{error}\n  before: {before}\n  now:    {self.clients.status()}") from None
        return time.monotonic() - begun

    def carry_out(self) -> None:
        self.start()
        for number, episode in enumerate(self.plan.episodes, start=1):
            time.sleep(episode.calm)
            self.episode(number, episode)

    def episode(self, number: int, episode: Episode) -> None:
        self._nobody_died()
        faults = [FAULTS[planned.kind](self.cluster, planned) for planned in episode.faults]
        for fault in faults:
            fault.prepare()
        begun = time.monotonic()
        play(faults)
        for fault in faults:
            self.outcome.found += fault.violations
            if fault.evidence:
                self.outcome.happened += 1
            else:
                self.outcome.did_not_happen.append(f"episode {number}: {fault.planned}")
        took = self.wait_for_traffic(20)
        self.spans.append((" + ".join(map(str, episode.faults)), begun, time.monotonic()))
        what = "; ".join(fault.evidence or f"{fault.planned.kind} DID NOT HAPPEN" for fault in faults)
        self.progress(f"{number}/{len(self.plan.episodes)} {' + '.join(map(str, episode.faults))}\n          {what}; whole again after {took:.1f} s")

    def _nobody_died(self) -> None:
        for process in [*self.cluster.processes, self.clients.process]:
            if not process.alive:
                raise Timeout(f"{process.name} ended by itself with {process.popen.returncode}\n{process.tail_of_log()}")

    def judge(self) -> None:
        self.progress("the faults are over; judging")
        judge = Judge(self.cluster, self.clients, self.patience)
        judge.all()
        self.outcome.found += judge.found
        self.outcome.acked = judge.histories.acked
        sessions = [*judge.histories.sessions, *judge.histories.watching]
        retried = sum(len(submits) for submits in judge.histories.submits.values())
        self.outcome.note = (
            f"{len(judge.records)} records, {self.outcome.acked} of {retried} submits acknowledged, {len(sessions)} sessions, "
            f"{sum(len(session.acks) for session in sessions)} answers"
        )
        self.say("\nlongest wait for an acknowledgement, of any partition")
        for what, begin, end in self.spans:
            self.say(f"  {longest_gap(judge.histories, begin, end):5.1f} s  {what}")

    def wreck(self) -> None:
        if not self.clients or not self.clients.process.alive:
            return
        judge = Judge(self.cluster, self.clients, self.patience)
        try:
            judge.wreck()
        except (Timeout, AssertionError, OSError) as error:
            self.progress(f"and nothing more can be said: {error}")
        self.outcome.found += judge.found
        self.outcome.acked = judge.histories.acked

    def verdict(self) -> bool:
        outcome = self.outcome
        self.good = outcome.green
        planned = sum(len(episode.faults) for episode in self.plan.episodes)
        self.say(f"\nseed {self.plan.seed}: {outcome.happened} of {planned} planned faults happened")
        for missing in outcome.did_not_happen:
            self.say(f"  did not happen: {missing}")
        self.say(verdicts(outcome.found))
        if outcome.found:
            self.say(checker.report(outcome.found))
            (self.folder / "violations.json").write_text(json.dumps([str(violation) for violation in outcome.found], indent=1))
        self.say(outcome.note)
        if outcome.acked < outcome.acked_min:
            self.say(f"only {outcome.acked} submits were acknowledged: the run says nothing")
        self.say("GREEN" if outcome.green else "RED")
        return outcome.green


def play(faults: list[Fault]) -> None:
    """Begins and heals each in its time. What takes long itself delays the rest, and shortens nothing: each lasts as long as planned."""
    begun = time.monotonic()
    order = itertools.count()
    acts = [(fault.planned.after, next(order), fault, fault.apply) for fault in faults]
    heapq.heapify(acts)
    while acts:
        at, _, fault, act = heapq.heappop(acts)
        time.sleep(max(0.0, begun + at - time.monotonic()))
        now = time.monotonic() - begun
        act()
        if act == fault.apply:
            heapq.heappush(acts, (now + fault.planned.hold, next(order), fault, fault.heal))


def perform(plan: Plan, *, env: dict[str, str] | None = None, keep: bool = False, patience: float = RECOVER_SECONDS, say=print) -> Outcome:
    """Carries out a plan and says the verdict. What breaks on the way is red too: a cluster that does not recover."""
    with Run(plan, env=env, keep=keep, patience=patience, say=say) as run:
        try:
            run.carry_out()
            run.judge()
        except (Timeout, AssertionError) as error:
            run.outcome.found.append(Violation("settled", "the run", str(error)))
            run.wreck()
        run.verdict()
        return run.outcome


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seed", type=int, default=None)
    arguments.add_argument("--faults", default="", help="comma-separated; all by default")
    arguments.add_argument("--seconds", type=float, default=120)
    arguments.add_argument("--brokers", type=int, default=3)
    arguments.add_argument("--short", action="store_true", help="the mixed set of CI")
    arguments.add_argument("--one-at-a-time", action="store_true", help="no faults that overlap")
    arguments.add_argument("--plan", action="store_true", help="print the plan and end")
    arguments.add_argument("--keep", action="store_true", help="keep histories and logs of a green run too")
    given = arguments.parse_args()
    seed = given.seed if given.seed is not None else random.randrange(leftovers.SEED_MAX)
    names = [name for name in given.faults.split(",") if name]
    if given.short and not names:
        names = [name for name in planner.SHORT if planner.KINDS[name].brokers <= given.brokers]
    seconds = SHORT_SECONDS if given.short else given.seconds
    plan = planner.plan(seed, seconds=seconds, faults=names or None, brokers=given.brokers, mixed=not given.one_at_a_time)
    print(plan, flush=True)
    if given.plan:
        return 0
    # the context managers clean up on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missing = disk.missing()
    if missing:
        print(f"not run: {missing}", file=sys.stderr)
        return 2
    outcome = perform(plan, keep=given.keep)
    if not outcome.green:
        print(f"again: make chaos SEED={seed}" + (f" FAULTS={','.join(names)}" if names else ""))
    return 0 if outcome.green else 1


if __name__ == "__main__":
    sys.exit(main())
