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
