"""The stored weights of one layer brought to the size that a run trains them in, kind by kind.

What the layer does stays the same where the new size has room for it, and is the nearest otherwise: for low-rank
products the nearest in the Frobenius norm, for a LoHa the product of its two nearest factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora_trainer.contracts import PlainError
from lora_trainer.networks.changes import Change
from lora_trainer.networks.hadamard import W1_A, W1_B, W2_A, W2_B, hadamard
from lora_trainer.networks.kronecker import W1, W2
from lora_trainer.networks.kronecker import W2_A as LOKR_A
from lora_trainer.networks.kronecker import W2_B as LOKR_B
from lora_trainer.networks.orthogonal import BLOCKS
from lora_trainer.networks.resize import resized
from lora_trainer.networks.state import DORA, DOWN, UP, ModuleWeights


class Fitted(NamedTuple):
    """A layer's weights in the new size; what was lost of its change, and all there was, as squared norms."""

    tensors: dict[str, Tensor]  # without alpha
    lost: float = 0.0
    total: float = 0.0


def fitted(given: Change, fresh: Change, generator: torch.Generator) -> Fitted:
    """`given` in the shapes and with the alpha of `fresh`, which is a new layer of the same kind; float32.

    A plain LoRA also fits a DoRA; its lengths have to be taken from the base then. Raises PlainError, beginning with a
    verb, where the shapes cannot be brought together.
    """
    if given.kind != fresh.kind and (given.kind, fresh.kind) != ("lora", "dora"):
        raise PlainError(f"is of the kind {given.kind}")
    outer = [sides for sides in zip(given.shape, fresh.shape, strict=True) if None not in sides]
    if any(one != other for one, other in outer):
        raise PlainError(f"is {given.shape} there and {fresh.shape} here")
    if fresh.kind in ("lora", "dora"):
        return _low_rank(given, fresh, generator)
    by_kind = {"loha": _hadamard, "lokr": _kronecker, "oft": _orthogonal}
    return by_kind[fresh.kind](given, fresh, generator)


def _low_rank(given: Change, fresh: Change, generator: torch.Generator) -> Fitted:
    like, plain = fresh.plain(), given.plain()
    # A linear layer's weights may stand as 1x1 windows in the file.
    down = plain.down.reshape(plain.rank, *like.down.shape[1:])
    up = plain.up.reshape(-1, plain.rank, *like.up.shape[2:])
    weights, lost, total = resized(ModuleWeights(down, up, plain.alpha), like.rank, like.alpha, generator)
    tensors = {DOWN: weights.down, UP: weights.up}
    if fresh.kind == "dora":
        length = given.tensors.get(DORA, fresh.tensors[DORA])
        tensors[DORA] = length.float().reshape(fresh.tensors[DORA].shape)
    return Fitted(tensors, lost, total)


def _hadamard(given: Change, fresh: Change, generator: torch.Generator) -> Fitted:
    tensors: dict[str, Tensor] = {}
    for a, b in ((W1_A, W1_B), (W2_A, W2_B)):
        tensors[a], tensors[b] = _product(given.tensors, a, b, fresh.rank, generator)
    tensors[W2_A] = tensors[W2_A] * (given.scale / fresh.scale)
    if fresh.rank >= given.rank:
        return Fitted(tensors)
    before, after = given.delta().double(), hadamard(*(tensors[n] for n in (W1_A, W1_B, W2_A, W2_B))) * fresh.scale
    return Fitted(tensors, float((after - before).square().sum()), float(before.square().sum()))


def _kronecker(given: Change, fresh: Change, generator: torch.Generator) -> Fitted:
    first = given.tensors[W1] if W1 in given.tensors else given.tensors["lokr_w1_a"] @ given.tensors["lokr_w1_b"]
    first = first.float()
    if first.shape != fresh.tensors[W1].shape:
        raise PlainError(
            f"is split at {tuple(first.shape)} there and at {tuple(fresh.tensors[W1].shape)} here, as network.factor "
            "decides"
        )
    ratio = given.scale / fresh.scale
    if W2 in fresh.tensors:
        pair = (given.tensors[name].float() for name in (LOKR_A, LOKR_B)) if LOKR_A in given.tensors else None
        whole = torch.mm(*pair) if pair else given.tensors[W2].float()
        return Fitted({W1: first, W2: (whole * ratio).reshape(fresh.tensors[W2].shape)})
    if W2 in given.tensors:
        whole = given.tensors[W2].float().flatten(1)
        pair = ModuleWeights(torch.eye(whole.shape[1]), whole, float(whole.shape[1]))
    else:
        rank = given.tensors[LOKR_B].shape[0]
        pair = ModuleWeights(given.tensors[LOKR_B].float(), given.tensors[LOKR_A].float(), float(rank))
    weights, lost, total = resized(pair, fresh.rank, float(fresh.rank), generator)
    share = float(first.double().square().sum())  # the norm of a Kronecker product is the product of the norms
    tensors = {W1: first, LOKR_A: weights.up * ratio, LOKR_B: weights.down}
    return Fitted(tensors, lost * share, total * share)


def _orthogonal(given: Change, fresh: Change, generator: torch.Generator) -> Fitted:
    blocks = given.tensors[BLOCKS].float()
    old, new = blocks.shape[1], fresh.rank
    if new % old:
        raise PlainError(f"is turned in blocks of {old} there and of {new} here, and blocks can only be joined")
    # A block-diagonal skew matrix is turned block by block: several old blocks are one new block with zeros around.
    count = new // old
    joined = torch.zeros(len(blocks) // count, new, new)
    for place, block in enumerate(blocks):
        corner = place % count * old
        joined[place // count, corner : corner + old, corner : corner + old] = block
    return Fitted({BLOCKS: joined})


def _product(
    tensors: Mapping[str, Tensor], up: str, down: str, rank: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The factors of up @ down at another rank."""
    left, right = tensors[up].float().flatten(1), tensors[down].float().flatten(1)
    weights, _, _ = resized(ModuleWeights(right, left, float(right.shape[0])), rank, float(rank), generator)
    return weights.up, weights.down
