"""Faults of disk, memory and host: a sentence that says what to do, and nothing that was learnt is lost."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.contracts import Event, Finished, PlainError, Saved, Stepped, Told
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls, run
from lora_trainer.train.memory import is_out_of_memory
from lora_trainer.train.optimizers import Updater
from lora_trainer.train.told import in_words
from tests.builders.lender import Lender
from tests.builders.runs import run_all, small_run


def told(events: list[Event]) -> str:
    return "\n".join(event.text for event in events if isinstance(event, Told))


def end(events: list[Event]) -> Finished:
    last = events[-1]
    assert isinstance(last, Finished)
    return last


def same(first: Path, second: Path) -> bool:
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """What the small run learns when nothing goes wrong."""
    run_all(small_run(tmp_path, output__directory=str(tmp_path / "whole" / "lora")))
    return tmp_path / "whole" / "lora" / "lora.safetensors"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def without_its_folder(config: Any) -> Iterator[Event]:
    """A run whose folder becomes a file after the first step, which refuses whatever would be written below it."""
    folder = Path(config.output.directory)
    for event in run(config, host=Standalone(), control=Controls()):
        yield event
        if isinstance(event, Stepped) and event.step == 1:
            shutil.rmtree(folder)
            folder.write_text("in the way")


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no folder be removed that has an open log")
def test_a_finished_lora_that_its_folder_refuses_is_kept_elsewhere(tmp_path: Path, whole: Path, temporary: Path):
    events = list(without_its_folder(small_run(tmp_path)))
    assert told(events).count("was not saved, the training goes on") == 2
    assert "The run cannot be resumed from step 6" in told(events)
    last, kept = end(events), temporary / "lora.safetensors"
    assert (last.outcome, last.path) == ("failed", kept)
    assert last.text.startswith("All 6 steps are done, but ")
    assert f"The LoRA is in {kept} instead." in last.text
    assert "resume" not in last.text
    assert same(kept, whole)


@pytest.mark.skipif(os.name == "nt", reason="Windows lets no folder be removed that has an open log")
def test_where_no_place_takes_the_lora_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "no folder").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no folder"))
    last = end(list(without_its_folder(small_run(tmp_path))))
    assert (last.outcome, last.path) == ("failed", None)
    assert "It could be written nowhere else either." in last.text


def test_a_lora_that_is_refused_is_written_by_a_resumed_run(tmp_path: Path, whole: Path, temporary: Path):
    """A folder of its name is in its place; the state is saved, so that no step is done again."""
    config = small_run(tmp_path, output__name="lora")
    place = tmp_path / "out/lora/lora.safetensors"
    first = []
    for event in run(config, host=Standalone(), control=Controls()):
        first.append(event)
        if isinstance(event, Stepped) and event.step == 1:
            place.mkdir()
    assert "a folder of that name is in its place" in end(first).text
    assert "resume (train --resume) writes it again" in end(first).text
    place.rmdir()
    again = run_all(config, resume=True)
    assert not [event for event in again if isinstance(event, Stepped)]
    assert end(again).outcome == "done"
    assert same(place, whole)


def test_a_log_that_cannot_be_written_costs_no_training(tmp_path: Path, whole: Path):
    (tmp_path / "out/lora/logs/lora.log").mkdir(parents=True)
    events = run_all(small_run(tmp_path))
    assert end(events).outcome == "done"
    assert told(events).count("The log has gaps") == 1
    assert same(tmp_path / "out/lora/lora.safetensors", whole)


def test_a_tensorboard_that_cannot_be_written_costs_no_training(tmp_path: Path):
    pytest.importorskip("tensorboard")
    (tmp_path / "out/lora/logs").mkdir(parents=True)
    (tmp_path / "out/lora/logs/lora").write_text("a file where its folder should be")
    events = run_all(small_run(tmp_path, output__tensorboard=True))
    assert end(events).outcome == "done"
    assert told(events).count("TensorBoard events are not written") == 1


class Failing(Lender):
    """A host that fails at everything that is not the training."""

    draws = True

    def draw(self, order: Any, lora: Path | None) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def announce(self, path: Path) -> None:
        raise OSError("no list of LoRA")

    def prove(self, path: Path, order: Any) -> list[Told]:
        raise ZeroDivisionError("made for the test")


def test_a_host_that_fails_beside_the_training_costs_none_of_it(tmp_path: Path, whole: Path):
    config = small_run(
        tmp_path, model__base="", output__directory=None, output__name="lora", samples__prompts=["a"], samples__every=3
    )
    host = Failing(tmp_path / "sd1.safetensors", tmp_path / "Lora", tmp_path / "runs")
    events = list(run(config, host=host, control=Controls()))
    assert end(events).outcome == "done"
    assert [event.step for event in events if isinstance(event, Saved)] == [2, 4, 6]
    for step in (0, 3, 6):
        assert f"No samples were drawn at step {step}, the training goes on: the memory does" in told(events)
    assert "Lower samples.size" in told(events)
    assert "The LoRA is saved, but the WebUI could not try it: ZeroDivisionError: made for the test" in told(events)
    assert same(tmp_path / "Lora/lora.safetensors", whole)


@pytest.mark.parametrize(("settings", "advice"), [
    ({}, "set a resolution below 64, or model.quantize: 4bit"),
    ({"train__gradient_checkpointing": False}, "set train.gradient_checkpointing: auto"),
])  # fmt: skip
def test_memory_that_does_not_suffice_is_told_with_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], advice: str
):
    """When every measure was taken. In the update of the first step nothing is saved yet; on the way to the gradients
    of a later one all is."""
    with monkeypatch.context() as patched:
        patched.setattr(Updater, "update", _starved)
        last = end(run_all(small_run(tmp_path, **settings, output__directory=str(tmp_path / "first" / "lora"))))
    assert last.text == f"Out of memory on cpu before anything was saved; {advice}, and start again."
    events = []
    for event in run(small_run(tmp_path, **settings, output__save_steps=0), host=Standalone(), control=Controls()):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            monkeypatch.setattr(Updater, "backward", _starved)
    saved = tmp_path / "out/lora/lora-000003.safetensors"
    assert end(events).path == saved
    assert f"Out of memory on cpu after step 3 of 6; {advice}, and go on: resume with that" in end(events).text
    assert f"start a new run from {saved} (network.start_from)" in end(events).text


def _starved(*_: Any) -> Any:
    raise MemoryError


def test_the_allocators_are_known_by_their_words():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."))
    assert is_out_of_memory(RuntimeError(
        "Could not allocate tensor with 67108864 bytes. There is not enough GPU video memory available!"
    ))  # fmt: skip
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


def test_an_error_is_told_in_one_line():
    assert in_words(PlainError("Do this.")) == "Do this."
    assert in_words(ValueError("two\nlines.")) == "ValueError: two lines."
    assert in_words(ValueError()) == "ValueError."
    assert in_words(OSError(errno.ENOSPC, "No space left on device", "x")) == "[Errno 28] No space left on device: 'x'."
    assert len(in_words(ValueError("long " * 1000))) < 400
