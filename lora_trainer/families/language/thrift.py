"""A language model's memory spared while it trains, for more work."""

from __future__ import annotations

from typing import Any


def recompute_activations(model: Any) -> bool:
    """Compute activations anew in the backward pass from now on; whether that is a change.

    transformers does so in training mode only; no dropout of the base's own acts in it (`load.py`).
    """
    if not getattr(model, "supports_gradient_checkpointing", False) or _recomputes(model):
        return False
    model.enable_input_require_grads()  # older releases lose the gradient of layers whose input needs none
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except TypeError:  # before transformers 4.35
        model.gradient_checkpointing_enable()
    model.train()
    return True


def _recomputes(model: Any) -> bool:
    """Whether it does so already; transformers 5 has another name for it."""
    name = "is_activation_checkpointing" if hasattr(type(model), "is_activation_checkpointing") else None
    return bool(getattr(model, name or "is_gradient_checkpointing"))
