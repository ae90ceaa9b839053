"""No WebUI: the base model comes from a file, the device from accelerate, and the result stays where it was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

from lora_trainer.contracts import Event, HostCaptioner, HostPaths, LentModel, PlainError, SampleOrder, Told

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_ENDINGS = (".safetensors", ".ckpt")  # that a checkpoint's name may be given without


class Standalone:
    """Implements `contracts.Host` for the command line, and with folders for the page of our own server."""

    name = "stand-alone"
    draws = False

    def __init__(
        self, *, loras: Path | None = None, runs: Path | None = None, checkpoints: Sequence[Path] = (),
        allowed: Sequence[Path] | None = None,
    ) -> None:  # fmt: skip
        self._paths = HostPaths(loras, runs, tuple(checkpoints), None if allowed is None else tuple(allowed))

    def base_file(self, base: str) -> Path | None:
        """The file or folder behind the name of a base model, looked for in the folders of checkpoints too; None where
        no name is given."""
        if not base:
            return None
        given = Path(base).expanduser()
        places = [folder / f"{base}{ending}" for folder in self._paths.checkpoints for ending in ("", *_ENDINGS)]
        return next((place for place in (given, *places) if place.exists()), given)

    def device(self) -> torch.device:
        """The device that accelerate chooses: this process's own GPU, else the CPU."""
        from accelerate import PartialState

        return cast("torch.device", PartialState().device)

    def lend(self) -> LentModel:
        """Nothing is loaded here: every base is a file."""
        raise PlainError("No base model is named; give base_model a checkpoint file, a diffusers folder or 'demo'.")

    def visit(self) -> AbstractContextManager[None]:
        """Nothing of a host's to put back."""
        return nullcontext()

    def exclusive(self, lent: LentModel, parts: Iterable[str]) -> AbstractContextManager[None]:
        """Nobody to share the device with."""
        return nullcontext()

    def turn(self) -> AbstractContextManager[None]:
        """Nobody to share the device with."""
        return nullcontext()

    def make_room(self) -> str:
        """Nothing is held but by the run itself."""
        return ""

    def held(self) -> int:
        """There is no such model."""
        return 0

    def aside(self) -> AbstractContextManager[None]:
        """There is nothing to move."""
        return nullcontext()

    def contended(self) -> bool:
        """Nobody waits."""
        return False

    def report(self, event: Event) -> None:
        """Whoever takes the events shows them."""

    def interrupted(self) -> bool:
        """There is no button but the command line's own Ctrl-C."""
        return False

    def draw(self, order: SampleOrder, lora: Path | None) -> Sequence[Image] | None:
        """Nothing: the engine draws with diffusers."""
        return None

    def prove(self, path: Path, order: SampleOrder) -> list[Told]:
        """No loader but our own."""
        return []

    def announce(self, path: Path) -> None:
        """Nobody to tell."""

    def captioners(self, *, threshold: float | None = None, download: bool = False) -> Sequence[HostCaptioner]:
        """No interrogators but our own."""
        return ()

    def paths(self) -> HostPaths:
        """The folders that were given; for the command line none."""
        return self._paths


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
