"""A file of any kind as a plain LoRA, which every host, diffusers and every tool reads."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.jobs.base_weights import BaseWeights
from lora_trainer.jobs.lora_files import LoraFile
from lora_trainer.networks.changes import Change, changes_of
from lora_trainer.networks.resize import filled, resized
from lora_trainer.networks.state import ModuleWeights, as_state
from lora_trainer.networks.targets import window_of_path


class Plain(NamedTuple):
    """A state of plain LoRA, and how far it is from what it was made of."""

    state: NetworkState
    error: float  # |lost| / |all| of the change, Frobenius, over all modules
    worst: tuple[str, float]  # the module that lost most


def plain_lora(lora: LoraFile, rank: int, base: Path | None, source: str) -> Plain:
    """What `making_plain` returns, in one go."""
    making = making_plain(lora, rank, base, source)
    while True:
        try:
            next(making)
        except StopIteration as made:
            return made.value


def making_plain(
    lora: LoraFile, rank: int, base: Path | None, source: str
) -> Generator[tuple[int, int], None, Plain]:
    """Every module's change as up @ down of `rank` and alpha = rank: the nearest in the Frobenius norm.

    Yields how many modules are done, and of how many, before the first and after each.

    The change of a DoRA or an OFT depends on the base's weights, so `base` names the checkpoint it was trained on.
    Raises PlainError where it is missing or does not fit.
    """
    changes = changes_of(lora.state)
    needing = next((name for name, change in changes.items() if change.needs_base), None)
    if needing and base is None:
        kind = changes[needing].kind
        raise PlainError(
            f"{source} is of the kind {kind}, whose change depends on the base's weights; name the checkpoint that it "
            "was trained on with --base."
        )
    weights = BaseWeights(base) if base and needing else None
    modules: dict[str, ModuleWeights] = {}
    errors: dict[str, tuple[float, float]] = {}
    yield 0, len(changes)
    for done, (name, change) in enumerate(changes.items(), 1):
        weight = weights.weight(name, change, source) if weights else None
        modules[name], *squares = _nearest(name, change, weight, rank)
        errors[name] = (squares[0], squares[1])
        yield done, len(changes)
    lost, total = (sum(column) for column in zip(*errors.values(), strict=True))
    each = {name: (gone / whole) ** 0.5 if whole else 0.0 for name, (gone, whole) in errors.items()}
    worst = max(each.items(), key=lambda item: item[1])
    return Plain(as_state(modules), (lost / total) ** 0.5 if total else 0.0, worst)


def _nearest(name: str, change: Change, weight: Tensor | None, rank: int) -> tuple[ModuleWeights, float, float]:
    """The module at that rank, and the squared norms of what is lost and of all there was."""
    if change.kind == "lora":
        return resized(change.plain(), rank, float(rank), torch.Generator().manual_seed(0))
    matrix = change.delta(weight).double().flatten(1)
    window = tuple(weight.shape[2:]) if weight is not None else window_of_path(name)
    left = _leading(matrix, rank)
    down = left.T @ matrix  # the change within those directions: by Eckart and Young 1936 none is nearer
    length = down.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    # The root goes to either side, so that neither factor reaches what half precision cannot hold.
    up, down = left * length.sqrt(), down / length.sqrt()[:, None]
    weights = ModuleWeights(
        filled(down, rank, 0).float().reshape(rank, -1, *window),
        filled(up, rank, 1).float().reshape(-1, rank, *[1] * len(window)),
        float(rank),
    )
    total = float(matrix.square().sum())
    return weights, max(0.0, total - float(length.square().sum())), total


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """(out, q) of the q <= rank leading left singular directions: eigenvectors of the smaller of the two squares."""
    tall = matrix.shape[0] > matrix.shape[1]
    square = matrix.T @ matrix if tall else matrix @ matrix.T
    eigh = cast("Callable[[Tensor], tuple[Tensor, Tensor]]", torch.linalg.eigh)
    vectors = eigh(square)[1][:, -rank:].flip(1)  # in rising order
    if not tall:
        return vectors
    sides = matrix @ vectors
    return sides / sides.norm(dim=0).clamp_min(torch.finfo(torch.float32).tiny)
