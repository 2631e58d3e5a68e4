"""Clusters whose handlers are written with sdk/python."""

from __future__ import annotations

import sys
from pathlib import Path

from harness import Cluster, Process
from several import Several

ROOT = Path(__file__).resolve().parents[2]
SDK = ROOT / "sdk/python"
ENV = {"PYTHONPATH": str(SDK / "src"), "PYTHONUNBUFFERED": "1"}


def python(name: str, folder: Path, *words: str | Path, env: dict[str, str] | None = None) -> Process:
    """A Python process that finds the SDK."""
    return Process(name, [sys.executable, *words], folder, ENV | (env or {}))


class PythonHandlers:
    """Takes the place of a cluster's test handler."""

    folder: Path
    journal: Path
    numbers = 0

    def handler(self, behaviour: str, *, group: str, api: str, member: str | None = None) -> Process:
        self.numbers += 1
        member = member or f"member-{self.numbers}"
        words = [behaviour, "--broker", self.grpc, "--group", group, "--api", api, "--member", member, "--journal", self.journal]
        return python(f"handler-{member}", self.folder, Path(__file__).parent / "python_handler.py", *words).start()


class PythonCluster(PythonHandlers, Cluster):
    pass


class PythonSeveral(PythonHandlers, Several):
    pass
