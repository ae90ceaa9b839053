"""What every run has decided before it begins, whatever it trains; `plan.py` and `text_plan.py` add their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Host, PlainError
from lora_trainer.jobs.files import RunFiles, check_writable, files_of_task, untouched
from lora_trainer.train.optimizer_kinds import KINDS
from lora_trainer.train.schedules import Schedule

CHECKPOINTS_IN_A_RUN = 10  # where save_steps is silent


class Choice(NamedTuple):
    """A value that was decided for the user, and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunPlan(ABC):
    """The resolved run: no field is open any more."""

    config: RunConfig
    files: RunFiles
    device: torch.device
    dtype: torch.dtype
    processes: int
    seed: int
    alpha: float
    rates: dict[str, float]  # peak learning rate by trained part
    steps: int
    save_every: int
    sample_every: int  # 0: none while training
    validate_every: int = 0  # 0: nothing is held out
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]  # what the user should know before it runs

    @property
    def data_name(self) -> str:
        """Name of the data set: its folder's, without the place."""
        folder = self.config.data.folder
        return Path(folder).expanduser().resolve().name if folder else ""

    @property
    def warmup_steps(self) -> int:
        return round(self.config.train.warmup * self.steps)

    @property
    def schedule(self) -> Schedule:
        """The course of the learning rate over the run."""
        train = self.config.train
        kind = "constant" if KINDS[self.config.optimizer.kind].averages else train.schedule
        return Schedule(kind, self.steps, self.warmup_steps, train.schedule_cycles, train.schedule_power)

    @property
    def precision(self) -> str:
        """As the option spells it."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.dtype, "no")

    @property
    def epochs(self) -> float:
        return self.steps * self.samples_per_step / max(1, self.samples_per_epoch)

    @property
    def samples_per_step(self) -> int:
        train = self.config.train
        return self.config.data.batch_size * train.gradient_accumulation_steps * self.processes

    @property
    @abstractmethod
    def samples_per_epoch(self) -> int:
        """What one look at the whole data set counts."""

    @property
    @abstractmethod
    def base_name(self) -> str:
        """Name of the base model, without its place."""

    @property
    @abstractmethod
    def owns_base(self) -> bool:
        """Whether the base model is read by the run, so that the run chooses its precision."""

    @property
    @abstractmethod
    def data_digest(self) -> str:
        """Changes with what is trained on; SHA-256."""

    @property
    @abstractmethod
    def smaller(self) -> str:
        """What to lower where memory does not suffice, as the end of "set ..."."""

    @property
    @abstractmethod
    def heaviest_told(self) -> str:
        """What takes most memory at once, in words."""

    @property
    @abstractmethod
    def pace_key(self) -> str:
        """What decides the seconds of a step, besides what every run has."""

    @property
    @abstractmethod
    def data_told(self) -> str:
        """ "30 images, 28 with captions"."""

    @property
    @abstractmethod
    def size_told(self) -> str:
        """ "at 512 px"."""

    @abstractmethod
    def settled(self) -> dict[str, Any]:
        """Options that were left open, by path, as the run takes them; those of every run are known already."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """What the page shows of base and data, as JSON values."""

    def text(self) -> str:
        """The resolved run for a person to read."""
        rows = [(choice.name, choice.value, choice.reason) for choice in self.choices]
        wide = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{wide}}  {value}" + (f"   ({why})" if why else "") for name, value, why in rows]
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, *notes])


# --- what every plan decides alike -----------------------------------------------------------------------------------


def files_asked_for(config: RunConfig, host: Host) -> RunFiles:
    """Where the configuration says that the run writes, whatever is there already."""
    return files_of_task(config.output.directory, name_of(config), host.paths(), config.task)


def name_of(config: RunConfig) -> str | None:
    """The LoRA's name; without a name or a folder of its own it is called after the data's."""
    if config.output.name or config.output.directory or not config.data.folder:
        return config.output.name
    return Path(config.data.folder).expanduser().resolve().name


def result_files(config: RunConfig, host: Host, resume: bool) -> tuple[RunFiles, Choice]:
    """Where the run writes, beside what is there already; raises PlainError where it may not."""
    wanted = files_asked_for(config, host)
    check_writable(wanted.folder)
    check_writable(wanted.work)
    files = wanted if resume else untouched(config.output.directory, name_of(config), host.paths(), config.task)
    reason = ""
    if files != wanted:
        reason = f"{wanted.name} is there already and is left alone; resume (train --resume) goes on from it"
    return files, Choice("result", str(files.lora), reason)


def taken(choice: Choice) -> list[str]:
    """A note where the result goes elsewhere."""
    return [f"The result goes to {choice.value}: {choice.reason}."] if choice.reason else []


def precision_for(asked: str, device: torch.device) -> tuple[torch.dtype, Choice]:
    """Arithmetic of the frozen base, with the reason; the LoRA's own weights are always float32."""
    if device.type != "cuda":
        if asked == "bf16":
            return torch.bfloat16, Choice("precision", "bf16", "asked for")
        reason = "asked for" if asked == "no" else "exact, and the CPU gains nothing from fp16"
        return torch.float32, Choice("precision", "no (float32)", reason)
    if asked == "no":
        return torch.float32, Choice("precision", "no (float32)", "asked for")
    if asked == "fp16":
        return torch.float16, Choice("precision", "fp16", "asked for")
    supported = torch.cuda.is_bf16_supported()
    if asked == "bf16" and not supported:
        raise PlainError("mixed_precision: bf16 was asked, but this GPU has no bf16; use fp16.")
    if supported:
        return torch.bfloat16, Choice("precision", "bf16", "asked for" if asked == "bf16" else "this GPU has it")
    return torch.float16, Choice("precision", "fp16", "this GPU has no bf16")


def save_interval(config: RunConfig, steps: int) -> tuple[int, Choice]:
    """Steps between two checkpoints."""
    every = config.output.save_steps
    reason = ""
    if every is None:
        every = max(1, steps // CHECKPOINTS_IN_A_RUN)
        reason = f"{CHECKPOINTS_IN_A_RUN} in the run"
    kept = f", the last {config.output.keep_last} kept" if config.output.keep_last else ""
    return every, Choice("checkpoints", f"every {every} steps{kept}" if every else "only at the end", reason)
