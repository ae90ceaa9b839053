"""LoHa (Hyeon-Woo et al. 2021, FedPara, arXiv 2108.06098): an update of rank up to r squared from two of rank r.

W + (w1_a @ w1_b) * (w2_a @ w2_b) alpha / r, the stars multiplied value by value. Names and first weights are
LyCORIS's (KohakuBlueleaf/LyCORIS 3.x, lycoris/modules/loha.py): b normal, w1_a a tenth of that, w2_a zero. A
convolution's window is flattened into the columns, which is LyCORIS without its Tucker form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from lora_trainer.config.ranks import Size
from lora_trainer.networks.adapter import Acting, Adapter, by_channel, exactly, weight_of

W1_A, W1_B, W2_A, W2_B = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"


class Loha(Adapter):
    """The product, value by value, of two low-rank matrices."""

    kind = "loha"
    endings: ClassVar[Mapping[str, str]] = {name: name for name in (W1_A, W1_B, W2_A, W2_B)}
    hada_w1_a: nn.Parameter  # (out, r)
    hada_w1_b: nn.Parameter  # (r, in kh kw)
    hada_w2_a: nn.Parameter
    hada_w2_b: nn.Parameter

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator
    ) -> None:
        super().__init__(base_layer, size, acting, index)
        rows, columns = weight_of(base_layer).flatten(1).shape
        self.put(W1_A, torch.randn(rows, size.rank, generator=generator) * 0.1)
        self.put(W1_B, torch.randn(size.rank, columns, generator=generator))
        self.put(W2_A, torch.zeros(rows, size.rank))
        self.put(W2_B, torch.randn(size.rank, columns, generator=generator))

    def delta(self, x: Tensor) -> Tensor:
        # The three matrices of the base's size are made anew in the backward pass: kept, they would be thrice the
        # memory of the whole base.
        weights = (self.hada_w1_a, self.hada_w1_b, self.hada_w2_a, self.hada_w2_b)
        again = cast(Any, checkpoint).checkpoint
        delta: Tensor = again(self._of_weights, x, *weights, use_reentrant=False, preserve_rng_state=False)
        kept = self.rank_kept(delta.shape[-1] if self.window is None else delta.shape[1], delta)
        return delta if kept is None else delta * by_channel(kept, delta, self.window)

    def _of_weights(self, x: Tensor, w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
        with exactly(x.device):
            weight = hadamard(w1_a, w1_b, w2_a, w2_b) * self.scale
        return self.applied(x, weight.view(weight_of(self.base_layer).shape))


def hadamard(w1_a: Tensor, w1_b: Tensor, w2_a: Tensor, w2_b: Tensor) -> Tensor:
    """(w1_a @ w1_b) * (w2_a @ w2_b), (out, in kh kw)."""
    return (w1_a @ w1_b) * (w2_a @ w2_b)
