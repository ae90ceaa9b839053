"""OFT (Qiu et al. 2023, arXiv 2306.07280): the base's output channels are turned, block by block, and nothing else.

W' = R^T W with R = (I + Q) (I - Q)^-1, Q = b - b^T, for each block b of neighbouring channels. Key and sides are those
of LyCORIS's Diag-OFT (KohakuBlueleaf/LyCORIS 3.x, lycoris/modules/diag_oft.py) without its constraint, which kohya's
scripts and the WebUI share (AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/network_oft.py). There is no factor
alpha / r; in these files `alpha` is the constraint, and 0 is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from lora_trainer.config.ranks import Size
from lora_trainer.networks.adapter import Acting, Adapter, exactly, weight_of, widened

BLOCKS = "oft_blocks"


class Oft(Adapter):
    """A turn of the layer's output, before its bias."""

    kind = "oft"
    endings: ClassVar[Mapping[str, str]] = {BLOCKS: BLOCKS}
    oft_blocks: nn.Parameter  # (k, n, n) with k n = out

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator
    ) -> None:
        out = weight_of(base_layer).shape[0]
        block = block_size(out, size.rank)
        super().__init__(base_layer, Size(block, 0.0), acting, index)
        self.put(BLOCKS, torch.zeros(out // block, block, block))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.acting.weight == 0:
            return result
        bias = cast("Tensor | None", getattr(self.base_layer, "bias", None))
        bare = widened(result)
        if bias is not None:
            bare = bare - (bias.to(bare.dtype) if self.window is None else bias.to(bare.dtype).view(-1, 1, 1))
        return self.added(result, self.delta(self.dropped(bare)))

    def delta(self, x: Tensor) -> Tensor:
        """What turning adds, for the layer's own output without its bias: (R^T - I) x, exactly zero at the start."""
        turn = turned(self.oft_blocks)
        count, block = turn.shape[:2]
        channel = -1 if self.window is None else 1
        kept = self.rank_kept(count, x)
        last = x.movedim(channel, -1)
        blocks = last.reshape(*last.shape[:-1], count, block)
        delta = torch.einsum("k n m, ... k n -> ... k m", turn.to(blocks.dtype), blocks)
        if kept is not None:
            delta = delta * kept.view(kept.shape[0], *[1] * (delta.dim() - 3), count, 1)
        return delta.flatten(-2).movedim(-1, channel)


def block_size(out: int, wanted: int) -> int:
    """The largest divisor of `out` up to `wanted` that leaves at least as many blocks; LyCORIS reads no larger ones."""
    return next(size for size in range(min(wanted, math.isqrt(out)), 0, -1) if out % size == 0)


def turned(blocks: Tensor) -> Tensor:
    """R - I for blocks (k, n, n), float32: 2 Q (I - Q)^-1, which is zero where the blocks are."""
    with exactly(blocks.device):
        skew = blocks.float() - blocks.float().transpose(1, 2)
        unit = torch.eye(skew.shape[1], device=skew.device)
        # Unlike `solve` it does not ask the device whether there is a solution; of I - Q, Q skew, there always is one.
        solve = cast("Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]", torch.linalg.solve_ex)  # pyright: ignore[reportUnknownMemberType]
        return 2 * solve(unit - skew, skew)[0]
