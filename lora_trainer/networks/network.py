"""A network of any kind: layers put on a base model, and taken off again by our own hand.

Layers are put in the place of the base's own, which stay inside of them as they are: nothing of the base is written to
or copied. The initial weights come from a generator of the run, so that the same seed gives the same network and the
process's random state, which the host uses for its images, is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.config.ranks import Size, rule_of, size_of, unused
from lora_trainer.contracts import NetworkState, ParameterGroup, PlainError
from lora_trainer.networks.adapter import Acting, Adapter
from lora_trainer.networks.hadamard import Loha
from lora_trainer.networks.kronecker import Lokr
from lora_trainer.networks.low_rank import Departing, Dora, LowRank
from lora_trainer.networks.orthogonal import Oft
from lora_trainer.networks.state import ALPHA
from lora_trainer.networks.targets import canonical, choose, choose_by


class _Placed(NamedTuple):
    name: str  # "<part>.<canonical path>", as in NetworkState
    part: str
    adapter: Adapter


@dataclass(frozen=True)
class _Before:
    """What a part was like before the layers were put on."""

    part: nn.Module
    trainable: list[nn.Parameter]  # only these: frozen ones may be a host's, which must be free to drop them


def alpha_of(config: NetworkConfig) -> float:
    """The network's alpha as its layers and files have it: alpha / rank is the factor of the update.

    rsLoRA (Kalajdzievski 2023, arXiv 2312.03732) divides by sqrt(rank) instead; no file format knows it, so alpha takes
    the difference.
    """
    alpha = config.rank / 2 if config.alpha is None else config.alpha
    return alpha * config.rank**0.5 if config.rslora else alpha


def inject(
    parts: Mapping[str, nn.Module], config: NetworkConfig, *, train_parts: Sequence[str], seed: int,
    dora: type[Dora] = Dora,
) -> AdaptedNetwork:  # fmt: skip
    """Put layers on `train_parts` of `parts` and freeze the rest of them.

    `dora` is the form of DoRA, whose readers differ in what has a length.
    The network changes nothing yet. Raises PlainError where a part is absent, or what is to be adapted is not there.
    """
    absent = [part for part in train_parts if part not in parts]
    if absent or not train_parts:
        wanted = ", ".join(train_parts) or "no part"
        raise PlainError(f"The network is to train {wanted}, but the base model has {', '.join(parts)}.")
    paths, unmatched = _chosen({part: parts[part] for part in train_parts}, config)
    sizes = _sizes({part: [f"{part}.{canonical(path)}" for path in found] for part, found in paths.items()}, config)
    generator = torch.Generator().manual_seed(seed)
    acting = Acting(config.dropout, config.rank_dropout, config.module_dropout)
    before = [_Before(parts[part], [p for p in parts[part].parameters() if p.requires_grad]) for part in train_parts]
    placed: list[_Placed] = []
    network = AdaptedNetwork(config, placed, before, acting, unmatched)
    try:
        for part, found in paths.items():
            parts[part].requires_grad_(False)
            for path in found:
                name = f"{part}.{canonical(path)}"
                if sizes[name].rank > 0:
                    base = parts[part].get_submodule(path)
                    layer = _made(base, config, sizes[name], acting, len(placed), generator, dora)
                    _replace(parts[part], path, layer)
                    placed.append(_Placed(name, part, layer))
    except BaseException:  # a network put on by halves must not stay on a model that is the host's
        network.eject()
        raise
    return network


class AdaptedNetwork:
    """Layers of one kind on a base model; a contracts.Network."""

    def __init__(
        self,
        config: NetworkConfig,
        placed: list[_Placed],
        before: list[_Before],
        acting: Acting,
        unmatched: tuple[str, ...],
    ) -> None:
        self.kind = config.kind
        self.rank = config.rank
        self.alpha = alpha_of(config)
        self.unmatched = unmatched  # "<part>: <target group>" that was asked for and is not in the part
        self._ratio = config.loraplus_ratio
        self._placed = placed
        self._before = before
        self._acting = acting

    def groups(self) -> list[ParameterGroup]:
        """Trainable float32 parameters by part and rate, in the order of the part's modules."""
        groups: dict[tuple[str, float], list[nn.Parameter]] = {}
        for _, part, adapter in self._placed:
            for ending, weight in adapter.trained().items():
                rate = self._ratio if ending in adapter.faster else 1.0
                groups.setdefault((part, rate), []).append(weight)
        return [ParameterGroup(part, parameters, rate) for (part, rate), parameters in groups.items()]

    def state(self) -> NetworkState:
        """A copy of the weights on the CPU, float32, as they stand in a file."""
        return {f"{name}.{ending}": weight for name, ending, weight in self._stored()}

    def load_state(self, state: NetworkState) -> None:
        """Put weights of the same shapes back, bit for bit; raises PlainError, changing nothing, if they do not fit."""
        expected = self.state()
        for key in expected.keys() | state.keys():
            wanted, found = (tuple(each[key].shape) if key in each else "absent" for each in (expected, state))
            if wanted != found:
                raise PlainError(
                    f"The network's weights do not fit: {key} should be {wanted} and is {found}; load a state of the "
                    "same kind, rank and targets."
                )
            if key.endswith(f".{ALPHA}") and float(expected[key]) != float(state[key]):
                raise PlainError(
                    f"The network's alpha is {float(expected[key]):g} and the weights were trained with "
                    f"{float(state[key]):g} ({key}); set the same alpha, or start from the file so that it is fitted."
                )
        for name, _, adapter in self._placed:
            stem = f"{name}."
            adapter.restore({key.removeprefix(stem): value for key, value in _below(state, stem)})

    def take_lengths(self, names: Sequence[str]) -> None:
        """Let these layers of a DoRA have the lengths that their directions have now, as in a plain LoRA."""
        wanted = set(names)
        for name, _, adapter in self._placed:
            if isinstance(adapter, Dora) and name in wanted:
                adapter.length.data.copy_(adapter.norm())

    def scaled(self, weight: float) -> AbstractContextManager[None]:
        """Within it the network acts at `weight`, and dropout rests: 0 is the base model, 1 what is trained."""
        return self._acting.at(weight)

    def drop_by(self, seeds: Sequence[int]) -> None:
        """From now on the samples of a batch are dropped from, each by its own seed; see contracts.Network."""
        self._acting.seeds = tuple(seeds)

    def weigh_by(self, weights: Sequence[float]) -> None:
        """From now on the samples of a batch are acted upon at these weights; see contracts.Network."""
        self._acting.weigh(weights)

    def eject(self) -> None:
        """Take every layer off; modules, flags and weights are as they were before. A second call does nothing."""
        for before in self._before:
            for path, module in list(cast("Iterator[tuple[str, nn.Module]]", before.part.named_modules())):
                if isinstance(module, Adapter):
                    _replace(before.part, path, module.base_layer)
            for parameter in before.trainable:
                parameter.requires_grad_(True)
        self._placed, self._before = [], []

    def _stored(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        for name, _, adapter in self._placed:
            for ending, weight in adapter.stored().items():
                yield name, ending, weight


def _chosen(
    parts: Mapping[str, nn.Module], config: NetworkConfig
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The module paths to adapt in each part, and what was asked for and is in none."""
    if config.layers:
        return choose_by(parts, [re.compile(pattern) for pattern in config.layers]), ()
    convolutions = config.kind == "locon"
    chosen = {part: choose(module, config.targets, convolutions=convolutions) for part, module in parts.items()}
    unmatched = tuple(f"{part}: {name}" for part, targets in chosen.items() for name in targets.unmatched)
    return {part: targets.paths for part, targets in chosen.items()}, unmatched


def _sizes(names: Mapping[str, Sequence[str]], config: NetworkConfig) -> dict[str, Size]:
    """Rank and alpha of every layer. Raises PlainError where a rule means no layer, or no layer is left."""
    rules = [rule_of(text) for text in config.ranks]
    every = [name for found in names.values() for name in found]
    idle = unused(every, rules)
    if idle:
        raise PlainError(
            f"network.ranks names {idle[0]!r}, which is found in none of the {len(every)} layers to adapt, such as "
            f"{every[0]}; correct it, or widen network.targets."
        )
    sizes = {name: size_of(name, rules, config.rank, alpha_of(config)) for name in every}
    if not any(size.rank for size in sizes.values()):
        raise PlainError("network.ranks gives every layer the rank 0, so that nothing is left to train; leave some in.")
    return sizes


def _made(
    base: nn.Module, config: NetworkConfig, size: Size, acting: Acting, index: int, generator: torch.Generator,
    dora: type[Dora],
) -> Adapter:  # fmt: skip
    if config.kind == "lokr":
        return Lokr(base, size, acting, index, generator, factor=config.factor)
    if config.kind in ("lora", "locon") and config.init != "default":
        return Departing(base, size, acting, index, generator, init=config.init)
    kinds = {"lora": LowRank, "locon": LowRank, "dora": dora, "loha": Loha, "oft": Oft}
    return kinds[config.kind](base, size, acting, index, generator)


def _replace(part: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(part.get_submodule(parent), leaf, layer)


def _below(state: NetworkState, stem: str) -> Iterator[tuple[str, torch.Tensor]]:
    return ((key, value) for key, value in state.items() if key.startswith(stem))
