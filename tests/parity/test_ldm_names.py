"""Names of every parameter, both ways, on the full-size architectures and against diffusers' own converter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora_trainer.contracts import TensorInfo
from lora_trainer.families.ldm_names import UNET_PREFIX, VAE_PREFIX, UnetNames, VaeNames, unet_to_ldm, vae_to_ldm
from lora_trainer.families.unet import empty_unet, read_unet
from lora_trainer.families.vae import empty_vae, read_vae
from tests.builders.slim import Sketch, unet_shapes, vae_shapes

pytestmark = pytest.mark.parity

# Widths and depths of Stability's configuration files: v1-inference.yaml, v2-inference.yaml, sd_xl_base.yaml.
FULL = {
    "sd1": (Sketch((320, 640, 1280, 1280), (1, 1, 1, 0), 1, False, 768, 0), 686),
    "sd2": (Sketch((320, 640, 1280, 1280), (1, 1, 1, 0), 1, True, 1024, 0), 686),
    "sdxl": (Sketch((320, 640, 1280), (0, 2, 10), 10, True, 2048, 2816), 1680),
    "one block a level": (Sketch((64, 64, 128, 64), (1, 1, 1, 0), 1, False, 64, 0, blocks=1), None),
    "three blocks, two levels": (Sketch((64, 128), (0, 1), 1, True, 64, 0, blocks=3), None),
}


def header_of(shapes: Any, prefix: str) -> dict[str, TensorInfo]:
    return {prefix + name: TensorInfo("F32", shape) for name, shape in shapes}


@pytest.mark.parametrize("kind", FULL)
def test_every_unet_name_goes_there_and_back(kind: str):
    sketch, count = FULL[kind]
    shapes = dict(unet_shapes(sketch))
    shape = read_unet(header_of(shapes.items(), UNET_PREFIX))
    assert count in (None, len(shapes))
    assert shape.channels == sketch.channels
    assert (shape.depths, shape.mid_depth) == (sketch.depths, sketch.mid_depth)
    assert (shape.context, shape.vector, shape.linear) == (sketch.context, sketch.classes, sketch.linear)

    module = empty_unet(shape, lambda channels: 8)
    theirs = {name: tuple(p.shape) for name, p in module.named_parameters()}
    assert {shape.names.to_diffusers(name): size for name, size in shapes.items()} == theirs
    assert UnetNames.of_diffusers(theirs) == shape.names
    assert {name: shape.names.to_ldm(shape.names.to_diffusers(name)) for name in shapes} == {n: n for n in shapes}


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_unet_names_are_those_of_diffusers_converter(kind: str):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    sketch, _ = FULL[kind]
    names = [name for name, _ in unet_shapes(sketch)]
    config = {"layers_per_block": 2, "addition_embed_type": "text_time" if sketch.classes else None}
    theirs = convert_ldm_unet_checkpoint({UNET_PREFIX + name: name for name in names}, config)
    ours = UnetNames.of_ldm(names)
    assert {ours.to_diffusers(name): name for name in names} == theirs


def test_vae_names_go_there_and_back_and_are_those_of_diffusers_converter():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    shapes = dict(vae_shapes((128, 256, 512, 512)))  # ddconfig of v1-inference.yaml: ch 128, ch_mult 1 2 4 4
    assert len(shapes) == 248
    shape = read_vae(header_of(shapes.items(), VAE_PREFIX))
    assert (shape.channels, shape.layers, shape.latent_channels) == ((128, 256, 512, 512), 2, 4)
    names = shape.names
    assert {names.to_ldm(names.to_diffusers(name)) for name in shapes} == set(shapes)
    assert {names.to_diffusers(name) for name in shapes} == {n for n, _ in empty_vae(shape).named_parameters()}

    theirs = convert_ldm_vae_checkpoint(
        {VAE_PREFIX + name: torch.empty(size, device="meta") for name, size in shapes.items()},
        {"down_block_types": ("",) * 4, "up_block_types": ("",) * 4},
    )
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {
        names.to_diffusers(name): size[:2] if "attn_1" in name and len(size) == 4 else size
        for name, size in shapes.items()
    }


def test_a_diffusers_model_is_written_under_its_ldm_names():
    sketch = Sketch((32, 64, 64, 32), (1, 1, 1, 0), 1, False, 64, 0, blocks=1)
    unet = empty_unet(read_unet(header_of(unet_shapes(sketch), UNET_PREFIX)), lambda channels: 8)
    written = {name: tuple(t.shape) for name, t in unet_to_ldm(unet.state_dict()).items()}
    assert written == {UNET_PREFIX + name: size for name, size in unet_shapes(sketch)}

    vae = empty_vae(read_vae(header_of(vae_shapes((32, 64), blocks=1), VAE_PREFIX)))
    written = {name: tuple(t.shape) for name, t in vae_to_ldm(vae.state_dict()).items()}
    assert written == {VAE_PREFIX + name: size for name, size in vae_shapes((32, 64), blocks=1)}


@pytest.mark.parametrize("name", ["input_blocks.13.0.in_layers.0", "input_blocks.3.0.conv", "nowhere.1.weight"])
def test_names_that_no_unet_has_are_refused(name: str):
    with pytest.raises(KeyError):
        UnetNames(2, (True, True, True, False)).to_diffusers(name)
    with pytest.raises(KeyError):
        VaeNames(4).to_ldm(name)
