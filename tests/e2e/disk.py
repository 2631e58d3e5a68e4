"""A disk whose power can be cut: ext4 in a file, mounted through a loop device.

`cut` ends the processes that power takes along and shuts the file system down under them: nothing more reaches the disk,
what was not synced is gone after the next mount. `commit=300,noauto_da_alloc` takes away ext4's own kindness of writing
back early.

The order matters. Power stops the processor no later than the disk; a file system shut down under a process that lives on
is something else, and ext4 answers it wrongly at times: an `fdatasync` or `fsync` whose data is written when the journal is
aborted finds its transaction gone, takes it for committed and returns 0 (`jbd2_complete_transaction`; seen on Linux 6.18 in
41 of 400 shutdowns under a loop of appends and syncs, and in 0 of 460 with the process killed first). A broker then
acknowledges in good faith what no power cut would have let it say. test_disk.py holds this order.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

OPTIONS = "loop,commit=300,noauto_da_alloc"
TOOLS = ("mkfs.ext4", "mount", "umount", "losetup")
EXT4_IOC_SHUTDOWN = 0x8004587D
"""`_IOR('X', 125, __u32)`. By a call of our own, for starting a program takes milliseconds between kill and cut."""
NO_LOG_FLUSH = (2).to_bytes(4, "little")
LOG_FLUSH = (1).to_bytes(4, "little")
FILLER = "filler"


def missing() -> str | None:
    """Why there can be no such disk here."""
    if os.geteuid() != 0:
        return "mounting a disk to cut its power needs root"
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if not shutil.which(tool, path=search)]
    if lacking:
        return f"{', '.join(lacking)} not found (`make setup` installs e2fsprogs)"
    return None


def _run(*argv: str | Path) -> None:
    env = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    done = subprocess.run([str(part) for part in argv], capture_output=True, env=env, timeout=60)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")


class Disk:
    def __init__(self, folder: Path, mebibytes: int = 512) -> None:
        self.image = folder / "disk.img"
        self.at = folder / "disk"
        self.at.mkdir()
        self.mounted = False
        with open(self.image, "wb") as image:
            image.truncate(mebibytes << 20)
        _run("mkfs.ext4", "-qF", self.image)
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", OPTIONS, self.image, self.at)
        self.mounted = True

    def cut(self, *processes: subprocess.Popen) -> None:
        """The power is gone: these processes say nothing more, then the disk takes nothing more and its journal is not
        flushed. What they had under way in the kernel is cut off in the middle. Without processes: the disk alone is gone."""
        folder = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for process in processes:
                process.kill()
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(folder)

    def fail(self) -> None:
        """From now on every write and sync is EIO, under processes that live on. What was written is committed first, so
        that no sync is under way whose success the kernel would report wrongly (above)."""
        folder = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, EXT4_IOC_SHUTDOWN, LOG_FLUSH)
        finally:
            os.close(folder)

    def fill(self) -> int:
        """Takes all space that is left, by a file of zeros; how many bytes that were."""
        free = os.statvfs(self.at).f_bavail * os.statvfs(self.at).f_frsize
        taken = 0
        with open(self.at / FILLER, "wb") as filler:
            # in steps that shrink: one request for all of it would fail as a whole
            step = max(free, 4096)
            while step >= 4096:
                try:
                    os.posix_fallocate(filler.fileno(), taken, step)
                    taken += step
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    step //= 2
        return taken

    def free(self) -> None:
        """Gives back what `fill` took."""
        (self.at / FILLER).unlink(missing_ok=True)

    def unmount(self) -> None:
        if self.mounted:
            _run("umount", self.at)
            self.mounted = False

    def power_on(self) -> None:
        """After `cut`, once nobody uses the disk any more."""
        self.unmount()
        self.mount()

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, kind, *_) -> None:
        if kind and self.mounted:
            # a failed test has its processes still running: they must not hide what failed
            _run("umount", "--lazy", self.at)
            self.mounted = False
        self.unmount()
        self.image.unlink(missing_ok=True)
