"""Which modules of a part get an adapter, told from names and types alone.

The three levels hold what users of kohya's scripts and LyCORIS expect of their names:

* `attention`: q, k, v and out of every self and cross attention. All four, because A1111 lets an open_clip attention
  (SD2, SDXL's second encoder) take effect only when the file holds all four.
* `linear`: besides these the feed-forward layers and the projections into and out of each transformer. That is
  kohya's default LoRA. SD1 has those projections as 1x1 convolutions, which are linear layers in all but name.
* `all`: besides these the residual blocks with their time projection, and the down- and upsampling convolutions.
  That is kohya's LoCon (`conv_dim`). `conv_in`, `conv_out` and the embeddings of time and size stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, cast

from torch import nn

from lora_trainer.contracts import PlainError

Layer = Literal["linear", "conv"]


class _Group(NamedTuple):
    name: str  # as the user is told
    level: int  # position of the first of LEVELS that holds it
    pattern: re.Pattern[str]  # of the whole module path


LEVELS = ("attention", "linear", "all")


def _group(name: str, level: str, pattern: str) -> _Group:
    return _Group(name, LEVELS.index(level), re.compile(pattern))


# Where tokens are brought together, as transformers' causal language models name it.
_MIXING = r"(?:self_attn|attn|self_attention|attention|multi_head_attention|linear_attn|mixer|mamba)"

# diffusers' and transformers' names; a path may start with the blocks that hold it, hence (?:.*\.)?
_LAYOUTS: Mapping[str, tuple[_Group, ...]] = {
    "denoiser": (
        _group("attention", "attention", r"(?:.*\.)?attn\d+\.to_(?:q|k|v|out\.0)"),
        _group("feed-forward", "linear", r"(?:.*\.)?transformer_blocks\.\d+\.ff\.net\.(?:0\.proj|2)"),
        _group("transformer projections", "linear", r"(?:.*\.)?attentions\.\d+\.proj_(?:in|out)"),
        _group("residual blocks", "all", r"(?:.*\.)?resnets\.\d+\.(?:conv1|conv2|conv_shortcut|time_emb_proj)"),
        _group("down- and upsampling", "all", r"(?:.*\.)?(?:down|up)samplers\.\d+\.conv"),
    ),
    "text": (
        _group("attention", "attention", r"(?:.*\.)?self_attn\.(?:q|k|v|out)_proj"),
        _group("feed-forward", "linear", r"(?:.*\.)?mlp\.fc[12]"),
    ),
    # A numbered block of any architecture; what chooses among experts (a layer called gate or router) stays as it is.
    "language": (
        _group("attention", "attention", rf"(?:.*\.)?\d+\.(?:[\w.]+\.)?{_MIXING}\.[\w.]+"),
        _group("feed-forward", "linear", rf"(?:.*\.)?\d+\.(?!(?:[\w.]+\.)?(?:{_MIXING}\.|\w*gate$|router))[\w.]+"),
    ),
}


class Targets(NamedTuple):
    """What was found to adapt in one part."""

    paths: tuple[str, ...]  # module paths, sorted: releases of transformers list q, k, v in different orders
    unmatched: tuple[str, ...]  # names of groups that were asked for and are not in the part


def layer_kind(module: nn.Module) -> Layer | None:
    """What a module computes, by what it holds; a host's own Linear need not be a subclass of torch's."""
    if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # GPT-2's, a Linear with its weight turned
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv"
    if type(module).__name__ == "Linear" and hasattr(module, "in_features") and hasattr(module, "out_features"):
        return "linear"
    return None


def choose(part: nn.Module, targets: str, *, convolutions: bool = False) -> Targets:
    """Modules of `part` that the level `targets` adapts, and with `convolutions` those besides.

    Raises PlainError if there are none or no such level.
    """
    if targets not in LEVELS:
        raise PlainError(f"The targets '{targets}' are unknown; there are {', '.join(LEVELS)}.")
    kinds = _adaptable(part)
    groups = _layout(part, kinds)
    asked = [group for group in groups if group.level <= LEVELS.index(targets)]
    paths = {path for path in kinds if any(_matches(group, path) for group in asked)}
    if convolutions:
        paths |= {path for path in kinds if kinds[path] == "conv" and any(_matches(group, path) for group in groups)}
    if not paths:
        raise PlainError(
            f"The targets '{targets}' match no layer of {type(part).__name__}; it holds none of "
            f"{', '.join(group.name for group in asked)}, so choose other targets or leave the part untrained."
        )
    unmatched = tuple(group.name for group in asked if not any(_matches(group, path) for path in paths))
    return Targets(tuple(sorted(paths)), unmatched)


def choose_by(parts: Mapping[str, nn.Module], patterns: Sequence[re.Pattern[str]]) -> dict[str, tuple[str, ...]]:
    """Linear layers and convolutions of each part in whose name, "<part>.<path>", one of the patterns is found.

    Raises PlainError where a pattern is found in none.
    """
    names = {f"{part}.{canonical(path)}": (part, path) for part, module in parts.items() for path in _adaptable(module)}
    for pattern in patterns:
        if not any(pattern.search(name) for name in names):
            raise PlainError(
                f"network.layers names {pattern.pattern!r}, which is found in none of the {len(names)} layers of "
                f"{', '.join(parts)}, such as {next(iter(names), 'none')}; correct it."
            )
    chosen: dict[str, list[str]] = {part: [] for part in parts}
    for name, (part, path) in names.items():
        if any(pattern.search(name) for pattern in patterns):
            chosen[part].append(path)
    return {part: tuple(sorted(paths)) for part, paths in chosen.items()}


def _adaptable(part: nn.Module) -> dict[str, Layer]:
    named = cast("Iterator[tuple[str, nn.Module]]", part.named_modules())
    return {path: kind for path, module in named if (kind := layer_kind(module)) is not None}


_WINDOWED = re.compile(r"(?:resnets\.\d+\.conv[12]|(?:down|up)samplers\.\d+\.conv|conv_(?:in|out))$")


def window_of_path(path: str) -> tuple[int, ...]:
    """(3, 3) for the UNet's convolutions that have such a window, nothing for linear layers and windows of one.

    For files whose tensors do not tell; every UNet of Stable Diffusion has these windows (diffusers'
    UNet2DConditionModel).
    """
    return (3, 3) if _WINDOWED.search(path) else ()


def _layout(part: nn.Module, candidates: Iterable[str]) -> tuple[_Group, ...]:
    head = cast("Callable[[], object]", getattr(part, "get_output_embeddings", lambda: None))
    if head() is not None:  # an output layer over a vocabulary
        return _LAYOUTS["language"]
    others = [layout for name, layout in _LAYOUTS.items() if name != "language"]
    return max(others, key=lambda layout: sum(_matches(layout[0], path) for path in candidates))


def canonical(path: str) -> str:
    """Module path without transformers' `text_model.` level, which its releases and its classes do not agree on."""
    return path.removeprefix("text_model.")


def _matches(group: _Group, path: str) -> bool:
    return group.pattern.fullmatch(path) is not None
