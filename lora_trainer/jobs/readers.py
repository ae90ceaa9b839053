"""Which programs read which kinds of network, by their own loaders.

Sources: AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/network_*.py; Forge dfdcbab, packages_3rdparty/
comfyui_lora_collection/lora.py, and extensions-builtin/sd_forge_lora/networks.py, which drops a file of more than 12
keys that it does not know; diffusers 0.42, loaders/lora_conversion_utils.py, whose DoRA is peft's, with lengths for
outputs. The first two are proved by tests/host.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_ATTENTION = re.compile(r"(text_encoder\w*)\.(encoder\.layers\.\d+)\.self_attn\.(q|k|v|out)_proj\.")
_ALL = ("lora", "locon", "dora", "loha", "lokr", "oft")
READERS: Mapping[str, tuple[str, ...]] = {  # by Host.name, and those that lend nothing
    "AUTOMATIC1111": _ALL,
    "Forge": ("lora", "locon", "dora", "loha", "lokr"),
    "diffusers": ("lora", "locon"),
}


def unread_note(kind: str, host: str) -> list[str]:
    """What a user should know before training a kind that not every host reads; nothing for one that they all do."""
    remedy = "afterwards a plain LoRA can be made of it (a button below the result; export --format lora --rank 32)"
    if kind not in READERS.get(host, _ALL):
        return [f"{host} does not read files of the kind {kind}, so this one will have no effect here; {remedy}."]
    others = [name for name, kinds in READERS.items() if kind not in kinds and name != "diffusers"]
    if others:
        return [f"{' and '.join(others)} cannot read files of the kind {kind}; {remedy}."]
    return []


def unheard(family: str, keys: Iterable[str]) -> list[str]:
    """A warning where a text encoder's attention is adapted in part only, which the WebUIs then leave out altogether.

    They hold open_clip's encoders (SD2, SDXL's second) with q, k and v in one weight and apply a network to it only
    where it has all four of q, k, v and out (AUTOMATIC1111 v1.10.1, extensions-builtin/Lora/networks.py:487-492).
    """
    part = {"sd2": "text_encoder", "sdxl": "text_encoder_2"}.get(family)
    found: dict[str, set[str]] = {}
    for key in keys:
        match = _ATTENTION.match(key)
        if match and match[1] == part:
            found.setdefault(match[2], set()).add(match[3])
    some = sorted(layer for layer, names in found.items() if len(names) < 4)
    if not some:
        return []
    return [
        f"In {len(some)} layers of {part}, {some[0]} for one, only a part of the attention is trained, and the WebUIs "
        "apply it only where q, k, v and out are all there; widen network.layers or network.ranks."
    ]
