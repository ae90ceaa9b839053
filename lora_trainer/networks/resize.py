"""Another rank for a trained LoRA: the same change of the weights with more room, or the nearest one with less.

Shape letters: r rank as it is, R rank as wanted, `in` and `out` channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lora_trainer.contracts import NetworkState
from lora_trainer.networks.state import ModuleWeights, as_state, draw_down, modules_of


class Resized(NamedTuple):
    """A state of the wanted rank and alpha, and what was lost on the way."""

    state: NetworkState
    errors: Mapping[str, float]  # by module whose rank fell: |lost| / |all| of its change, Frobenius
    error: float  # the same over all modules together


def resize(state: NetworkState, rank: int, alpha: float, generator: torch.Generator) -> Resized:
    """Bring every module to `rank` and `alpha`, float32, keeping the change of the base's weights.

    Upwards it is kept exactly: new rows of down are drawn as for a fresh network, so that they can learn, and their
    columns of up are zero. Downwards the nearest change in the Frobenius norm is taken (Eckart and Young 1936). A
    factor alpha / r that differs is multiplied into up, exact where the ratio is a power of two and rounded once
    elsewhere.
    """
    modules: dict[str, ModuleWeights] = {}
    errors: dict[str, float] = {}
    lost = total = 0.0
    for name, weights in modules_of(state).items():
        modules[name], tail, whole = resized(weights, rank, alpha, generator)
        if weights.rank > rank:
            errors[name] = (tail / whole) ** 0.5 if whole else 0.0
        lost, total = lost + tail, total + whole
    return Resized(as_state(modules), errors, (lost / total) ** 0.5 if total else 0.0)


def resized(
    weights: ModuleWeights, rank: int, alpha: float, generator: torch.Generator
) -> tuple[ModuleWeights, float, float]:
    """One module as `resize` does it, and the squared norms of what is lost of its change and of all there was."""
    if weights.rank <= rank:
        return _grown(weights, rank, alpha, generator), 0.0, weights.norm() ** 2
    return _shrunk(weights, rank, alpha)


def _grown(weights: ModuleWeights, rank: int, alpha: float, generator: torch.Generator) -> ModuleWeights:
    down, up = weights.down.float(), weights.up.float()
    ratio = weights.scale / (alpha / rank)
    if ratio != 1:
        up = up * ratio
    new = rank - weights.rank
    if new:
        down = torch.cat([down, draw_down((new, *down.shape[1:]), generator)])
        up = torch.cat([up, up.new_zeros(up.shape[0], new, *up.shape[2:])], dim=1)
    return ModuleWeights(down.clone(), up.clone(), alpha)


def _shrunk(weights: ModuleWeights, rank: int, alpha: float) -> tuple[ModuleWeights, float, float]:
    """The module at the lower rank, and the squared Frobenius norms of what is lost and of all there was.

    The SVD of up @ down is found in the r x r product of the triangles of both factors' QR, which is exact and small
    where the product itself would be (out, in).
    """
    down, up = weights.down.double(), weights.up.double()
    q_up, r_up = _qr(up.flatten(1))
    q_down, r_down = _qr(down.flatten(1).T)
    left, values, right = _svd(r_up @ r_down.T * weights.scale)
    # The root goes to either side, so that neither factor's gradients dwarf the other's.
    kept = (values[:rank] / (alpha / rank)).sqrt()
    new_up, new_down = (q_up @ left[:, :rank]) * kept, (q_down @ right[:rank].T) * kept
    resized = ModuleWeights(
        filled(new_down.T, rank, 0).reshape(rank, *down.shape[1:]).float(),
        filled(new_up, rank, 1).reshape(up.shape[0], rank, *up.shape[2:]).float(),
        alpha,
    )
    return resized, float(values[rank:].square().sum()), float(values.square().sum())


def _qr(matrix: Tensor) -> tuple[Tensor, Tensor]:
    qr = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.qr)  # pyright: ignore[reportUnknownMemberType]
    return qr(matrix)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    svd = cast("Callable[..., tuple[Tensor, Tensor, Tensor]]", torch.linalg.svd)  # pyright: ignore[reportUnknownMemberType]
    return svd(matrix, full_matrices=False)


def filled(factor: Tensor, rank: int, dim: int) -> Tensor:
    """Zeros up to `rank`, for a layer so narrow that its change has fewer singular values than that."""
    missing = rank - factor.shape[dim]
    if missing <= 0:
        return factor.contiguous()
    shape = list(factor.shape)
    shape[dim] = missing
    return torch.cat([factor, factor.new_zeros(shape)], dim=dim)
