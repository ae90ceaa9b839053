"""The names and shapes by which LoRA files differ, and one state behind them all.

* kohya: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha`. Every host reads it.
* peft: `unet.mid_block.attentions.0.proj_in.lora_A.weight`, `.lora_B.weight`, without alpha, because diffusers reads
  none beside these names and takes alpha = r. So the factor alpha / r is multiplied into B. Where it is a power of two
  (as with the default, a half) nothing is rounded by that; elsewhere each value is rounded once.

What a module is called belongs to the family, so the functions that know it are handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.networks.state import ALPHA, DOWN, UP, ModuleWeights, as_state, modules_of
from lora_trainer.networks.targets import canonical

KohyaName = Callable[[str, str], str]  # (part, path) -> name in a file
ModuleOf = Callable[[str], "tuple[str, str] | None"]  # name in a file -> (part, path)

# Endings of keys: kohya's, peft's, and the three that diffusers had before it took to peft.
_ENDINGS: Mapping[str, re.Pattern[str]] = {
    DOWN: re.compile(r"(?:\.(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)|(?<=_lora)\.down)\.weight$"),
    UP: re.compile(r"(?:\.(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up)|(?<=_lora)\.up)\.weight$"),
    ALPHA: re.compile(r"\.alpha$"),
}

# Keys of other kinds, as peft and the WebUIs' loaders know them (A1111 v1.10.1, extensions-builtin/Lora).
_OTHER_KINDS: Mapping[str, str] = {
    r"\.hada_[wt]\d": "a LoHa",
    r"\.lokr_[wt]\d": "a LoKr",
    r"\.(?:dora_scale|lora_magnitude_vector)\b": "a DoRA",
    r"\.lora_mid\.": "a LoCon in Tucker form",
    r"\.oft_(?:blocks|diag)\b": "an OFT",
    r"\.on_input$": "an IA3",
    r"\.diff(?:_b)?$": "a full difference",
    r"\.[wb]_norm$": "a norm difference",
    r"\.[ab]1\.weight$": "a GLoRA",
}


def to_kohya(state: NetworkState, kohya_name: KohyaName) -> dict[str, Tensor]:
    """The tensors of a file that kohya's scripts, the WebUIs and diffusers read; alpha stays beside the weights."""
    named = ((name.partition("."), weights) for name, weights in modules_of(state).items())
    return dict(as_state({kohya_name(part, path): weights for (part, _, path), weights in named}))


def to_peft(state: NetworkState) -> dict[str, Tensor]:
    """The tensors of a file in peft's names, as diffusers writes it; alpha / r is multiplied into B."""
    tensors: dict[str, Tensor] = {}
    for name, weights in modules_of(state).items():
        part, _, path = name.partition(".")
        # Published files have the level that transformers' CLIPTextModel had before release 5.
        full = f"{part}.text_model.{path}" if part.startswith("text_encoder") else name
        tensors[f"{full}.lora_A.weight"] = weights.down
        tensors[f"{full}.lora_B.weight"] = (weights.up.float() * weights.scale).to(weights.up.dtype)
    return tensors


def to_state(tensors: Mapping[str, Tensor], module_of: ModuleOf, source: str) -> NetworkState:
    """The state in a file of either dialect; values as they stand, in the file's precision.

    `source` names the file in messages, with the family it was held against. Raises PlainError for a network of
    another kind, for modules that the family does not have, and for incomplete ones.
    """
    refuse_other_kinds(tensors, source)
    found = _by_module(tensors, source)
    modules: dict[str, ModuleWeights] = {}
    unknown: list[str] = []
    for name, weights in sorted(found.items()):
        place = module_of(name)
        if place is None:
            unknown.append(name)
            continue
        part, path = place
        key = f"{part}.{canonical(path)}"
        if key in modules:
            raise PlainError(f"{source} names the module {key} twice, once as {name}; export it anew.")
        modules[key] = _complete(name, weights, source)
    if unknown:
        raise PlainError(
            f"{source} does not fit: {len(unknown)} of its {len(found)} modules, {unknown[0]} for one, are not in this "
            "kind of base model; choose a LoRA made for it."
        )
    return as_state(modules)


def other_kind(keys: Iterable[str]) -> tuple[str, str] | None:
    """("a LoHa", the key that tells so) for a network that is no plain LoRA; None for a LoRA, or no network at all."""
    return next(((kind, key) for key in keys for mark, kind in _OTHER_KINDS.items() if re.search(mark, key)), None)


def is_lora(keys: Iterable[str]) -> bool:
    """Whether some of the keys are a LoRA's, in either dialect."""
    return any(_split(key)[1] == DOWN for key in keys)


def refuse_other_kinds(tensors: Mapping[str, object], source: str) -> None:
    """Raise PlainError where the keys are not those of a plain LoRA, saying what they are."""
    found = other_kind(tensors)
    if found:
        raise PlainError(f"{source} is {found[0]} (it holds {found[1]}), and only plain LoRA can be read.")
    if not is_lora(tensors):
        raise PlainError(f"{source} is not a LoRA: among its {len(tensors)} tensors is no lora_down or lora_A.")


def module_names(keys: Iterable[str]) -> list[str]:
    """Names of the modules in a LoRA file, in its own spelling, sorted."""
    return sorted({name for key in keys if (name := _split(key)[0])})


def _by_module(tensors: Mapping[str, Tensor], source: str) -> dict[str, dict[str, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, role = _split(key)
        if not role:
            raise PlainError(f"{source} holds {key}, which is no part of a LoRA that is known; it is not read.")
        found.setdefault(name, {})[role] = tensor
    return found


def _split(key: str) -> tuple[str, str]:
    """Module name and role (DOWN, UP, ALPHA) of a key; two empty strings for any other key."""
    for role, ending in _ENDINGS.items():
        if match := ending.search(key):
            return key[: match.start()].removeprefix("base_model.model."), role
    return "", ""


def _complete(name: str, weights: Mapping[str, Tensor], source: str) -> ModuleWeights:
    if DOWN not in weights or UP not in weights:
        raise PlainError(f"{source} is incomplete: {name} has no {UP if DOWN in weights else DOWN}; get it again.")
    down, up = weights[DOWN], weights[UP]
    if down.dim() not in (2, 4) or up.dim() not in (2, 4) or up.flatten(1).shape[1] != down.shape[0]:
        raise PlainError(
            f"{source} is damaged: the two weights of {name}, {tuple(down.shape)} and {tuple(up.shape)}, do not "
            "multiply; get it again."
        )
    # Without alpha kohya's scripts, the WebUIs and diffusers all take alpha = r, a factor of one.
    return ModuleWeights(down, up, float(weights[ALPHA]) if ALPHA in weights else float(down.shape[0]))
