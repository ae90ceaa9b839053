"""The folder that peft and the usual servers read: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.networks.changes import Change
from lora_trainer.networks.file import Precision, write_tensors
from lora_trainer.networks.low_rank import directed
from lora_trainer.networks.state import DORA, ModuleWeights, as_state, modules_of
from lora_trainer.weights.read import open_checkpoint
from lora_trainer.weights.write import write_whole

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PART = "language_model"  # the one part of a language model, in NetworkState's names
_BEFORE = "base_model.model."  # peft's two wrappers around the model


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """What adapter_config.json tells besides the weights."""

    base: str  # name of the model it belongs to
    dropout: float
    targets: tuple[str, ...]  # endings of module paths
    turned: bool  # weights stand as (in, out) in the base, as in GPT-2


def write_adapter(
    folder: Path, state: NetworkState, facts: AdapterFacts, *, metadata: Mapping[str, str], precision: Precision
) -> None:
    """Write both files into `folder`, the settings last: without them no reader takes it for an adapter. Raises
    PlainError."""
    settings = json.dumps(_settings(facts, state), indent=2, sort_keys=True) + "\n"
    write_tensors(folder / WEIGHTS, _tensors(state), metadata={"format": "pt", **metadata}, precision=precision)
    write_whole(folder / SETTINGS, lambda file: _put(file, settings))


def read_adapter(folder: Path) -> tuple[NetworkState, dict[str, Any]]:
    """Weights and settings of an adapter of LoRA or DoRA, whoever made it. Raises PlainError."""
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            pickled = " as a pickle (.bin), which is not opened" if (folder / "adapter_model.bin").is_file() else ""
            raise PlainError(f"{folder} has no {name}{pickled}; name a folder with {SETTINGS} and {WEIGHTS}.")
    try:
        settings = cast("dict[str, Any]", json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
        if settings.get("peft_type") != "LORA":
            kind = settings.get("peft_type")
            raise PlainError(f"{folder} is an adapter of the kind {kind}; only LoRA and DoRA can be read here.")
        alpha, alphas = float(settings["lora_alpha"]), dict(settings.get("alpha_pattern") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlainError(f"{folder / SETTINGS} cannot be read ({error}); get the adapter again.") from error
    modules: dict[str, ModuleWeights] = {}
    lengths: NetworkState = {}
    with open_checkpoint(folder / WEIGHTS) as stored:
        paths = [key.removesuffix(".lora_A.weight") for key in stored if key.endswith(".lora_A.weight")]
        for path in paths:
            down, up = stored[f"{path}.lora_A.weight"].clone(), stored[f"{path}.lora_B.weight"].clone()
            name = path.removeprefix(_BEFORE)
            found = (value for ending, value in alphas.items() if re.search(rf"(^|\.){ending}$", name))
            own = float(next(found, alpha))
            scale = down.shape[0] ** 0.5 if settings.get("use_rslora") else 1.0
            modules[f"{PART}.{name}"] = ModuleWeights(down, up, own * scale)
            if f"{path}.lora_magnitude_vector" in stored:
                lengths[f"{PART}.{name}.{DORA}"] = stored[f"{path}.lora_magnitude_vector"].clone().view(-1, 1)
    if not modules:
        raise PlainError(f"{folder / WEIGHTS} holds no LoRA of linear layers; choose another adapter.")
    return as_state(modules) | lengths, settings


@contextmanager
def worn(model: nn.Module, folder: Path) -> Generator[None]:
    """Within it the adapter in `folder` acts on `model`, put on by peft itself. Raises PlainError if it cannot."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what peft uses of transformers is not the user's concern
            dressed = cast(Any, PeftModel).from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        told = " ".join(str(error).split())[:200]
        raise PlainError(f"{folder} does not fit this model ({told}); choose the base it was trained on.") from error
    try:
        dressed.eval()
        yield
    finally:
        dressed.unload()


def merged(weight: Tensor, change: Change) -> Tensor:
    """The weight (out, in) with the adapter at 1, float32: W + B A alpha / r (Hu et al. 2021, eq. 3), and of a DoRA
    each row of that brought to its learnt length (huggingface/peft, tuners/lora/dora.py)."""
    factors = change.plain()
    summed = directed(weight, factors.down, factors.up, change.scale)
    if change.kind != "dora":
        return summed
    norm = summed.square().sum(dim=1, keepdim=True).sqrt().clamp_min(torch.finfo(summed.dtype).tiny)
    return summed * (change.tensors[DORA].float().view(-1, 1) / norm)


def endings(chosen: Iterable[str], every: Sequence[str]) -> tuple[str, ...]:
    """The shortest endings of module paths that mean the `chosen` among `every` module and no other, as peft matches
    its target_modules; whole paths where no ending will do."""
    wanted = set(chosen)
    found: set[str] = set()
    for path in wanted:
        steps = path.split(".")
        for length in range(1, len(steps) + 1):
            ending = ".".join(steps[-length:])
            if all(other in wanted for other in every if other == ending or other.endswith(f".{ending}")):
                found.add(ending)
                break
    return tuple(sorted(found))


def _tensors(state: NetworkState) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, weights in modules_of(state).items():
        path = _BEFORE + name.partition(".")[2]
        tensors[f"{path}.lora_A.weight"] = weights.down
        tensors[f"{path}.lora_B.weight"] = weights.up
        if f"{name}.{DORA}" in state:
            tensors[f"{path}.lora_magnitude_vector"] = state[f"{name}.{DORA}"].view(-1)
    return tensors


def _settings(facts: AdapterFacts, state: NetworkState) -> dict[str, Any]:
    """Only what every peft since 0.9 knows: an older one refuses names that it does not.

    The usual rank and alpha stand at the top, those of other layers by their paths.
    """
    modules = {name.partition(".")[2]: weights for name, weights in modules_of(state).items()}
    (rank, alpha), _ = Counter((weights.rank, weights.alpha) for weights in modules.values()).most_common(1)[0]
    ranks = {path: weights.rank for path, weights in modules.items() if weights.rank != rank}
    alphas = {path: _number(weights.alpha) for path, weights in modules.items() if weights.alpha != alpha}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": facts.base, "revision": None,
        "r": rank, "lora_alpha": _number(alpha), "lora_dropout": facts.dropout, "target_modules": list(facts.targets),
        "bias": "none", "fan_in_fan_out": facts.turned, "inference_mode": True, "init_lora_weights": True,
        "modules_to_save": None, "layers_to_transform": None, "layers_pattern": None, "rank_pattern": ranks,
        "alpha_pattern": alphas, "use_rslora": False, "use_dora": any(key.endswith(DORA) for key in state),
    }  # fmt: skip


def _number(value: float) -> float:
    """Whole numbers without a point, as peft writes them."""
    return int(value) if value == int(value) else value


def _put(file: Any, text: str) -> None:
    file.write(text.encode("utf-8"))
