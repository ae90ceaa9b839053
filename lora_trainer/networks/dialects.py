"""The names and shapes by which LoRA files differ, and one state behind them all.

* kohya: `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`, `.lora_up.weight`, `.alpha`; other kinds have
  LyCORIS's endings below the same names (changes.py). Every host reads it.
* peft: `unet.mid_block.attentions.0.proj_in.lora_A.weight`, `.lora_B.weight`, without alpha, because diffusers reads
  none beside these names and takes alpha = r. So the factor alpha / r is multiplied into B. Where it is a power of two
  (as with the default, a half) nothing is rounded by that; elsewhere each value is rounded once.

What a module is called belongs to the family, so the functions that know it are handed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lora_trainer.contracts import NetworkState, PlainError
from lora_trainer.networks.changes import TITLES, Change, kind_of, split, why_incomplete
from lora_trainer.networks.state import ALPHA, DOWN, UP, modules_of
from lora_trainer.networks.targets import canonical

KohyaName = Callable[[str, str], str]  # (part, path) -> name in a file
ModuleOf = Callable[[str], "tuple[str, str] | None"]  # name in a file -> (part, path)

# Endings of keys: kohya's, peft's, and the three that diffusers had before it took to peft.
_ENDINGS: Mapping[str, re.Pattern[str]] = {
    DOWN: re.compile(r"(?:\.(?:lora_down|lora_A|lora\.down|lora_linear_layer\.down)|(?<=_lora)\.down)\.weight$"),
    UP: re.compile(r"(?:\.(?:lora_up|lora_B|lora\.up|lora_linear_layer\.up)|(?<=_lora)\.up)\.weight$"),
    ALPHA: re.compile(r"\.alpha$"),
}

# Keys of what is not read, as peft and the WebUIs' loaders know them (A1111 v1.10.1, extensions-builtin/Lora).
_UNREAD: Mapping[str, str] = {
    r"\.lora_magnitude_vector\b": "a DoRA of peft, whose lengths are those of outputs and not of inputs",
    r"\.(?:lora_mid\.|hada_t\d|lokr_t\d)": "a LoCon, LoHa or LoKr in Tucker form",
    r"\.oft_diag\b": "an OFT of LyCORIS before 2.0",
    r"\.rescale$": "an OFT that also stretches",
    r"\.on_input$": "an IA3",
    r"\.diff(?:_b)?$": "a full difference",
    r"\.[wb]_norm$": "a norm difference",
    r"\.[ab]1\.weight$": "a GLoRA",
}


def to_kohya(state: NetworkState, kohya_name: KohyaName) -> dict[str, Tensor]:
    """The tensors of a file that kohya's scripts, LyCORIS and the WebUIs read; alpha stays beside the weights."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name, ending = split(key)
        part, _, path = name.partition(".")
        tensors[f"{kohya_name(part, path)}.{ending}"] = tensor
    return tensors


def to_peft(state: NetworkState) -> dict[str, Tensor]:
    """The tensors of a file in peft's names, as diffusers writes it; alpha / r is multiplied into B.

    For plain LoRA alone: of the other kinds diffusers reads none. KeyError for those.
    """
    tensors: dict[str, Tensor] = {}
    for name, weights in modules_of(state).items():
        part, _, path = name.partition(".")
        # Published files have the level that transformers' CLIPTextModel had before release 5.
        full = f"{part}.text_model.{path}" if part.startswith("text_encoder") else name
        tensors[f"{full}.lora_A.weight"] = weights.down
        tensors[f"{full}.lora_B.weight"] = (weights.up.float() * weights.scale).to(weights.up.dtype)
    return tensors


def to_state(tensors: Mapping[str, Tensor], module_of: ModuleOf, source: str) -> NetworkState:
    """The state in a file of either dialect and any kind; values as they stand, in the file's precision.

    `source` names the file in messages, with the family it was held against. Raises PlainError for a network that is
    not read, for modules that the family does not have, and for incomplete ones.
    """
    refuse_unread(tensors, source)
    found = _by_module(tensors, source)
    state: NetworkState = {}
    unknown: list[str] = []
    seen: set[str] = set()
    for name, weights in sorted(found.items()):
        place = module_of(name)
        if place is None:
            unknown.append(name)
            continue
        part, path = place
        key = f"{part}.{canonical(path)}"
        if key in seen:
            raise PlainError(f"{source} names the module {key} twice, once as {name}; export it anew.")
        seen.add(key)
        state |= {f"{key}.{ending}": tensor for ending, tensor in _complete(name, weights, source).items()}
    if unknown:
        raise PlainError(
            f"{source} does not fit: {len(unknown)} of its {len(found)} modules, {unknown[0]} for one, are not in this "
            "kind of base model; choose a LoRA made for it."
        )
    return state


def unread(keys: Iterable[str]) -> tuple[str, str] | None:
    """("a GLoRA", the key that tells so) for a network that cannot be read; None for any other, or no network."""
    return next(((kind, key) for key in keys for mark, kind in _UNREAD.items() if re.search(mark, key)), None)


def is_network(keys: Iterable[str]) -> bool:
    """Whether some of the keys are those of a LoRA or its relatives, in either dialect."""
    return any(_split(key)[1] not in ("", ALPHA) for key in keys)


def refuse_unread(tensors: Mapping[str, object], source: str) -> None:
    """Raise PlainError where the keys are not those of a network that is read, saying what they are."""
    found = unread(tensors)
    if found:
        raise PlainError(
            f"{source} is {found[0]} (it holds {found[1]}), which is not read; LoRA, LoCon, LoHa, LoKr and OFT are, "
            "and DoRA with lengths for inputs."
        )
    if not is_network(tensors):
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
    """Module name and ending, as in a state, of a key; two empty strings for any other key."""
    for role, ending in _ENDINGS.items():
        if match := ending.search(key):
            return key[: match.start()].removeprefix("base_model.model."), role
    name, ending = split(key)
    return (name.removeprefix("base_model.model."), ending) if ending else ("", "")


def _complete(name: str, weights: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    kind = kind_of(weights)
    wrong = why_incomplete(kind, weights)
    if wrong:
        state = "incomplete" if wrong.startswith("has no") else "damaged"
        raise PlainError(f"{source} is {state}: {name}, {TITLES[kind]}, {wrong}; get it again.")
    if kind == "oft" and float(weights.get(ALPHA, torch.tensor(0.0))) != 0:
        raise PlainError(f"{source} is an OFT with a constraint ({name}.alpha), which is not read.")
    # Without alpha kohya's scripts, the WebUIs and diffusers all take alpha = r, a factor of one.
    alpha = weights[ALPHA] if ALPHA in weights else torch.tensor(0.0 if kind == "oft" else _rank(kind, weights))
    return {**{ending: tensor for ending, tensor in weights.items() if ending != ALPHA}, ALPHA: alpha.float().view(())}


def _rank(kind: str, weights: Mapping[str, Tensor]) -> float:
    return float(Change(kind, weights).rank or 1)
