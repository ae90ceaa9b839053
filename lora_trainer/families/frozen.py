"""The frozen layers of a part on a CPU, each computed in the way that is quickest for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from lora_trainer.families.frozen_convolution import convolution, suits
from lora_trainer.families.frozen_product import PACKED_AHEAD, Layer


@dataclass
class Hastened:
    """The layers of a part whose forward is ours, in the part's order; and the packed copies of their weights."""

    layers: list[Layer]

    @property
    def bytes(self) -> int:
        """Of all the layers' weights."""
        return sum(layer.bytes for layer in self.layers)

    def worth_packing(self) -> list[tuple[Layer, bool]]:
        """The copies, layer and whether for the forward pass, that are faster with the rows of the last pass; where
        most is gained by a byte first.

        A backward pass gains more than a forward pass; and what is read costs the same for each byte, so that the
        fewest rows gain most of the whole, then the largest weight.
        """
        few = sorted((layer for layer in self.layers if layer.gains), key=lambda layer: (layer.rows, -layer.bytes))
        ahead = [layer for layer in few if layer.module.weight.dtype in PACKED_AHEAD]
        return [*((layer, False) for layer in few), *((layer, True) for layer in ahead)]

    def pack(self, count: int) -> int:
        """Make the first so many of the copies that are worth it; the bytes that they take."""
        chosen = self.worth_packing()[:count]
        for layer, ahead in chosen:
            layer.pack(ahead=ahead)
        return sum(layer.bytes for layer, _ in chosen)

    @property
    def packed(self) -> int:
        """How many copies there are."""
        return sum((layer.ahead is not None) + (layer.back is not None) for layer in self.layers)

    def let_go(self) -> bool:
        """Drop all copies; whether there were any."""
        held = self.packed > 0
        for layer in self.layers:
            layer.ahead = layer.back = None
        return held

    def end(self) -> None:
        """Give the layers their own forward back: a module and a forward that knows it would keep each other, and the
        weights, in memory until Python looks for such circles."""
        self.let_go()
        for layer in self.layers:
            vars(layer.module).pop("forward", None)
        self.layers.clear()


def hasten(part: nn.Module) -> Hastened:
    """Let frozen float32 and bfloat16 layers of `part` be computed where their weights lie, where that is faster.

    For a CPU. The results agree with torch's own within rounding and are the same in each run. The decision falls anew
    for each size; a layer whose weight is trained stays torch's. No weight is copied but by `Hastened.pack`.
    """
    layers: list[Layer] = []
    for module in part.modules():
        if not _plain(module):
            continue
        if isinstance(module, nn.Conv2d) and suits(module):
            layer = Layer(module)
            cast(Any, module).forward = convolution(layer)
        elif isinstance(module, nn.Linear):
            layer = Layer(module)
            cast(Any, module).forward = layer.linear
        else:
            continue
        layers.append(layer)
    return Hastened(layers)


def _plain(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")  # none where it is unpacked from few bits for each use
    return (
        weight is not None
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.is_contiguous()
        and "forward" not in vars(module)  # else its weights are lent in another precision
    )
