"""A step asks the device for nothing and sends it nothing the slow way, so that on a GPU no part of it waits.

No GPU is needed to see that: on torch's `meta` device tensors have no values, so that whoever asks for one fails, and
what is sent there passes by here. tests/gpu has the same with a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lora_trainer.config.options import NetworkConfig, ObjectiveConfig, OptimizerConfig, SliderConfig
from lora_trainer.contracts import Batch, TextBatch, TextStates
from lora_trainer.families.registry import family_named
from lora_trainer.networks.network import inject
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.loop import Pace, Work, _gradients
from lora_trainer.train.optimizers import RatePlan, Updater
from lora_trainer.train.processes import OneProcess
from lora_trainer.train.schedules import Schedule
from lora_trainer.train.slider_loss import PictureSlider, PromptSlider
from lora_trainer.train.text_loss import TextLoss
from tests.builders.networks import lent

META = torch.device("meta")
# Who sends without waiting: `train.memory.sent`, and two that pin by themselves since they may not import it.
CAREFUL = {"sent", "encode_chunks", "row_weights"}


class Watching(TorchDispatchMode):
    """Notes what goes from the CPU to the device in another way than by those who are careful."""

    def __init__(self) -> None:
        super().__init__()
        self.careless: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        came = [one.device.type for one in args if isinstance(one, Tensor)]
        if isinstance(out, Tensor) and out.device == META and came and came[0] == "cpu" and args[0].dim():
            frame, names = sys._getframe(1), []
            while frame is not None:
                names.append(frame.f_code.co_name)
                frame = frame.f_back
            if CAREFUL.isdisjoint(names):
                self.careless.append(f"{function} in {names[:4]}")
        return out


def base_on_meta(kind: str = "sd1", parts: Sequence[str] = ("unet",), **more: Any) -> Any:
    model = lent(kind)  # type: ignore[arg-type]
    tensors = {name: tensor.to(META) for name, tensor in model.tensors.items()}
    placed = type(model)(tensors, model.header, model.facts, model.name, None, owned=True)
    return family_named(kind).adopt(placed, META, torch.float32, parts, **more)


def states(count: int, width: int) -> TextStates:
    return TextStates(torch.randn(count, 77, width))


def images(width: int | None, opposite: bool = False) -> Batch:
    drawn = torch.randn(2, 2, 4, 16, 16)
    text = None if width is None else states(2, width)
    return Batch(
        (3, 4), drawn[0], ("a barn", "a shed"), text, torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2), torch.ones(2),
        ("a house", "a house"), text, torch.ones(2, 1, 16, 16), drawn[1] if opposite else None,
    )  # fmt: skip


def step_of(loss: Any, network: Any, batch: Any) -> Tensor:
    """Loss and gradient norm of one step, by the loop's own code; where it sends carelessly, the test fails."""
    rates = RatePlan(dict.fromkeys(("unet", "text_encoder", "model"), 1e-4), Schedule("constant", 4, 0))
    options = OptimizerConfig(kind="adafactor")  # AdamW takes itself for one kernel here; neither is used
    updater = Updater(network.groups(), rates, weight_decay=0.0, scale_loss=False, options=options)
    work: Any = Work(
        batches=lambda index: batch, loss=loss, network=network, updater=updater, control=None,  # type: ignore[arg-type]
        processes=OneProcess(META), exclusive=None, save=None, sample=None,  # type: ignore[arg-type]
    )  # fmt: skip
    with Watching() as watching:
        values = _gradients(Pace(4, 1, 1.0, 0, 0), work, 0)
        torch.isfinite(values).all()
    assert not watching.careless
    return values


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has none; on a GPU it asks nothing."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(("objective", "network"), [
    ({}, {}),
    pytest.param({"loss": "huber", "pyramid_noise": 4, "timesteps": "logit_normal"}, {}, marks=SLOW),
    pytest.param({"preserve": 1.0, "weighting": "debiased"}, {}, marks=SLOW),
    *(pytest.param({}, {"kind": kind}, marks=SLOW) for kind in ("oft", "dora", "loha", "lokr")),
], ids=str)  # fmt: skip
def test_a_step_of_an_image_model(objective: dict[str, Any], network: dict[str, Any]):
    base = base_on_meta()
    put = inject(base.parts, NetworkConfig(rank=4, alpha=2, **network), train_parts=["unet"], seed=1)
    width = base.parts["unet"].config.cross_attention_dim
    loss = DiffusionLoss(base, 1, 1, 5.0, 0.1, ObjectiveConfig(**objective), put)
    assert step_of(loss, put, images(width)).device == META


@pytest.mark.slow
def test_a_step_that_trains_the_text_encoder_too():
    base = base_on_meta(parts=("unet", "text_encoder"))
    put = inject(base.parts, NetworkConfig(rank=4, alpha=2), train_parts=["unet", "text_encoder"], seed=1)
    step_of(DiffusionLoss(base, 1, 2, 5.0, 0.0, ObjectiveConfig(), put), put, images(None))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_a_step_on_few_bits(bits: int):
    base = base_on_meta(bits=bits)
    put = inject(base.parts, NetworkConfig(rank=4, alpha=2), train_parts=["unet"], seed=1)
    width = base.parts["unet"].config.cross_attention_dim
    step_of(DiffusionLoss(base, 1, 1, 5.0, 0.0, ObjectiveConfig(), put), put, images(width))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PromptSlider, PictureSlider])
def test_a_step_of_a_slider(kind: type):
    base = base_on_meta()
    put = inject(base.parts, NetworkConfig(rank=4, alpha=2), train_parts=["unet"], seed=1)
    width = base.parts["unet"].config.cross_attention_dim
    common = (base, put, 1, 5.0, 0.0, ObjectiveConfig())
    slider = SliderConfig(positive="old", negative="new", keep=("red", "blue"))
    loss = PictureSlider(*common) if kind is PictureSlider else PromptSlider(
        *common, slider, lambda prompts: states(len(prompts), width)
    )  # fmt: skip
    step_of(loss, put, images(width, opposite=True))


@pytest.mark.slow
def test_a_step_of_a_language_model():
    """Packed: without places of its tokens, transformers' own newest code asks whether rows are packed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        attn_implementation="eager",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(META)
    put = inject({"model": model}, NetworkConfig(rank=4, alpha=2), train_parts=["model"], seed=1)
    ids = torch.randint(64, (2, 9))
    learnt = torch.zeros(2, 9, dtype=torch.bool)
    learnt[:, 4:7] = True
    batch = TextBatch((0, 1), ids, torch.ones(2, 9, dtype=torch.long), torch.arange(9).repeat(2, 1), learnt, 6.0)
    step_of(TextLoss(model, META, 1, put, "added"), put, batch)
