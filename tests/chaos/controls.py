"""The negative controls: a broker with one promise broken by a switch made for this, under the fault that should show it. Each
run must turn red, and by a rule that has to do with it: a check that was never seen failing proves nothing. And the same plan
without the switch must be green, or it was not the switch that was found."""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import sys
import time
from dataclasses import dataclass, field

import disk
import planner
from chaos import perform

PATIENCE_SECONDS = 20
"""What is broken need not be waited for as what must recover."""
SEED = 5
"""Real processes are never twice the same, but the plan is."""


@dataclass(frozen=True)
class Control:
    switch: str
    fault: str
    rules: frozenset[str]
    """Any of these must be among the violations."""
    times: int
    """The fault, so often: some need luck."""
    settings: dict = field(default_factory=dict)
    brokers: int = 1


MANY = {"submitters": 6}
"""What is under way when the fault begins is what the fault is about."""

CONTROLS = {
    "sync off": Control("TRUNKLINE_TEST_NO_SYNC", "power-all", frozenset({"submits", "settled"}), 2, MANY),
    # what a leader that was cut off acknowledged alone is lost when the others go on without it
    "early acknowledgement": Control("TRUNKLINE_TEST_EARLY_ACK", "partition-full", frozenset({"submits", "one_log", "partition-full"}), 2, MANY, 3),
    "checksum off": Control("TRUNKLINE_TEST_NO_CHECKSUM", "bit-flip-table", frozenset({"one_log", "reading", "submits"}), 1),
    "fencing off": Control("TRUNKLINE_TEST_NO_FENCING", "edge-pause", frozenset({"life", "answered", "prefix", "edge-pause", "settled"}), 1),
    "dedup off": Control("TRUNKLINE_TEST_NO_DEDUP", "client-deaf", frozenset({"submits"}), 2, MANY),
}


@dataclass
class Result:
    rules: list[str]
    """Those that found it."""
    green: bool
    """Without the switch."""
    seconds: tuple[float, float]

    @property
    def good(self) -> bool:
        return bool(self.rules) and self.green

    def __str__(self) -> str:
        found = f"found by {', '.join(self.rules)}" if self.rules else "NOT FOUND: the switch does nothing or the checks are blind"
        return f"{found} in {self.seconds[0]:.0f} s; {'green' if self.green else 'NOT GREEN'} without the switch in {self.seconds[1]:.0f} s"


def plan_of(control: Control, seed: int, brokers: int) -> planner.Plan:
    """The fault alone, several times, on one partition that is kept for good, with little pauses: what is lost is what was said last."""
    brokers = max(brokers, control.brokers, planner.KINDS[control.fault].brokers)
    chance = random.Random(seed)

    def one() -> planner.Plan:
        return planner.plan(chance.randrange(1 << 30), seconds=0, faults=[control.fault], brokers=brokers, mixed=False)

    settings = dataclasses.replace(one().settings, partitions=1, retention="", submit_pause=0.0, **control.settings)
    episodes = [episode for _ in range(control.times) for episode in one().episodes]
    episodes = [dataclasses.replace(episode, faults=[dataclasses.replace(fault, partition=0) for fault in episode.faults]) for episode in episodes]
    return planner.Plan(seed, settings, episodes)


def check(name: str, seed: int, brokers: int, say=print) -> Result:
    control = CONTROLS[name]
    plan = plan_of(control, seed, brokers)
    say(f"--- {name}: {control.switch}=1, {control.times} times {control.fault}")
    begun = time.monotonic()
    outcome = perform(plan, env={control.switch: "1"}, patience=PATIENCE_SECONDS, say=say)
    rules = sorted({violation.rule for violation in outcome.found} & control.rules)
    between = time.monotonic()
    say(f"--- {name}: {'red, as it must be, by ' + ', '.join(rules) if rules else 'NOT FOUND'}; the same without the switch")
    green = perform(plan, say=say).green
    result = Result(rules, green, (between - begun, time.monotonic() - between))
    say(f"--- {name}: {result}")
    return result


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", help=f"of: {', '.join(CONTROLS)}; all by default")
    arguments.add_argument("--seed", type=int, default=SEED)
    arguments.add_argument("--brokers", type=int, default=3)
    given = arguments.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    missing = disk.missing()
    if missing:
        print(f"not run: {missing}", file=sys.stderr)
        return 2
    results = {name: check(name, given.seed, given.brokers) for name in given.names or CONTROLS}
    print("\nnegative controls:")
    for name, result in results.items():
        print(f"  {'ok  ' if result.good else 'FAIL'}  {name:<22} {result}")
    return 0 if all(result.good for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
