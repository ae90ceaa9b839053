"""LoKr (Yeh et al. 2023, LyCORIS, arXiv 2309.14859): the Kronecker product of a small matrix and a larger one.

W + w1 (x) w2 alpha / r, where w2 is a product of rank r, w2_a @ w2_b, or whole where that would be no smaller. Names,
sizes and first weights are LyCORIS's (KohakuBlueleaf/LyCORIS 3.x, lycoris/modules/lokr.py), without its Tucker form;
where w2 is whole there is no rank, and LyCORIS and the WebUIs take the factor alpha / r for one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.ranks import Size
from lora_trainer.networks.adapter import Acting, Adapter, by_channel, weight_of
from lora_trainer.networks.state import draw_down

W1, W2, W2_A, W2_B = "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"


class Lokr(Adapter):
    """A Kronecker product; the update's weight is never made, its two factors act one after the other."""

    kind = "lokr"
    endings: ClassVar[Mapping[str, str]] = {name: name for name in (W1, W2, W2_A, W2_B)}
    lokr_w1: nn.Parameter  # (out_m, in_m)
    lokr_w2: nn.Parameter | None  # (out_n, in_n[, kh, kw])
    lokr_w2_a: nn.Parameter | None  # (out_n, r)
    lokr_w2_b: nn.Parameter | None  # (r, in_n kh kw)

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator,
        *, factor: int | None,
    ) -> None:  # fmt: skip
        super().__init__(base_layer, size, acting, index)
        out, width, *window = weight_of(base_layer).shape
        (out_m, out_n), (in_m, in_n) = split(out, factor), split(width, factor)
        self._second = (out_n, in_n, *window)
        self.put(W1, draw_down((out_m, in_m), generator))
        if size.rank >= max(out_n, in_n) / 2:
            self.scale = 1.0
            self.lokr_w2_a = self.lokr_w2_b = None
            self.put(W2, torch.zeros(self._second))
            return
        self.lokr_w2 = None
        self.put(W2_A, draw_down((out_n, size.rank), generator))
        self.put(W2_B, torch.zeros(size.rank, in_n * math.prod(window)))

    def delta(self, x: Tensor) -> Tensor:
        second = self.second() * self.scale
        out_m, in_m = self.lokr_w1.shape
        if self.window is None:
            parts = functional.linear(x.reshape(*x.shape[:-1], in_m, -1), second)  # (..., in_m, out_n)
            delta = functional.linear(parts.transpose(-1, -2), self.lokr_w1).transpose(-1, -2).flatten(-2)
        else:
            rows, channels, *size = x.shape
            parts = self.applied(x.reshape(rows * in_m, channels // in_m, *size), second)  # (B in_m, out_n, h, w)
            shape = parts.shape[1:]
            mixed = self.lokr_w1 @ parts.reshape(rows, in_m, -1)  # (B, out_m, out_n h w)
            delta = mixed.view(rows, out_m * shape[0], *shape[1:])
        kept = self.rank_kept(weight_of(self.base_layer).shape[0], delta)
        return delta if kept is None else delta * by_channel(kept, delta, self.window)

    def second(self) -> Tensor:
        """The larger factor, (out_n, in_n[, kh, kw])."""
        if self.lokr_w2_a is None or self.lokr_w2_b is None:
            assert self.lokr_w2 is not None
            return self.lokr_w2
        return (self.lokr_w2_a @ self.lokr_w2_b).view(self._second)


def split(channels: int, factor: int | None) -> tuple[int, int]:
    """(m, n) with m n = channels and m <= n: m as large as can be, up to `factor` where there is one."""
    highest = min(math.isqrt(channels), factor or channels)
    smaller = next(m for m in range(highest, 0, -1) if channels % m == 0)
    return smaller, channels // smaller


def kronecker(first: Tensor, second: Tensor) -> Tensor:
    """first (out_m, in_m) (x) second (out_n, in_n[ kh kw]) or (out_n, in_n, kh, kw)."""
    for _ in range(second.dim() - 2):
        first = first.unsqueeze(-1)
    return torch.kron(first, second.contiguous())
