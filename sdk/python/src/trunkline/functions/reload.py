"""`--reload`: the program starts again when a function's source changes. For development: it looks at files twice a second."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

EVERY = 0.5
"""Seconds between two looks."""


class Sources:
    """The Python files in the functions' folders, and those below that were imported."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = sorted(set(folders))
        self._seen = self._look()

    def _look(self) -> dict[Path, int]:
        files = {file for folder in self._folders for file in folder.glob("*.py")}
        for module in list(sys.modules.values()):
            name = getattr(module, "__file__", None)
            if isinstance(name, str) and any(Path(name).is_relative_to(folder) for folder in self._folders):
                files.add(Path(name))
        found = {}
        for file in files:
            try:
                found[file] = file.stat().st_mtime_ns
            except OSError:
                continue  # an editor may be about to put it back
        return found

    def changed(self) -> Path | None:
        """A file that is another one than before, or a new one beside the functions."""
        before, now = self._seen, self._look()
        # one that is away for a moment is remembered
        self._seen = before | now
        for file, at in sorted(now.items()):
            # one below, not seen before, has just been imported for the first time
            if before.get(file, at) != at or (file not in before and file.parent in self._folders):
                return file
        return None

    async def until_changed(self) -> Path:
        """The file that was."""
        while (file := self.changed()) is None:
            await asyncio.sleep(EVERY)
        return file


async def run_until_changed(run: Callable[[], Coroutine[Any, Any, None]], sources: Sources) -> Path | None:
    """Runs until it ends by itself (`None`) or a source changes; then it is cancelled, and has its time to drain."""
    running, watching = asyncio.ensure_future(run()), asyncio.ensure_future(sources.until_changed())
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        changed = None if running.done() or not watching.done() else watching.result()
        watching.cancel()
        running.cancel()
        while not running.done():
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                # told twice: at once
                running.cancel()
    if changed is None:
        running.result()
    return changed


def start_again(argv: Sequence[str]) -> NoReturn:
    """In place of this process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", "trunkline.functions", *argv])
