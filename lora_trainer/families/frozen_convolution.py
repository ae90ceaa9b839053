"""Frozen convolutions of small images as matrix products, which read each weight where and as it lies.

Before a convolution oneDNN reorders the weights into its own blocks, and again the other way round for the backward
pass. Trained weights pay for that with their size; in a LoRA step on few, small images the frozen weights are the
larger side by far, and the reordering costs as much as the arithmetic. Here the image is gathered into patches
instead (Chellapilla et al. 2006, "High performance convolutional neural networks for document processing"), and a
row of the weight, as it lies in the checkpoint, meets each patch (`frozen_product.py`). Nothing of the weights is
copied or kept, so this suits weights that are lent.

Shape letters: B images, C channels in, O channels out, (H, W) and (h, w) size before and after, (k, k) window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lora_trainer.families.frozen_product import Layer, gradient_of_rows

# Patches are worth gathering while there are at most a quarter as many as channels out: measured on the UNet of SD1,
# two cores with AVX-512, where 64 patches gain at 640 channels, and 256 lose at 320 and break even at 640.
CHANNELS_A_PATCH = 4


def suits(convolution: nn.Conv2d) -> bool:
    """Whether it is of a shape that can be a matrix product."""
    window, stride = convolution.kernel_size, convolution.stride
    return (
        window in ((1, 1), (3, 3))
        and stride[0] == stride[1]
        and convolution.padding == (window[0] // 2, window[0] // 2)
        and convolution.padding_mode == "zeros"
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def convolution(layer: Layer) -> Callable[[Tensor], Tensor]:
    """The forward of the layer's convolution."""
    module = layer.module
    assert isinstance(module, nn.Conv2d)

    def forward(x: Tensor) -> Tensor:
        weight, bias, stride = module.weight, module.bias, module.stride[0]
        layer.rows = x.shape[0] * -(-x.shape[2] // stride) * -(-x.shape[3] // stride)
        if weight.dtype == torch.bfloat16:
            x = x.to(torch.bfloat16)  # as autocast has it
        few = module.kernel_size == (1, 1) or layer.rows * CHANNELS_A_PATCH <= weight.shape[0]
        if layer.frozen and few and x.dtype == weight.dtype:
            return _Convolution.apply(x, weight, bias, stride, layer)
        # Our results have their channels last; torch would lay the weights out anew to follow.
        return functional.conv2d(x.contiguous(), weight, bias, module.stride, module.padding)

    return forward


class _Convolution(torch.autograd.Function):
    """A convolution of window 1 or 3, padded to keep its size, with a gradient for its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, layer: Layer) -> Tensor:
        """(B, C, H, W) to (B, O, h, w), channels last in memory."""
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.back = x.shape, stride, layer.back
        patches = _gather(x, weight.shape[-1], stride)
        matrix = weight.view(weight.shape[0], -1)
        made = layer.product(patches.reshape(-1, matrix.shape[1]), matrix, bias)
        return made.view(*patches.shape[:3], -1).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        """(B, O, h, w) to (B, C, H, W)."""
        (weight,) = ctx.saved_tensors
        batch, _, height, width = gradient.shape
        flat = gradient.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
        made = gradient_of_rows(flat, weight.view(weight.shape[0], -1), ctx.back)
        patches = made.view(batch, height, width, *weight.shape[1:])
        return _scatter(patches, ctx.shape, ctx.stride), None, None, None, None


def _gather(x: Tensor, window: int, stride: int) -> Tensor:
    """(B, C, H, W) to the patches (B, h, w, C k k) in the order of a weight's row."""
    last = x.permute(0, 2, 3, 1)
    if window == 3:
        last = functional.pad(last, (0, 0, 1, 1, 1, 1))
    patches = last.unfold(1, window, stride).unfold(2, window, stride)
    return patches.reshape(*patches.shape[:3], -1)


def _scatter(patches: Tensor, shape: torch.Size, stride: int) -> Tensor:
    """The reverse: patches (B, h, w, C, k, k) added up where they came from, (B, C, H, W)."""
    batch, high, wide, channels, window, _ = patches.shape
    edge = window // 2
    image = patches.new_zeros(batch, shape[2] + 2 * edge, shape[3] + 2 * edge, channels, dtype=torch.float32)
    for row in range(window):
        for column in range(window):
            image[:, row : row + stride * high : stride, column : column + stride * wide : stride] += patches[
                ..., row, column
            ]
    return image[:, edge : edge + shape[2], edge : edge + shape[3]].permute(0, 3, 1, 2).to(patches.dtype)
