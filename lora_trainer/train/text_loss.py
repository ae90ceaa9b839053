"""The loss of a language model: how surely it tells each next token of the answers."""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import TextBatch

MaskForm = Literal["added", "allowed"]


@dataclass(frozen=True)
class TextLoss:
    """Cross entropy of the learnt tokens; implements `contracts.Loss`.

    The output layer, often a third of the work of a small model, is applied only where a token is learnt.
    """

    model: nn.Module
    device: torch.device
    seed: int
    network_dropout: float
    packed: MaskForm | None  # how the model takes a mask for several samples in a row; None: one sample a row

    def __call__(self, batch: TextBatch) -> Tensor:
        with self._dropout_seeded(batch):
            logits = self.logits(batch)
        targets = batch.ids[batch.learnt].to(self.device)
        return functional.cross_entropy(logits.float(), targets, reduction="sum") / batch.divisor

    def logits(self, batch: TextBatch) -> Tensor:
        """(N, V): what the model says before each of the N learnt tokens."""
        said_at = batch.learnt.roll(-1, dims=1).to(self.device)  # the first of a row is never learnt
        head = cast(nn.Module, cast(Any, self.model).get_output_embeddings())
        handle = head.register_forward_pre_hook(lambda module, args: (args[0][said_at].unsqueeze(0),))
        try:
            out = self.model(input_ids=batch.ids.to(self.device), use_cache=False, **self._apart(batch))
        finally:
            handle.remove()
        return cast(Tensor, out.logits)[0]

    def _apart(self, batch: TextBatch) -> dict[str, Tensor]:
        """What keeps the samples of a row apart. A row of one sample needs nothing: its padding comes after it, where
        no token looks."""
        if self.packed is None:
            return {}
        dtype = next(p.dtype for p in self.model.parameters() if p.is_floating_point())
        mask = block_mask(batch.blocks.to(self.device), dtype, self.packed)
        return {"attention_mask": mask, "position_ids": batch.places.to(self.device)}

    def _dropout_seeded(self, batch: TextBatch) -> AbstractContextManager[None]:
        """Dropout draws from the process's random state: seed it for this batch, and give it back after."""
        if self.network_dropout == 0:
            return nullcontext()
        return _seeded(sample_seed(self.seed, batch.positions[0], "dropout"), self.device)


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


@contextmanager
def _seeded(seed: int, device: torch.device) -> Generator[None, None, None]:
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
