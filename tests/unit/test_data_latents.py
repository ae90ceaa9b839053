"""Kept latents equal those encoded anew; an edited image, another crop or another encoder is never served old ones."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.contracts import PlainError, Prepared, Told
from lora_trainer.data import latents
from lora_trainer.data.buckets import Buckets
from lora_trainer.data.latents import CacheMode, LatentCache, Picture, pixels_of
from tests.builders.pictures import picture_folder, ramp

BUCKETS = Buckets(128, 64)


class Encoder:
    """Something like a VAE's mean: a fixed random convolution of stride 8."""

    def __init__(self) -> None:
        self.weight = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)) / 14
        self.images = 0

    def __call__(self, pixels: Tensor) -> Tensor:
        self.images += len(pixels)
        return torch.nn.functional.conv2d(pixels, self.weight, stride=8)


def _pictures(folder: Path) -> list[Picture]:
    paths = sorted(folder.glob("*.png"))
    return [Picture(path, BUCKETS.fit(*Image.open(path).size)) for path in paths]


def _cache(folder: Path, mode: CacheMode, encoder: Encoder, fingerprint: str = "vae") -> LatentCache:
    return LatentCache(mode, folder / ".cache", fingerprint, encoder, flip=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "set", [(200, 200), (128, 128), (300, 120), (150, 170), (130, 140)])


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_latents_are_those_of_the_picture(folder: Path, mode: CacheMode) -> None:
    pictures, encoder = _pictures(folder), Encoder()
    cache = _cache(folder, mode, encoder)
    events = list(cache.fill(pictures))
    assert events[-1] == Prepared("latents", 5, 5)
    assert encoder.images == (0 if mode == "none" else 10)
    square = [picture for picture in pictures if picture.crop.size == (128, 128)]
    assert len(square) > 2
    mirrored = [index % 2 == 1 for index in range(len(square))]
    cache.expect(square)
    found = cache.batch(square, mirrored)
    assert found.dtype == torch.float32
    assert encoder.images == (len(square) if mode == "none" else 10)
    for picture, mirror, one in zip(square, mirrored, found, strict=True):
        pixels = pixels_of(picture)
        wanted = Encoder()((pixels.flip(-1) if mirror else pixels)[None])[0]
        torch.testing.assert_close(one, wanted, atol=1e-5, rtol=1e-5)


def test_pixels_run_from_minus_one_to_one(tmp_path: Path) -> None:
    values = np.zeros((64, 64, 3), dtype=np.uint8)
    values[:, 32:, 1] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    pixels = pixels_of(Picture(tmp_path / "a.png", Buckets(64, 64).fit(64, 64)))
    assert pixels.shape == (3, 64, 64)
    assert pixels[:, 5, 5].tolist() == [-1, -1, -1]
    assert pixels[:, 5, 50].tolist() == [-1, 1, -1]


def test_a_second_run_reads_what_the_first_left_on_disk(folder: Path) -> None:
    first = _cache(folder, "disk", Encoder())
    list(first.fill(_pictures(folder)))
    again = Encoder()
    second = _cache(folder, "disk", again)
    assert list(second.fill(_pictures(folder)))[-1] == Prepared("latents", 5, 5)
    assert again.images == 0
    for picture in _pictures(folder):
        for mirror in (False, True):
            assert torch.equal(second.batch([picture], [mirror]), first.batch([picture], [mirror]))
    left = {path.suffix for path in (folder / ".cache").rglob("*") if path.is_file()}
    assert left == {".json", ".safetensors"}  # no half-written ones


def test_an_edited_image_another_crop_and_another_encoder_are_encoded(folder: Path) -> None:
    list(_cache(folder, "disk", Encoder()).fill(_pictures(folder)))
    edited = folder / "3.png"
    before = edited.stat()
    ramp(150, 170, shade=201).save(edited)
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    encoder = Encoder()
    cache = _cache(folder, "disk", encoder)
    list(cache.fill(_pictures(folder)))
    assert 2 <= encoder.images < 10
    picture = next(picture for picture in _pictures(folder) if picture.path == edited)
    torch.testing.assert_close(cache.batch([picture], [False])[0], Encoder()(pixels_of(picture)[None])[0])

    encoder.images = 0
    list(_cache(folder, "disk", encoder, fingerprint="another").fill(_pictures(folder)))
    assert encoder.images == 10
    small = Buckets(64, 64)
    smaller = [Picture(picture.path, small.fit(*Image.open(picture.path).size)) for picture in _pictures(folder)]
    encoder.images = 0
    list(_cache(folder, "disk", encoder).fill(smaller))
    assert encoder.images == 10


def test_an_image_is_hashed_once_unless_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = _pictures(folder)
    old = time.time() - 60
    for picture in pictures:
        os.utime(picture.path, (old, old))
    list(_cache(folder, "disk", Encoder()).fill(pictures))
    opened: list[Path] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *args, **more: opened.append(path) or real(path, *args, **more))
    list(_cache(folder, "disk", Encoder()).fill(pictures))
    assert not [path for path in opened if path.suffix == ".png"]
    os.utime(pictures[0].path, (old + 5, old + 5))
    list(_cache(folder, "disk", Encoder()).fill(pictures))
    assert [path for path in opened if path.suffix == ".png"] == [pictures[0].path]


def test_half_a_file_on_disk_is_made_again(folder: Path) -> None:
    list(_cache(folder, "disk", Encoder()).fill(_pictures(folder)))
    stored = sorted((folder / ".cache").rglob("*.safetensors"))
    stored[0].write_bytes(stored[0].read_bytes()[:50])
    (folder / ".cache" / "digests.json").write_text("[1, {")
    encoder = Encoder()
    cache = _cache(folder, "disk", encoder)
    list(cache.fill(_pictures(folder)))
    assert encoder.images >= 2
    stored[1].unlink()  # gone in the middle of a run
    for picture in _pictures(folder):
        wanted = Encoder()(pixels_of(picture)[None])
        torch.testing.assert_close(cache.batch([picture], [False]), wanted, atol=1e-5, rtol=1e-5)


def test_a_folder_that_cannot_be_written_is_told_and_memory_serves(folder: Path) -> None:
    (folder / ".cache").write_text("a file where the cache's folder should be")
    encoder = Encoder()
    cache = _cache(folder, "disk", encoder)
    told = [event for event in cache.fill(_pictures(folder)) if isinstance(event, Told)]
    assert len(told) == 1
    assert "cannot be written" in told[0].text
    assert encoder.images == 10
    for picture in _pictures(folder):
        cache.batch([picture], [True])
    assert encoder.images == 10


@pytest.mark.parametrize("mode", ["memory", "disk", "none"])
def test_a_damaged_image_is_told_and_left_out(folder: Path, mode: CacheMode) -> None:
    pictures = _pictures(folder)
    bad = pictures[1].path
    bad.write_bytes(bad.read_bytes()[:120])
    cache = _cache(folder, mode, Encoder())
    events = list(cache.fill(pictures))
    assert list(cache.damaged) == [bad]
    assert [event.level for event in events if isinstance(event, Told)] == ["warning"]
    assert any(isinstance(event, Told) and bad.name in event.text for event in events)
    assert events[-1] == Prepared("latents", 5, 5)


def test_nan_from_the_encoder_is_a_fault_in_words(folder: Path) -> None:
    def overflowing(pixels: Tensor) -> Tensor:
        return pixels[:, :, ::8, ::8] * float("nan")

    cache = LatentCache("memory", folder / ".cache", "vae", overflowing, flip=False)
    with pytest.raises(PlainError, match=r"VAE turned \d\.png into NaN"):
        list(cache.fill(_pictures(folder)))


def test_stopping_half_way_leaves_no_threads_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(picture: Picture) -> Tensor:
        time.sleep(0.1)
        return pixels_of(picture)

    monkeypatch.setattr(latents, "pixels_of", slowly)
    work = _cache(folder, "memory", Encoder()).fill(_pictures(folder))
    next(work)
    work.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("images")]
