"""Products with a frozen matrix on a CPU, where few rows meet many weights and reading the weights is the work.

A row is what a layer makes one output of: a word, or the patch that a pixel is made from. MKL, which torch asks for
float32, copies the weights into blocks before it multiplies; oneDNN's inner product reads them where they lie, and
takes two thirds of the time for up to some dozens of rows. That is so where a row of the matrix makes one output, as
in the forward pass; for the gradient of the input the matrix is read the other way, and only a copy of it is as fast,
turned and packed in oneDNN's own order.

Shape letters: L rows, K channels in, O channels out.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

# Measured with the layers of SD1's UNet on two cores with AVX-512. One row or two are MKL's (matrix times vector), and
# so are weights that a core's own cache holds; from some 64 rows on the arithmetic is the work, not the reading.
DIRECT_ROWS = range(4, 65)
DIRECT_WEIGHTS = 2**19
# Rows with which a packed copy is faster, and whether it is in the forward pass too: bfloat16's products are short of
# memory's speed in both directions, float32's forward is as quick on the weight as it lies.
PACKED_ROWS = {torch.float32: range(4, 33), torch.bfloat16: range(4, 257)}
PACKED_AHEAD = (torch.bfloat16,)
PACKED_WEIGHTS = 2**16  # of fewer the call itself is the work


class Layer:
    """A frozen layer whose forward is ours: a linear one, or a convolution as one."""

    def __init__(self, module: nn.Linear | nn.Conv2d) -> None:
        self.module = module
        self.direct = direct_works(module.weight.dtype)  # whether `product` may ask oneDNN
        self.rows = 0  # L at the last call
        self.ahead: Tensor | None = None  # a packed copy of the weight for the forward pass
        self.back: Tensor | None = None  # and one of the turned weight, (K, O), for the backward pass

    @property
    def frozen(self) -> bool:
        """Whether nothing of the base layer is trained, so that only the input has a gradient, and it can be read here:
        where a host has its model back for a moment, the weight that comes again may lie otherwise."""
        weight, bias = self.module.weight, self.module.bias
        readable = weight.dtype in PACKED_ROWS and weight.is_contiguous()
        return readable and not weight.requires_grad and (bias is None or not bias.requires_grad)

    @property
    def bytes(self) -> int:
        """Of the weight, and of a copy of it."""
        return self.module.weight.numel() * self.module.weight.element_size()

    @property
    def gains(self) -> bool:
        """Whether packed copies would be faster with as many rows as at the last call."""
        weight = self.module.weight
        large = weight.numel() >= PACKED_WEIGHTS
        return self.direct and self.frozen and large and self.rows in PACKED_ROWS[weight.dtype]

    def pack(self, *, ahead: bool) -> None:
        """Make the copy for the forward pass or for the backward pass; as many bytes as the weight has."""
        weight = self.module.weight.detach()
        matrix = weight.view(weight.shape[0], -1)
        if ahead:
            self.ahead = torch.ops.mkldnn._reorder_linear_weight(matrix, self.rows)
        else:
            self.back = torch.ops.mkldnn._reorder_linear_weight(matrix.t().contiguous(), self.rows)

    def linear(self, x: Tensor) -> Tensor:
        """The forward of a linear layer."""
        weight, bias = self.module.weight, self.module.bias
        if weight.dtype == torch.bfloat16:
            x = x.to(torch.bfloat16)  # as autocast has it
        self.rows = x.numel() // x.shape[-1]
        ours = self.back is not None or (self.direct and _direct(self.rows, weight))
        if not ours or not self.frozen or x.dtype != weight.dtype:
            return functional.linear(x, weight, bias)
        made: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias, self)
        return made.view(*x.shape[:-1], -1)

    def product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(L, K) and the weight (O, K) to (L, O)."""
        packed = self.ahead if _packed(rows) else None
        if packed is not None or (self.direct and _direct(rows.shape[0], weight)):
            return _direct_product(rows, weight if packed is None else packed, bias)
        return functional.linear(rows, weight, bias)


class _Linear(torch.autograd.Function):
    """A linear layer with a gradient for its input alone."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.back = layer.back
        return layer.product(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return gradient_of_rows(gradient, weight, ctx.back), None, None, None


def gradient_of_rows(gradient: Tensor, weight: Tensor, back: Tensor | None) -> Tensor:
    """(L, O) to (L, K), with the weight (O, K) or, where the rows are few enough, with the packed copy of it turned."""
    if back is not None and _packed(gradient):
        return _direct_product(gradient.contiguous(), back, None)
    return gradient @ weight


def _direct_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def _packed(rows: Tensor) -> bool:
    return rows.shape[0] in PACKED_ROWS[rows.dtype]


def _direct(rows: int, weight: Tensor) -> bool:
    return rows in DIRECT_ROWS and weight.numel() >= DIRECT_WEIGHTS and weight.dtype == torch.float32


@lru_cache(maxsize=4)
def direct_works(dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's product and packing under the names that torch.compile uses, and they are right.

    The names are not among torch's promises, and bfloat16 is not every processor's; without them everything goes the
    plain way. Whole numbers as small as these are the same in each dtype.
    """
    rows, weight, bias = (torch.arange(n, dtype=dtype) for n in (6, 12, 4))
    rows, weight = rows.view(2, 3), weight.view(4, 3)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(rows))
        made = [_direct_product(rows, each, bias) for each in (weight, packed)]
    except (AttributeError, RuntimeError, TypeError):
        return False
    return all(torch.equal(each, functional.linear(rows, weight, bias)) for each in made)
