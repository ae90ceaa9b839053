"""LoRA files put on a base model: to go on training from one, or to draw with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, Family, Network, NetworkState, Told
from lora_trainer.jobs.plan import Plan
from lora_trainer.networks.dialects import to_state
from lora_trainer.networks.file import read_lora
from lora_trainer.networks.lora import inject
from lora_trainer.networks.start import start_from
from lora_trainer.networks.state import modules_of
from lora_trainer.networks.targets import LEVELS, canonical, choose

Targets = Literal["attention", "linear", "all"]


def starting_weights(plan: Plan, network: Network) -> Iterator[Told]:
    """Give a fresh network the weights of `network.start_from`, whatever their rank, and say what that meant."""
    path = Path(plan.config.network.start_from or "").expanduser()
    for sentence in start_from(network, _state_of(path, plan.family), seed=plan.seed, source=path.name):
        yield Told(sentence)


def put_on(base: BaseModel, family: Family, path: Path) -> Network:
    """The LoRA at `path` as layers on `base`, acting as the file says; take it off with `eject`."""
    state = _state_of(path, family)
    modules = modules_of(state)
    parts = sorted({name.partition(".")[0] for name in modules})
    widest = max(modules.values(), key=lambda weights: weights.rank)
    config = NetworkConfig(rank=widest.rank, alpha=widest.alpha, targets=_targets(base, modules))
    network = inject(base.parts, config, train_parts=parts, seed=0)
    for _ in start_from(network, state, seed=0, source=path.name):
        pass
    return network


def _state_of(path: Path, family: Family) -> NetworkState:
    tensors, _ = read_lora(path)
    return to_state(tensors, family.module_of, f"{path.name}, read as a LoRA for {family.title},")


def _targets(base: BaseModel, names: Iterable[str]) -> Targets:
    """The narrowest choice of layers that holds all of the file's modules."""
    wanted = set(names)
    for level in LEVELS[:-1]:
        parts = {name.partition(".")[0] for name in wanted}
        chosen = {f"{part}.{canonical(path)}" for part in parts for path in choose(base.parts[part], level).paths}
        if wanted <= chosen:
            return level
    return LEVELS[-1]
