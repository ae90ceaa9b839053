"""Copies are found among many pictures, and different pictures are not taken for copies."""

from __future__ import annotations

import random
import shutil
import time
from itertools import combinations
from pathlib import Path

from PIL import Image

from lora_trainer.data.doctor.copies import near_copies
from lora_trainer.data.doctor.look import Look, likeness_of
from lora_trainer.data.doctor.neighbours import WITHIN, Neighbours
from lora_trainer.data.scan import Item
from tests.builders.drawn import drawn, drawn_folder
from tests.unit.test_doctor_pictures import looked


def with_flips(code: int, bits: int, rng: random.Random) -> int:
    for bit in rng.sample(range(64), bits):
        code ^= 1 << bit
    return code


def codes(count: int, seed: int = 1) -> list[int]:
    """Random codes, and beside every tenth of them one that differs in 1 to 12 bits."""
    rng = random.Random(seed)
    made = [rng.getrandbits(64) for _ in range(count - count // 11)]
    return made + [with_flips(made[10 * index], 1 + index % 12, rng) for index in range(count - len(made))]


def pairs_of(index: Neighbours, asked: list[int]) -> set[tuple[int, int]]:
    return {(min(code, other), max(code, other)) for code in asked for other in index.of(code) if other != code}


def test_the_index_finds_the_pairs_that_comparing_all_with_all_finds() -> None:
    some = codes(2000)
    brute = {
        (min(one, other), max(one, other))
        for one, other in combinations(some, 2) if (one ^ other).bit_count() <= WITHIN
    }  # fmt: skip
    assert len(brute) > 80, "there is something to be found"
    assert pairs_of(Neighbours(some), some) == brute


def test_every_distance_up_to_the_bound_is_found_wherever_the_bits_stand() -> None:
    rng = random.Random(2)
    for bits in range(1, 13):
        for _ in range(50):
            code = rng.getrandbits(64)
            other = with_flips(code, bits, rng)
            assert (other in Neighbours([other]).of(code)) == (bits <= WITHIN), bits


def test_twenty_thousand_take_seconds_and_give_the_same_pairs_as_brute_force_on_a_part() -> None:
    many = codes(20_000)
    start = time.process_time()
    found = pairs_of(Neighbours(many), many)
    assert time.process_time() - start < 8  # about half a second here; comparing all with all takes over a minute
    part = many[:400]
    brute = {(min(one, other), max(one, other)) for one in part for other in many
             if one != other and (one ^ other).bit_count() <= WITHIN}  # fmt: skip
    assert len(brute) > 15
    assert {pair for pair in found if set(pair) & set(part)} == brute


def test_thousands_of_frames_of_one_scene_are_one_group_and_quick() -> None:
    rng = random.Random(3)
    centre = rng.getrandbits(64)
    looks = {f"{n}.png": Look(str(n), with_flips(centre, n % 4, rng), "80" * 48, 0.2, 0.0, False, False)
             for n in range(6000)}  # fmt: skip
    items = [Item(Path(name), name, 512, 512, "", "", 1) for name in looks]
    start = time.process_time()
    groups = near_copies(items, looks)
    assert time.process_time() - start < 5
    assert max(len(group) for group in groups) > 5000


def test_exact_copies_keep_the_one_with_the_caption(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    shutil.copy(tmp_path / "3.png", tmp_path / "0 copy.png")
    shutil.copy(tmp_path / "3.png", tmp_path / "9 copy.png")
    finding = looked(tmp_path).of("duplicate")
    assert finding is not None
    assert finding.groups == (("3.png", "0 copy.png", "9 copy.png"),)
    assert finding.acted_on == ("0 copy.png", "9 copy.png")
    assert looked(tmp_path).of("near_duplicate") is None, "told once"


def test_near_copies_of_other_size_format_quality_and_light(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 30)
    picture = drawn(3)
    picture.save(tmp_path / "jpeg.jpg", quality=40)
    picture.resize((512, 512), Image.Resampling.BICUBIC).save(tmp_path / "large.png")
    Image.eval(picture, lambda value: min(255, value + 8)).save(tmp_path / "lighter.webp", quality=80)
    finding = looked(tmp_path, resolution=64).of("near_duplicate")
    assert finding is not None
    assert {frozenset(group) for group in finding.groups} == {
        frozenset({"3.png", "jpeg.jpg", "large.png", "lighter.webp"})
    }
    assert finding.groups[0][0] == "3.png", "the one with a caption is kept"
    for name in ("jpeg", "large", "lighter"):
        (tmp_path / f"{name}.txt").write_text(f"a caption {name}", encoding="utf-8")
    finding = looked(tmp_path, resolution=64).of("near_duplicate")
    assert finding is not None
    assert finding.groups[0][0] == "3.png", "of captioned ones a sharp one, not the enlarged"


def test_other_colours_and_other_shapes_are_no_copies(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 3)
    picture = drawn(0)
    light, blueness, redness = picture.convert("YCbCr").split()
    moved = [Image.eval(blueness, lambda value: value + 40), Image.eval(redness, lambda value: value - 40)]
    other = Image.merge("YCbCr", (light, *moved)).convert("RGB")
    assert (likeness_of(picture) ^ likeness_of(other)).bit_count() <= WITHIN, "it takes the colours to tell them"
    stretched = picture.resize((256, 128))
    assert (likeness_of(picture) ^ likeness_of(stretched)).bit_count() <= WITHIN, "it takes the shape to tell them"
    other.save(tmp_path / "other colours.png")
    stretched.save(tmp_path / "stretched.png")
    drawn(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "mirrored.png")
    Image.new("RGB", (128, 128), (200, 10, 10)).save(tmp_path / "red.png")
    Image.new("RGB", (128, 128), (10, 10, 200)).save(tmp_path / "blue.png")
    assert looked(tmp_path, resolution=64).of("near_duplicate") is None
