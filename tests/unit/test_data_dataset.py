"""The data set as the loop sees it: batches that are a function of the index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import Batch, PlainError, TextStates, Told
from lora_trainer.data.dataset import CACHE_FOLDER, DataSet
from lora_trainer.data.scan import scan
from tests.builders.pictures import picture_folder

SIZES = [(128, 128)] * 5 + [(256, 90)] * 3 + [(90, 256)] * 2


def _encode_images(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)[:, :4]


def _encode_text(captions: Sequence[str]) -> TextStates:
    rows = [torch.full((77, 3), float(sum(caption.encode()) + 1)) for caption in captions]
    return TextStates(torch.stack(rows))


def _data(folder: Path, *, text: bool = True, seed: int = 4, resolution: int = 128, **options: Any) -> DataSet:
    data = DataSet(scan(folder), DataConfig(folder=str(folder), **options), resolution=resolution, seed=seed)
    for _ in data.prepare(_encode_images, _encode_text if text else None, fingerprint="f"):
        pass
    return data


def _same(one: Batch, other: Batch) -> bool:
    return (
        (one.positions, one.captions) == (other.positions, other.captions)
        and torch.equal(one.latents, other.latents)
        and torch.equal(one.sizes, other.sizes)
        and (one.text is None or (other.text is not None and torch.equal(one.text.context, other.text.context)))
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "set", SIZES)


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_a_batch_holds_what_the_contract_says(folder: Path, mode: str) -> None:
    data = _data(folder, cache=mode, batch_size=2, caption_dropout=0.0, trigger="sks")
    items = {f"sks, {item.caption}": item for item in data.items}
    shapes = set()
    for index in range(12):
        batch = data(index)
        assert batch.positions == (2 * index, 2 * index + 1)
        height, width = batch.sizes[0, 4:].int().tolist()
        assert batch.latents.shape == (2, 4, height // 8, width // 8)
        assert batch.latents.dtype == torch.float32
        assert batch.weights.tolist() == [1.0, 1.0]
        assert batch.text is not None
        for row, caption in enumerate(batch.captions):
            item = items[caption]
            assert batch.sizes[row, :2].int().tolist() == [item.height, item.width]
            # blue is the image's own shade (the builder's), so the latent belongs to the caption
            shade = int(item.name.removesuffix(".png")) * 37 % 256
            assert batch.latents[row, 2].mean().item() == pytest.approx(shade / 127.5 - 1, abs=0.01)
            assert batch.text.context[row].unique().tolist() == [float(sum(caption.encode()) + 1)]
        shapes.add((width, height))
    assert shapes == set(data.bucket_counts())
    assert sum(data.bucket_counts().values()) == 10


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "none", "flip": True},
        {"cache": "memory", "shuffle_captions": True, "keep_tokens": 1, "caption_dropout": 0.3},
        {"cache": "disk", "flip": True, "repeats": 2},
    ],
)
def test_a_resumed_run_sees_what_an_unbroken_one_sees(folder: Path, options: dict[str, Any]) -> None:
    straight, resumed = _data(folder, **options), _data(folder, **options)
    batches = [straight(index) for index in range(15)]
    for index in (9, 10, 11, 14, 3):
        assert _same(resumed(index), batches[index])
    other = _data(folder, seed=5, **options)
    assert not all(_same(other(index), batches[index]) for index in range(15))


@pytest.mark.parametrize("mode", ["disk", "none"])
def test_every_cache_gives_the_same_batches(folder: Path, mode: str) -> None:
    memory, other = _data(folder, cache="memory", flip=True), _data(folder, cache=mode, flip=True)
    assert all(_same(memory(index), other(index)) for index in range(0, 20, 2))


def test_flip_mirrors_every_other_look_at_an_image(folder: Path) -> None:
    data = _data(folder, flip=True, batch_size=1, caption_dropout=0.0)
    looks: dict[str, list[bool]] = {}
    for index in range(40):  # four epochs of ten images
        batch = data(index)
        rising = (batch.latents[0, 0, :, -1] > batch.latents[0, 0, :, 0]).all().item()  # red grows to the right
        looks.setdefault(batch.captions[0], []).append(not rising)
    assert {sum(mirrored) for mirrored in looks.values()} == {2}
    assert {mirrored[0] for mirrored in looks.values()} == {True, False}  # not all begin alike


def test_dropped_captions_are_empty_and_their_images_stay(folder: Path) -> None:
    data, other = (_data(folder, batch_size=1, caption_dropout=0.5, seed=seed) for seed in (4, 5))
    batches = [data(index) for index in range(200)]
    assert [other(index).captions == ("",) for index in range(200)] != [one.captions == ("",) for one in batches]
    dropped = [batch for batch in batches if batch.captions == ("",)]
    assert 70 < len(dropped) < 130  # four standard deviations around half
    assert all(batch.text is not None and batch.text.context.unique().tolist() == [1.0] for batch in dropped)


def test_trained_encoders_get_captions_only(folder: Path) -> None:
    batch = _data(folder, text=False)(0)
    assert batch.text is None
    assert len(batch.captions) == 2


def test_shuffling_needs_the_encoder_while_training(folder: Path) -> None:
    assert not _data(folder).encodes_while_training
    data = _data(folder, shuffle_captions=True, caption_dropout=0.0)
    assert data.encodes_while_training
    seen = {caption for index in range(40) for caption in data(index).captions}
    assert len(seen) > 30  # 10 captions of three tags have 60 arrangements


def test_steps_of_epochs(folder: Path) -> None:
    data = _data(folder, batch_size=3, repeats=2)
    assert data.samples_per_epoch == 20
    # ceil(10 images x 2 repeats x epochs / (batch 3 x accumulation x processes))
    assert [data.steps_for(1), data.steps_for(5), data.steps_for(5, 4), data.steps_for(5, 4, 2)] == [7, 34, 9, 5]


def test_damaged_images_are_left_out_and_the_order_is_built_without_them(folder: Path) -> None:
    found = scan(folder)
    bad = folder / "3.png"
    bad.write_bytes(bad.read_bytes()[:200])
    data = DataSet(found, DataConfig(folder=str(folder), batch_size=1, caption_dropout=0.0), resolution=128, seed=1)
    assert data.samples_per_epoch == 10
    told = [event.text for event in data.prepare(_encode_images) if isinstance(event, Told)]
    assert "3.png" in told[0]
    assert "1 of 10 images" in told[1]
    assert data.samples_per_epoch == len(data.items) == 9
    seen = {data(index).captions[0] for index in range(9)}
    assert seen == {item.caption for item in found.items if item.name != "3.png"}


def test_no_image_left_is_a_plain_fault(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, [(64, 64)])
    found = scan(folder)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:100])
    data = DataSet(found, DataConfig(folder=str(folder)), resolution=64, seed=1)
    with pytest.raises(PlainError, match=r"Not one image.*0\.png"):
        list(data.prepare(_encode_images))


def test_a_cache_on_disk_is_no_part_of_the_data_set(folder: Path) -> None:
    _data(folder, cache="disk")
    assert list((folder / CACHE_FOLDER).rglob("*.safetensors"))
    assert len(scan(folder).items) == 10


def test_what_does_not_go_well_together_is_told(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, [(40, 100), (200, 200)])
    warnings = DataSet(scan(folder), DataConfig(buckets=False), resolution=100, seed=1).warnings
    assert any("side below 64 px" in warning and "0.png" in warning for warning in warnings)
    assert any("trained at 64 px" in warning for warning in warnings)
    assert DataSet(scan(folder), DataConfig(bucket_step=8), resolution=128, seed=1).warnings == ()


def test_batches_before_preparing_are_a_programming_error(folder: Path) -> None:
    data = DataSet(scan(folder), DataConfig(), resolution=128, seed=1)
    with pytest.raises(RuntimeError, match="prepare"):
        data(0)
