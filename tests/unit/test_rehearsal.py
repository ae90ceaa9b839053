"""The heaviest step is tried before the run: measured, told, and without a trace in what is learned."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.contracts import Event, PlainError, Stepped, Told
from lora_trainer.data.dataset import DataSet
from lora_trainer.jobs import run as course
from lora_trainer.train import rehearsal
from lora_trainer.train.diffusion_loss import DiffusionLoss
from lora_trainer.train.memory import Room
from lora_trainer.train.optimizers import Updater
from tests.builders.runs import run_all, small_run, write_pictures

ROOT = Path(__file__).resolve().parents[2]
UNLIKE = ((128, 128), (192, 64))  # two buckets, the first the larger
OPTIONS: dict[str, Any] = {"data__resolution": 128, "output__precision": "fp32", "output__save_steps": 0}


def verdict(events: list[Event]) -> Told:
    (found,) = [event for event in events if isinstance(event, Told) and event.text.startswith("Memory: ")]
    return found


def options(folder: Path, name: str, **more: Any) -> Any:
    if not (folder / "pictures").exists():
        write_pictures(folder / "pictures", count=4, sides=UNLIKE)
    return small_run(folder, **{**OPTIONS, "output__directory": str(folder / name / "lora"), **more})


@pytest.mark.parametrize("more", [
    {"train__ema": 0.9, "data__flip": True, "data__shuffle_captions": True},
    {"data__cache": "none", "optimizer__kind": "adafactor"},
], ids=["average", "encoded each time"])  # fmt: skip
def test_it_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]):
    tried = run_all(options(tmp_path, "tried", **more))

    def nothing(*_: Any) -> Generator[Event, None, bool]:
        yield from ()
        return True

    monkeypatch.setattr(course, "make_fit", nothing)
    untried = run_all(options(tmp_path, "untried", **more))
    assert "it fits" in verdict(tried).text
    losses, others = ([e.loss for e in events if isinstance(e, Stepped)] for events in (tried, untried))
    assert losses == others
    one, other = (load_file(tmp_path / name / "lora/lora.safetensors") for name in ("tried", "untried"))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_largest_bucket_and_the_longest_captions_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found: list[Any] = []
    real = DataSet.heaviest
    monkeypatch.setattr(DataSet, "heaviest", lambda self: found.append(real(self)) or found[-1])
    pictures = write_pictures(tmp_path / "pictures", count=4, sides=UNLIKE)
    (pictures / "metadata.csv").write_text("filename,prompt\n0.png,short\n2.png,much the longer one\n1.png,\n3.png,x\n")
    events = run_all(options(tmp_path, "run", train__steps=1, data__batch_size=2))
    assert found[0].latents.shape == (2, 4, 16, 16)
    assert found[0].captions == ("much the longer one", "short")
    assert "(128 x 128 px, batch of 2)" in verdict(events).text


def test_a_large_step_is_gone_through_twice_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that what is kept from one step to the next shows; a run's own steps are as they would be."""
    real, seen = DiffusionLoss.__call__, []
    monkeypatch.setattr(DiffusionLoss, "__call__", lambda self, batch: seen.append(batch) or real(self, batch))
    run_all(options(tmp_path, "small", train__steps=1))
    assert len(seen) == 2, "tried and done"
    once = load_file(tmp_path / "small/lora/lora.safetensors")
    monkeypatch.setattr(rehearsal, "_LARGE", 1)
    run_all(options(tmp_path, "large", train__steps=1))
    assert len(seen) == 2 + 3
    twice = load_file(tmp_path / "large/lora/lora.safetensors")
    assert all(torch.equal(once[name], twice[name]) for name in once)


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_what_the_optimizer_will_keep_is_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    foreseen: list[int] = []
    real, seen = Updater.rehearse, []
    monkeypatch.setattr(Updater, "rehearse", lambda self: seen.append(self) or foreseen.append(real(self)) or 0)
    run_all(options(tmp_path, kind, train__steps=1, optimizer__kind=kind))
    kept = [value for entry in seen[0]._optimizer.state.values() for value in entry.values()]
    assert foreseen == [sum(value.nbytes for value in kept if torch.is_tensor(value))]
    assert foreseen[0] > (2 * 4 * sum(p.numel() for p in seen[0].parameters) - 1 if kind == "adamw" else 0)


def room_of(*free: int) -> Any:
    """As many bytes free at each look; the last for all that follow."""
    looks = list(free)
    return lambda device: Room(2**34, looks.pop(0) if len(looks) > 1 else looks[0])


def test_a_step_that_does_not_fit_gets_measures_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rehearsal, "room", room_of(1 << 20, 1 << 20, 1 << 33))
    monkeypatch.setattr(rehearsal.Measured, "whole", property(lambda self: 1 << 21))
    said = verdict(run_all(options(tmp_path, "run", train__steps=1)))
    assert said.level == "info"
    assert "takes 2 MB where it took 2 MB, and 8.0 GB are free. Therefore activations are computed anew" in said.text
    assert "micro-batches go through in pieces of 1" in said.text
    assert "set train.gradient_checkpointing: yes, batch_size: 1, gradient_accumulation_steps: 2." in said.text


def test_where_nothing_makes_it_fit_the_run_goes_on_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rehearsal, "room", room_of(1))
    said = verdict(run_all(options(tmp_path, "run", train__steps=1)))
    assert said.level == "warning"
    assert "it may be slow, or not go through later." in said.text
    assert said.text.endswith("To be sure, set a resolution below 128, or model.quantize: 4bit.")


def test_what_was_forbidden_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rehearsal, "room", room_of(1))
    more = {"train__gradient_checkpointing": "no", "train__steps": 1}
    assert "computed anew" not in verdict(run_all(options(tmp_path, "run", **more))).text


def test_a_step_that_goes_through_in_no_way_ends_the_run_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def starved(*_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(DiffusionLoss, "__call__", starved)
    with pytest.raises(PlainError, match=r"step \(128 x 128 px, batch of 2\) needs more .* resolution below"):
        run_all(options(tmp_path, "run"))


LIMITED = """
import resource, sys
from pathlib import Path
import psutil, torch
torch.set_num_threads(1)
from lora_trainer.contracts import Stepped, Told
from lora_trainer.train import rehearsal
from tests.builders.runs import run_all, small_run, write_pictures

folder, share = Path(sys.argv[1]), float(sys.argv[2])
real, seen = rehearsal.Rehearsal.measure, []

def measure(self):
    "The first look is without a limit; then the process may have so much of what the step took."
    if not seen:
        seen.append(real(self).whole)
        used = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (used + int(seen[0] * share), resource.RLIM_INFINITY))
    return real(self)

rehearsal.Rehearsal.measure = measure
write_pictures(folder / "pictures", count=4, sides=((256, 256),))
events = run_all(small_run(
    folder, data__resolution=256, data__batch_size=4, train__steps=1, train__text_encoder_learning_rate=0,
    output__save_steps=0,
))
for event in events:
    print(event.text if isinstance(event, Told) else type(event).__name__)
print(events[-1].outcome, sum(isinstance(event, Stepped) for event in events))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of the address space is Linux's")
def test_under_a_real_limit_of_memory_the_run_makes_itself_smaller(tmp_path: Path):
    """Half of what the step takes: it starves or does not fit, whichever comes first, and goes through in pieces."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path), "0.5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done 1"
    assert re.search(r"Memory: .*Therefore .*(computed anew|in pieces of)", done.stdout)
