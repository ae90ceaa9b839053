"""A language run tries its heaviest step before the run: measured, told, and without a trace in what is learnt."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.contracts import Event, Stepped, TextBatch, Told
from lora_trainer.data.text.dataset import TextData
from lora_trainer.data.text.tokens import Encoded
from lora_trainer.jobs import run as course
from lora_trainer.train.rehearsal import Measured
from lora_trainer.train.text_loss import TextLoss
from tests.builders.language import text_run
from tests.builders.runs import run_all


def told_before_the_first_step(events: list[Event]) -> list[Told]:
    first = next(number for number, event in enumerate(events) if isinstance(event, Stepped))
    return [event for event in events[:first] if isinstance(event, Told)]


@pytest.mark.parametrize("packing", [
    pytest.param(False, id="a row a sample"), pytest.param(True, id="packed", marks=pytest.mark.slow),
])  # fmt: skip
def test_it_is_told_before_the_first_step_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: bool
):
    more = {"text__packing": packing, "network__dropout": 0.3}
    tried = run_all(text_run(tmp_path, output__directory=str(tmp_path / "tried" / "adapter"), **more))

    def nothing(*_: Any) -> Generator[Event, None, Measured]:
        yield from ()
        return Measured(0, 0, None)

    monkeypatch.setattr(course, "make_fit", nothing)
    untried = run_all(text_run(tmp_path, output__directory=str(tmp_path / "untried" / "adapter"), **more))
    (verdict,) = [event for event in told_before_the_first_step(tried) if event.text.startswith("Memory: ")]
    assert " tokens, batch of 2) takes " in verdict.text
    assert "it fits" in verdict.text
    losses, others = ([e.loss for e in events if isinstance(e, Stepped)] for events in (tried, untried))
    assert losses == others
    one, other = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("tried", "untried"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_longest_row_with_the_most_answers_is_tried():
    lengths, answers = (5, 9, 7, 3), (4, 2, 6, 1)
    samples = [
        Encoded(tuple(range(10, 10 + length)), (False,) * (length - learnt) + (True,) * learnt)
        for length, learnt in zip(lengths, answers, strict=True)
    ]
    data = TextData(samples, batch_size=2, seed=1, pad=0)
    batch = data.heaviest()
    assert data.widest == 9
    assert batch.ids.shape == (2, 9)
    assert batch.ids[0].tolist() == list(range(10, 19))
    assert int(batch.learnt.sum()) == 6 + 4 == batch.divisor, "as many as the two rows with the most would learn"
    assert not batch.learnt[:, 0].any()
    assert not (batch.learnt & (batch.blocks == 0)).any(), "padding has no answer"
    few = TextData(samples[:1], batch_size=3, seed=1, pad=0).heaviest()
    assert few.ids.shape == (3, 5), "a micro-batch is whole, however few rows there are"
    assert int(few.learnt.sum()) == 12


def test_where_the_memory_does_not_suffice_a_measure_is_taken_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real, starved = TextLoss.__call__, []

    def loss(self: TextLoss, batch: TextBatch) -> torch.Tensor:
        if not starved:
            starved.append(batch.ids.shape)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, batch)

    monkeypatch.setattr(TextLoss, "__call__", loss)
    events = run_all(text_run(tmp_path))
    (verdict,) = [event for event in told_before_the_first_step(events) if event.text.startswith("Memory: ")]
    assert "Therefore activations are computed anew" in verdict.text
    assert "train.gradient_checkpointing: yes" in verdict.text
    assert not any("Out of memory in step" in event.text for event in events if isinstance(event, Told))
    assert events[-1].outcome == "done"
