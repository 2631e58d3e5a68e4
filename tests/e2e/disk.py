"""A disk whose power can be cut: ext4 in a file, mounted through a loop device.

`cut` shuts the file system down under its users: nothing more reaches the disk, what was not synced is gone after the next
mount. `commit=300,noauto_da_alloc` takes away ext4's own kindness of writing back early.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

OPTIONS = "loop,commit=300,noauto_da_alloc"
TOOLS = ("mkfs.ext4", "mount", "umount", "xfs_io", "losetup")


def missing() -> str | None:
    """Why there can be no such disk here."""
    if os.geteuid() != 0:
        return "mounting a disk to cut its power needs root"
    search = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [tool for tool in TOOLS if not shutil.which(tool, path=search)]
    if lacking:
        return f"{', '.join(lacking)} not found (`make setup` installs xfsprogs and e2fsprogs)"
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

    def cut(self) -> None:
        """The power is gone: the journal is not flushed, all later input and output fails."""
        _run("xfs_io", "-F", "-x", "-c", "shutdown", self.at)

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

    def __exit__(self, *_) -> None:
        try:
            self.unmount()
        except RuntimeError:
            # a test failed and its broker still runs: the mount goes when the broker does
            _run("umount", "--lazy", self.at)
        self.image.unlink(missing_ok=True)
