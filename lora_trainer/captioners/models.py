"""The captioning models that are known by name, and what kind of model lies in a folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

from lora_trainer.weights.json_file import read_json

Kind = Literal["blip", "coca", "clip", "wd14"]

# In the order they are preferred: open_clip's own file before transformers' of the same folder, pickles last.
WEIGHTS = (
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors",
    "open_clip_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
ONNX, ONNX_TAGS = "model.onnx", "selected_tags.csv"
OPEN_CLIP_CONFIG = "open_clip_config.json"


class Known(NamedTuple):
    """A model that has a name here."""

    kind: Kind
    title: str  # to pick it by
    repository: str  # on the Hugging Face hub
    size: str  # of the files that are needed
    wants: tuple[str, ...]  # files, for someone who puts them there by hand
    architecture: str = ""  # open_clip's name of it, for a folder without open_clip_config.json


_BLIP_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt")
KNOWN = {
    "blip-base": Known(
        "blip", "BLIP", "Salesforce/blip-image-captioning-base", "1.0 GB", (*_BLIP_FILES, "pytorch_model.bin")
    ),
    "blip-large": Known(
        "blip", "BLIP large", "Salesforce/blip-image-captioning-large", "1.9 GB", (*_BLIP_FILES, "model.safetensors")
    ),
    "coca": Known(
        "coca", "CoCa", "laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", "2.6 GB",
        (OPEN_CLIP_CONFIG, "open_clip_pytorch_model.bin"), "coca_ViT-L-14",
    ),
    "clip-tags": Known(
        "clip", "CLIP, tags of a list", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "0.6 GB",
        (OPEN_CLIP_CONFIG, "open_clip_model.safetensors"), "ViT-B-32",
    ),
    "wd14": Known("wd14", "WD14 tagger", "SmilingWolf/wd-swinv2-tagger-v3", "0.5 GB", (ONNX, ONNX_TAGS)),
}  # fmt: skip


def kind_of(folder: Path) -> Kind | None:
    """What kind of captioning model lies in a folder, complete; None for anything else. Raises PlainError for a
    configuration that cannot be read."""
    if (folder / ONNX).is_file() and (folder / ONNX_TAGS).is_file():
        return "wd14"
    if weights_in(folder) is None:
        return None
    if (folder / OPEN_CLIP_CONFIG).is_file():
        model = read_json(folder / OPEN_CLIP_CONFIG).get("model_cfg", {})
        return "coca" if "multimodal_cfg" in model else "clip"
    if (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == "blip":
        return "blip"
    return None


def weights_in(folder: Path) -> Path | None:
    """The file with the weights of a model of torch, or None."""
    return next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)


def needed(names: Collection[str]) -> list[str]:
    """Of the files of a model on the hub those that are read here: settings, and the weights in one form only."""
    if ONNX in names:
        return [ONNX, ONNX_TAGS]
    weights = next((name for name in WEIGHTS if name in names), None)
    settings = [name for name in names if "/" not in name and (name.endswith(".json") or name == "vocab.txt")]
    return [*sorted(settings), weights] if weights else []
