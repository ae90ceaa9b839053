"""Going on from an existing file, whatever its rank, alpha and spelling were."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.networks.changes import TITLES, Change, changes_of
from lora_trainer.networks.fit import Fitted, fitted
from lora_trainer.networks.network import AdaptedNetwork


def start_from(network: AdaptedNetwork, state: NetworkState, *, seed: int, source: str) -> list[str]:
    """Give a fresh network the weights of `state`, fitted to its ranks and alphas; sentences on what that meant.

    Modules that the file lacks start fresh. A DoRA that starts from a plain LoRA takes its lengths from the base, so
    that it does the same. `source` names the file in messages. Raises PlainError, changing nothing, where a module has
    other shapes or another kind, or none of them is trained here.
    """
    fresh, given = changes_of(network.state()), changes_of(state)
    shared = [name for name in fresh if name in given]
    if not shared:
        raise PlainError(
            f"{source} cannot be started from: none of its {len(given)} modules, {next(iter(given), 'none')} for one, "
            "is trained in this run; choose other network.targets, or train the part that it is for."
        )
    generator = torch.Generator().manual_seed(seed)
    found = {name: _fitted(name, given[name], fresh[name], generator, source) for name in shared}
    whole = network.state()
    for name, fit in found.items():
        whole |= {f"{name}.{ending}": tensor for ending, tensor in fit.tensors.items()}
    network.load_state(whole)
    network.take_lengths([name for name in shared if given[name].kind == "lora"])
    return [
        f"Started from {source}: {len(shared)} of the network's {len(fresh)} modules.",
        *_left_out(given.keys() - fresh.keys(), source),
        *_rank_told(given, fresh, found),
    ]


def _fitted(name: str, given: Change, fresh: Change, generator: torch.Generator, source: str) -> Fitted:
    try:
        return fitted(given, fresh, generator)
    except PlainError as error:
        if given.kind != fresh.kind and given.kind != "lora":
            remedy = f"set network.kind: {given.kind}, or make it a plain LoRA first (export --format lora)"
        elif given.kind != fresh.kind:
            remedy = f"it holds {TITLES[given.kind]}, and the run trains {TITLES[fresh.kind]}; set network.kind: lora"
        elif fresh.kind in ("lokr", "oft") and given.shape[0] == fresh.shape[0]:
            remedy = f"set network.rank: {given.rank}, and network.factor as it was" if fresh.kind == "lokr" else (
                f"set network.rank: {given.rank}"
            )  # fmt: skip
        else:
            remedy = "choose a LoRA made for this kind of base model"
        raise PlainError(f"{source} does not fit the base model: {name} {error}; {remedy}.") from error


def _left_out(names: set[str], source: str) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names)} modules of {source}, {min(names)} for one, are not trained in this run and are left out, so it "
        "starts weaker than the file is."
    ]


def _rank_told(given: Mapping[str, Change], fresh: Mapping[str, Change], found: Mapping[str, Fitted]) -> list[str]:
    changed = [name for name in found if given[name].rank != fresh[name].rank]
    if not changed:
        return []
    before, after = (
        " and ".join(str(rank) for rank in sorted({layers[name].rank for name in changed})) for layers in (given, fresh)
    )
    errors = {name: (fit.lost / fit.total) ** 0.5 for name, fit in found.items() if fit.lost}
    if not errors:
        return [f"Its rank {before} became {after} without any change to what it does."]
    total = sum(fit.total for fit in found.values())
    error = (sum(fit.lost for fit in found.values()) / total) ** 0.5
    worst = max(errors.items(), key=lambda item: item[1])
    return [
        f"Its rank {before} became {after}, the nearest that fits: {error:.1%} of what it had learnt is lost, "
        f"at most {worst[1]:.1%} ({worst[0]})."
    ]
