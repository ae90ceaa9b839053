"""A slim checkpoint adopted by us and loaded by diffusers' own conversion: the same answers, from the lent tensors."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_trainer.contracts import LentModel, ModelAway, PlainError, TensorInfo, TextStates
from lora_trainer.families.noise_schedule import alphas_cumprod
from lora_trainer.families.registry import family_named, identify
from tests.builders.slim import SKETCHES, TEXT_WIDTH, VAE_CHANNELS, Kind, slim_checkpoint

pytestmark = pytest.mark.parity
CPU = torch.device("cpu")
KINDS: tuple[Kind, ...] = ("sd1", "sd2", "sdxl")
SCALE = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025}  # scale_factor in Stability's configuration files
DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def lent(tensors: dict[str, Tensor], *, owned: bool = False) -> LentModel:
    header = {name: TensorInfo(DTYPES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    return LentModel(tensors, header, identify(header, "slim")[1], "slim", None, owned)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(scope="module")
def tensors(kind: Kind) -> dict[str, Tensor]:
    return slim_checkpoint(kind, seed=5)


@pytest.fixture(scope="module")
def base(kind: Kind, tensors: dict[str, Tensor]) -> Any:
    return family_named(kind).adopt(lent(tensors), CPU, torch.float32)


def theirs_unet(kind: Kind, tensors: dict[str, Tensor]) -> Any:
    """diffusers' module from its own conversion of names, with the configuration of that kind spelled out."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    s = SKETCHES[kind]
    text = [depth > 0 for depth in s.depths]
    config: dict[str, Any] = {
        "block_out_channels": s.channels, "layers_per_block": 2, "cross_attention_dim": s.context,
        "down_block_types": ["CrossAttnDownBlock2D" if t else "DownBlock2D" for t in text],
        "up_block_types": ["CrossAttnUpBlock2D" if t else "UpBlock2D" for t in reversed(text)],
        "attention_head_dim": 8 if kind == "sd1" else [c // 64 for c in s.channels],
        "use_linear_projection": s.linear,
        "transformer_layers_per_block": [1, 1, 2] if kind == "sdxl" else 1,
    }  # fmt: skip
    if kind == "sdxl":
        config |= {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": s.classes,
        }  # fmt: skip
    unet = UNet2DConditionModel(**config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(tensors), unet.config))
    return unet.eval()


def theirs_vae(tensors: dict[str, Tensor]) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    vae: Any = AutoencoderKL(
        block_out_channels=VAE_CHANNELS,
        layers_per_block=2,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
    )
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(tensors), vae.config))
    return vae.eval()


def inputs(kind: Kind) -> tuple[Tensor, Tensor, TextStates, Tensor]:
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn((2, 4, 8, 16), generator=generator)
    context = torch.randn((2, 154, SKETCHES[kind].context), generator=generator)
    pooled = torch.randn((2, TEXT_WIDTH), generator=generator) if kind == "sdxl" else None
    sizes = torch.tensor([[640, 512, 32, 0, 64, 128], [1024, 1024, 0, 0, 64, 128]])
    return noisy, torch.tensor([981, 20]), TextStates(context, pooled), sizes


def test_unet_answers_as_diffusers_does(kind: Kind, tensors: dict[str, Tensor], base: Any):
    noisy, timesteps, text, sizes = inputs(kind)
    added = {"text_embeds": text.pooled, "time_ids": sizes.float()} if kind == "sdxl" else None
    with torch.no_grad():
        expected = theirs_unet(kind, tensors)(noisy, timesteps, text.context, added_cond_kwargs=added).sample
        found = base.predict(noisy, timesteps, text, sizes)
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_vae_encodes_and_decodes_as_diffusers_does(kind: Kind, tensors: dict[str, Tensor], base: Any):
    vae = theirs_vae(tensors)
    pixels = torch.rand((1, 3, 64, 96), generator=torch.Generator().manual_seed(4)) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(pixels).latent_dist.mean * SCALE[kind]
        pictures = vae.decode(expected / SCALE[kind]).sample.clamp(-1, 1)
    latents = base.encode_images(pixels)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(base.decode_latents(expected), pictures, atol=1e-5, rtol=0)


def test_nothing_is_copied(tensors: dict[str, Tensor], base: Any):
    """Every weight lies in the lent storage; all but the named views are the lent tensor from first byte to last."""
    storages = {t.untyped_storage().data_ptr() for t in tensors.values()}
    whole = {(t.data_ptr(), t.numel()) for t in tensors.values()}
    views = []
    for part, module in base.parts.items():
        for name, parameter in module.named_parameters():
            assert not parameter.requires_grad
            assert parameter.untyped_storage().data_ptr() in storages, name
            if (parameter.data_ptr(), parameter.numel()) not in whole:
                views.append(f"{part}.{name}")
    # open_clip keeps q, k and v as rows of one tensor.
    assert all(".self_attn." in name and "_proj." in name for name in views)


def test_adopting_changes_nothing_at_the_lender(kind: Kind, tensors: dict[str, Tensor]):
    parameters = {name: torch.nn.Parameter(t, t.is_floating_point()) for name, t in tensors.items()}
    before = {name: t.detach().clone() for name, t in parameters.items()}
    base = family_named(kind).adopt(lent(dict(parameters)), CPU, torch.float32)
    noisy, timesteps, text, sizes = inputs(kind)
    base.predict(noisy, timesteps, text, sizes)
    for name, parameter in parameters.items():
        assert parameter.requires_grad == parameter.is_floating_point()
        assert torch.equal(parameter, before[name])


def test_gradient_reaches_the_input_of_a_frozen_unet(kind: Kind, base: Any):
    noisy, timesteps, text, sizes = inputs(kind)
    context = text.context.clone().requires_grad_()
    base.predict(noisy, timesteps, TextStates(context, text.pooled), sizes).square().mean().backward()
    assert context.grad is not None
    assert float(context.grad.abs().max()) > 1e-6
    assert all(p.grad is None for p in base.parts["unet"].parameters())


def test_half_weights_are_used_in_their_own_precision(kind: Kind, base: Any):
    half = slim_checkpoint(kind, seed=5, dtype=torch.bfloat16)
    model = family_named(kind).adopt(lent(half), CPU, torch.bfloat16)
    assert {p.dtype for p in model.parts["unet"].parameters()} == {torch.bfloat16}
    storages = {t.untyped_storage().data_ptr() for t in half.values()}
    assert all(p.untyped_storage().data_ptr() in storages for p in model.parts["unet"].parameters())
    noisy, timesteps, text, sizes = inputs(kind)
    with torch.no_grad():
        found = model.predict(noisy, timesteps, text, sizes).float()
        expected = base.predict(noisy, timesteps, text, sizes)
    # bf16 keeps 8 bits of mantissa; over this depth a twentieth of the answer's spread is lost.
    assert float((found - expected).std()) < 0.1 * float(expected.std())


def test_the_vae_computes_in_float32_whatever_it_is_stored_in(kind: Kind):
    half = slim_checkpoint(kind, seed=5, dtype=torch.float16)
    read = family_named(kind).adopt(lent(half, owned=True), CPU, torch.float32, ["vae"])
    borrowed = family_named(kind).adopt(lent(half), CPU, torch.float16, ["vae"])
    storages = {t.untyped_storage().data_ptr() for t in half.values()}
    assert {p.dtype for p in read.parts["vae"].parameters()} == {torch.float32}
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(3)) * 2 - 1
    assert torch.equal(borrowed.encode_images(pixels), read.encode_images(pixels))
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(4))
    assert torch.equal(borrowed.decode_latents(latents), read.decode_latents(latents))
    # the converted weights lived for each module's call only
    assert all(p.untyped_storage().data_ptr() in storages for p in borrowed.parts["vae"].parameters())


def test_what_was_let_go_is_freed_and_taken_back_where_it_is_then(kind: Kind, tensors: dict[str, Tensor]):
    memory = {name: t.numpy().copy() for name, t in tensors.items()}  # lives as long as a tensor over it does
    watched = [weakref.ref(array) for array in memory.values() if array.size]
    host = {name: torch.from_numpy(array) for name, array in memory.items()}
    memory.clear()
    base = family_named(kind).adopt(lent(host), CPU, torch.float32)
    noisy, timesteps, text, sizes = inputs(kind)
    with torch.no_grad():
        before = base.predict(noisy, timesteps, text, sizes)
    assert all(ref() is not None for ref in watched)
    base.let_go()
    for name, t in host.items():  # as a WebUI does that sends its model away and fetches it again
        host[name] = t.clone()
    del t
    gc.collect()
    assert [ref() for ref in watched if ref() is not None] == []
    base.take_back()
    storages = {t.untyped_storage().data_ptr() for t in host.values()}
    for module in base.parts.values():
        assert all(p.untyped_storage().data_ptr() in storages for p in module.parameters())
    with torch.no_grad():
        assert torch.equal(base.predict(noisy, timesteps, text, sizes), before)


def test_a_model_stored_otherwise_meanwhile_is_away(kind: Kind, tensors: dict[str, Tensor]):
    host = dict(tensors)
    base = family_named(kind).adopt(lent(host), CPU, torch.float32)
    key = next(name for name in host if name.endswith("proj_in.weight"))
    host[key] = host[key].half()
    with pytest.raises(ModelAway, match="stored in another form"):
        base.take_back()


def test_sdxl_reads_captions_with_both_towers_and_pools_the_second():
    tensors = slim_checkpoint("sdxl", seed=6)
    base = family_named("sdxl").adopt(lent(tensors), CPU, torch.float32, ["text_encoder", "text_encoder_2"])
    short, long = base.encode_text(["a red house"]), base.encode_text(["a red house", "so many words " * 40])
    assert short.context.shape == (1, 77, 2 * TEXT_WIDTH)
    assert long.context.shape == (2, 154, 2 * TEXT_WIDTH)
    assert long.pooled is not None
    assert long.pooled.shape == (2, TEXT_WIDTH)
    torch.testing.assert_close(long.context[:1, :77], short.context)
    torch.testing.assert_close(long.pooled[:1], short.pooled)


def test_clip_skip_moves_sd1_alone():
    for kind in KINDS:
        family = family_named(kind)
        base = family.adopt(lent(slim_checkpoint(kind, seed=6)), CPU, torch.float32, family.text_parts)
        same = torch.equal(base.encode_text(["a cat"], 1).context, base.encode_text(["a cat"], 2).context)
        assert same == (kind != "sd1")


@pytest.mark.parametrize("terminal", [False, True])
def test_noise_schedule_is_that_of_diffusers(terminal: bool):
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=terminal
    )
    ours = alphas_cumprod(zero_terminal_snr=terminal)
    torch.testing.assert_close(ours, scheduler.alphas_cumprod, atol=2e-6, rtol=0)
    assert (float(ours[-1]) == 0) == terminal


def test_zero_terminal_snr_with_noise_prediction_is_refused():
    from dataclasses import replace

    model = lent(slim_checkpoint("sdxl"))
    model = replace(model, facts=replace(model.facts, zero_terminal_snr=True))
    with pytest.raises(PlainError, match=r"zero terminal SNR.*set model\.prediction to v_prediction"):
        family_named("sdxl").adopt(model, CPU, torch.float32, [])


def test_places_in_the_checkpoint(kind: Kind, tensors: dict[str, Tensor], base: Any):
    """For every layer with a weight matrix, what `ldm_place` points at is the module's weight."""
    for part, module in base.parts.items():
        for path, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
                place = base.ldm_place(part, path)
                weight = tensors[place.key][place.rows] if place.rows else tensors[place.key]
                weight = weight.T if path == "text_projection" else weight
                assert torch.equal(layer.weight, weight.reshape(layer.weight.shape)), (part, path)


def test_fingerprints_tell_parts_and_changes_apart(kind: Kind, tensors: dict[str, Tensor], base: Any):
    family = family_named(kind)
    again = family.adopt(lent(dict(tensors)), CPU, torch.float32)
    prints = {part: base.fingerprint(part) for part in base.parts}
    assert prints == {part: again.fingerprint(part) for part in again.parts}
    assert len(set(prints.values())) == len(prints)
    changed = dict(tensors)
    name = "first_stage_model.decoder.mid.block_1.conv2.weight"
    changed[name] = changed[name] * 1.001
    other = family.adopt(lent(changed), CPU, torch.float32)
    assert {part for part in prints if other.fingerprint(part) != prints[part]} == {"vae"}


def test_released_parts_are_let_go():
    import weakref

    base = family_named("sd1").adopt(lent(slim_checkpoint("sd1")), CPU, torch.float32)
    gone = weakref.ref(base.parts["vae"])
    base.release("vae", "text_encoder")
    assert set(base.parts) == {"unet"}
    assert gone() is None


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "quantised"])
def test_a_checkpoint_that_is_not_whole_is_told(fault: str):
    tensors = slim_checkpoint("sd1")
    name = "model.diffusion_model.input_blocks.4.0.in_layers.2.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "unknown":
        tensors[name.replace("in_layers.2", "in_layers.7")] = tensors[name]
    elif fault == "shape":
        tensors[name] = tensors[name][:, :5]
    else:
        tensors[name] = torch.zeros(tensors[name].shape, dtype=torch.int64)
    words = {
        "missing": r"UNet lacks 1 weights \(such as down_blocks.1.resnets.0.conv1.weight\)",
        "unknown": r"UNet holds 1 unknown ones \(such as model.*in_layers.7.weight\)",
        "shape": r"gives the shape \(96, 5, 3, 3\) where its neighbours ask for \(96, 32, 3, 3\)",
        "quantised": "is quantised",
    }
    with pytest.raises(PlainError, match=words[fault]):
        family_named("sd1").adopt(lent(tensors), CPU, torch.float32, ["unet"])


_MEASURE = """
import resource, sys
sys.path.insert(0, {root!r})
import torch
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.families import unet, vae, text, sampling
import diffusers.models.unets.unet_2d_condition, diffusers.models.autoencoders.autoencoder_kl
from transformers import CLIPTextModel
dtype = getattr(torch, {dtype!r})
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
lent = lend_file({path!r})
base = family_named(lent.facts.family).adopt(lent, torch.device("cpu"), dtype)
touched = sum(float(p.detach().view(-1)[:: 1024].float().sum()) for m in base.parts.values() for p in m.parameters())
print(peak() - before)
"""


@pytest.mark.slow
def test_loading_a_file_takes_about_one_copy(tmp_path: Path):
    """Peak of the process above its libraries, for a file of some 200 MB and the precision it is in."""
    from tests.builders.slim import Sketch, write_slim

    wide = Sketch((128, 256, 256, 128), (1, 1, 1, 0), 1, False, TEXT_WIDTH, 0)
    path = write_slim(tmp_path / "wide.safetensors", "sd1", sketch=wide)
    size = path.stat().st_size
    assert size > 150e6
    code = _MEASURE.format(root=str(Path(__file__).parents[2]), path=str(path), dtype="float32")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout.split()[-1]) < 1.15 * size
