"""Faults put into a running training, within the WebUI's process."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# Where a training can be made to fail, as (module, attribute). The sample breaks where the WebUI decodes its latents:
# deep within its own txt2img, with the LoRA merged into its weights.
PLACES = {
    "encode": ("lora_trainer.families.diffusion", "DiffusionBase.encode_images"),
    "forward": ("lora_trainer.families.diffusion", "DiffusionBase.predict"),
    "step": ("lora_trainer.train.diffusion_loss", "DiffusionLoss.__call__"),
    "backward": ("lora_trainer.train.optimizers", "Updater.backward"),
    "update": ("lora_trainer.train.optimizers", "Updater.update"),
    "save": ("lora_trainer.jobs.image_output", "write_lora"),
    "state": ("lora_trainer.jobs.writer", "write_state"),
    "announce": ("lora_trainer.hosts.a1111.loras", "announce"),
    "sample": ("modules.processing", "decode_latent_batch"),
}
_whole: list[tuple[Any, str, Any]] = []


def break_engine(where: str, how: str = "error") -> None:
    """Let the engine fail from now on: by an "error" that nobody foresees, for want of memory as "cuda" or as the "cpu"
    tells it, or by answering "nan"."""
    module, path = PLACES[where]
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    _whole.append((owner, name, getattr(owner, name)))
    setattr(owner, name, _failing(how, getattr(owner, name)))


def mend_engine() -> None:
    """Undo `break_engine`."""
    while _whole:
        owner, name, whole = _whole.pop()
        setattr(owner, name, whole)


def _failing(how: str, whole: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def fails(*given: Any, **named: Any) -> Any:
        if how == "nan":
            return whole(*given, **named) * float("nan")
        if how == "cpu":
            return torch.empty(2**60)  # more bytes than any machine has: the allocator's own error
        if how == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0)")
        raise ZeroDivisionError("made for the test")

    return fails
