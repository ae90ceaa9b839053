"""Frozen layers held in 8 or 4 bits a weight, and unpacked for each use; no package is needed for it.

Weights are cut into blocks of 64 with a scale each, so that an outlier spoils its neighbours only (Dettmers et al.
2021, "8-bit Optimizers via Block-wise Quantization", arXiv 2110.02861). In 8 bits the steps are even; in 4 bits they
are those of NormalFloat, of which normally distributed weights fill each alike (QLoRA, Dettmers et al. 2023, arXiv
2305.14314, section 3). For the backward pass a weight is unpacked anew, so that none is ever kept whole.
"""

# pyright: reportUnknownMemberType=false
# (torch is typed in part)

from __future__ import annotations

from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.grad import conv2d_input

Bits = Literal[8, 4]
BYTES_A_WEIGHT = {8: 1.03125, 4: 0.53125}  # the bits, and a scale of 16 bits for each block

_BLOCK = 64
_SMALLEST = 65536  # weights of a layer for which it pays: a UNet's first and last convolution stay as they are
# arXiv 2305.14314, appendix E.
_NORMAL_FLOAT = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class Packed(NamedTuple):
    """A weight of N numbers in few bits."""

    codes: Tensor  # int8 (N,), or uint8 (N / 2,) with two numbers each
    scales: Tensor  # float16 (N / 64,): the largest magnitude of each block
    shape: torch.Size
    dtype: torch.dtype  # what it is unpacked to
    meant: Tensor | None  # (256, 2): the two numbers of each byte; beside the codes, so that none is sent in a step


def suits(module: nn.Module, weight: Tensor) -> bool:
    """Whether a layer's weight can be held in few bits, and is large enough to gain by it."""
    known = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")
    return known and weight.numel() >= _SMALLEST and weight.numel() % _BLOCK == 0


def hold(module: nn.Module, weight: Tensor, bits: Bits, dtype: torch.dtype) -> None:
    """Let a linear layer or convolution hold `weight` in so few bits; `weight` reads as a tensor of `dtype` still."""
    packed = pack(weight, bits, dtype)
    del module._parameters["weight"]
    # Another class for the same object: whatever its parents hold of it, and its other attributes, stay as they are.
    cast(Any, module).__class__ = _PackedLinear if isinstance(module, nn.Linear) else _PackedConv2d
    module.register_buffer("codes", packed.codes, persistent=False)
    module.register_buffer("scales", packed.scales, persistent=False)
    module.register_buffer("meant", packed.meant, persistent=False)
    cast(Any, module).packed_as = packed.shape, packed.dtype


def pack(weight: Tensor, bits: Bits, dtype: torch.dtype) -> Packed:
    """Of any shape with a multiple of 64 numbers; on its own device."""
    blocks = weight.detach().reshape(-1, _BLOCK).float()
    # Rounded upwards, so that no number of the block lies above its scale.
    scales = (blocks.abs().amax(1) * (1 + 2**-10)).clamp(2**-24, torch.finfo(torch.float16).max).half()
    shares = blocks / scales.float()[:, None]
    if bits == 8:
        return Packed((shares * 127).round_().to(torch.int8).view(-1), scales, weight.shape, dtype, None)
    steps = torch.tensor(_NORMAL_FLOAT, device=weight.device)
    numbers = torch.bucketize(shares, (steps[1:] + steps[:-1]) / 2).to(torch.uint8).view(-1, 2)
    meant = torch.cartesian_prod(steps.to(dtype), steps.to(dtype))
    return Packed(numbers[:, 0] * 16 + numbers[:, 1], scales, weight.shape, dtype, meant)


def unpack(packed: Packed) -> Tensor:
    """The weight again, each number within half a step of what it was."""
    codes, scales, shape, dtype, meant = packed
    if meant is None:
        return (codes.to(dtype).view(-1, _BLOCK) * (scales.float() / 127).to(dtype)[:, None]).view(shape)
    return (functional.embedding(codes.int(), meant).view(-1, _BLOCK) * scales.to(dtype)[:, None]).view(shape)


class _Held(nn.Module):
    codes: Tensor
    scales: Tensor
    meant: Tensor | None
    packed_as: tuple[torch.Size, torch.dtype]

    @property
    def weight(self) -> Tensor:
        return unpack(Packed(self.codes, self.scales, *self.packed_as, self.meant))


class _PackedLinear(_Held, nn.Linear):  # pyright: ignore[reportIncompatibleVariableOverride] - read only here
    def forward(self, input: Tensor) -> Tensor:
        return _Linear.apply(input, self, self.bias)


class _PackedConv2d(_Held, nn.Conv2d):  # pyright: ignore[reportIncompatibleVariableOverride] - read only here
    def forward(self, input: Tensor) -> Tensor:
        return _Convolution.apply(input, self, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _PackedLinear, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return functional.linear(x, layer.weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype), None, None


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: _PackedConv2d, bias: Tensor | None) -> Tensor:
        ctx.layer, ctx.dtype, ctx.shape = layer, x.dtype, x.shape
        return functional.conv2d(
            x, layer.weight, bias, layer.stride, cast(Any, layer.padding), layer.dilation, layer.groups
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        layer: _PackedConv2d = ctx.layer
        back = conv2d_input(
            ctx.shape, layer.weight.to(gradient.dtype), gradient, cast(Any, layer.stride), cast(Any, layer.padding),
            cast(Any, layer.dilation), layer.groups,
        )  # fmt: skip
        return back.to(ctx.dtype), None, None
