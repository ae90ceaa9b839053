"""What a run leaves to read: its log in words, and TensorBoard's events."""

import pytest

from lora_trainer.contracts import Stepped
from tests.builders.runs import run_all, small_run


def scalars_and_images(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_holds_what_the_events_said(tmp_path):
    config = small_run(
        tmp_path, output__tensorboard=True, train__steps=3, samples__prompts=["blocks"], samples__sampling_steps=1
    )
    steps = [event for event in run_all(config) if isinstance(event, Stepped)]
    board = scalars_and_images(tmp_path / "out/lora/logs/lora")
    assert [s.value for s in board.Scalars("loss")] == pytest.approx([e.loss for e in steps])
    assert [s.step for s in board.Scalars("learning_rate/unet")] == [1, 2, 3]
    assert [s.value for s in board.Scalars("learning_rate/unet")] == pytest.approx([e.rates["unet"] for e in steps])
    assert [image.step for image in board.Images("samples/1")] == [2, 3]


def test_the_log_tells_the_plan_and_every_step(tmp_path):
    run_all(small_run(tmp_path, train__steps=2))
    log = (tmp_path / "out/lora/logs/lora.log").read_text(encoding="utf-8")
    for words in ("base model", "6 found", "step 1/2 loss", "step 2/2 loss", "saved lora.safetensors", "done: Done:"):
        assert words in log
