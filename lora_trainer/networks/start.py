"""Going on from an existing LoRA, whatever its rank, alpha and spelling were."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from lora_trainer.contracts import Network, NetworkState, PlainError
from lora_trainer.networks.resize import resize
from lora_trainer.networks.state import ModuleWeights, as_state, modules_of


def start_from(network: Network, state: NetworkState, *, seed: int, source: str) -> list[str]:
    """Give a fresh network the weights of `state`, fitted to its rank and alpha; sentences on what that meant.

    Modules that the file lacks start fresh. `source` names the file in messages. Raises PlainError, changing
    nothing, where a module has other shapes or none of them is trained here.
    """
    fresh, given = modules_of(network.state()), modules_of(state)
    shared = {name: _shaped(name, given[name], fresh[name], source) for name in fresh if name in given}
    if not shared:
        raise PlainError(
            f"{source} cannot be started from: none of its {len(given)} modules, {next(iter(given), 'none')} for one, "
            "is trained in this run; choose other network.targets, or train the part that it is for."
        )
    generator = torch.Generator().manual_seed(seed)
    resized = resize(as_state(shared), network.rank, network.alpha, generator)
    network.load_state(as_state({**fresh, **modules_of(resized.state)}))
    return [
        f"Started from {source}: {len(shared)} of the network's {len(fresh)} modules.",
        *_left_out(given.keys() - fresh.keys(), source),
        *_rank_told({weights.rank for weights in shared.values()}, network.rank, resized.errors, resized.error),
    ]


def _left_out(names: set[str], source: str) -> list[str]:
    if not names:
        return []
    return [
        f"{len(names)} modules of {source}, {min(names)} for one, are not trained in this run and are left out, so it "
        "starts weaker than the file is."
    ]


def _rank_told(ranks: set[int], rank: int, errors: Mapping[str, float], error: float) -> list[str]:
    if ranks == {rank}:
        return []
    from_ranks = " and ".join(str(r) for r in sorted(ranks))
    if not errors:
        return [f"Its rank {from_ranks} became {rank} without any change to what it does."]
    worst = max(errors.items(), key=lambda item: item[1])
    return [
        f"Its rank {from_ranks} became {rank}, the nearest that fits: {error:.1%} of what it had learnt is lost, "
        f"at most {worst[1]:.1%} ({worst[0]})."
    ]


def _shaped(name: str, given: ModuleWeights, fresh: ModuleWeights, source: str) -> ModuleWeights:
    """The given weights in the layer's own shapes: a linear layer's may stand as 1x1 windows in the file."""
    down_shape = (given.rank, *fresh.down.shape[1:])
    up_shape = (given.up.shape[0], given.rank, *fresh.up.shape[2:])
    same = given.down[0].numel() == fresh.down[0].numel() and given.up.shape[0] == fresh.up.shape[0]
    if not same or (given.down.dim() == fresh.down.dim() and given.down.shape[1:] != fresh.down.shape[1:]):
        raise PlainError(
            f"{source} does not fit the base model: {name} is ({given.up.shape[0]}, {given.down[0].numel()}) there and "
            f"({fresh.up.shape[0]}, {fresh.down[0].numel()}) here; choose a LoRA made for this kind of base model."
        )
    return ModuleWeights(given.down.reshape(down_shape), given.up.reshape(up_shape), given.alpha)
