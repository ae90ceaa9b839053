"""The checkpoint's own weights in the WebUI's tensors: LoRAs that a prompt left merged are taken out again.

The built-in Lora extension (A1111 v1.10.1, extensions-builtin/Lora/networks.py) adds a prompt's LoRA to the weights in
place, keeps a copy of the weights on the CPU, and takes the LoRA out when the layer is used next: not before.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any


def lora_extension() -> Any:
    """The Lora extension's `networks` module, or None where it is switched off.

    Never imported: its folder is on the path only while its script loads, and the name is anybody's.
    """
    found = sys.modules.get("networks")
    return found if hasattr(found, "network_apply_weights") else None


def make_pristine(model: Any) -> None:
    """Take every LoRA out of the model's weights. To be called with the queue lock; cheap where there is none."""
    import torch

    networks = lora_extension()
    if networks is None:
        return
    touched = [layer for layer in _layers(model) if _is_touched(layer)]
    if not touched:
        return
    networks.load_networks([], [], [], [])  # with none wanted, applying means restoring
    with torch.no_grad():  # the weights ask for gradients, and could not be written to otherwise
        for layer in touched:
            networks.network_apply_weights(layer)
    for layer in touched:  # frees the copies; after a restore they hold nothing that the weights do not
        networks.network_reset_cached_weight(layer)


def _layers(model: Any) -> Iterable[Any]:
    """The layers that the extension knows by name: all that it ever changes."""
    return getattr(model, "network_layer_mapping", {}).values()


def _is_touched(layer: Any) -> bool:
    """Whether a LoRA is merged in, or a copy of the weights is kept (which outlasts the LoRA in the prompt)."""
    return bool(getattr(layer, "network_current_names", ())) or (
        getattr(layer, "network_weights_backup", None) is not None
        or getattr(layer, "network_bias_backup", None) is not None
    )
