"""The loss of a language model: how surely it tells each next token of the answers."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import Network, TextBatch
from lora_trainer.train.memory import sent

MaskForm = Literal["added", "allowed"]


class TextRows(Protocol):
    """Encoded samples that can be had one by one."""

    @property
    def samples(self) -> Sequence[object]: ...

    def batch(self, rows: Sequence[tuple[int, ...]], positions: tuple[int, ...], divisor: float) -> TextBatch:
        """The rows, each of the samples of these numbers, side by side."""
        ...


@dataclass(frozen=True)
class TextLoss:
    """Cross entropy of the learnt tokens; implements `contracts.Loss`.

    The output layer, often a third of the work of a small model, is applied only where a token is learnt.
    """

    model: nn.Module
    device: torch.device
    seed: int
    network: Network | None  # drops by row
    packed: MaskForm | None = None  # how the model takes a mask for several samples in a row; None: one sample a row

    def __call__(self, batch: TextBatch) -> Tensor:
        if self.network is not None:
            self.network.drop_by([sample_seed(self.seed, position, "dropout") for position in batch.positions])
        logits = self.logits(batch)
        targets = sent(batch.ids[batch.learnt], self.device)
        return functional.cross_entropy(logits.float(), targets, reduction="sum") / batch.divisor

    def logits(self, batch: TextBatch) -> Tensor:
        """(N, V): what the model says before each of the N learnt tokens."""
        # The first of a row is never learnt. By numbers and not by flags, which the device would have to be asked for.
        said_at = batch.learnt.roll(-1, dims=1).nonzero()  # (N, 2)
        rows, columns = sent(said_at, self.device).unbind(1)
        head = cast(nn.Module, cast(Any, self.model).get_output_embeddings())
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][rows, columns].unsqueeze(0),))
        try:
            out = self.model(input_ids=sent(batch.ids, self.device), use_cache=False, **self._apart(batch))
        finally:
            handle.remove()
        return cast(Tensor, out.logits)[0]

    def _apart(self, batch: TextBatch) -> dict[str, Tensor]:
        """What keeps the samples of a row apart. A row of one sample needs nothing: its padding comes after it, where
        no token looks."""
        if self.packed is None:
            return {}
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        mask = block_mask(sent(batch.blocks, self.device), dtype, self.packed)
        return {"attention_mask": mask, "position_ids": sent(batch.places, self.device)}


def block_mask(blocks: Tensor, dtype: torch.dtype, form: MaskForm) -> Tensor:
    """(B, 1, T, T) from the samples' numbers (B, T): a token sees itself and what stands before it in its sample.

    "added" is 0 where it sees and the lowest number elsewhere; "allowed" is 1 and 0.
    """
    same = blocks[:, :, None] == blocks[:, None, :]
    seen = same & torch.ones(blocks.shape[1], blocks.shape[1], dtype=torch.bool, device=blocks.device).tril()
    seen = seen[:, None]
    if form == "allowed":
        return seen.to(dtype)
    return torch.zeros(seen.shape, dtype=dtype, device=blocks.device).masked_fill(~seen, torch.finfo(dtype).min)


def mask_form(loss: TextLoss, together: TextBatch, apart: TextBatch) -> MaskForm | None:
    """How the model must be given the mask so that samples in one row do not see each other; None if no way works.

    Tried, not assumed: `together` holds in one row what `apart` holds in rows of their own, and the model must say
    the same of both. Architectures and releases of transformers differ in which mask they take.
    """
    with torch.no_grad():
        alone = replace(loss, packed=None)
        wanted = alone.logits(apart).float()
        leak = float((alone.logits(together).float() - wanted).abs().max())
        for form in ("added", "allowed"):
            try:
                found = replace(loss, packed=form).logits(together).float()
            except (RuntimeError, ValueError, TypeError, IndexError):  # a shape it cannot use
                continue
            near = max(1e-5 * float(wanted.abs().max()), leak / 20)  # rounding, much less than what leaks unmasked
            if bool((found - wanted).abs().max() <= near):
                return form
    return None


@dataclass(frozen=True)
class HeldOutTexts:
    """The loss on texts that are not trained on; implements `contracts.Validation`."""

    loss: TextLoss
    data: TextRows

    @property
    def count(self) -> int:
        """Samples that make up one look."""
        return len(self.data.samples)

    def measure(self, index: int) -> list[float]:
        """Mean loss of the learnt tokens of sample `index`; dropout rests."""
        batch = self.data.batch([(index,)], (index,), 1.0)
        network = self.loss.network
        with torch.no_grad(), network.scaled(1) if network else nullcontext():
            alone = replace(self.loss, packed=None, network=None)
            return [float(alone(batch)) / int(batch.learnt.sum())]
