"""Updates of low rank: LoRA, its start from the base's own directions (PiSSA, OLoRA), and DoRA.

LoRA (Hu et al. 2021, arXiv 2106.09685): W + up @ down alpha / r. Convolutions have their window in `down` (LoCon).

PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775) begin with directions of W and
take them out of the frozen base. Ours must not be changed, since it may be a host's, so the first product is taken off
in the forward instead: W + (up @ down - up0 @ down0) alpha / r. That is plain LoRA of rank 2 r with `down` above
`down0` and `up` beside `-up0`, which is how it is kept and written, with twice the alpha.

DoRA (Liu et al. 2024, arXiv 2402.09353), with a length for each input channel as the WebUIs read `dora_scale`
(AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/network.py:175-194), shape (1, in[, 1, 1]):
W' = m (W + up @ down alpha / r) / |W + up @ down alpha / r|. A factor of an input channel is a factor of the layer's
input, so no weight is ever made. As in section 4.3 of the paper the norm has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.ranks import Size
from lora_trainer.networks.adapter import (
    Acting,
    Adapter,
    autocasting,
    by_channel,
    exactly,
    shape_of,
    weight_of,
    widened,
)
from lora_trainer.networks.state import ALPHA, DORA, DOWN, UP, draw_down

_OVERSAMPLED, _ITERATIONS = 10, 8  # of the search for singular directions; Halko et al. 2011 need 5 to 10 and 1 to 4


class LowRank(Adapter):
    """LoRA on a linear layer or a convolution."""

    kind = "lora"
    endings: ClassVar[Mapping[str, str]] = {"lora_down": DOWN, "lora_up": UP}
    faster: ClassVar[tuple[str, ...]] = (UP,)
    lora_down: nn.Parameter  # (r, in[, kh, kw])
    lora_up: nn.Parameter  # (out, r[, 1, 1])

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator
    ) -> None:
        super().__init__(base_layer, size, acting, index)
        shape = shape_of(base_layer)
        self.put("lora_down", draw_down((size.rank, *shape[1:]), generator))
        self.put("lora_up", torch.zeros(shape[0], size.rank, *[1] * (len(shape) - 2)))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """base(x) + up(down(x)) alpha / r; the factor is put on the narrow product, or comes free with the sum."""
        result: Tensor = self.base_layer(x, *args, **kwargs)
        weight = self.acting.weight
        if weight == 0:
            return result
        x = self.dropped(widened(x))
        onto = _in_rows(result, x, self.window)
        if onto is None or self.acting.drops_modules:
            return self.added(result, self.delta(x))
        if x.dtype != result.dtype and not autocasting(x.device.type):
            return self.added(result, self.delta(x))
        narrow = functional.linear(x if self.window is None else x.permute(0, 2, 3, 1), self.lora_down.flatten(1))
        if narrow.dtype != result.dtype:
            return self.added(result, self.delta(x))
        narrow, weights = self.thinned(narrow, None), self.acting.row_weights(narrow)
        narrow = narrow if weights is None else narrow * weights
        # Product, factor and sum in one pass over the result: a fifth of the adapter's time on a CPU.
        flat = onto.flatten(0, -2), narrow.flatten(0, -2)
        made = torch.addmm(*flat, self.lora_up.flatten(1).t(), alpha=self.scale * weight).view(onto.shape)
        return made if self.window is None else made.permute(0, 3, 1, 2)

    def delta(self, x: Tensor) -> Tensor:
        return self.widen(self.narrow(x), self.lora_up)

    def narrow(self, x: Tensor, down: Tensor | None = None) -> Tensor:
        """(B, ..., r) or (B, r, h, w), with some of the r dropped."""
        return self.thinned(self.applied(x, self.lora_down if down is None else down), self.window)

    def thinned(self, narrow: Tensor, window: tuple[int, int] | None) -> Tensor:
        """The narrow product with some of its r dropped; these are the last dimension where there is no window."""
        kept = self.rank_kept(self.size.rank, narrow)
        return narrow if kept is None else narrow * by_channel(kept, narrow, window)

    def widen(self, narrow: Tensor, up: Tensor) -> Tensor:
        """The narrow product back to the layer's output channels."""
        narrow = narrow * self.scale
        return functional.linear(narrow, up) if self.window is None else functional.conv2d(narrow, up)


def _in_rows(result: Tensor, x: Tensor, window: tuple[int, int] | None) -> Tensor | None:
    """The layer's output with its channels last, as products with them want it; None where that would be a copy.

    A window of one pixel is a product for each pixel, and on a CPU several times as slow as a convolution.
    """
    if window is None:
        return result
    a_pixel = window == (1, 1) and result.shape[2:] == x.shape[2:] and result.device.type == "cpu"
    turned = result.permute(0, 2, 3, 1) if a_pixel else None
    return turned if turned is not None and turned.is_contiguous() else None


class Departing(LowRank):
    """LoRA that starts from directions of the base and tells only how far it has gone from there."""

    down0: Tensor
    up0: Tensor

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator, *, init: str
    ) -> None:
        super().__init__(base_layer, size, acting, index, generator)
        weight = weight_of(base_layer).detach().float().flatten(1)
        found = _principal(weight, size.rank, generator) if init == "pissa" else _orthogonal(weight, size.rank)
        up, down = (factor / abs(self.scale) ** 0.5 for factor in found)
        with torch.no_grad():  # a layer narrower than the rank has fewer directions: the others start fresh
            self.lora_down[: len(down)] = down.reshape(-1, *self.lora_down.shape[1:])
            self.lora_up[:, : len(down)] = up.reshape(self.lora_up.shape[0], -1, *self.lora_up.shape[2:])
        self.register_buffer("down0", self.lora_down.detach().clone())
        self.register_buffer("up0", self.lora_up.detach().clone())

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Both products are made alike and then subtracted: at the start nothing at all is left, not even rounding.
        return Adapter.forward(self, x, *args, **kwargs)

    def delta(self, x: Tensor) -> Tensor:
        gone = self.widen(self.narrow(x), self.lora_up)
        return gone - self.widen(self.narrow(x, self.down0), self.up0)

    def stored(self) -> dict[str, Tensor]:
        plain = super().stored()
        return {
            DOWN: torch.cat([plain[DOWN], self.down0.cpu()]),
            UP: torch.cat([plain[UP], -self.up0.cpu()], dim=1),
            ALPHA: plain[ALPHA] * 2,
        }

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        rank = self.size.rank
        super().restore({DOWN: stored[DOWN][:rank], UP: stored[UP][:, :rank]})
        self.down0.copy_(stored[DOWN][rank:])
        self.up0.copy_(-stored[UP][:, rank:])


class Dora(LowRank):
    """LoRA of the direction, and a length for each input channel."""

    kind = "dora"
    endings: ClassVar[Mapping[str, str]] = {**LowRank.endings, "length": DORA}
    length: nn.Parameter  # (1, in[, 1, 1])

    def __init__(
        self, base_layer: nn.Module, size: Size, acting: Acting, index: int, generator: torch.Generator
    ) -> None:
        super().__init__(base_layer, size, acting, index, generator)
        self.put("length", self.norm())

    def norm(self) -> Tensor:
        """Length of each input channel of W + up @ down alpha / r, (1, in[, 1, 1])."""
        with torch.no_grad(), exactly(self.lora_down.device):
            norm = column_norm(directed(weight_of(self.base_layer), self.lora_down, self.lora_up, self.scale))
        return norm.clamp_min(torch.finfo(norm.dtype).tiny)  # of a channel that the base does not use at all

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = self.acting.weight
        if weight == 0:
            return self.base_layer(x, *args, **kwargs)
        factor = self.length / self.norm()
        factor = factor if self.window else factor.view(-1)
        kept = self.module_kept(x)
        if kept is not None:
            factor = torch.where(kept.bool(), factor, torch.ones_like(factor))
        scaled = x * factor  # in float32 at least
        result: Tensor = self.base_layer(scaled.to(x.dtype), *args, **kwargs)
        delta = self.delta(self.dropped(scaled if not autocasting(x.device.type) else scaled.to(x.dtype)))
        if kept is not None:
            delta = delta * kept.view(-1, *[1] * (delta.dim() - 1))
        adapted = result + delta.to(result.dtype)
        rows = self.acting.row_weights(adapted)
        if weight == 1 and rows is None:
            return adapted
        plain: Tensor = self.base_layer(x, *args, **kwargs)
        return plain + (adapted - plain) * (weight if rows is None else weight * rows)


class RowDora(Dora):
    """LoRA of the direction, and a length for each output of a linear layer, (out, 1), as peft's DoRA and the servers
    of language models have it (huggingface/peft, tuners/lora/dora.py)."""

    def norm(self) -> Tensor:
        """Length of each row of W + up @ down alpha / r, (out, 1)."""
        with torch.no_grad(), exactly(self.lora_down.device):
            whole = directed(weight_of(self.base_layer), self.lora_down, self.lora_up, self.scale)
            norm = whole.square().sum(dim=1, keepdim=True).sqrt()
        return norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight = self.acting.weight
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if weight == 0:
            return result
        bias = cast("Tensor | None", self.base_layer.bias)
        plain = result if bias is None else result - bias
        delta = self.delta(self.dropped(widened(x)))
        factor = (self.length / self.norm()).view(-1)
        kept = self.module_kept(result)
        change = (plain + delta) * factor - plain
        if kept is not None:
            change = change * kept
        return result + (change * weight).to(result.dtype)


def directed(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + up @ down alpha / r in float32, in the shape of W."""
    flat = (each.detach().float().flatten(1) for each in (weight, up, down))
    return torch.addmm(*flat, alpha=scale).view(weight.shape)


def column_norm(weight: Tensor) -> Tensor:
    """Length of each input channel of (out, in[, kh, kw]), over outputs and window: (1, in[, 1, 1])."""
    others = (0, *range(2, weight.dim()))
    return weight.square().sum(dim=others, keepdim=True).sqrt()


def _principal(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Factors (out, q) and (q, in) of the q <= rank largest singular directions, the root of the values on either side.

    Found by subspace iteration (Halko, Martinsson and Tropp 2011, arXiv 0909.4061, algorithm 4.4) from a start of the
    run's generator: a whole decomposition of a wide layer takes seconds, and how exact the directions are decides how
    well it starts, not whether the start changes the base.
    """
    wanted = min(rank + _OVERSAMPLED, *weight.shape)
    start = torch.randn(weight.shape[1], wanted, generator=generator).to(weight.device)
    basis = _qr(weight @ start)[0]
    for _ in range(_ITERATIONS):
        basis = _qr(weight @ _qr(weight.T @ basis)[0])[0]
    svd = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", torch.linalg.svd)  # pyright: ignore[reportUnknownMemberType]
    left, values, right = svd(basis.T @ weight, full_matrices=False)
    kept = min(rank, wanted)
    root = values[:kept].sqrt()
    return (basis @ left[:, :kept]) * root, right[:kept] * root[:, None]


def _orthogonal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Factors (out, q) and (q, in) from the first q <= rank columns of Q and rows of R; OLoRA, section 3."""
    q, r = _qr(weight)
    return q[:, :rank], r[:rank]


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    qr = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.qr)  # pyright: ignore[reportUnknownMemberType]
    return qr(matrix)
