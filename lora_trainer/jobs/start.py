"""LoRA files put on a base model: to go on training from one, or to draw with it."""

from __future__ import annotations

import re
from pathlib import Path

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, Family, NetworkState, Told
from lora_trainer.jobs.plan import Plan
from lora_trainer.networks.changes import Change, changes_of
from lora_trainer.networks.dialects import to_state
from lora_trainer.networks.file import read_lora
from lora_trainer.networks.network import AdaptedNetwork, inject
from lora_trainer.networks.start import start_from


def starting_weights(plan: Plan, network: AdaptedNetwork) -> list[Told]:
    """Give a fresh network the weights of `network.start_from`, whatever their rank, and say what that meant.

    To be called with the base's weights at hand, which a DoRA takes its lengths from.
    """
    path = Path(plan.config.network.start_from or "").expanduser()
    state = _state_of(path, plan.family)
    return [Told(sentence) for sentence in start_from(network, state, seed=plan.seed, source=path.name)]


def put_on(base: BaseModel, family: Family, path: Path) -> AdaptedNetwork:
    """The network at `path` as layers on `base`, acting as the file says; take it off with `eject`."""
    state = _state_of(path, family)
    changes = changes_of(state)
    parts = sorted({name.partition(".")[0] for name in changes})
    network = inject(base.parts, _config_of(changes), train_parts=parts, seed=0)
    start_from(network, state, seed=0, source=path.name)
    return network


def _config_of(changes: dict[str, Change]) -> NetworkConfig:
    """A configuration whose network has exactly these layers, each of its own size."""
    rules = {f"^{re.escape(name)}$": change for name, change in changes.items()}
    first = next(iter(changes.values()))
    sizes = {pattern: f"{change.rank or 1024}/{change.alpha or 1:.9g}" for pattern, change in rules.items()}
    widths = [change.tensors["lokr_w1"].shape for change in changes.values() if "lokr_w1" in change.tensors]
    return NetworkConfig(
        kind=first.kind,  # type: ignore[arg-type]
        layers=tuple(rules),
        ranks=tuple(f"{pattern} = {size}" for pattern, size in sizes.items()),
        factor=max((max(width) for width in widths), default=None),
    )


def _state_of(path: Path, family: Family) -> NetworkState:
    tensors, _ = read_lora(path)
    return to_state(tensors, family.module_of, f"{path.name}, read as a LoRA for {family.title},")
