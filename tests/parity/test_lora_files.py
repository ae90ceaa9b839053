"""LoRA files of ours give diffusers the same model that was trained, in either dialect; and layers equal peft's own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lora_trainer.contracts import BaseModel
from lora_trainer.networks.dialects import to_peft
from lora_trainer.networks.file import write_lora, write_tensors
from lora_trainer.networks.lora import ADAPTER
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
    from peft import get_peft_model_state_dict

    base = base_model(kind)
    network = put_on(base, "all")
    unet: Any = base.parts["unet"]
    theirs = {f"unet.{key}" for key in get_peft_model_state_dict(unet, adapter_name=ADAPTER)}
    assert {key for key in to_peft(network.state()) if key.startswith("unet.")} == theirs
    network.eject()


def test_the_lean_forward_is_pefts(kind: Kind) -> None:
    base = base_model(kind)
    network = put_on(base, "all")
    randomise(network)
    unet = base.parts["unet"]
    for path in (
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.2",
        "down_blocks.0.downsamplers.0.conv",
        "mid_block.resnets.0.conv1",
    ):
        layer: Any = unet.get_submodule(path)
        inner = layer.base_layer
        shape = (2, 5, inner.in_features) if isinstance(inner, nn.Linear) else (2, inner.in_channels, 8, 8)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        ours, ours_grads = _with_gradients(layer, layer.forward, x)
        layer.train()
        theirs, theirs_grads = _with_gradients(layer, type(layer).forward.__get__(layer), x)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
        for mine, other in zip(ours_grads, theirs_grads, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))
    network.eject()


def _with_gradients(layer: Any, forward: Any, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    weights = [layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        result = forward(x)
    return result, list(torch.autograd.grad(result.square().mean(), [x, *weights]))


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
