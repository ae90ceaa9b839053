"""The ladder of measures for a run on an image model, where its memory does not suffice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lora_trainer.contracts import BaseModel, Host, Told
from lora_trainer.families.thrift import attention_keeps_scores, recompute_activations, slice_attention
from lora_trainer.jobs.packing import Copies
from lora_trainer.jobs.plan import Plan
from lora_trainer.train.ladder import CHECKPOINTING, HALVED, Ladder, Rung
from lora_trainer.train.pieces import Pieces


@dataclass
class IdleParts:
    """Parts of an owned base that only samples need; out of the device's memory between two of them, once asked."""

    base: BaseModel
    parts: tuple[str, ...]
    resting: bool = False

    def rest(self) -> str:
        """Move them to the CPU's memory, from now on; what was done, or nothing where there are none."""
        there = [part for part in self.parts if part in self.base.parts]
        if self.resting or not there or self.base.device.type == "cpu":
            return ""
        self.resting = True
        self._move(torch.device("cpu"))
        return f"what only samples need ({', '.join(there)}) waits in the CPU's memory"

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within it they can be used."""
        if not self.resting:
            yield
            return
        self._move(self.base.device)
        try:
            yield
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for part in self.parts:
            if part in self.base.parts:
                self.base.parts[part].to(device)


def image_ladder(
    plan: Plan, base: BaseModel, host: Host, pieces: Pieces, idle: IdleParts, said: list[Told],
    copies: Copies | None = None,
) -> Ladder:  # fmt: skip
    """Every measure that this run has, the one that costs least first; those that were asked for are taken at once."""
    train = plan.config.train

    def recompute() -> str:
        if train.gradient_checkpointing == "no":
            return ""
        done = [part for part in plan.rates if recompute_activations(base.parts[part])]
        return "activations are computed anew in the backward pass (gradient checkpointing)" if done else ""

    def slices() -> str:
        helps = train.attention_slicing == "yes" or attention_keeps_scores(base.device, plan.dtype)
        if train.attention_slicing == "no" or not helps or not slice_attention(base.parts["unet"]):
            return ""
        return "the attention is computed in slices"

    rungs = (
        *([copies.rung()] if copies else []),
        Rung("idle parts", idle.rest, dict),
        Rung(CHECKPOINTING, recompute, lambda: {"train.gradient_checkpointing": "yes"}),
        halving(plan.config.data.batch_size, train.gradient_accumulation_steps, pieces),
        Rung("attention slices", slices, lambda: {"train.attention_slicing": "yes"}),
        Rung("disk", lambda: plan.data.to_disk() if base.device.type == "cpu" else "", lambda: {"data.cache": "disk"}),
    )
    if train.gradient_checkpointing == "yes":
        recompute()
    if train.attention_slicing == "yes":
        slices()
    return Ladder(base.device, rungs, host.make_room, said)


def halving(batch_size: int, accumulation: int, pieces: Pieces) -> Rung:
    """Half of a micro-batch at a time, down to a single sample, with the gradient of the whole."""

    def halve() -> str:
        if pieces.count >= batch_size:
            return ""
        pieces.count = min(pieces.count * 2, batch_size)
        left = -(-batch_size // pieces.count)
        return f"micro-batches go through in pieces of {left}, which are added up to the same step"

    def instead() -> dict[str, object]:
        whole, most = batch_size * accumulation, -(-batch_size // pieces.count)
        left = next(size for size in range(most, 0, -1) if whole % size == 0)
        return {"batch_size": left, "gradient_accumulation_steps": whole // left}

    return Rung(HALVED, halve, instead)
