"""Small disks to be filled and closed: a tmpfs mounted below the WebUI's data. Needs Linux and its administrator."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Disk:
    """A mounted disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self, left: int = 0) -> None:
        """Leave so many bytes."""
        with self._filler.open("wb") as file:
            free = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - left))

    def free(self) -> None:
        """Undo `fill`."""
        self._filler.unlink()

    def close(self) -> None:
        """Read-only from now on."""
        _call("mount", "-o", "remount,ro", str(self.folder))

    def open(self) -> None:
        """Undo `close`."""
        _call("mount", "-o", "remount,rw", str(self.folder))


@contextmanager
def mounted(folder: Path, megabytes: int = 64) -> Iterator[Disk]:
    """A disk at `folder`, over what is there; gone again afterwards. Skips the test where mounting is not allowed."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounts a small disk, which only the administrator of a Linux may")
    folder.mkdir(parents=True, exist_ok=True)
    _call("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
    try:
        yield Disk(folder)
    finally:
        _call("umount", "--lazy", str(folder))


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounts a small disk, which this machine refuses: {done.stderr.strip()}")
