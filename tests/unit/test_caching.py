"""Where encoded images are kept where that is left open: by their number and size, and what is free."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_trainer.config.load import load
from lora_trainer.config.options import DataConfig
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import caching
from lora_trainer.jobs.caching import latent_bytes, settled_cache
from lora_trainer.jobs.plan import Plan, plan_run
from lora_trainer.train.memory import Room
from tests.builders.runs import run_all, small_run


def free(monkeypatch: pytest.MonkeyPatch, bytes: int | None) -> None:
    monkeypatch.setattr(caching, "room", lambda device: None if bytes is None else Room(2**40, bytes))


def test_they_stay_in_memory_while_they_need_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch):
    images = 1000
    size = latent_bytes(DataConfig(), images, 512)
    assert size == images * 4 * 64 * 64 * 4, "four channels of float32, an eighth of the sides"
    assert latent_bytes(DataConfig(flip=True), images, 512, pairs=True) == 4 * size
    free(monkeypatch, 4 * size)
    options, choice = settled_cache(DataConfig(), images, 512)
    assert options.cache == "memory"
    assert (choice.value, choice.reason) == ("in memory, 62 MB", "less than a quarter of what is free")
    free(monkeypatch, 4 * size - 1)
    options, choice = settled_cache(DataConfig(), images, 512)
    assert options.cache == "disk"
    assert choice.value == "on disk, 62 MB"
    assert choice.reason == "only 0.2 GB of memory are free, of which they may take a quarter"
    free(monkeypatch, None)
    assert settled_cache(DataConfig(), images, 512)[0].cache == "memory"


@pytest.mark.parametrize("asked", ["memory", "disk", "none"])
def test_what_is_asked_for_is_done_whatever_is_free(monkeypatch: pytest.MonkeyPatch, asked: str):
    free(monkeypatch, 1)
    config = load({"data.cache": asked}).data
    options, choice = settled_cache(config, 1000, 512)
    assert options.cache == asked
    assert choice.reason == "asked for"


def test_a_run_does_so_and_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    free(monkeypatch, 1)
    config = small_run(tmp_path, train__steps=1, output__save_steps=0)
    assert config.data.cache == "auto"
    plan = plan_run(config, Standalone())
    assert isinstance(plan, Plan)
    assert plan.cache == "disk"
    assert "encoded images" in plan.text()
    assert run_all(config)[-1].outcome == "done"
    assert len(list((tmp_path / "pictures").rglob("latents/*/*.safetensors"))) == 6
    recipe = (tmp_path / "out" / "lora.yaml", tmp_path / "out" / "lora" / "lora.yaml")
    (text,) = [path.read_text(encoding="utf-8") for path in recipe if path.exists()]
    assert "cache: auto" in text, "the recipe is the same on every machine"
