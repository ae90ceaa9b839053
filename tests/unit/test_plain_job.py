"""What not every program reads: said before the run, and made a plain LoRA after it, from the page and over HTTP."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.load import dump
from lora_trainer.contracts import PlainError
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.inspect import inspect
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.readers import READERS, unread_note
from lora_trainer.jobs.registry import Registry
from tests.builders.lender import Lender
from tests.builders.runs import small_run


def over(job: Job) -> Job:
    deadline = time.monotonic() + 60
    while not job.ended:
        assert time.monotonic() < deadline, job.status
        time.sleep(0.02)
    return job


def test_a_kind_that_a_host_cannot_read_is_told_before_the_run(tmp_path: Path) -> None:
    notes = plan_run(small_run(tmp_path, network__kind="oft"), Standalone()).notes
    assert any(note.startswith("Forge cannot read files of the kind oft; afterwards a plain LoRA") for note in notes)
    for kind in ("lora", "locon", "dora", "loha", "lokr"):
        assert unread_note(kind, "AUTOMATIC1111") == []
    (told,) = unread_note("oft", "Forge")
    assert told.startswith("Forge does not read files of the kind oft, so this one will have no effect here; ")
    assert {"AUTOMATIC1111", "Forge", "diffusers"} == READERS.keys()


def test_a_training_of_any_kind_becomes_a_plain_lora(tmp_path: Path) -> None:
    registry = Registry(Standalone(runs=tmp_path / "runs"))
    config = dump(small_run(tmp_path, network__kind="oft", output__save_steps=0, train__steps=3))
    trained = over(registry.submit(config))
    made = registry.make_plain(trained.id, {"rank": 4})
    assert over(made).state == "done", made.status
    assert (made.task.kind, made.name, made.step) == ("plain", "lora", made.total_steps)
    folder = tmp_path / "out" / "lora"
    assert made.files == [folder / "lora_plain.safetensors"]
    assert "% is lost" in made.message
    report = inspect(folder / "lora_plain.safetensors")
    assert (report.kind, report.ranks) == ("LoRA", (4,))
    again = over(registry.make_plain(trained.id, {}))
    assert again.files == [folder / "lora_plain_2.safetensors"], "what is there is left alone"
    assert over(registry.make_plain(trained.id, {"rank": 16})).task.record()["chore"] == "plain"
    for raw in ({"rank": 0}, {"rank": "8"}, {"rank": True}, {"rank": 4, "kind": "lora"}):
        with pytest.raises(PlainError, match="takes a rank from 1 to 1024"):
            registry.make_plain(trained.id, raw)
    with pytest.raises(PlainError, match="has written no LoRA yet"):
        registry.make_plain(made.id, {"rank": 4})
    registry.close(10)


def test_the_checkpoint_it_was_trained_on_has_to_be_there(tmp_path: Path) -> None:
    raw: dict[str, Any] = dump(small_run(tmp_path, network__kind="dora", output__save_steps=0, train__steps=2))
    raw["model"]["base"] = ""
    host = Lender(tmp_path / "sd1.safetensors", tmp_path / "loras", tmp_path / "runs")
    registry = Registry(host)
    trained = over(registry.submit(raw))
    (tmp_path / "sd1.safetensors").rename(tmp_path / "other.safetensors")
    host.file = Lender(tmp_path / "other.safetensors", tmp_path / "loras", tmp_path / "runs").file
    with pytest.raises(PlainError, match=r"was trained on sd1.* but other is loaded; load sd1 and try again"):
        registry.make_plain(trained.id, {"rank": 4})
    (tmp_path / "other.safetensors").rename(tmp_path / "sd1.safetensors")
    host.file = Lender(tmp_path / "sd1.safetensors", tmp_path / "loras", tmp_path / "runs").file
    assert over(registry.make_plain(trained.id, {"rank": 4})).state == "done"
    assert host.announced[-1].name == "lora_plain.safetensors"
    registry.close(10)
