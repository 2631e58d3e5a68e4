"""The negative controls: a broker with one promise broken by a switch made for this, under the fault that should show it. Each
run must turn red, and by a rule that has to do with it: a check that was never seen failing proves nothing."""

from __future__ import annotations

import argparse
import dataclasses
import random
import sys
from dataclasses import dataclass

import leftovers
import planner
from chaos import perform


@dataclass(frozen=True)
class Control:
    switch: str
    fault: str
    rules: frozenset[str]
    """Any of these must be among the violations."""
    times: int
    """The fault, so often: some need luck."""
    brokers: int = 1


CONTROLS = {
    "sync off": Control("TRUNKLINE_TEST_NO_SYNC", "power-all", frozenset({"submits", "settled"}), 4),
    "early acknowledgement": Control("TRUNKLINE_TEST_EARLY_ACK", "partition-full", frozenset({"submits", "one_log", "partition-full"}), 2),
    "checksum off": Control("TRUNKLINE_TEST_NO_CHECKSUM", "bit-flip-table", frozenset({"one_log", "reading", "submits"}), 1),
    "fencing off": Control("TRUNKLINE_TEST_NO_FENCING", "edge-pause", frozenset({"life", "answered", "prefix", "edge-pause", "settled"}), 3),
    "dedup off": Control("TRUNKLINE_TEST_NO_DEDUP", "kill-all", frozenset({"submits"}), 8),
}


def check(name: str, seed: int, brokers: int, say=print) -> bool:
    """Whether the run turned red for a reason that fits. Tried anew a few times where the fault needs luck."""
    control = CONTROLS[name]
    brokers = max(brokers, planner.KINDS[control.fault].brokers)
    base = planner.plan(seed, seconds=0, faults=[control.fault], brokers=brokers, mixed=False)
    chance = random.Random(seed)
    episodes = [episode for _ in range(control.times) for episode in planner.plan(chance.randrange(1 << 30), seconds=0, faults=[control.fault], brokers=brokers, mixed=False).episodes]
    # every partition of the first plan; little pauses, for what is lost is what was said last
    settings = dataclasses.replace(base.settings, partitions=1, submit_pause=0.0)
    episodes = [dataclasses.replace(episode, faults=[dataclasses.replace(fault, partition=0) for fault in episode.faults]) for episode in episodes]
    plan = planner.Plan(seed, settings, episodes)
    say(f"--- {name}: {control.switch}=1, {control.times} times {control.fault}")
    outcome = perform(plan, env={control.switch: "1"}, say=say)
    fits = {violation.rule for violation in outcome.found} & control.rules
    say(f"--- {name}: {'red, as it must be, by ' + ', '.join(sorted(fits)) if fits else 'NOT FOUND: the switch does nothing or the checks are blind'}")
    return bool(fits)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", help=f"of: {', '.join(CONTROLS)}; all by default")
    arguments.add_argument("--seed", type=int, default=random.randrange(leftovers.SEED_MAX))
    arguments.add_argument("--brokers", type=int, default=3)
    given = arguments.parse_args()
    results = {name: check(name, given.seed, given.brokers) for name in given.names or CONTROLS}
    print("\nnegative controls:")
    for name, found in results.items():
        print(f"  {'found' if found else 'NOT FOUND':<10} {name}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
