"""LoRA (Hu et al. 2021, arXiv 2106.09685) through peft's adapter layers, taken off again by our own hand.

peft makes and places the layers. Three things are ours, each for a reason:

* The initial weights come from a generator of the run, so that the same seed gives the same LoRA and the process's
  random state, which the host uses for its images, is left alone.
* The forward is the base layer, two products and one sum. peft's own adds dropout modules, casts to float32 and back
  and loops over adapters, which costs a twentieth of a training step; the results agree within float32's rounding.
* Taking off: diffusers' and peft's own ways leave wrapper layers behind.

Shape letters: r rank, `in` and `out` channels of the adapted layer, (kh, kw) its window.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import NetworkState, ParameterGroup, PlainError
from lora_trainer.networks.state import ALPHA, DOWN, UP, draw_down
from lora_trainer.networks.targets import canonical, choose

# Contains no dot and begins no module's name: peft removes "." + this name from every key, wherever it stands.
ADAPTER = "lt_train"


class _PeftLayer(Protocol):
    """What we use of peft's layers."""

    base_layer: nn.Module
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]
    forward: Callable[..., Tensor]


@dataclass(frozen=True)
class _Placed:
    name: str  # "<part>.<canonical path>", as in NetworkState
    part: str
    layer: _PeftLayer
    down: nn.Module
    up: nn.Module


@dataclass(frozen=True)
class _Before:
    """What a part was like before the layers were put on."""

    part: nn.Module
    trainable: list[nn.Parameter]  # only these: frozen ones may be a host's, which must be free to drop them


class _Dropout:
    """Whether inputs are dropped now, and how often; one for the whole network."""

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.resting = False


def inject(
    parts: Mapping[str, nn.Module], config: NetworkConfig, *, train_parts: Sequence[str], seed: int
) -> LoraNetwork:
    """Put LoRA layers on `train_parts` of `parts` and freeze the rest of them.

    The network changes nothing yet: every up weight is zero. Where dropout is set it draws from torch's default
    generator of the layer's device, so a caller who wants reproducible steps seeds that around each of them; with
    no dropout nothing is drawn. Raises PlainError where a part is absent or the targets match nothing in it.
    """
    absent = [part for part in train_parts if part not in parts]
    if absent or not train_parts:
        wanted = ", ".join(train_parts) or "no part"
        raise PlainError(f"The network is to train {wanted}, but the base model has {', '.join(parts)}.")
    alpha = config.rank / 2 if config.alpha is None else config.alpha
    dropout = _Dropout(config.dropout)
    generator = torch.Generator().manual_seed(seed)
    chosen = {part: choose(parts[part], config.targets) for part in train_parts}
    unmatched = tuple(f"{part}: {name}" for part, targets in chosen.items() for name in targets.unmatched)
    before = [_Before(parts[part], [p for p in parts[part].parameters() if p.requires_grad]) for part in chosen]
    placed: list[_Placed] = []
    network = LoraNetwork(config.rank, alpha, placed, before, dropout, unmatched)
    try:
        for part, targets in chosen.items():
            _wrap(parts[part], targets.paths, config.rank, alpha)
            for path in targets.paths:
                layer = _placed(part, parts[part], path)
                _initialise(layer, generator)
                layer.layer.forward = _lean_forward(layer.layer, layer.down, layer.up, dropout)
                placed.append(layer)
    except BaseException:  # a network put on by halves must not stay on a model that is the host's
        network.eject()
        raise
    return network


class LoraNetwork:
    """LoRA layers on a base model; a contracts.Network."""

    kind = "lora"

    def __init__(
        self,
        rank: int,
        alpha: float,
        placed: list[_Placed],
        before: list[_Before],
        dropout: _Dropout,
        unmatched: tuple[str, ...],
    ) -> None:
        self.rank = rank
        self.alpha = alpha
        self.unmatched = unmatched  # "<part>: <target group>" that was asked for and is not in the part
        self._placed = placed
        self._before = before
        self._dropout = dropout

    def groups(self) -> list[ParameterGroup]:
        """Trainable float32 parameters by part: down and up of each module in the order of the part's modules."""
        groups: dict[str, list[nn.Parameter]] = {}
        for layer in self._placed:
            groups.setdefault(layer.part, []).extend((_weight(layer.down), _weight(layer.up)))
        return [ParameterGroup(part, parameters) for part, parameters in groups.items()]

    def state(self) -> NetworkState:
        """A copy of the weights on the CPU, float32, in the same order as `groups`."""
        state: NetworkState = {}
        for layer in self._placed:
            state[f"{layer.name}.{DOWN}"] = _copy(_weight(layer.down))
            state[f"{layer.name}.{UP}"] = _copy(_weight(layer.up))
            state[f"{layer.name}.{ALPHA}"] = torch.tensor(self.alpha, dtype=torch.float32)
        return state

    def load_state(self, state: NetworkState) -> None:
        """Put weights of the same shapes back, bit for bit; raises PlainError, changing nothing, if they do not fit."""
        expected = {key: tuple(tensor.shape) for key, tensor in self._weights().items()}
        expected.update({f"{layer.name}.{ALPHA}": () for layer in self._placed})
        found = {key: tuple(tensor.shape) for key, tensor in state.items()}
        for key in expected.keys() | found.keys():
            if expected.get(key) != found.get(key):
                raise PlainError(
                    f"The network's weights do not fit: {key} should be {expected.get(key, 'absent')} and is "
                    f"{found.get(key, 'absent')}; load a state of the same rank and targets."
                )
        alphas = {float(state[f"{layer.name}.{ALPHA}"]) for layer in self._placed}
        if alphas != {float(torch.tensor(self.alpha, dtype=torch.float32))}:
            raise PlainError(
                f"The network's alpha is {self.alpha:g} and the weights were trained with {sorted(alphas)}; "
                "set the same alpha, or start from the file so that it is fitted."
            )
        with torch.no_grad():
            for key, weight in self._weights().items():
                weight.copy_(state[key])

    @contextmanager
    def scaled(self, weight: float) -> Generator[None, None, None]:
        """Within it the network acts at `weight`, and dropout rests: 0 is the base model, 1 what is trained."""
        outside = [layer.layer.scaling[ADAPTER] for layer in self._placed]
        resting, self._dropout.resting = self._dropout.resting, True
        for layer in self._placed:
            layer.layer.scaling[ADAPTER] = self.alpha / self.rank * weight
        try:
            yield
        finally:
            self._dropout.resting = resting
            for layer, scale in zip(self._placed, outside, strict=True):
                layer.layer.scaling[ADAPTER] = scale

    def eject(self) -> None:
        """Take every layer off; modules, flags and weights are as they were before. A second call does nothing."""
        for before in self._before:
            _unwrap(before.part)
            vars(before.part).pop("peft_config", None)
            for parameter in before.trainable:
                parameter.requires_grad_(True)
        self._placed, self._before = [], []

    def _weights(self) -> dict[str, nn.Parameter]:
        weights: dict[str, nn.Parameter] = {}
        for layer in self._placed:
            weights[f"{layer.name}.{DOWN}"] = _weight(layer.down)
            weights[f"{layer.name}.{UP}"] = _weight(layer.up)
        return weights


def _wrap(part: nn.Module, paths: Sequence[str], rank: int, alpha: float) -> None:
    """Let peft replace the modules at `paths`; it freezes the part and leaves `peft_config` on it."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank,
        lora_alpha=cast(Any, alpha),  # annotated as int, used as a factor
        target_modules="(?:" + "|".join(re.escape(path) for path in paths) + ")",  # matched against whole paths
        init_lora_weights=False,
    )
    # Making the layers draws weights that are overwritten; what the process draws next must not depend on it.
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        inject_adapter_in_model(config, part, adapter_name=ADAPTER)


def _unwrap(part: nn.Module) -> None:
    """Put every base layer back into its place. diffusers' `delete_adapters` would leave the wrappers there."""
    for path, module in list(cast("Iterable[tuple[str, nn.Module]]", part.named_modules())):
        if ADAPTER in getattr(module, "lora_A", ()):
            parent, _, leaf = path.rpartition(".")
            setattr(part.get_submodule(parent), leaf, cast(_PeftLayer, module).base_layer)


def _placed(part: str, module: nn.Module, path: str) -> _Placed:
    layer = cast(_PeftLayer, module.get_submodule(path))
    return _Placed(f"{part}.{canonical(path)}", part, layer, layer.lora_A[ADAPTER], layer.lora_B[ADAPTER])


def _initialise(placed: _Placed, generator: torch.Generator) -> None:
    device = _weight(placed.layer.base_layer).device
    down = draw_down(_weight(placed.down).shape, generator)
    up = torch.zeros(_weight(placed.up).shape, dtype=torch.float32)
    placed.down.weight = nn.Parameter(down.to(device))
    placed.up.weight = nn.Parameter(up.to(device))


def _lean_forward(layer: _PeftLayer, down: nn.Module, up: nn.Module, dropout: _Dropout) -> Callable[..., Tensor]:
    """base(x) + up(down(x)) alpha / r; the factor is put on the narrow product, or comes free with the sum."""
    base, scaling = layer.base_layer, layer.scaling
    linear = isinstance(down, nn.Linear)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = base(x, *args, **kwargs)
        scale = scaling[ADAPTER]
        if scale == 0:
            return result
        autocasting = _autocasting(x.device.type)
        if x.dtype != torch.float32 and not autocasting:
            x = x.float()
        if dropout.chance > 0 and not dropout.resting:
            x = functional.dropout(x, dropout.chance)
        narrow: Tensor = down(x)
        if linear and result.dtype == narrow.dtype and not autocasting:
            # Product, factor and sum in one pass over the result: a fifth of the adapter's time on a CPU.
            fused = torch.addmm(result.flatten(0, -2), narrow.flatten(0, -2), _weight(up).t(), alpha=scale)
            return fused.view(result.shape)
        delta: Tensor = up(narrow * scale)
        return result + (delta if delta.dtype == result.dtype else delta.to(result.dtype))

    return forward


def _autocasting(device_type: str) -> bool:
    """Whether autocast chooses the precision of products on this device; asked in the words of torch before 2.4 too."""
    if device_type == "cpu":
        return torch.is_autocast_cpu_enabled()
    return torch.is_autocast_enabled()


def _weight(module: nn.Module) -> nn.Parameter:
    return cast(nn.Parameter, module.weight)


def _copy(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32, copy=True)
