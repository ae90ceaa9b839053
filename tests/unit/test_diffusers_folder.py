"""A diffusers folder is read as the checkpoint file of the same model would be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_trainer.contracts import PlainError
from lora_trainer.families.registry import family_named, lend_file
from tests.builders.slim import Kind, write_slim

CPU = torch.device("cpu")
# Kept for the WebUI's sake, or never run: not in folders, or (position_ids) only in those of old transformers.
NOT_IN_FOLDERS = re.compile(r"^betas|^alphas_cumprod|position_ids|logit_scale|cond_stage_model.model.text_projection")


def write_folder(folder: Path, kind: Kind, file: Path, scheduler: dict[str, Any] | None = None) -> Path:
    """The model of a file as diffusers and transformers themselves would save it."""
    lent = lend_file(file)
    base = family_named(kind).adopt(lent, CPU, torch.float32)
    for part, module in base.parts.items():
        saved: Any = module
        saved.save_pretrained(folder / part)
    pipeline = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    if scheduler is not None:
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_folder_is_the_file_under_another_roof(tmp_path: Path, kind: Kind):
    file = write_slim(tmp_path / "file.safetensors", kind, seed=8)
    folder = write_folder(tmp_path / "folder", kind, file)
    one, other = lend_file(file), lend_file(folder)
    assert (other.name, other.facts.family, other.facts.prediction) == ("folder", kind, one.facts.prediction)
    names = {name for name in one.header if not NOT_IN_FOLDERS.search(name)}
    assert {name for name in other.header if not NOT_IN_FOLDERS.search(name)} == names
    unused = ".resblocks.2." if kind == "sd2" else "none"  # the last layer, which folders lack
    for name in names:
        assert other.header[name].shape == one.header[name].shape == tuple(other.tensors[name].shape)
        assert unused in name or torch.equal(other.tensors[name], one.tensors[name]), name
    if kind != "sd1":  # that it can be used as a whole
        family = family_named(kind)
        captions = ["a cat in a hat"]
        found, expected = (
            family.adopt(lent, CPU, torch.float32, family.text_parts).encode_text(captions) for lent in (other, one)
        )
        assert torch.equal(found.context, expected.context)


def test_old_names_variants_and_pieces_are_read(tmp_path: Path):
    file = write_slim(tmp_path / "file.safetensors", "sd1")
    folder = write_folder(tmp_path / "folder", "sd1", file)
    vae = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(vae)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, name in old.items():
        tensors = {key.replace(f"attentions.0.{new}.", f"attentions.0.{name}."): t for key, t in tensors.items()}
    assert any("query" in name for name in tensors)
    vae.unlink()
    save_file(tensors, str(vae.with_name("diffusion_pytorch_model.fp16.safetensors")))
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = sorted(load_file(unet).items())
    unet.unlink()
    for number, piece in ((1, weights[:300]), (2, weights[300:])):
        save_file(dict(piece), str(unet.with_name(f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")))
    one, other = lend_file(file), lend_file(folder)
    for name in other.header:
        assert torch.equal(other.tensors[name], one.tensors[name]), name


def test_the_scheduler_tells_the_prediction(tmp_path: Path):
    file = write_slim(tmp_path / "file.safetensors", "sdxl")
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    facts = lend_file(write_folder(tmp_path / "v", "sdxl", file, told)).facts
    assert (facts.prediction, facts.zero_terminal_snr) == ("v_prediction", True)
    facts = lend_file(write_folder(tmp_path / "n", "sdxl", file, {"prediction_type": "v_prediction"})).facts
    assert (facts.prediction, facts.zero_terminal_snr) == ("v_prediction", False)
    assert facts.reason == "scheduler_config.json: prediction_type is v_prediction"


def test_other_folders_are_refused(tmp_path: Path):
    with pytest.raises(PlainError, match=r"without model_index.json, so it is no diffusers model"):
        lend_file(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(PlainError, match="a diffusers folder for FluxPipeline, which is not supported"):
        lend_file(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(PlainError, match="unet holds no weights"):
        lend_file(tmp_path)
    (tmp_path / "model_index.json").write_text("[")
    with pytest.raises(PlainError, match="cannot be read"):
        lend_file(tmp_path)
