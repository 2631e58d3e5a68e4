"""`kill -9` of a partition's leader, again and again, under a probe that publishes to that partition: how long until the next
acknowledgement. Printed as a distribution; red if one took longer than the promised 5 s."""

from __future__ import annotations

import argparse
import math
import random
import sys
import threading
import time
import uuid

import requests

import leftovers
import planner
from chaos import Run
from harness import Timeout, until
from nodes import Cluster

PROMISED_SECONDS = 5.0
PROBE_SECONDS = 0.02
TIMEOUT_SECONDS = 0.5
"""Of one try: a broker that hangs must not hide that another would answer."""


class Probe:
    """Publishes to one channel, one at a time, at one broker after the other until one acknowledges; when that was."""

    def __init__(self, cluster: Cluster, channel: str) -> None:
        self.urls = [f"{broker.process.http()}/v1/channels/{channel}/messages" for broker in cluster.brokers]
        self.acked: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        turn = 0
        while not self._stop.wait(PROBE_SECONDS):
            payload = uuid.uuid4().hex
            while not self._stop.is_set():
                try:
                    headers = {"Idempotency-Key": payload, "Content-Type": "text/plain"}
                    if requests.post(self.urls[turn % len(self.urls)], data=payload, headers=headers, timeout=TIMEOUT_SECONDS).status_code == 200:
                        self.acked.append(time.monotonic())
                        break
                except requests.RequestException:
                    pass
                turn += 1
                time.sleep(PROBE_SECONDS)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join(10)

    def next_after(self, moment: float) -> float | None:
        """Seconds from `moment` to the first acknowledgement of something sent after it."""
        later = [at for at in self.acked[-200:] if at > moment]
        # the first may have been under way, acknowledged by the leader before it died
        return later[1] - moment if len(later) > 1 else None


def measure(run: Run, kills: int) -> list[float]:
    cluster = run.cluster
    cluster.start()
    chance = random.Random(run.plan.seed)
    partition = 0
    took = []
    with Probe(cluster, cluster.channels[partition]) as probe:
        until(lambda: len(probe.acked) > 20, "the probe to be acknowledged", 30)
        for number in range(1, kills + 1):
            time.sleep(chance.uniform(0.5, 2))
            leader = cluster.leader(partition)
            moment = time.monotonic()
            leader.process.kill9()
            if len(cluster.brokers) == 1:
                leader.process.start(ready=False)
            took.append(until(lambda at=moment: probe.next_after(at), f"an acknowledgement after kill {number}", 60))
            run.progress(f"{number}/{kills} {leader.name} killed, commits again after {took[-1]:.2f} s")
            if not leader.process.alive:
                leader.process.start(ready=False)
            cluster.until_ready("all brokers to be ready", 60)
            cluster.caught_up()
    return sorted(took)


def percentile(values: list[float], percent: float) -> float:
    """Nearest rank, of sorted values."""
    return values[max(0, math.ceil(len(values) * percent / 100) - 1)]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kills", type=int, default=20)
    arguments.add_argument("--brokers", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=random.randrange(leftovers.SEED_MAX))
    given = arguments.parse_args()
    plan = planner.plan(given.seed, seconds=0, faults=["kill-one"], brokers=given.brokers)
    with Run(plan) as run:
        try:
            took = measure(run, given.kills)
        except Timeout as error:
            print(error)
            return 1
        print(f"\n{given.kills} leader kills, {given.brokers} brokers, {plan.settings.partitions} partitions: commits resumed after")
        print(f"  min {took[0]:.2f} s   p50 {percentile(took, 50):.2f} s   p90 {percentile(took, 90):.2f} s   p99 {percentile(took, 99):.2f} s   max {took[-1]:.2f} s")
        print("  " + " ".join(f"{value:.2f}" for value in took))
        run.good = good = took[-1] <= PROMISED_SECONDS
        print("within" if good else "BEYOND", f"the promised {PROMISED_SECONDS:g} s")
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
