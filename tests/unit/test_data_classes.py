"""Regularisation images: shown as often as the user's own, at their own weight, in a stream that resumes."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.order import Order
from lora_trainer.data.scan import scan
from tests.builders.pictures import picture_folder
from tests.unit.test_data_crops import encode_images

cases = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), min_size=1, max_size=8)
seeds = st.integers(0, 2**31 - 1)


@settings(max_examples=40, deadline=None)
@given(cases, cases, st.integers(1, 4), seeds, st.lists(st.integers(0, 200), min_size=1, max_size=5))
def test_both_kinds_are_seen_equally_often_from_any_index_on(own, others, batch_size, seed, wanted) -> None:
    buckets, repeats = zip(*own, *others, strict=True)
    order = Order(seed, buckets, repeats, batch_size, companions=len(others))
    rounds = 12
    assert order.samples_per_epoch == 2 * sum(times for _, times in own)
    batches = [order.micro_batch(index) for index in range(rounds * order.samples_per_epoch // batch_size)]
    samples = [sample for batch in batches for sample in batch]
    assert [sample.position for sample in samples] == list(range(len(samples)))
    assert all(len({buckets[sample.item] for sample in batch}) == 1 for batch in batches)
    looks = Counter((sample.item, sample.visit) for sample in samples)
    assert max(looks.values()) == 1
    waiting = len(set(buckets)) * (batch_size - 1)
    companions = sum(sample.item >= len(own) for sample in samples)
    assert abs(2 * companions - len(samples)) <= waiting + 1
    seen = Counter(sample.item for sample in samples)
    shares = [seen[item] / repeats[item] for item in range(len(own), len(buckets))]
    assert max(shares) - min(shares) <= 1 + waiting, "companions come round"
    jumping = Order(seed, buckets, repeats, batch_size, companions=len(others))
    assert [jumping.micro_batch(index) for index in wanted] == [order.micro_batch(index) for index in wanted]


def test_companions_follow_each_sample_and_their_own_rounds() -> None:
    order = Order(5, [0] * 13, [1] * 13, 1, companions=10)
    items = [order.micro_batch(index)[0].item for index in range(240)]
    assert all(item < 3 for item in items[::2])
    assert all(item >= 3 for item in items[1::2])
    for first in range(0, 120, 10):  # twelve rounds of the ten, over forty epochs of three
        assert sorted(items[1::2][first : first + 10]) == list(range(3, 13))
    assert items[1:21:2] != items[21:41:2]


def test_the_users_own_order_does_not_hang_on_companions() -> None:
    alone, beside = Order(9, [0] * 6, [1] * 6, 1), Order(9, [0] * 8, [1] * 8, 1, companions=2)
    assert [alone.micro_batch(i)[0].item for i in range(30)] == [beside.micro_batch(2 * i)[0].item for i in range(30)]


def test_two_to_a_batch_are_one_of_each() -> None:
    order = Order(5, [0] * 9, [1] * 9, 2, companions=4)
    for index in range(50):
        assert [sample.item >= 5 for sample in order.micro_batch(index)] == [False, True]


def test_companions_alone_are_nothing_to_train_on() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        Order(0, [0], [1], 1, companions=1)


# --- the data set ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    own = picture_folder(tmp_path / "own", [(128, 128)] * 3 + [(256, 90)] * 2)
    others = picture_folder(tmp_path / "class", [(128, 128)] * 4, captions=False)
    (others / "2.txt").write_text("an old cat, asleep\n")
    return own, others


def data_of(folders: tuple[Path, Path], **options: Any) -> DataSet:
    options = {"batch_size": 2, "caption_dropout": 0.0, "trigger": "ohwx", "class_prompt": "a cat"} | options
    config = DataConfig(folder=str(folders[0]), regularization=str(folders[1]), **options)
    data = DataSet(scan(folders[0]), config, resolution=128, seed=4, class_scan=scan(folders[1]))
    list(data.prepare(encode_images))
    return data


def test_class_images_have_their_own_captions_and_weight(folders: tuple[Path, Path]) -> None:
    data = data_of(folders, prior_weight=0.25)
    assert (data.samples_per_epoch, data.own_samples_per_epoch) == (10, 5)
    assert (len(data.items), len(data.class_items)) == (5, 4)
    weights = Counter[tuple[str, float]]()
    for index in range(40):
        batch = data(index)
        weights.update(zip(batch.captions, batch.weights.tolist(), strict=True))
    of_class = {caption for caption, weight in weights if weight == 0.25}
    assert of_class == {"a cat", "an old cat, asleep"}
    assert {caption for caption, weight in weights if weight == 1} == {f"ohwx, tag{i}, red, ramp" for i in range(5)}
    assert abs(sum(count for (_, weight), count in weights.items() if weight == 1) - 40) <= 2


def test_resuming_and_accumulating_see_the_same_stream(folders: tuple[Path, Path]) -> None:
    options: dict[str, Any] = {"flip": True, "caption_dropout": 0.3, "cache": "disk", "crop": "none"}
    straight, resumed = data_of(folders, **options), data_of(folders, **options)
    whole = [straight(index) for index in range(12)]
    for index in (7, 8, 11, 2):
        batch = resumed(index)
        assert (batch.positions, batch.captions) == (whole[index].positions, whole[index].captions)
        assert torch.equal(batch.latents, whole[index].latents)
        assert torch.equal(batch.weights, whole[index].weights)
        assert batch.mask is not None
        assert torch.equal(batch.mask, whole[index].mask)  # type: ignore[arg-type]
    one_bucket: dict[str, Any] = {"buckets": False, "upscale": True, "flip": True}
    two, one = data_of(folders, **one_bucket), data_of(folders, batch_size=1, **one_bucket)
    for index in range(10):
        batch, singles = two(index), [one(2 * index), one(2 * index + 1)]
        assert batch.captions == tuple(single.captions[0] for single in singles)
        assert torch.equal(batch.weights, torch.cat([single.weights for single in singles]))
        torch.testing.assert_close(batch.latents, torch.cat([single.latents for single in singles]))


def test_class_images_that_say_nothing_are_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(PlainError, match=r"3 of the 4 regularisation images .* give data\.class_prompt"):
        data_of(folders, class_prompt="")


def test_damaged_class_images_are_left_out_and_none_left_is_a_fault(folders: tuple[Path, Path]) -> None:
    found = scan(folders[1])
    (folders[1] / "0.png").write_bytes((folders[1] / "0.png").read_bytes()[:90])
    config = DataConfig(regularization=str(folders[1]), class_prompt="a cat")
    data = DataSet(scan(folders[0]), config, resolution=128, seed=4, class_scan=found)
    list(data.prepare(encode_images))
    assert (len(data.items), len(data.class_items)) == (5, 3)
    for number in range(4):
        (folders[1] / f"{number}.png").write_bytes(b"\x89PNG")
    data = DataSet(scan(folders[0]), config, resolution=128, seed=4, class_scan=found)
    with pytest.raises(PlainError, match=r"Not one image of .*class can be trained on"):
        list(data.prepare(encode_images))


def test_what_is_trained_on_has_a_digest(folders: tuple[Path, Path]) -> None:
    digests = [data_of(folders).digest()]
    (folders[1] / "2.txt").write_text("a young cat\n")
    digests.append(data_of(folders).digest())
    (folders[0] / "lora_trainer_focus.csv").write_text("filename,x,y\n3.png,0,0\n")
    digests.append(data_of(folders, crop="focal").digest())
    (folders[0] / "lora_trainer_focus.csv").write_text("filename,x,y\n3.png,0,1\n")
    digests.append(data_of(folders, crop="focal").digest())
    assert len(set(digests)) == 4
    assert data_of(folders, crop="focal").digest() == digests[-1]
    assert [key for key, _ in groupby(digests)] == digests
