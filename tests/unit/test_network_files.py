"""LoRA files: two dialects, notes, and what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_trainer.contracts import PlainError
from lora_trainer.families.registry import family_named
from lora_trainer.jobs.lora_files import kohya_namer
from lora_trainer.networks.dialects import to_kohya, to_peft, to_state
from lora_trainer.networks.file import read_lora, write_lora
from lora_trainer.networks.metadata import RECIPE, RunFacts, build
from lora_trainer.networks.state import ALPHA, DOWN, UP, ModuleWeights, as_state, modules_of
from tests.builders.networks import KINDS
from tests.builders.slim import Kind

FACTS = RunFacts(
    name="neon", base_name="v1-5-pruned", base_version="sd_v1", architecture="stable-diffusion-v1",
    prediction="epsilon", zero_terminal_snr=False, resolution=512, clip_skip=2, rank=8, alpha=4.0, convolutions=True,
    dropout=0.0, learning_rate=1e-4, text_encoder_learning_rate=5e-5, schedule="cosine", warmup_steps=10,
    optimizer="torch.optim.adamw.AdamW", step=100, steps=200, epochs=5, batch_size=2, gradient_accumulation_steps=3,
    gradient_checkpointing=False, max_gradient_norm=1.0, min_snr_gamma=5.0, noise_offset=0.0, mixed_precision="fp16",
    seed=42, images=30, repeats=2, data_name="neon signs", caption_dropout=0.05, shuffle_captions=True, keep_tokens=1,
    flip=False, tag_frequency={"neon": 30, "a barn": 4}, buckets={(512, 512): 20, (448, 576): 10},
    recipe={"network": {"rank": 8}},
)  # fmt: skip

MODULES = {
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0": (16, 16),
    "unet.up_blocks.0.resnets.1.conv1": (12, 10, 3, 3),
    "text_encoder.encoder.layers.11.self_attn.out_proj": (18, 18),
}


def trained(rank: int = 4, alpha: float = 2.0, seed: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return as_state({
        name: ModuleWeights(
            torch.randn((rank, *rest), generator=generator),
            torch.randn((out, rank, *[1] * (len(rest) - 1)), generator=generator) * 0.1,
            alpha,
        )
        for name, (out, *rest) in MODULES.items()
    })  # fmt: skip


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


# --- dialects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [2.0, 4.0, 1.0])  # factors 1/2, 1, 1/4
def test_kohya_and_peft_names_lead_back_to_the_same_bits(kind: Kind, alpha: float) -> None:
    family, state = family_named(kind), trained(4, alpha)
    kohya = to_kohya(state, kohya_namer(family))
    assert same(to_state(kohya, family.module_of, "file"), state)
    peft = to_peft(state)
    back = modules_of(to_state(peft, family.module_of, "file"))
    for name, weights in modules_of(state).items():
        assert torch.equal(back[name].down, weights.down)
        assert torch.equal(back[name].up * back[name].scale, weights.up * weights.scale)
        assert back[name].scale == 1, "diffusers takes alpha = r where none is given"
    again = to_peft(to_state(to_kohya(to_state(peft, family.module_of, "file"), kohya_namer(family)),
                             family.module_of, "file"))  # fmt: skip
    assert same(again, peft)


def test_an_odd_factor_is_rounded_once() -> None:
    state, family = trained(3, 1.0), family_named("sd1")
    back = modules_of(to_state(to_peft(state), family.module_of, "file"))
    for name, weights in modules_of(state).items():
        torch.testing.assert_close(back[name].up, weights.up / 3, rtol=2**-23, atol=0)


def test_keys_in_a_kohya_file_are_those_of_its_scripts() -> None:
    """Names as kohya-ss/sd-scripts, networks/lora.py, forms them: prefix and path with "_" for "."."""
    keys = set(to_kohya(trained(), kohya_namer(family_named("sd1"))))
    stems = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0",
        "lora_unet_up_blocks_0_resnets_1_conv1",
        "lora_te_text_model_encoder_layers_11_self_attn_out_proj",
    }
    assert keys == {f"{stem}.{ending}" for stem in stems for ending in (DOWN, UP, ALPHA)}
    sdxl = set(to_kohya(trained(), kohya_namer(family_named("sdxl"))))
    assert "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in sdxl
    assert "lora_te1_text_model_encoder_layers_11_self_attn_out_proj.alpha" in sdxl


def test_the_older_diffusers_names_and_a_missing_alpha_are_read() -> None:
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    tensors = {
        f"unet.{block}.processor.to_q_lora.down.weight": down, f"unet.{block}.processor.to_q_lora.up.weight": up,
        f"unet.{block}.to_k.lora.down.weight": down, f"unet.{block}.to_k.lora.up.weight": up,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.down.weight": down,
        "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_linear_layer.up.weight": up,
        f"base_model.model.{block}.to_v.lora_A.weight": down, f"base_model.model.{block}.to_v.lora_B.weight": up,
    }  # fmt: skip
    module_of = family_named("sd1").module_of
    modules = modules_of(to_state(tensors, module_of, "old.safetensors"))
    assert set(modules) == {f"unet.{block}.to_{x}" for x in "qkv"} | {"text_encoder.encoder.layers.0.mlp.fc1"}
    for weights in modules.values():
        assert weights.alpha == 2
        assert torch.equal(weights.down, down)
        assert torch.equal(weights.up, up)
    with pytest.raises(PlainError, match=r"holds unet\.conv_in\.weight, which is no part of a LoRA"):
        to_state({**tensors, "unet.conv_in.weight": down}, module_of, "old.safetensors")


@pytest.mark.parametrize(("key", "words"), [
    ("lora_unet_conv_in.hada_t1", "Tucker"),
    ("lora_unet_conv_in.a1.weight", "a GLoRA"),
    ("lora_unet_conv_in.rescale", "also stretches"),
    ("unet.conv_in.lora_magnitude_vector", "a DoRA of peft"),
    ("lora_unet_conv_in.diff", "a full difference"),
    ("lora_unet_conv_in.lora_mid.weight", "Tucker"),
    ("oft_unet_conv_in.oft_diag", "an OFT"),
    ("lora_unet_conv_in.hada_w1_a", "incomplete: lora_unet_conv_in, a LoHa, has no hada_w1_b"),
    ("lora_unet_conv_in.lokr_w1_a", "incomplete: lora_unet_conv_in, a LoKr, has no lokr_w1"),
])  # fmt: skip
def test_what_is_not_read_is_refused_by_name(key: str, words: str) -> None:
    kohya = to_kohya(trained(), kohya_namer(family_named("sd1")))
    with pytest.raises(PlainError, match=words):
        to_state({**kohya, key: torch.ones(1)}, family_named("sd1").module_of, "x.safetensors")


def test_what_is_no_lora_or_not_for_this_base_is_told() -> None:
    module_of = family_named("sd1").module_of
    with pytest.raises(PlainError, match="not a LoRA"):
        to_state({"model.diffusion_model.out.2.weight": torch.ones(4, 4)}, module_of, "base.safetensors")
    other = {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.ones(2, 4),
             "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.ones(4, 2)}  # fmt: skip
    with pytest.raises(PlainError, match=r"1 of its 1 modules, lora_unet_double_blocks_0_img_attn_qkv"):
        to_state(other, module_of, "flux.safetensors")
    sdxl = to_kohya(trained(), kohya_namer(family_named("sdxl")))
    sdxl = {key.replace("lora_te1", "lora_te2"): value for key, value in sdxl.items()}
    with pytest.raises(PlainError, match="lora_te2"):
        to_state(sdxl, module_of, "xl.safetensors")
    half = to_kohya(trained(), kohya_namer(family_named("sd1")))
    half.pop("lora_unet_up_blocks_0_resnets_1_conv1.lora_up.weight")
    with pytest.raises(PlainError, match="incomplete"):
        to_state(half, module_of, "half.safetensors")


# --- files -----------------------------------------------------------------------------------------------------------


def write(path: Path, state: dict[str, Tensor], precision: str = "fp16", facts: RunFacts = FACTS) -> Path:
    write_lora(path, state, kohya_name=kohya_namer(family_named("sd1")), metadata=build(facts),
               precision=precision)  # type: ignore[arg-type] # fmt: skip
    return path


@pytest.mark.parametrize(("precision", "dtype"), [
    ("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32),
])  # fmt: skip
def test_a_written_file_holds_the_weights_rounded_once(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    state = trained(3, 1.7)
    tensors = load_file(write(tmp_path / "neon.safetensors", state, precision))
    found = to_state(tensors, family_named("sd1").module_of, "neon")
    for key, value in state.items():
        assert torch.equal(found[key].float(), value if key.endswith(ALPHA) else value.to(dtype).float()), key
        assert found[key].dtype == (torch.float32 if key.endswith(ALPHA) else dtype)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a.safetensors", trained())
    shuffled = dict(reversed(list(trained().items())))
    second = write(tmp_path / "b.safetensors", shuffled)
    other = write(tmp_path / "c.safetensors", trained(seed=8))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes() != other.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_written(tmp_path: Path, bad: float) -> None:
    path = write(tmp_path / "neon.safetensors", trained())
    whole, state = path.read_bytes(), trained()
    next(value for key, value in state.items() if key.endswith(UP)).view(-1)[5] = bad
    with pytest.raises(PlainError, match="not finite"):
        write(path, state)
    assert path.read_bytes() == whole, "the older file survives"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_value_that_half_precision_cannot_hold_is_told(tmp_path: Path) -> None:
    state = trained()
    next(value for key, value in state.items() if key.endswith(UP)).view(-1)[5] = 1e6
    with pytest.raises(PlainError, match=r"reaches 1e\+06, which fp16 cannot hold"):
        write(tmp_path / "neon.safetensors", state)
    write(tmp_path / "neon.safetensors", state, "bf16")


def test_notes_are_read_back_as_they_were(tmp_path: Path) -> None:
    _, notes = read_lora(write(tmp_path / "neon.safetensors", trained()))
    written = build(FACTS)
    assert {key: notes[key] for key in written} == written
    assert set(notes) - set(written) == {"sshs_model_hash", "sshs_legacy_hash"}


# --- notes -----------------------------------------------------------------------------------------------------------


def test_notes_are_what_the_hosts_read() -> None:
    """A1111 v1.10.1, extensions-builtin/Lora: network.py:14,49-69, ui_edit_user_metadata.py:24-28,75-109."""
    notes = build(FACTS)
    assert all(isinstance(value, str) for value in notes.values())
    assert notes["ss_output_name"] == "neon"
    assert notes["ss_sd_model_name"] == "v1-5-pruned"
    assert notes["ss_base_model_version"] == "sd_v1"
    assert notes["ss_v2"] == "False"
    assert json.loads(notes["ss_tag_frequency"]) == {"neon signs": {"neon": 30, "a barn": 4}}
    assert json.loads(notes["ss_dataset_dirs"])["neon signs"]["img_count"] == 30
    buckets = json.loads(notes["ss_bucket_info"])["buckets"]
    assert [(b["resolution"], b["count"]) for b in buckets.values()] == [([448, 576], 10), ([512, 512], 20)]
    assert notes["ss_resolution"] == "(512, 512)"
    assert notes["ss_clip_skip"] == "2"
    assert notes["ss_num_train_images"] == "60"
    assert notes["ss_network_module"] == "networks.lora"
    assert (notes["ss_network_dim"], notes["ss_network_alpha"]) == ("8", "4")
    assert notes["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert notes["modelspec.prediction_type"] == "epsilon"
    assert notes["modelspec.resolution"] == "512x512"
    assert json.loads(notes[RECIPE]) == {"network": {"rank": 8}}


def test_notes_of_other_bases() -> None:
    sd2 = build(replace(FACTS, base_version="sd_v2", prediction="v_prediction"))
    assert sd2["ss_v2"] == "True"
    assert sd2["modelspec.prediction_type"] == "v"
    assert build(replace(FACTS, base_version="sdxl_base_v1-0"))["ss_v2"] == "False"
    assert json.loads(build(replace(FACTS, convolutions=False))["ss_network_args"]) == {}
