"""LoRA files of ours give diffusers the same model that was trained, in either dialect; and layers equal peft's own."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.contracts import BaseModel
from lora_trainer.networks.dialects import to_peft
from lora_trainer.networks.file import write_lora, write_tensors
from tests.builders.networks import KINDS, base_model, outputs, put_on, randomise
from tests.builders.slim import Kind

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.mark.newest_only
@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_diffusers_reads_the_file_and_gives_the_same_output(kind: Kind, dialect: str, tmp_path: Path) -> None:
    """Through diffusers' own `lora_state_dict` and loaders of UNet and text encoders."""
    base, path = base_model(kind), tmp_path / "trained.safetensors"
    bare = outputs(base)
    network = put_on(base, "all", rank=4, alpha=3.0)
    randomise(network)
    trained = outputs(base)
    if dialect == "kohya":
        write_lora(path, network.state(), kohya_name=base.kohya_name, metadata={}, precision="fp32")
    else:
        write_tensors(path, to_peft(network.state()), metadata={}, precision="fp32")
    network.eject()

    _load_by_diffusers(base, path, kind)
    loaded = outputs(base)
    for name, expected in trained.items():
        # Both are float32 and differ in the order of sums, carried through forty random layers.
        error, effect = (loaded[name] - expected).norm(), (expected - bare[name]).norm()
        assert error < 1e-3 * effect, (name, float(error), float(effect))
        assert effect > 0.01 * bare[name].norm()


@pytest.mark.newest_only
def test_diffusers_names_every_module_as_we_do(kind: Kind) -> None:
    """Keys in our peft dialect are those that diffusers' own saving gives a UNet with the same layers."""
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    base = base_model(kind)
    network = put_on(base, "all")
    keys = [key for key in to_peft(network.state()) if key.startswith("unet.")]
    network.eject()
    paths = "|".join({re.escape(key.removeprefix("unet.").rpartition(".lora_")[0]) for key in keys})
    unet: Any = base.parts["unet"]
    inject_adapter_in_model(LoraConfig(r=4, target_modules=f"(?:{paths})"), unet, adapter_name="other")
    assert {f"unet.{key}" for key in get_peft_model_state_dict(unet, adapter_name="other")} == set(keys)


def _load_by_diffusers(base: BaseModel, path: Path, kind: Kind) -> None:
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    mixin: Any = StableDiffusionXLLoraLoaderMixin if kind == "sdxl" else StableDiffusionLoraLoaderMixin
    unet: Any = base.parts["unet"]
    state, alphas = mixin.lora_state_dict(str(path.parent), weight_name=path.name, unet_config=unet.config)
    mixin.load_lora_into_unet(state, network_alphas=alphas, unet=unet)
    for part in base.parts:
        if part != "unet":
            mixin.load_lora_into_text_encoder(
                copy.copy(state), network_alphas=alphas, text_encoder=base.parts[part], prefix=part
            )
