"""What is kept of a picture: around its focal point, or all of it with padding that is not learned."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import PlainError, Prepared
from lora_trainer.data.buckets import Buckets
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.focus import FOCUS, FocusTable
from lora_trainer.data.framing import Framing
from lora_trainer.data.saliency import INDEX, salient_point
from lora_trainer.data.scan import scan
from tests.builders.drawn import settled
from tests.builders.pictures import picture_folder, ramp

WIDE = Buckets(128, 64, keep_shape=False, crop="focal")
sides = st.integers(1, 3000)
shares = st.floats(0, 1)


def encode_images(pixels: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)[:, :4]


def prepared(folder: Path, **options: Any) -> DataSet:
    options = {"batch_size": 1, "caption_dropout": 0.0, "buckets": False} | options
    data = DataSet(scan(folder), DataConfig(**options), resolution=128, seed=4)
    list(data.prepare(encode_images, fingerprint="f"))
    return data


# --- the geometry ----------------------------------------------------------------------------------------------------


@given(sides, sides, st.tuples(shares, shares), st.booleans())
def test_a_focal_point_moves_the_crop_and_nothing_else(width, height, focus, upscale) -> None:
    middle = Buckets(256, 64, upscale=upscale).fit(width, height)
    around = Buckets(256, 64, upscale=upscale, crop="focal").fit(width, height, focus)
    assert (around.size, around.resized) == (middle.size, middle.resized)
    kept = around.kept
    assert min(kept) >= 0
    assert max(kept) <= 1
    for at, low, high, cut in (
        (focus[0], kept.left, kept.right, around.resized[0]),
        (focus[1], kept.top, kept.bottom, around.resized[1]),
    ):
        assert low - 1 / cut <= at <= high + 1 / cut, "the point stays in the picture"
        if low > 0 and high < 1:
            assert abs((low + high) / 2 - at) <= 1 / cut, "and in its middle, unless an edge is nearer"
    assert Buckets(256, 64, upscale=upscale, crop="focal").fit(width, height, (0.5, 0.5)) == middle
    assert Buckets(256, 64, upscale=upscale).fit(width, height, focus) == around, "also where the middle is usual"


@given(sides, sides, st.booleans())
def test_without_a_crop_the_whole_picture_lies_in_its_bucket(width, height, keep_shape) -> None:
    crop = Buckets(256, 64, keep_shape, crop="none").fit(width, height)
    assert crop.size == Buckets(256, 64, keep_shape).fit(width, height).size
    assert crop.kept == (0, 0, 1, 1)
    assert crop.lost == 0
    assert not crop.free
    assert crop.left <= 0
    assert crop.top <= 0
    assert crop.left % 8 == crop.top % 8 == 0
    assert crop.resized[0] - crop.left <= crop.width
    assert crop.resized[1] - crop.top <= crop.height
    assert crop.resized[0] == crop.width or crop.resized[1] == crop.height, "no smaller than it has to be"
    cells = crop.cells()
    assert cells.shape == (crop.height // 8, crop.width // 8)
    assert cells.sum() == (crop.resized[0] // 8) * (crop.resized[1] // 8), "those that hold nothing but picture"


def test_what_is_padded_repeats_the_edge_and_counts_nothing() -> None:
    crop = Buckets(128, 64, keep_shape=False, crop="none").fit(300, 150)
    assert (crop.resized, crop.left, crop.top, crop.padded) == ((128, 64), 0, -32, True)
    cut = np.asarray(crop.apply(ramp(300, 150)))
    assert cut.shape == (128, 128, 3)
    assert (cut[:32] == cut[32]).all()
    assert (cut[96:] == cut[95]).all()
    assert cut[32, 5, 1] < cut[95, 5, 1] - 180  # green grows downwards through the whole picture
    assert crop.cells().mean(axis=1).tolist() == [0] * 4 + [1] * 8 + [0] * 4
    # nothing is cut away, so the corner is 0; the picture is conditioned at its own size and the bucket's
    assert crop.sizes(300, 150) == crop.sizes(300, 150, mirrored=True) == (150, 300, 0, 0, 128, 128)


def test_size_conditioning_follows_the_focal_point() -> None:
    crop = WIDE.fit(512, 256, (0.9, 0.1))
    assert (crop.resized, crop.left, crop.top) == ((256, 128), 128, 0)
    assert crop.sizes(512, 256) == (256, 512, 0, 128, 128, 128)
    assert crop.sizes(512, 256, mirrored=True) == (256, 512, 0, 0, 128, 128)


# --- the table -------------------------------------------------------------------------------------------------------


def test_points_are_kept_in_a_table_that_people_can_edit(tmp_path: Path) -> None:
    names = ["a.png", "sub/b.png", "c.png"]
    table = FocusTable(tmp_path, names)
    assert table.of("a.png") is None
    table.put("sub/b.png", (1 / 3, 1.0))
    table.put("a.png", (0.5, 0.25))
    assert (tmp_path / FOCUS).read_text() == "filename,x,y\nsub/b.png,0.3333,1\na.png,0.5,0.25\n"
    edited = "\ufeffnote,Y,X,Filename\r\nmine,0.75,0,A.PNG\r\n,0.2,0.1,gone.png\r\n"
    (tmp_path / FOCUS).write_text(edited, encoding="utf-8", newline="")
    table = FocusTable(tmp_path, names)
    assert (table.of("a.png"), table.of("sub/b.png")) == ((0, 0.75), None)
    table.put("a.png", (0.125, 0.5))
    table.put("c.png", (1, 0))
    table.put("a.png", (0.25, 0.5))
    assert (tmp_path / FOCUS).read_text() == "note,Y,X,Filename\nmine,0.5,0.25,a.png\n,0.2,0.1,gone.png\n,0,1,c.png\n"
    table.put("a.png", None)
    table.put("a.png", None)
    for one in (table, FocusTable(tmp_path, names)):
        assert ([one.of(name) for name in names], one.points) == ([None, None, (1, 0)], 1)
    assert "a.png" in (tmp_path / f"{FOCUS}.bak").read_text(), "the version before"
    assert sorted(path.name for path in tmp_path.iterdir()) == [FOCUS, f"{FOCUS}.bak"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("filename,x\na.png,0.5\n", "no column y"),
        ("filename,x,y\na.png,0.5,1.4\n", "Row 1 .*a.png,0.5,1.4.* is no focal point: x and y run from 0"),
        ("filename,x,y\n\nb.png,0,0\na.png,half,0\n", "Row 2 "),
        ("filename,x,y\na.png,nan,0\n", "is no focal point"),
        ("filename,x,y\na.png,0.5\n", "is no focal point"),
        ('filename,x,y\n"a.png,0.5,1\n', "is not a CSV table"),
    ],
)
def test_a_wrong_table_is_a_fault_in_words(tmp_path: Path, text: str, told: str) -> None:
    folder = picture_folder(tmp_path, [(256, 128)])
    (folder / "0.png").rename(folder / "a.png")
    (folder / FOCUS).write_text(text)
    for crop in ("focal", "center"):
        with pytest.raises(PlainError, match=told):
            prepared(folder, crop=crop)
    (warning,) = prepared(folder, crop="none").warnings
    assert FOCUS in warning
    assert "data.crop: center" in warning


def test_a_point_outside_of_the_picture_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match="outside of the image"):
        FocusTable(tmp_path, ["a.png"]).put("a.png", (0.5, -0.01))
    assert not (tmp_path / FOCUS).exists()


# --- what is trained on ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("crop", "cache"), [("focal", "disk"), ("focal", "none"), ("center", "disk")])
def test_a_focal_point_that_is_moved_changes_what_is_trained_on(tmp_path: Path, crop: str, cache: str) -> None:
    folder = picture_folder(tmp_path, [(512, 256)])
    (folder / FOCUS).write_text("filename,x,y\n0.png,0,0.5\n")
    left = prepared(folder, crop=crop, cache=cache)(0)
    (folder / FOCUS).write_text("filename,x,y\n0.png,1,0.5\n")
    right = prepared(folder, crop=crop, cache=cache)(0)
    # red runs from 20 to 230 over the whole width; each half shows one half of it
    assert [round(float((one.latents[0, 0].mean() + 1) * 127.5)) for one in (left, right)] == [72, 177]
    assert left.sizes[0].tolist() == [256, 512, 0, 0, 128, 128]
    assert right.sizes[0].tolist() == [256, 512, 0, 128, 128, 128]
    again = prepared(folder, crop=crop, cache=cache)(0)
    assert torch.equal(again.latents, right.latents)
    assert left.mask is None is right.mask


def test_a_picture_turned_by_exif_is_cropped_upright(tmp_path: Path) -> None:
    upright = ramp(512, 256)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter (EXIF 2.3, table 4)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    (tmp_path / FOCUS).write_text("filename,x,y\nturned.png,1,0.5\nupright.png,1,0.5\n")
    data = prepared(tmp_path, crop="focal")
    turned, plain = (data(index) for index in (0, 1))
    assert torch.equal(turned.latents, plain.latents)
    assert torch.equal(turned.sizes, plain.sizes)


def test_pictures_of_several_buckets_are_padded_each_in_its_own(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path, [(256, 90), (90, 256), (128, 128)])
    data = prepared(folder, crop="none", buckets=True, flip=True)
    shapes = set()
    for index in range(6):
        batch = data(index)
        assert batch.mask is not None, "also where nothing is padded: every loss of a run is taken alike"
        assert batch.mask.shape == (1, 1, *batch.latents.shape[2:])
        height, width, top, left = batch.sizes[0, :4].int().tolist()
        assert (top, left) == (0, 0)
        crop = Buckets(128, 64, crop="none").fit(width, height)
        assert batch.mask.sum() == (crop.resized[0] // 8) * (crop.resized[1] // 8)
        shapes.add(tuple(batch.latents.shape[2:]))
    assert len(shapes) == 3


# --- what is found ---------------------------------------------------------------------------------------------------


def subject(at: float, size: tuple[int, int] = (384, 128)) -> Image.Image:
    """A detailed, colourful disc before a plain ground, at this share of the width."""
    noise = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    rows, columns = np.mgrid[: size[1], : size[0]]
    disc = (columns - at * size[0]) ** 2 + (rows - size[1] / 2) ** 2 < (size[1] / 4) ** 2
    return Image.fromarray(np.where(disc[..., None], noise, np.full_like(noise, 200)))


@pytest.mark.parametrize("at", [0.15, 0.5, 0.8])
def test_the_crop_lies_around_what_is_to_be_seen(at: float) -> None:
    picture = subject(at)
    point = salient_point(picture, (128, 128))
    kept = WIDE.fit(*picture.size, point).kept
    assert kept.left <= at - 0.08
    assert kept.right >= at + 0.08
    assert salient_point(picture, (128, 128)) == point, "the same each time"


def test_where_nothing_is_to_be_seen_the_middle_is_kept() -> None:
    for picture in (Image.new("RGB", (300, 100), "grey"), Image.new("RGB", (3000, 4), "red")):
        assert salient_point(picture, (64, 64))[0] == pytest.approx(0.5, abs=0.02)


def test_points_are_found_before_training_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, at in enumerate((0.15, 0.8)):
        subject(at).save(tmp_path / f"{number}.png")
    subject(0.5, (128, 128)).save(tmp_path / "square.png")
    settled(tmp_path)
    data = DataSet(scan(tmp_path), DataConfig(crop="focal", buckets=False, batch_size=1), resolution=128, seed=1)
    before = data.bucket_counts()
    told = [event for event in data.prepare(encode_images) if isinstance(event, Prepared)]
    assert [event for event in told if event.what == "focal points"] == [
        Prepared("focal points", done, 2) for done in (1, 2)
    ], "of the square one nothing is cut away"
    assert data.bucket_counts() == before
    assert sorted(data(index).sizes[0, 3].item() for index in range(3))[2] > 128
    assert (tmp_path / INDEX).is_file()
    monkeypatch.setitem(sys.modules, "smartcrop", None)
    again = DataSet(scan(tmp_path), DataConfig(crop="focal", buckets=False, batch_size=1), resolution=128, seed=1)
    assert not [event for event in again.prepare(encode_images) if event == Prepared("focal points", 1, 2)]
    assert all(torch.equal(again(index).latents, data(index).latents) for index in range(3))
    # a point set by hand comes before the found one
    (tmp_path / FOCUS).write_text("filename,x,y\n1.png,0,0\n")
    found = scan(tmp_path)
    framing = Framing(tmp_path, found.items, WIDE)
    assert [framing.crop_of(item).left for item in found.items[1:]] == [0, 0]


def test_without_the_library_it_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject(0.2).save(tmp_path / "0.png")
    monkeypatch.setattr("lora_trainer.data.framing.available", lambda: False)
    with pytest.raises(PlainError, match=r"smartcrop, which is not installed: pip install smartcrop"):
        prepared(tmp_path, crop="focal")
    (tmp_path / FOCUS).write_text("filename,x,y\n0.png,0.2,0.5\n")
    assert prepared(tmp_path, crop="focal")(0).sizes[0, 3].item() == 12  # 0.2 of 384 px, less half of 128 px
