"""Node programs that use the official SDK of AWS."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path


def sdk_for_node(need, *programs: Path) -> Path:
    """A folder with the packages, installed once per content of the lock file, and copies of the programs beside them."""
    need(shutil.which("node") and shutil.which("npm"), "node and npm are not installed")
    here = Path(__file__).with_name("node")
    digest = hashlib.sha256((here / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trunkline" / "node" / digest
    if not (cache / "complete").exists():
        cache.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(here / name, cache)
        done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=cache, capture_output=True, timeout=240)
        need(done.returncode == 0, f"npm ci: {done.stderr.decode(errors='replace')[-500:]}")
        (cache / "complete").touch()
    for program in programs:
        shutil.copy(program, cache)
    return cache
