"""Whole runs on a CUDA device in each precision; skipped, in words, where there is none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lora_trainer.contracts import Finished, Skipped, Stepped
from lora_trainer.train import loop
from tests.builders.language import text_run
from tests.builders.runs import run_all, small_run, write_pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
@pytest.mark.parametrize("checkpointing", ["no", "yes"])
def test_a_run_ends_well_in_each_precision(tmp_path, family, precision, checkpointing):
    events = run_all(small_run(
        tmp_path, family, train__mixed_precision=precision, train__gradient_checkpointing=checkpointing,
        train__learning_rate=1e-4,
    ))  # fmt: skip
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.outcome == "done", end.text
    assert not any(isinstance(event, Skipped) and event.in_a_row for event in events)
    assert all(event.memory > 0 for event in events if isinstance(event, Stepped))


def test_losses_agree_with_the_cpu(tmp_path, monkeypatch):
    on_gpu = [e.loss for e in run_all(small_run(tmp_path, train__mixed_precision="no")) if isinstance(e, Stepped)]
    monkeypatch.setattr("lora_trainer.hosts.standalone.Standalone.device", lambda self: torch.device("cpu"))
    config = small_run(tmp_path, train__mixed_precision="no", output__directory=str(tmp_path / "cpu" / "lora"))
    on_cpu = [e.loss for e in run_all(config) if isinstance(e, Stepped)]
    assert on_gpu == pytest.approx(on_cpu, rel=1e-2)


SLIDER = {"slider__positive": "an old barn", "slider__negative": "a new barn"}
BARE = {"train__text_encoder_learning_rate": 0}


@pytest.mark.parametrize("more", [
    BARE, {"train__text_encoder_learning_rate": 1e-4}, {**BARE, "train__gradient_checkpointing": "yes"},
    {**BARE, "network__kind": "oft"}, {**BARE, "network__kind": "dora", "network__dropout": 0.1},
    {**BARE, "model__quantize": "4bit"}, {**BARE, "objective__loss": "huber", "objective__pyramid_noise": 6},
    {**BARE, **SLIDER},
    {**BARE, "slider__opposite": "opposite"},
], ids=lambda more: " ".join(map(str, more.values())))  # fmt: skip
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, more):
    write_pictures(tmp_path / "opposite", 6)
    given = {name: str(tmp_path / value) if value == "opposite" else value for name, value in more.items()}
    monkeypatch.setattr(loop, "_one_step", unwaiting(loop._one_step))
    events = run_all(small_run(tmp_path, train__mixed_precision="bf16", output__save_steps=0, **given))
    assert events[-1].outcome == "done", events[-1].text


def test_no_step_of_a_language_model_waits_for_the_device(tmp_path, monkeypatch):
    """Packed: without places of its tokens, transformers' own newest code asks the device whether rows are packed."""
    monkeypatch.setattr(loop, "_one_step", unwaiting(loop._one_step))
    events = run_all(text_run(tmp_path, train__mixed_precision="bf16", text__packing=True, output__save_steps=0))
    assert events[-1].outcome == "done", events[-1].text


def unwaiting(one_step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, in which torch raises wherever the process would wait for the device; the first one, in which cuBLAS
    and the optimizer set themselves up, is let off."""

    def step(pace: loop.Pace, work: loop.Work, number: int) -> Any:
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            return one_step(pace, work, number)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return step
