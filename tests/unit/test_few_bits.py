"""Weights in 8 and 4 bits: how near they stay, how much they take, and that a run learns on them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lora_trainer.contracts import PlainError, Stepped, TextStates
from lora_trainer.families import few_bits
from lora_trainer.families.few_bits import BYTES_A_WEIGHT, hold, pack, suits, unpack
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import plan
from lora_trainer.jobs.plan import Plan, plan_run
from tests.builders.networks import lent
from tests.builders.runs import run_all, small_run


@pytest.mark.parametrize(("bits", "error"), [(8, 0.006), (4, 0.1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normal_weights_come_back_nearly_as_they_were(bits: Any, error: float, dtype: torch.dtype):
    """Largest of 64 normal numbers: about 2.4 sigma. 255 even steps over twice that leave 2.4 / 127 / sqrt(12) =
    0.55 %, 16 of them 2.4 / 7.5 / sqrt(12) = 9.2 %; bfloat16 adds its rounding, 2^-8 at most."""
    weight = torch.randn(96, 130, 4, generator=torch.Generator().manual_seed(1)) * 0.02
    packed = pack(weight, bits, dtype)
    back = unpack(packed)
    assert back.dtype == dtype
    assert back.shape == weight.shape
    assert (back.float() - weight).norm() < (error + (dtype != torch.float32) * 2**-8) * weight.norm()
    assert packed.codes.nbytes + packed.scales.nbytes == weight.numel() * BYTES_A_WEIGHT[bits]


def test_what_four_bits_can_say_comes_back_exactly():
    steps = torch.tensor(few_bits._NORMAL_FLOAT)
    weight = steps.repeat(4, 8) * torch.tensor([[0.5], [1.0], [2.0], [4.0]])
    back = unpack(pack(weight, 4, torch.float32))
    torch.testing.assert_close(back, weight, rtol=1e-3, atol=0)  # the scale has 11 bits and is rounded upwards
    nothing = torch.zeros(2, 64)
    assert torch.equal(unpack(pack(nothing, 4, torch.float32)), nothing)
    assert torch.equal(unpack(pack(nothing, 8, torch.float32)), nothing)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("layer", "shape"), [
    (nn.Linear(256, 320), (2, 7, 256)), (nn.Conv2d(64, 128, 3, padding=1, stride=2), (2, 64, 9, 8)),
    (nn.Conv2d(256, 256, 1, bias=False), (1, 256, 4, 4)),
], ids=["linear", "strided", "narrow"])  # fmt: skip
def test_a_layer_computes_with_what_it_holds(layer: Any, shape: tuple[int, ...], bits: Any):
    held, plain = copy.deepcopy(layer), copy.deepcopy(layer)
    assert suits(held, held.weight)
    held.requires_grad_(False)
    hold(held, layer.weight, bits, torch.float32)
    plain.weight.data = held.weight
    assert "weight" not in dict(held.named_parameters())
    x, y = (torch.randn(shape, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    first, second = held(x), plain(y)
    torch.testing.assert_close(first, second)
    pull = torch.randn(first.shape, generator=torch.Generator().manual_seed(3))
    first.backward(pull)
    second.backward(pull)
    torch.testing.assert_close(x.grad, y.grad)


def test_no_whole_weight_is_kept_for_the_backward_pass():
    layer = nn.Linear(512, 512).requires_grad_(False)
    hold(layer, layer.weight, 4, torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        layer(torch.randn(1, 512, requires_grad=True)).sum().backward()
    assert sum(kept) < 512 * 512


@pytest.mark.parametrize("bits", [8, 4])
def test_the_unet_of_a_file_takes_less_and_says_nearly_the_same(monkeypatch: pytest.MonkeyPatch, bits: Any):
    monkeypatch.setattr(few_bits, "_SMALLEST", 1024)
    model, cpu = lent("sd1"), torch.device("cpu")
    whole, few = (
        family_named("sd1").adopt(model, cpu, torch.float32, ["unet"], chosen) for chosen in (None, bits)
    )
    sizes = [sum(t.nbytes for t in [*b.parts["unet"].parameters(), *b.parts["unet"].buffers()]) for b in (whole, few)]
    assert sizes[1] < sizes[0] * (0.3 if bits == 8 else 0.18)
    generator = torch.Generator().manual_seed(4)
    noisy = torch.randn(1, 4, 16, 16, generator=generator)
    width: int = whole.parts["unet"].config.cross_attention_dim
    text = TextStates(torch.randn(1, 77, width, generator=generator), None)
    one, other = (base.predict(noisy, torch.tensor([300]), text, torch.zeros(1, 6)) for base in (whole, few))
    assert not torch.equal(one, other)
    assert (one - other).norm() < (0.05 if bits == 8 else 0.5) * one.norm()


@pytest.mark.parametrize(("quantize", "kind"), [("8bit", "lora"), ("4bit", "dora")])
def test_a_run_learns_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantize: str, kind: str):
    monkeypatch.setattr(few_bits, "_SMALLEST", 1024)
    config = small_run(tmp_path, model__quantize=quantize, network__kind=kind, output__precision="fp32")
    resolved = plan_run(config, Standalone())
    assert isinstance(resolved, Plan)
    assert any(choice.name == "UNet in memory" and quantize[0] in choice.value for choice in resolved.choices)
    events = run_all(config)
    assert events[-1].outcome == "done"
    assert len([event for event in events if isinstance(event, Stepped)]) == 6
    learnt = load_file(tmp_path / "out/lora/lora.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in learnt.items() if "lora_up" in name)


def test_a_hosts_own_weights_are_never_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = small_run(tmp_path, model__quantize="8bit")
    def of_host(path: Path) -> Any:
        return replace(lend_file(path), owned=False)

    monkeypatch.setattr(plan, "lend_file", of_host)
    with pytest.raises(PlainError, match="quantize is '8bit', but the WebUI holds sd1"):
        plan_run(config, Standalone())
    with pytest.raises(ValueError, match="host's weights"):
        family_named("sd1").adopt(of_host(Path(config.model.base)), torch.device("cpu"), torch.float32, ["unet"], 8)
