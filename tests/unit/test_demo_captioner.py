"""The embedded captioner says what the drawn scenes show, in both styles, through the code that reads any BLIP."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Finished
from lora_trainer.demo import scenes
from lora_trainer.demo.samples import TRIGGER, sample_scenes
from lora_trainer.demo.show import ASSETS, described
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.captioning import Controls, captioner_for

SEEN = 1_000_003 * 40  # seeds above those of the pictures it was trained on


@pytest.mark.parametrize("style", ["plain", "neon"])
def test_object_and_colour_are_right_on_pictures_it_has_not_seen(style: str) -> None:
    captioner = captioner_for(CaptionConfig(model="demo", device="cpu"), Standalone())
    shown, pictures = [], []
    for seed in range(SEEN, SEEN + 40):
        rng = np.random.default_rng(seed)
        shown.append(scenes.random_scene(rng))
        pictures.append(scenes.draw(shown[-1], style, 128, rng))
    said = [text.split() for text in captioner.caption(pictures)]
    right = sum(scene.object in words and scene.colour in words for scene, words in zip(shown, said, strict=True))
    assert right >= 34, list(zip(shown, said, strict=True))  # measured: 38 and 39 of 40


def test_the_sample_set_gets_its_captions(tmp_path: Path) -> None:
    *_, end = described(tmp_path / "metadata.csv", host=Standalone(), control=Controls())
    assert isinstance(end, Finished)
    assert end.outcome == "done"
    with (tmp_path / "metadata.csv").open(encoding="utf-8", newline="") as file:
        said = {row["filename"]: row["prompt"] for row in csv.DictReader(file)}
    with (ASSETS / "neon" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        meant = {row["filename"]: row["prompt"] for row in csv.DictReader(file)}
    assert said.keys() == meant.keys()
    assert all(text.startswith(f"{TRIGGER}, ") for text in said.values())
    assert sum(said[name] == meant[name] for name in meant) >= 0.8 * len(sample_scenes())


def test_it_is_small() -> None:
    weights = ASSETS / "captioner" / "model.safetensors"
    assert weights.stat().st_size < 5e6
