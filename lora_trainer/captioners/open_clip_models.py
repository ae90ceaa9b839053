"""Models of open_clip: the library imported with care, and one of its models built and filled from a folder."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_trainer.captioners.models import OPEN_CLIP_CONFIG, weights_in
from lora_trainer.captioners.pixels import CLIP_DEVIATION, CLIP_MEAN, Look
from lora_trainer.contracts import PlainError
from lora_trainer.weights.json_file import read_json
from lora_trainer.weights.read import open_checkpoint

if TYPE_CHECKING:
    import torch

# Operators that torchvision's own import registers anew, which fails where its compiled part could not be loaded.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class OpenClip(NamedTuple):
    """A model ready to be asked."""

    model: Any
    look: Look
    tokens: int  # length of its texts
    library: ModuleType


def load_open_clip(folder: Path, architecture: str, device: torch.device) -> OpenClip:
    """The model in a folder, on the device, in float32. `architecture` is asked where the folder does not tell it.

    Raises PlainError where open_clip cannot be imported, or the folder holds something else.
    """
    library = import_open_clip()
    settings = _settings(library, folder, architecture)
    model = _built(library, folder, dict(settings["model_cfg"]))
    _fill(model, folder)
    text = settings["model_cfg"].get("text_cfg", {})
    # A CoCa text is one token shorter than what its tokenizer gives: the last place is for the class token.
    length = int(text.get("context_length", 77))
    return OpenClip(model.eval().to(device), _look(settings), length, library)


def import_open_clip() -> ModuleType:
    """open_clip. Raises PlainError where it, or the torchvision that it needs, is not to be had."""
    try:
        _import_torchvision()
        import open_clip
    except ImportError as error:
        raise PlainError(
            f"This captioner needs the packages open_clip_torch and torchvision, which cannot be imported ({error}); "
            "install the torchvision that fits the installed torch, or choose a BLIP captioner, which needs neither."
        ) from error
    return open_clip


def _import_torchvision() -> None:
    """A torchvision built for CUDA beside a torch for the CPU lacks its compiled part, and fails for want of two
    operators that nobody calls here. Once they are declared the rest of it works."""
    import torch

    try:
        import torchvision  # pyright: ignore[reportMissingImports] - in the hosts, not in our environments
    except RuntimeError:
        declared = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            declared.define(schema)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        try:
            import torchvision  # pyright: ignore[reportMissingImports]
        except RuntimeError as error:
            raise ImportError(f"torchvision: {error}") from error
        torchvision._declared_for_cpu = declared  # type: ignore[attr-defined]  # undone when it is forgotten


def _settings(library: ModuleType, folder: Path, architecture: str) -> dict[str, Any]:
    """{"model_cfg": ..., "preprocess_cfg": ...} as open_clip writes them for the hub."""
    path = folder / OPEN_CLIP_CONFIG
    if path.is_file():
        settings = read_json(path)
        if isinstance(settings.get("model_cfg"), dict):
            return settings
        raise PlainError(f"{path} describes no model (it has no model_cfg); download or copy it again.")
    known = library.get_model_config(architecture)
    if known is None:
        raise PlainError(f"open_clip knows no model {architecture}; put {OPEN_CLIP_CONFIG} into {folder}.")
    return {"model_cfg": known}


def _built(library: ModuleType, folder: Path, model: dict[str, Any]) -> Any:
    from open_clip.coca_model import CoCa

    custom = model.pop("custom_text", False)
    if "hf_model_name" in model.get("text_cfg", {}):
        raise PlainError(f"{folder} takes its text encoder from the hub, which is not supported; choose another model.")
    kind = CoCa if "multimodal_cfg" in model else library.CustomTextCLIP if custom else library.CLIP
    try:
        return kind(**model)
    except (TypeError, RuntimeError) as error:  # a setting of another release; a vision tower that timm builds
        raise PlainError(f"The installed open_clip cannot build the model in {folder} ({error}); update it.") from error


def _fill(model: Any, folder: Path) -> None:
    weights = weights_in(folder)
    if weights is None:
        raise PlainError(f"{folder} has no weights of an open_clip model any more; put them back.")
    with open_checkpoint(weights) as checkpoint:
        state = {key.removeprefix("module."): value for key, value in checkpoint.items()}
    try:
        lacking = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError as error:  # other shapes
        told = " ".join(str(error).split())[:200]
        raise PlainError(f"{weights} is not of the model that its folder describes ({told}).") from error
    lacking = [key for key in lacking if not key.endswith("attn_mask")]  # counted up, in some releases a buffer
    if lacking:
        raise PlainError(
            f"{weights} lacks {len(lacking)} tensors of the model that its folder describes, such as {lacking[0]}; "
            "download it again."
        )


def _look(settings: dict[str, Any]) -> Look:
    given = settings.get("preprocess_cfg", {})
    size = given.get("size", settings["model_cfg"]["vision_cfg"].get("image_size", 224))
    height, width = size if isinstance(size, list | tuple) else (size, size)
    mode = given.get("resize_mode", "shortest")
    if mode not in ("shortest", "squash"):
        raise PlainError(f"This open_clip model wants its images resized by {mode!r}, which is not known here.")
    return Look(
        int(height), int(width), mode,
        mean=tuple(given.get("mean", CLIP_MEAN)), deviation=tuple(given.get("std", CLIP_DEVIATION)),
    )  # fmt: skip


def accepts(function: Any, name: str) -> bool:
    """Whether a function takes an argument of this name: open_clip's change between its releases."""
    return name in inspect.signature(function).parameters
