"""Parts of the model on the device and off it again, where the WebUI keeps them in the CPU's memory (--medvram).

The WebUI brings a part when its own module runs, which ours never do: they only share its tensors. What is on the
device is noted in `modules.lowvram.module_in_gpu`, and goes when another part comes; we note ours there as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def bring(model: Any, parts: Iterable[str]) -> None:
    """Have these parts on the device, and no other. Nothing where the whole model stays there."""
    from modules import devices, lowvram
    from torch import nn

    if not model.lowvram:
        return
    modules = list(dict.fromkeys(_module(model, part) for part in parts))
    held = lowvram.module_in_gpu
    if isinstance(held, nn.ModuleList) and list(held) == modules:
        return
    lowvram.send_everything_to_cpu()
    together = nn.ModuleList(modules)  # one name for several: whoever comes next sends all of them away
    together.to(devices.device)
    lowvram.module_in_gpu = together


def make_room() -> None:
    """No part of the WebUI's model on the device, where it keeps them in the CPU's memory."""
    from modules import devices, lowvram

    if lowvram.module_in_gpu is not None:
        lowvram.send_everything_to_cpu()
        devices.torch_gc()


def spare(model: Any) -> str:
    """What the WebUI can do without goes to the CPU's memory; what that was, as the end of a sentence.

    Its interrogators stay where the user's settings keep them.
    """
    from modules import deepbooru, devices, sd_models, shared

    others = [
        other for other in sd_models.model_data.loaded_sd_models
        if other is not model and not other.lowvram and _is_on(devices.device, other)
    ]  # fmt: skip
    for other in others:
        sd_models.send_model_to_cpu(other)
    shared.interrogator.unload()
    if deepbooru.model.model is not None:
        deepbooru.model.stop()
    devices.torch_gc()
    names = ", ".join(other.sd_checkpoint_info.title for other in others)
    return f"the WebUI's other checkpoints went to the CPU's memory ({names})" if names else ""


def held(model: Any) -> int:
    """Bytes of the device's memory that the checkpoint's weights take."""
    from modules import devices

    if model is None or model.lowvram or not _is_on(devices.device, model):
        return 0
    return sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())


def set_aside(model: Any) -> None:
    """The checkpoint to the CPU's memory."""
    from modules import sd_models

    sd_models.send_model_to_cpu(model)


def bring_back(model: Any) -> None:
    """The checkpoint to the device again."""
    from modules import sd_models

    sd_models.send_model_to_device(model)


def _is_on(device: Any, model: Any) -> bool:
    return device.type != "cpu" and next(model.parameters()).device.type == device.type


def send_back(model: Any) -> None:
    """Everything to the CPU's memory again, as the WebUI itself does after a generation."""
    from modules import devices, lowvram

    if model is not None and model.lowvram:
        lowvram.send_everything_to_cpu()
    devices.torch_gc()
    _give_back_to_the_system()


def _give_back_to_the_system() -> None:
    """What was freed in the CPU's memory; glibc keeps it else, and a copy of every weight was in it (pristine.py)."""
    import ctypes

    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # no glibc: macOS, musl; Windows, where None names no library
        return


def _module(model: Any, part: str) -> Any:
    if part == "unet":
        return model.model
    if part == "vae":
        return model.first_stage_model
    return model.conditioner if model.is_sdxl else model.cond_stage_model
