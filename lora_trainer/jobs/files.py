"""Names and places of what a run writes, and which of it is there already.

    <folder>/<name>.safetensors                 the LoRA
    <folder>/<name>-<step, six digits>.safetensors   checkpoints, each a LoRA that can be used
    <folder>/<name>-best.safetensors            the one that was best on held-out images, where some were held out
    <work>/<name>-<step, six digits>.state      what a resumed run needs (safetensors inside; another ending, so that
                                                a host does not list it as a LoRA)
    <work>/<name>.yaml                          the configuration as it was run
    <work>/samples/, <work>/logs/               pictures, log and TensorBoard events

The two folders are one, unless the LoRA goes into a WebUI's own folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contracts import HostPaths, PlainError

STATE_ENDING = ".state"
ADAPTER = "adapter_config.json"  # without which no folder is an adapter; written last
DEFAULT_FOLDER = "output/my_lora"
NOWHERE = HostPaths(loras=None)


@dataclass(frozen=True)
class RunFiles:
    """Where one run writes."""

    folder: Path  # LoRA and checkpoints
    name: str
    work: Path  # all else: the same folder, or one of the host's where `folder` is its list of LoRA

    @property
    def lora(self) -> Path:
        return self.folder / f"{self.name}.safetensors"

    @property
    def recipe(self) -> Path:
        return self.work / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        return self.work / "logs" / f"{self.name}.log"

    @property
    def board(self) -> Path:
        return self.work / "logs" / self.name

    @property
    def best(self) -> Path:
        """The LoRA of the step that was best on what is held out; no checkpoint, so never removed as an old one."""
        return self.folder / f"{self.name}-best.safetensors"

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"{self.name}-{step:06d}.safetensors"

    def state(self, step: int) -> Path:
        return self.work / f"{self.name}-{step:06d}{STATE_ENDING}"

    def sample(self, step: int, index: int) -> Path:
        return self.work / "samples" / f"{self.name}-{step:06d}-{index + 1:02d}.png"

    def drawn_with(self, step: int) -> Path:
        """A LoRA of the moment for a host that draws; gone again afterwards."""
        return self.work / "samples" / f"{self.name}-{step:06d}.safetensors"

    def steps_saved(self, ending: str) -> list[int]:
        """Steps of the checkpoints (".safetensors") or states (".state") of this run that are there, ascending."""
        pattern = re.compile(re.escape(self.name) + r"-(\d{6,})" + re.escape(ending))
        place = self.work if ending == STATE_ENDING else self.folder
        if not place.is_dir():
            return []
        found = (pattern.fullmatch(path.name) for path in place.iterdir())
        return sorted(int(match.group(1)) for match in found if match)

    def checkpoints(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        return [self.checkpoint(step) for step in self.steps_saved(".safetensors")]

    def hold_a_run(self) -> bool:
        """Whether anything that a run of this name would replace is there already."""
        return self.lora.exists() or bool(self.checkpoints() or self.steps_saved(STATE_ENDING))


class AdapterFiles(RunFiles):
    """Where a run writes whose result is the folder itself: a language model's adapter.

    <folder>/adapter_model.safetensors, ...      the adapter
    <folder>/<name>-<step, six digits>/          checkpoints, each an adapter that can be used
    """

    @property
    def lora(self) -> Path:
        return self.folder

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"{self.name}-{step:06d}"

    @property
    def best(self) -> Path:
        return self.folder / f"{self.name}-best"

    def sample(self, step: int, index: int) -> Path:
        return super().sample(step, index).with_suffix(".txt")

    def checkpoints(self) -> list[Path]:
        return [self.checkpoint(step) for step in self.steps_saved("") if (self.checkpoint(step) / ADAPTER).is_file()]

    def hold_a_run(self) -> bool:
        return (self.folder / ADAPTER).exists() or bool(self.checkpoints() or self.steps_saved(STATE_ENDING))


def run_files(directory: str | None, name: str | None, paths: HostPaths = NOWHERE) -> RunFiles:
    """The files of a run whose LoRA is called `name`, or after the last part of its folder.

    Without a folder it is the host's for LoRA, where all else goes into `paths.runs`, a folder for each run; and
    `DEFAULT_FOLDER` where there is no host.
    """
    if directory is None and paths.loras is not None:
        name = name or "my_lora"
        return RunFiles(paths.loras, name, paths.runs / name if paths.runs else paths.loras)
    folder = Path(directory or DEFAULT_FOLDER).expanduser()
    return RunFiles(folder, name or folder.resolve().name, folder)


IMAGES = "stable-diffusion"  # the value of `task` whose results are files; others make folders


def files_of_task(
    directory: str | None, name: str | None, paths: HostPaths = NOWHERE, task: str = IMAGES
) -> RunFiles:  # fmt: skip
    """`run_files` of the kind that a task writes.

    A language model's result is a folder: without one that is named it gets its own below the host's runs, since the
    host would take what it finds in its folder for LoRA as LoRA for images.
    """
    if task == IMAGES:
        return run_files(directory, name, paths)
    if directory is None and paths.loras is not None:
        name = name or "my_lora"
        return AdapterFiles((paths.runs or paths.loras.parent) / name, name, (paths.runs or paths.loras.parent) / name)
    files = run_files(directory, name, NOWHERE)
    return AdapterFiles(files.folder, files.name, files.work)


def files_at(folder: Path, name: str, work: Path, task: str) -> RunFiles:
    """The files of a run whose places are known."""
    return (RunFiles if task == IMAGES else AdapterFiles)(folder, name, work)


def untouched(directory: str | None, name: str | None, paths: HostPaths = NOWHERE, task: str = IMAGES) -> RunFiles:
    """Like `files_of_task`, but with "-2", "-3", ... where a run is already: on the folder (and so on the name made
    from it), or on the name alone where that was given, since a folder such as models/Lora is shared by many runs."""
    files = files_of_task(directory, name, paths, task)
    folder = files.folder if files.folder.name else files.folder.resolve()  # "." has no name to put a number on
    by_name = name or (directory is None and paths.loras is not None)
    first, number = files, 1
    while files.hold_a_run():
        number += 1
        if by_name:
            files = files_of_task(directory, f"{first.name}-{number}", paths, task)
        else:
            files = files_of_task(f"{folder}-{number}", None, task=task)
    return files


def check_writable(folder: Path) -> None:
    """Raise PlainError where the folder could not be made or written into; makes nothing."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise PlainError(f"output_dir {folder} cannot be a folder: {nearest} is a file; name another place.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PlainError(
            f"output_dir {folder} cannot be written: {nearest} is read-only or closed to you; "
            "open it or name another place."
        )
