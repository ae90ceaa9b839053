"""Files are told apart by their headers: family and prediction of the supported, a name for everything else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.families.registry import family_named, identify, lend_file
from tests.builders.slim import SKETCHES, Kind, all_shapes, write_slim

Header = dict[str, TensorInfo]
CONV_IN = "model.diffusion_model.input_blocks.0.0.weight"


def header_of(kind: Kind, *more: str) -> Header:
    header = {name: TensorInfo("F16", shape) for name, shape in all_shapes(kind, SKETCHES[kind])}
    return header | {name: TensorInfo("F16", (0,)) for name in more}


def names(*found: str) -> Header:
    return {name: TensorInfo("F16", (4, 4)) for name in found}


def found(header: Header, notes: dict[str, str] | None = None) -> tuple[str, str, bool]:
    family, facts = identify(header, "x.safetensors", notes)
    assert family.name == facts.family
    assert facts.reason
    return facts.family, facts.prediction, facts.zero_terminal_snr


def test_families_and_what_they_predict():
    assert found(header_of("sd1")) == ("sd1", "epsilon", False)
    assert found(header_of("sd2")) == ("sd2", "epsilon", False)  # a guess, made sure of by lend_file
    assert found(header_of("sdxl")) == ("sdxl", "epsilon", False)
    assert found(header_of("sdxl", "v_pred")) == ("sdxl", "v_prediction", False)
    assert found(header_of("sdxl", "v_pred", "ztsnr")) == ("sdxl", "v_prediction", True)
    assert found(header_of("sd1"), {"modelspec.prediction_type": "v"}) == ("sd1", "v_prediction", False)
    assert found(header_of("sdxl", "v_pred"), {"modelspec.prediction_type": "epsilon"})[1] == "v_prediction"


OTHERS: dict[str, tuple[Header, str]] = {
    "kohya LoRA": (names("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"), "is a LoRA or LyCORIS file"),
    "peft LoRA": (names("base_model.model.down_blocks.0.attn1.to_q.lora_A.weight"), "is a LoRA or LyCORIS file"),
    "LoHa": (names("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"), "is a LoRA or LyCORIS file"),
    "textual inversion": (names("emb_params"), "is a textual inversion"),
    "SDXL inversion": (names("clip_l", "clip_g"), "is a textual inversion"),
    "VAE": (names("encoder.conv_in.weight", "decoder.conv_in.weight", "quant_conv.weight"), "is a VAE alone"),
    "LDM VAE": (names("first_stage_model.encoder.conv_in.weight"), "is a VAE alone"),
    "ControlNet": (names("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.bias"), "ControlNet"),
    "ControlNet, diffusers": (names("controlnet_down_blocks.0.weight", "down_blocks.0.resnets.0"), "ControlNet"),
    "ControlNet with its base": (header_of("sd1", "control_model.input_blocks.0.0.weight"), "ControlNet"),
    "SD3": (names("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"), "Stable Diffusion 3"),
    "Flux": (names("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"), "is Flux"),
    "PixArt": (names("adaln_single.emb.timestep_embedder.linear_1.weight"), "is PixArt"),
    "Cascade": (names("clip_txt_pooled_mapper.weight", "down_blocks.0.0.channelwise.0.weight"), "Stable Cascade"),
    "language model": (names("model.layers.0.self_attn.q_proj.weight", "lm_head.weight"), "a language model"),
    "upscaler": (names("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"), "an upscaler"),
    "T5": (names("encoder.block.0.layer.0.SelfAttention.q.weight"), "a T5 text encoder alone"),
    "video": (header_of("sd1", "model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"), "video model"),
    "unCLIP": (header_of("sd2", "embedder.model.ln_final.weight"), "unCLIP"),
    "EDM": (header_of("sdxl", "edm_vpred.sigma_max"), "EDM schedule"),
    "inpainting": (header_of("sd1") | {CONV_IN: TensorInfo("F16", (32, 9, 3, 3))}, "is an inpainting model"),
    "pix2pix": (header_of("sdxl") | {CONV_IN: TensorInfo("F16", (64, 8, 3, 3))}, "is an instruct-pix2pix model"),
    "UNet of a folder": (names("down_blocks.0.resnets.0.conv1.weight", "mid_block.resnets.0.bias"), "is a UNet alone"),
    "text encoder": (names("text_model.encoder.layers.0.mlp.fc1.weight"), "is a text encoder alone"),
    "unknown": (names("some.thing", "else"), r"is of an unknown kind \(it holds else, some.thing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_called_by_their_name(kind: str):
    header, words = OTHERS[kind]
    with pytest.raises(PlainError, match=words) as refused:
        identify(header, "models/x.safetensors")
    assert str(refused.value).startswith("models/x.safetensors ")
    assert "; " in str(refused.value)  # and what to do


def test_the_refiner_and_halves_of_checkpoints_are_named():
    refiner = {name.replace("conditioner.embedders.1.", "conditioner.embedders.0."): info
               for name, info in header_of("sdxl").items() if "embedders.0." not in name}  # fmt: skip
    with pytest.raises(PlainError, match="SDXL refiner"):
        identify(refiner, "x")
    for part, words in (("first_stage_model.", "no VAE"), ("cond_stage_model.", "no text encoder")):
        half = {name: info for name, info in header_of("sd1").items() if not name.startswith(part)}
        with pytest.raises(PlainError, match=f"holds a UNet but {words}"):
            identify(half, "x")


@pytest.mark.parametrize(("v_pred", "expected"), [(False, "epsilon"), (True, "v_prediction")])
def test_sd2_is_asked_what_it_predicts(tmp_path: Path, v_pred: bool, expected: str):
    lent = lend_file(write_slim(tmp_path / "two.safetensors", "sd2", v_pred=v_pred))
    assert (lent.facts.family, lent.facts.prediction) == ("sd2", expected)
    assert "below -1 means v-prediction" in lent.facts.reason


def test_notes_spare_the_asking(tmp_path: Path):
    path = write_slim(tmp_path / "two.safetensors", "sd2", metadata={"modelspec.prediction_type": "v"})
    facts = lend_file(path).facts
    assert (facts.prediction, facts.reason) == ("v_prediction", "modelspec.prediction_type is v")


def test_a_file_is_lent_with_its_name_and_read_when_asked_for(tmp_path: Path):
    path = write_slim(tmp_path / "my model.safetensors", "sd1")
    lent = lend_file(str(path))
    assert (lent.name, lent.path, lent.owned) == ("my model", path, True)
    assert lent.header[CONV_IN].shape == tuple(lent.tensors[CONV_IN].shape) == (32, 4, 3, 3)


def test_pickled_checkpoints_are_recognised_too(tmp_path: Path):
    import torch

    from tests.builders.slim import slim_checkpoint

    path = tmp_path / "old.ckpt"
    torch.save({"state_dict": slim_checkpoint("sd1"), "global_step": 7}, path)
    assert lend_file(path).facts.family == "sd1"


def test_families_are_known_by_name_and_a_missing_file_is_told(tmp_path: Path):
    for name, title in (("sd1", "Diffusion 1"), ("sd2", "Diffusion 2"), ("sdxl", "Diffusion XL")):
        family: Any = family_named(name)
        assert family.name == name
        assert title in family.title
    with pytest.raises(PlainError, match="There is no file"):
        lend_file(tmp_path / "nothing.safetensors")


def test_importing_the_registry_imports_no_torch():
    code = "import sys, lora_trainer.families.registry; print(sorted({'torch', 'diffusers'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.strip() == "[]"
