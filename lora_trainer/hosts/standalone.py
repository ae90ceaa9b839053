"""No WebUI: the base model comes from a file, the device from accelerate, and the result stays where it was written."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_trainer.contracts import HostPaths

if TYPE_CHECKING:
    import torch


class Standalone:
    """Implements `contracts.Host` for the command line."""

    name = "stand-alone"

    def base_file(self, base: str) -> Path | None:
        """The file or folder behind the name of a base model; every base is one here."""
        return Path(base).expanduser()

    def device(self) -> torch.device:
        """The device that accelerate chooses: this process's own GPU, else the CPU."""
        from accelerate import PartialState

        return cast("torch.device", PartialState().device)

    def exclusive(self) -> AbstractContextManager[None]:
        """Nobody to share the device with."""
        return nullcontext()

    def announce(self, path: Path) -> None:
        """Nobody to tell."""

    def paths(self) -> HostPaths:
        """The current folder is all there is."""
        return HostPaths(loras=None)


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed for the next step; returns whether it was told (other C libraries are not).

    By default each large tensor is mapped from the system, page by page, and handed back as soon as it is freed, at
    every layer of every step. For a process of our own only: what a run once needed stays with it to its end.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, musl; Windows, where None names no library
        return False
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    one_gigabyte = 1 << 30  # larger than any activation; refused before glibc 2.35, which allows 32 MiB
    told = mallopt(mmap_threshold, one_gigabyte) or mallopt(mmap_threshold, 32 << 20)
    return bool(told and mallopt(trim_threshold, 2**31 - 1))
