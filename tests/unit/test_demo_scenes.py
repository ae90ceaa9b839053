"""The drawn world, its captions and measures, and the committed sample set, judge and base model made of it."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from lora_trainer.demo import scenes
from lora_trainer.demo.measure import read_judge, steering_score, style_statistic
from lora_trainer.demo.samples import COUNT, TRIGGER, write_samples
from lora_trainer.demo.show import ASSETS
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.families.sampling import draw

BASE = ASSETS / "scenes.safetensors"
UNSEEN = 900_000  # first seed of drawings that no training has used: those of the maker start at seed * 1,000,003


def drawn(scene: scenes.Scene, style: str, seed: int, size: int = 64) -> Image.Image:
    return scenes.draw(scene, style, size, np.random.default_rng(seed))


def unseen_scenes(count: int) -> list[scenes.Scene]:
    return [scenes.random_scene(np.random.default_rng(UNSEEN + i)) for i in range(count)]


@pytest.fixture(scope="module")
def base():
    lent = lend_file(BASE)
    return family_named(lent.facts.family).adopt(lent, torch.device("cpu"), torch.float32)


def test_the_same_seed_draws_the_same_picture_and_another_seed_another():
    scene = scenes.Scene("boat", "red", "sea", "sunset")
    for style in ("plain", "neon"):
        first = np.asarray(drawn(scene, style, 5))
        assert first.shape == (64, 64, 3)
        assert np.array_equal(first, np.asarray(drawn(scene, style, 5)))
        assert not np.array_equal(first, np.asarray(drawn(scene, style, 6)))


@pytest.mark.parametrize("thing", scenes.objects)
def test_an_object_is_painted_in_the_colour_its_caption_names(thing: str):
    for colour, paint in scenes.colours.items():
        scene = scenes.Scene(thing, colour, "field", "day")  # by day nothing is tinted
        off = np.abs(np.asarray(drawn(scene, "plain", 3), int) - 255 * np.array(paint)).max(axis=2)
        assert (off < 4).mean() > 0.01, colour


def test_captions_name_what_a_scene_shows_and_no_two_scenes_share_one():
    every = scenes.every_scene()
    assert len(every) == 8 * 7 * 4 * 3  # objects, colours, places, times
    assert len({scenes.caption(scene) for scene in every}) == len(every)
    assert scenes.caption(scenes.Scene("cat", "orange", "snow", "night")) == "an orange cat in the snow at night"
    for scene in every:
        for phrasing in range(scenes.PHRASINGS):
            words = scenes.caption(scene, phrasing).replace(",", "").split()
            assert scene.object in words
            assert scene.colour in words
            assert not ({*scenes.places} - {scene.place}) & {*words}


def test_the_style_statistic_tells_neon_from_plain_on_every_single_picture():
    shown = unseen_scenes(12)
    plain = [style_statistic([drawn(scene, "plain", i)]) for i, scene in enumerate(shown)]
    neon = [style_statistic([drawn(scene, "neon", i)]) for i, scene in enumerate(shown)]
    # The darkest plain paint is the night sky, 41 of 255 in blue; most of a neon picture is bare black.
    assert max(plain) < 0.05
    assert min(neon) > 0.5


def test_the_sample_set_is_what_its_maker_draws(tmp_path):
    write_samples(tmp_path)
    assert (tmp_path / "metadata.csv").read_bytes() == (ASSETS / "neon" / "metadata.csv").read_bytes()
    with (ASSETS / "neon" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == COUNT
    assert all(row["prompt"].startswith(f"{TRIGGER}, a") for row in rows)
    for row in rows[::7]:
        kept = np.asarray(Image.open(ASSETS / "neon" / row["filename"]).convert("RGB"), int)
        assert kept.shape == (128, 128, 3)
        # Pillow's releases round blurs differently by a step or two of 255.
        assert np.abs(kept - np.asarray(Image.open(tmp_path / row["filename"]).convert("RGB"), int)).mean() < 2


def test_the_judge_is_right_about_drawings_it_has_not_seen():
    shown = unseen_scenes(96)
    seen = steering_score(
        read_judge(ASSETS / "judge.safetensors"), [drawn(s, "plain", UNSEEN + i) for i, s in enumerate(shown)], shown
    )
    assert min(seen.object, seen.colour, seen.place, seen.time) > 0.93


def test_the_judge_counts_a_picture_of_something_else_as_wrong():
    asked = [scenes.Scene("house", "red", "field", "day")] * 8
    drawings = [drawn(scenes.Scene("fish", "blue", "field", "day"), "plain", i) for i in range(8)]
    seen = steering_score(read_judge(ASSETS / "judge.safetensors"), drawings, asked)
    assert seen.both == seen.object == seen.colour == 0
    assert seen.place > 0.8


def test_the_base_is_small_and_its_latents_have_the_deviation_the_noise_schedule_expects(base):
    assert BASE.stat().st_size < 20_000_000
    pictures = np.stack([np.asarray(drawn(s, "plain", UNSEEN + i, 128)) for i, s in enumerate(unseen_scenes(16))])
    latents = base.encode_images(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert latents.shape == (16, 4, 16, 16)
    deviation = latents.float().std(dim=(0, 2, 3))
    assert float(deviation.min()) > 0.8
    assert float(deviation.max()) < 1.25


@pytest.mark.slow
def test_prompts_steer_the_base(base):
    """Chance is 1 in 8 for the object, 1 in 7 for the colour and 1 in 56 for both."""
    asked = unseen_scenes(16)
    painted = draw(base, [scenes.caption(scene) for scene in asked], size=128, steps=12, guidance=6.0, seed=500)
    seen = steering_score(read_judge(ASSETS / "judge.safetensors"), painted, asked)
    assert seen.object > 0.6, seen
    assert seen.colour > 0.75, seen
    assert seen.both > 0.5, seen
    assert min(seen.place, seen.time) > 0.7, seen
    assert style_statistic(painted) < 0.1  # the base has never seen the sample set's style
