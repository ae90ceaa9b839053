"""Module names in LoRA files, against golden lists of the full-size architectures.

tests/golden/lora_names.json holds for each family and part the number of modules that kohya's default LoRA has, the
SHA-256 of their sorted names (one a line) and some of them. The numbers are those that sd-scripts reports when it
makes a network for the real models: 192 + 72 (SD1), 722 + 72 + 192 (SDXL).
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_trainer.contracts import LentModel, TensorInfo
from lora_trainer.families.registry import family_named, identify
from lora_trainer.families.text import module_path
from lora_trainer.families.unet import empty_unet, read_unet
from tests.builders.slim import Sketch, all_shapes

GOLDEN: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "lora_names.json").read_text()
)
FULL = {
    "sd1": Sketch((320, 640, 1280, 1280), (1, 1, 1, 0), 1, False, 768, 0),
    "sd2": Sketch((320, 640, 1280, 1280), (1, 1, 1, 0), 1, True, 1024, 0),
    "sdxl": Sketch((320, 640, 1280), (0, 2, 10), 10, True, 2048, 2816),
}
LAYERS = {("sd1", "text_encoder"): 12, ("sd2", "text_encoder"): 23, ("sdxl", "text_encoder"): 12,
          ("sdxl", "text_encoder_2"): 32}  # fmt: skip
TEXT_MODULES = [*(f"self_attn.{letter}_proj" for letter in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]


@lru_cache
def base_of(kind: Any) -> Any:
    header = {name: TensorInfo("F16", shape) for name, shape in all_shapes(kind, FULL[kind])}
    lent = LentModel({}, header, identify(header, "full")[1], "full", None, owned=False)
    return family_named(kind).adopt(lent, torch.device("meta"), torch.float16, [])


@lru_cache
def unet_paths(kind: str) -> list[str]:
    """Every linear and convolution layer of the UNet."""
    unet = empty_unet(read_unet(base_of(kind)._header), family_named(kind).heads)  # type: ignore[attr-defined]
    return [path for path, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def paths_of(kind: str, part: str) -> list[str]:
    if part == "unet":
        return [path for path in unet_paths(kind) if ".attentions." in path]
    return [f"encoder.layers.{n}.{module}" for n in range(LAYERS[kind, part]) for module in TEXT_MODULES]


@pytest.mark.parametrize("kind", FULL)
def test_names_are_the_golden_ones_and_lead_back(kind: str):
    base, family = base_of(kind), family_named(kind)
    assert GOLDEN[kind].keys() == {"unet", *family.text_parts}
    for part, golden in GOLDEN[kind].items():
        paths = paths_of(kind, part)
        written = [base.kohya_name(part, path) for path in paths]
        assert len(set(written)) == golden["count"]
        assert set(golden["some"]) <= set(written)
        assert hashlib.sha256("\n".join(sorted(written)).encode()).hexdigest() == golden["sha256"]
        assert [family.module_of(name) for name in written] == [(part, path) for path in paths]


@pytest.mark.parametrize("kind", FULL)
def test_every_layer_of_a_unet_is_found_in_every_spelling(kind: str):
    base, family = base_of(kind), family_named(kind)
    for path in unet_paths(kind):
        ldm = base.ldm_place("unet", path).key.removesuffix(".weight")
        inner = ldm.removeprefix("model.diffusion_model.")
        spellings = [
            "lora_unet_" + path.replace(".", "_"), "lora_unet_" + inner.replace(".", "_"), f"unet.{path}",
            f"base_model.model.{path}", f"base_model.model.unet.{path}", path, ldm, f"diffusion_model.{inner}",
            "lycoris_" + path.replace(".", "_"),
        ]  # fmt: skip
        if match := re.match(r"(.+\.attn\d)\.to_(q|k|v|out)", path):
            spellings.append(f"unet.{match[1]}.processor.to_{match[2]}_lora")
        assert {family.module_of(name) for name in spellings} == {("unet", path)}


def test_text_modules_are_found_in_every_spelling_and_in_their_family_only():
    path = "encoder.layers.3.self_attn.out_proj"
    first, second = ("text_encoder", path), ("text_encoder_2", path)
    sd1, sdxl = family_named("sd1").module_of, family_named("sdxl").module_of
    for name in (
        "lora_te_text_model_encoder_layers_3_self_attn_out_proj",
        "lora_te1_text_model_encoder_layers_3_self_attn_out_proj",
        f"text_encoder.text_model.{path}", f"text_encoder.{path}", f"base_model.model.text_model.{path}",
        f"base_model.model.text_encoder.text_model.{path}",
    ):  # fmt: skip
        assert sd1(name) == first
    assert sdxl("lora_te1_text_model_encoder_layers_3_self_attn_out_proj") == first
    assert sdxl("lora_te2_text_model_encoder_layers_3_self_attn_out_proj") == second
    assert sdxl(f"text_encoder_2.text_model.{path}") == second
    assert sdxl("lora_te2_text_projection") == ("text_encoder_2", "text_projection")
    assert sd1("lora_te2_text_model_encoder_layers_3_self_attn_out_proj") is None
    assert sd1(f"text_encoder_2.text_model.{path}") is None


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_double_blocks_0_img_attn_proj",
        "lora_unet_input_blocks_30_1_proj_in",
        "lora_prior_unet_down_blocks_0_attentions_0_proj_in",
        "lora_te_encoder_block_0",
        "lora_unet_",
        "transformer.x.y",
        "",
    ],
)
def test_modules_of_other_models_are_not_found(name: str):
    assert family_named("sdxl").module_of(name) is None


@pytest.mark.parametrize("path", ["encoder.layers.0.mlp.fc1", "text_model.encoder.layers.0.mlp.fc1"])
def test_the_level_that_transformers_dropped_does_not_matter(path: str):
    base = base_of("sdxl")
    assert base.kohya_name("text_encoder_2", path) == "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    assert base.ldm_place("text_encoder", path).key.endswith("text_model.encoder.layers.0.mlp.fc1.weight")
    assert module_path(nn.Module(), "encoder.layers.0.mlp.fc1") == "encoder.layers.0.mlp.fc1"
