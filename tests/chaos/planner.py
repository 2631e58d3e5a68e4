"""From a seed to everything a run does. Pure: the same seed and arguments give the same plan, which is printed.

A plan is a list of episodes, one after the other; the faults of an episode overlap. After each episode everything is healed
and the run waits until the cluster is whole again, so a fault never meets one that is still being repaired by accident. What
may overlap:

- faults that together leave a majority of brokers up and able to talk, unless the fault is about a majority;
- one fault a broker, and at most one that costs a disk its content, for the promise holds while a majority keep theirs;
- faults of edges and handlers with any of these, one a process.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from nodes import Settings

LAG_SECONDS = 1.0
"""Faults of one episode begin at most so far apart."""


@dataclass(frozen=True)
class Kind:
    """What a planner needs to know of a fault."""

    name: str
    on: str
    """`broker`: one of them · `brokers`: all of them, or their links · `edge` · `handler` · `client` · `all`: every process"""
    hold: tuple[float, float]
    """Seconds it lasts, from, to."""
    repair: float
    """Seconds that healing and recovery usually take, for the budget."""
    brokers: int = 1
    """How many there must be at least."""
    costs_disk: bool = False
    alone: bool = False
    """With no other fault of brokers."""
    about: str = ""


KINDS = {
    kind.name: kind
    for kind in [
        Kind("kill-one", "broker", (0.5, 5), 6, about="kill -9 of a leader or follower"),
        Kind("kill-all", "brokers", (0.2, 2), 10, alone=True, about="kill -9 of every broker within 50 ms"),
        Kind("power-one", "broker", (0.2, 3), 7, about="power cut of one broker: process and disk"),
        Kind("power-all", "brokers", (0.2, 2), 12, alone=True, about="power cut of every broker within 50 ms"),
        Kind("pause-leader", "broker", (6, 9), 5, brokers=3, about="SIGSTOP of a leader beyond the election timeout"),
        Kind("pause-cut-pause", "brokers", (3, 5), 15, brokers=3, alone=True, about="pause A, cut B, pause C, resume A, start B"),
        Kind("partition-full", "broker", (5, 9), 6, brokers=3, about="a leader alone against the others"),
        Kind("partition-one-way", "broker", (5, 9), 6, brokers=3, about="a leader sends and hears nothing"),
        Kind("partition-bridge", "brokers", (5, 9), 6, brokers=3, alone=True, about="two brokers cut, both see the third"),
        Kind("loss", "brokers", (5, 10), 5, about="20 to 30 % of the packets between nodes lost"),
        Kind("slow-link", "broker", (5, 8), 5, brokers=3, about="a follower's link at 1 Mbit/s"),
        Kind("no-space", "broker", (3, 6), 9, about="the disk is full"),
        Kind("sync-fails", "broker", (3, 6), 9, about="every write and sync is EIO"),
        Kind("bit-flip-log", "broker", (0, 1), 20, brokers=3, costs_disk=True, about="a bit of a stopped broker's write-ahead log flipped"),
        Kind("bit-flip-table", "broker", (0, 1), 20, brokers=3, costs_disk=True, about="a bit of a stopped broker's tables flipped"),
        Kind("cut-log", "broker", (0, 1), 20, brokers=3, costs_disk=True, about="the tail of a stopped broker's write-ahead log is gone"),
        Kind("cut-table", "broker", (0, 1), 20, brokers=3, costs_disk=True, about="the tail of one of a stopped broker's tables is gone"),
        Kind("older-copy", "broker", (0, 1), 25, brokers=3, costs_disk=True, about="a stopped broker's folder is put back to an older copy"),
        Kind("empty-disk", "broker", (2, 4), 20, brokers=3, costs_disk=True, about="a stopped broker's folder is gone"),
        Kind("edge-kill", "edge", (0.2, 4), 5, about="kill -9 of an edge"),
        Kind("edge-pause", "edge", (4, 7), 6, about="SIGSTOP of an edge past its grace"),
        Kind("edge-cut", "edge", (1, 7), 5, about="an edge cut from the brokers, or from one of them"),
        Kind("client-deaf", "client", (1.5, 3), 4, about="clients hear nothing of what brokers answer them"),
        Kind("handler-kill", "handler", (0.2, 3), 4, about="kill -9 of a handler member"),
        Kind("handler-pause", "handler", (4, 8), 6, about="SIGSTOP of a handler member past its lease"),
        Kind("membership", "broker", (1, 2), 25, brokers=3, costs_disk=True, about="a broker removed, emptied and added, with snapshots"),
        Kind("rolling", "all", (0, 0), 45, alone=True, about="SIGTERM and restart of every broker and edge in turn"),
    ]
}

SHORT = ["kill-one", "power-one", "power-all", "pause-leader", "partition-full", "partition-one-way", "sync-fails", "no-space", "bit-flip-table", "older-copy", "edge-kill", "edge-pause", "handler-kill"]
"""What CI runs, mixed."""


@dataclass(frozen=True)
class Planned:
    """One fault of an episode."""

    kind: str
    after: float
    """Seconds after the episode began."""
    hold: float
    victim: int
    """Number of the broker or edge; for a broker 0: whoever leads `partition` then. A member: whoever handles it."""
    partition: int
    salt: int
    """What else is random about it is drawn from this."""

    def __str__(self) -> str:
        on = KINDS[self.kind].on
        who = {"broker": f"b{self.victim}" if self.victim else f"leader of {self.partition}", "edge": f"e{self.victim}", "handler": f"who handles {self.partition}"}.get(on, on)
        return f"{self.kind}({who}, +{self.after:.1f}s, {self.hold:.1f}s)"


@dataclass
class Episode:
    calm: float
    """Seconds of plain load before it."""
    faults: list[Planned] = field(default_factory=list)


@dataclass
class Plan:
    seed: int
    settings: Settings
    episodes: list[Episode]

    def __str__(self) -> str:
        lines = [f"seed {self.seed}", f"{self.settings}"]
        for number, episode in enumerate(self.episodes, start=1):
            lines.append(f"  {number:2}. after {episode.calm:.1f}s: " + " + ".join(map(str, episode.faults)))
        return "\n".join(lines)

    @property
    def kinds(self) -> set[str]:
        return {planned.kind for episode in self.episodes for planned in episode.faults}


def plan(seed: int, *, seconds: float, faults: list[str] | None = None, brokers: int = 3, mixed: bool = True) -> Plan:
    """Every fault asked for at least once, in random order; then more of them until about `seconds` are filled. `mixed`:
    faults overlap where they may."""
    chance = random.Random(seed)
    settings = options(chance, brokers)
    names = faults or [name for name, kind in KINDS.items() if kind.brokers <= brokers]
    for name in names:
        if name not in KINDS:
            raise ValueError(f"no fault {name!r}; there are {', '.join(KINDS)}")
        if KINDS[name].brokers > brokers:
            raise ValueError(f"{name} needs {KINDS[name].brokers} brokers")
    waiting = [name for name in names]
    chance.shuffle(waiting)
    episodes, spent = [], 0.0
    while waiting or spent < seconds:
        if not waiting:
            waiting = [name for name in names if spent + _cost(name) <= seconds]
            chance.shuffle(waiting)
            if not waiting:
                break
        episode = _episode(chance, waiting, settings, mixed)
        episodes.append(episode)
        spent += episode.calm + max(planned.after + planned.hold + KINDS[planned.kind].repair for planned in episode.faults)
    return Plan(seed, settings, episodes)


def options(chance: random.Random, brokers: int) -> Settings:
    return Settings(
        brokers=brokers,
        partitions=chance.choice([1, 3, 4]),
        snapshot_entries=chance.choice([150, 400, 1500]),
        # short: who comes back or anew finds the log trimmed, and needs a snapshot
        retention=chance.choice(["", "15s"]),
        writers=chance.randint(10, 20),
        watchers=chance.randint(2, 4),
        pause=chance.choice([0.15, 0.25, 0.4]),
        submit_pause=chance.choice([0.01, 0.03]),
    )


def _cost(name: str) -> float:
    return KINDS[name].hold[1] + KINDS[name].repair


def _episode(chance: random.Random, waiting: list[str], settings: Settings, mixed: bool) -> Episode:
    """Takes the first fault that waits and, in a mixed run, others that may overlap with it."""
    episode = Episode(calm=chance.uniform(0.5, 3))
    want = chance.choice([1, 2, 2, 3]) if mixed else 1
    for name in list(waiting):
        if len(episode.faults) == want:
            break
        planned = _draw(chance, name, settings, first=not episode.faults)
        if fits(episode.faults, planned, settings):
            episode.faults.append(planned)
            waiting.remove(name)
    return episode


def _draw(chance: random.Random, name: str, settings: Settings, *, first: bool) -> Planned:
    kind = KINDS[name]
    count = {"broker": settings.brokers, "edge": settings.edges}.get(kind.on, 0)
    # the leader is the interesting one; who that is shows when it begins
    victim = 0 if kind.on == "broker" and chance.random() < 0.6 else chance.randint(1, count) if count else 0
    return Planned(
        kind=name,
        after=0.0 if first else chance.uniform(0, LAG_SECONDS),
        hold=chance.uniform(*kind.hold),
        victim=victim,
        partition=chance.randrange(settings.partitions),
        salt=chance.randrange(1 << 32),
    )


def fits(faults: list[Planned], planned: Planned, settings: Settings) -> bool:
    """Whether `planned` may overlap with `faults` so that the run still says something."""
    if not faults:
        return True
    new = KINDS[planned.kind]
    for fault in faults:
        kind = KINDS[fault.kind]
        if "all" in (kind.on, new.on) or fault.kind == planned.kind:
            return False
        # which member works on a partition shows when it begins
        if kind.on == new.on == "handler" or kind.on == new.on == "edge" and fault.victim == planned.victim:
            return False
    of_brokers = [fault for fault in faults if KINDS[fault.kind].on in ("broker", "brokers")]
    if new.on not in ("broker", "brokers") or not of_brokers:
        return True
    if new.alone or any(KINDS[fault.kind].alone for fault in of_brokers):
        return False
    # a minority of brokers in all; the same broker may be hit twice only by chance of leadership, which the run resolves
    hit = sum(KINDS[fault.kind].on == "broker" for fault in of_brokers) + (new.on == "broker")
    return hit <= (settings.brokers - 1) // 2
