"""The clients of a run, one process: WebSocket writers and watchers over all edges, submitters and readers over all brokers.

Told by lines on standard input (`status`, `quiet`, `dump`, `finish`), it answers each with a line of JSON. What happened is written
to `sessions.jsonl`, `submits.jsonl` and `reads.jsonl` in its folder when it is told `finish`; `reads` as it goes.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from pathlib import Path

import requests

from clients import Crowd, Submitters

READ_PAUSE = 0.25
READ_LIMIT = 1000


class Reader:
    """Follows every partition at one broker, from the first record on, as long as the run lasts. A broker that is away is
    asked again; what it says then must go on where it stopped."""

    def __init__(self, broker: str, name: str, partitions: int, write) -> None:
        self.broker, self.name, self.write = broker, name, write
        self.next = {partition: "earliest" for partition in range(partitions)}
        self.count = 0
        self._stop = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        http = requests.Session()
        while not self._stop.is_set():
            more = False
            for partition in self.next:
                try:
                    more |= self._read(http, partition)
                except requests.RequestException:
                    break
            if not more:
                self._stop.wait(READ_PAUSE)

    def _read(self, http: requests.Session, partition: int) -> bool:
        query = {"partition": partition, "from": self.next[partition], "limit": READ_LIMIT}
        answer = http.get(f"{self.broker}/v1/log", params=query, timeout=3)
        if answer.status_code == 410 or answer.json().get("code") == "offset_trimmed":
            self.write({"broker": self.name, "partition": partition, "trimmed": answer.text})
            self.next[partition] = "earliest"
            return False
        if answer.status_code != 200:
            return False
        page = answer.json()
        records = page["records"]
        if records:
            self.write({"broker": self.name, "partition": partition, "records": records})
        self.count += len(records)
        self.next[partition] = page["next"]
        return len(records) == READ_LIMIT

    def finish(self) -> None:
        self._stop.set()
        self.thread.join(20)


class Everybody:
    def __init__(self, task: dict) -> None:
        self.folder = Path(task["folder"])
        self.crowd = Crowd(task["edges"], writers=task["writers"], watchers=task["watchers"], pause=task["pause"])
        self.submitters = [
            # in turn from another broker on, and short of patience: one that hangs must not hide that another would answer
            Submitters(task["brokers"], channel=channel, threads=task["submitters"], pause=task["submit_pause"], give_up=120, timeout=1)
            for channel in task["channels"]
        ]
        self._reads = open(self.folder / "reads.jsonl", "w", buffering=1)
        self._lock = threading.Lock()
        names = [f"b{number}" for number in range(1, len(task["brokers"]) + 1)]
        self.readers = [Reader(url, name, task["partitions"], self._write_read) for url, name in zip(task["brokers"], names, strict=True)]

    def _write_read(self, row: dict) -> None:
        with self._lock:
            self._reads.write(json.dumps(row) + "\n")

    def start(self) -> None:
        self.crowd.start()
        for submitters in self.submitters:
            submitters.start()
        for reader in self.readers:
            reader.thread.start()

    def status(self) -> dict:
        return {
            "connected": self.crowd.connected,
            "received": self.crowd.received,
            "answered": self.crowd.answered,
            "acked": [submitters.acked for submitters in self.submitters],
            "retried": sum(submitters.retried for submitters in self.submitters),
            "read": [reader.count for reader in self.readers],
            "errors": [*self.crowd.errors, *(error for submitters in self.submitters for error in submitters.errors)][:10],
            "now": time.monotonic(),
        }

    def quiet(self) -> None:
        """Nobody sends or submits any more; all stay connected."""
        self.crowd.quiet()
        for submitters in self.submitters:
            submitters.finish(150)
        self.dump()

    def finish(self) -> None:
        """Everybody closes cleanly, the histories are written."""
        self.crowd.finish()
        for reader in self.readers:
            reader.finish()
        self.dump()

    def dump(self) -> None:
        """Writes the histories so far."""
        with open(self.folder / "sessions.jsonl", "w") as file:
            for kind, sessions in (("writer", self.crowd.sessions), ("watcher", self.crowd.watching)):
                for session in sessions:
                    file.write(json.dumps({"of": kind} | dataclasses.asdict(session)) + "\n")
        with open(self.folder / "submits.jsonl", "w") as file:
            for submitters in self.submitters:
                for submit in submitters.submits:
                    file.write(json.dumps({"channel": submitters.channel} | dataclasses.asdict(submit)) + "\n")


def main() -> None:
    everybody = Everybody(json.loads(sys.argv[1]))
    everybody.start()
    print("ready", flush=True)
    for line in sys.stdin:
        word = line.strip()
        if word == "quiet":
            everybody.quiet()
        elif word == "finish":
            everybody.finish()
        elif word == "dump":
            everybody.dump()
        print(json.dumps(everybody.status()), flush=True)
        if word == "finish":
            return


if __name__ == "__main__":
    main()
