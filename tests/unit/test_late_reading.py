"""What a step came to, read one step late: the same run, with every step told once and in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.contracts import Event, Finished, Saved, Skipped, Stepped
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls, run
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.optimizer_kinds import one_kernel
from lora_trainer.train.optimizers import Updater
from tests.builders.runs import run_all, small_run

pytestmark = pytest.mark.skipif(
    not one_kernel([torch.zeros(1)]), reason="this torch has no AdamW of one kernel on the CPU, only on CUDA devices"
)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor's one kernel for all parameters can be told by a tensor too."""
    monkeypatch.setattr(Updater, "decides_itself", property(lambda self: True))


def learnt(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / name / "lora.safetensors")


def config(folder: Path, name: str, **more: Any) -> Any:
    place = {"output__directory": str(folder / name), "output__name": "lora", "output__precision": "fp32"}
    return small_run(folder, **place, **more)


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """Numbers of the losses, from 1, that are to be no number; the first is that of the step that is tried."""
    real, calls, chosen = DiffusionLoss.__call__, [0], set[int]()

    def loss(self: DiffusionLoss, batch: Any) -> torch.Tensor:
        calls[0] += 1
        return real(self, batch) * (float("nan") if calls[0] in chosen else 1.0)

    monkeypatch.setattr(DiffusionLoss, "__call__", loss)
    return chosen


def test_it_learns_the_same_and_tells_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    at_once = run_all(config(tmp_path, "now", output__save_steps=4))
    monkeypatch.setattr(Updater, "decides_itself", property(lambda self: True))
    later = run_all(config(tmp_path, "late", output__save_steps=4))
    told, other = (
        [(e.step, e.loss, e.gradient_norm, e.rates) for e in events if isinstance(e, Stepped)]
        for events in (later, at_once)
    )
    assert told == other
    order = [(type(e), e.step) for e in later if isinstance(e, (Stepped, Saved))]
    assert order[3:5] == [(Stepped, 4), (Saved, 4)], "what a checkpoint holds is told before it"
    one, two = learnt(tmp_path, "now"), learnt(tmp_path, "late")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_step_is_not_waited_for(tmp_path: Path, late: None, monkeypatch: pytest.MonkeyPatch):
    """The next step's batch is asked for before the numbers of the one before are told."""
    seen: list[Any] = []
    real = DiffusionLoss.__call__
    monkeypatch.setattr(DiffusionLoss, "__call__", lambda self, batch: seen.append("loss") or real(self, batch))
    for event in run(config(tmp_path, "run", output__save_steps=0), host=Standalone(), control=Controls()):
        if isinstance(event, Stepped):
            seen.append(event.step)
    assert seen == ["loss", "loss", "loss", 1, "loss", 2, "loss", 3, "loss", 4, "loss", 5, 6]


@pytest.mark.parametrize("reading", ["now", "late"])
def test_a_step_that_is_not_finite_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: set[int], reading: str
):
    spoilt.add(3)
    if reading == "late":
        monkeypatch.setattr(Updater, "decides_itself", property(lambda self: True))
    events = run_all(config(tmp_path, reading, train__steps=2, output__save_steps=0))
    assert [(type(e), e.step) for e in events if isinstance(e, (Stepped, Skipped))] == [(Stepped, 1), (Skipped, 2)]
    spoilt.clear()
    run_all(config(tmp_path, "once", train__steps=2, output__save_steps=1))
    first = load_file(tmp_path / "once" / "lora-000001.safetensors")
    after = learnt(tmp_path, reading)
    assert all(torch.equal(first[name], after[name]) for name in first)


def test_three_in_a_row_end_the_run_with_what_was_good(tmp_path: Path, late: None, spoilt: set[int]):
    spoilt |= {4, 5, 6, 7, 8, 9}
    events: list[Event] = run_all(config(tmp_path, "run", train__steps=8, output__save_steps=2))
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("failed", 2)
    skipped = [e.in_a_row for e in events if isinstance(e, Skipped)]
    assert skipped == [1, 2, 3, 4], "one step was under way when the third was known"


def test_a_stop_tells_the_last_step(tmp_path: Path, late: None):
    control, told = Controls(), []
    for event in run(config(tmp_path, "run", output__save_steps=0), host=Standalone(), control=control):
        if isinstance(event, Stepped):
            told.append(event.step)
            if event.step == 2:
                control.stop()
    assert told == [1, 2, 3]
    assert event.step == 3
