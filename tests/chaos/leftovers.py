"""What a run makes outside its own memory, and how it goes away again: always, also when the run was killed.

Every name begins with `tk` and the run's seed; a note under NOTES says who owns it. `clean` takes away what is named so and
whose owner is dead: its processes, namespaces and mounts. It ends no process by name, only those inside the run's namespaces.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import network

NOTES = Path("/run/trunkline-chaos")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SEED_MAX = 36**6 - 1
TURN_SECONDS = 1800
"""How long a run waits for others to end."""


def prefix_of(seed: int) -> str:
    """`tk` and the seed in base 36, of one length, so that no run's prefix begins another's."""
    assert 0 <= seed <= SEED_MAX, f"a seed is 0 to {SEED_MAX}"
    text = ""
    for _ in range(6):
        seed, digit = divmod(seed, 36)
        text = DIGITS[digit] + text
    return f"tk{text}"


def _started(pid: int) -> str | None:
    """When the process began, which with its number names it for good; `None` if it has ended (a zombie has, too)."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def take_turn(say=print) -> TextIO:
    """Waits until no other run is under way on this machine: two at once make each other too slow to be judged. Held as long as
    the file is open, at most as long as this process lives."""
    NOTES.mkdir(parents=True, exist_ok=True)
    turn = open(NOTES / "turn", "a+")
    end, told = time.monotonic() + TURN_SECONDS, False
    while True:
        try:
            fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if not told:
                turn.seek(0)
                say(f"waiting for another run: process {turn.read().strip() or 'unknown'}")
                told = True
            if time.monotonic() > end:
                raise SystemExit(f"another run has not ended within {TURN_SECONDS:.0f} s") from None
            time.sleep(0.5)
    turn.truncate(0)
    turn.write(str(os.getpid()))
    turn.flush()
    return turn


def claim(prefix: str, folder: Path) -> None:
    """This process owns everything named `prefix`. Refused while another that does is alive."""
    NOTES.mkdir(parents=True, exist_ok=True)
    note = _note(prefix)
    if note and _alive(note):
        raise SystemExit(f"process {note['pid']} runs with this seed already")
    clean(prefix)
    text = json.dumps({"pid": os.getpid(), "started": _started(os.getpid()), "folder": str(folder)})
    (NOTES / prefix).write_text(text)


def _note(prefix: str) -> dict | None:
    with suppress(OSError, ValueError):
        return json.loads((NOTES / prefix).read_text())
    return None


def _alive(note: dict) -> bool:
    return note["pid"] != os.getpid() and _started(note["pid"]) == note["started"]


def clean(prefix: str) -> list[str]:
    """Takes away everything named `prefix`; what that was. Data and logs of the run stay."""
    gone = []
    for namespace in network.namespaces(prefix):
        for pid in network.processes_in(namespace):
            if pid != os.getpid():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                gone.append(f"process {pid}")
    note = _note(prefix)
    if note:
        for mount in _mounts(note["folder"]):
            _unmount(mount)
            gone.append(mount)
    for namespace in network.namespaces(prefix):
        network.remove_namespace(namespace)
        gone.append(f"namespace {namespace}")
    (NOTES / prefix).unlink(missing_ok=True)
    return gone


def _unmount(mount: str) -> None:
    # whoever used it was killed just now and may be in its last call
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if subprocess.run(["umount", mount], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    subprocess.run(["umount", "--lazy", mount], capture_output=True)


def _mounts(folder: str) -> list[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    points = [line.split()[1] for line in lines]
    return sorted((point for point in points if point.startswith(folder + "/")), reverse=True)


def clean_dead() -> list[str]:
    """As `clean`, of every run whose owner is gone."""
    gone = []
    for path in sorted(NOTES.glob("tk*")) if NOTES.exists() else []:
        note = _note(path.name)
        if note is None or not _alive(note):
            gone += clean(path.name)
            if note:
                shutil.rmtree(note["folder"], ignore_errors=True)
    return gone
