"""Every kind of image file comes out upright, in 8-bit RGB, with the values its format means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from lora_trainer.contracts import PlainError
from lora_trainer.data.images import PIXEL_LIMIT, image_size, load_rgb
from tests.builders.pictures import ramp


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.int64)


# How a camera that was held so stores the upright picture: the inverse of what EXIF 2.3 tells a viewer to do.
STORED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_orientation_comes_out_upright(tmp_path: Path, ending: str, orientation: int) -> None:
    upright = ramp(48, 32)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(upright))))
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98, "subsampling": 0}}.get(ending, {})
    path = tmp_path / f"photo.{ending}"
    stored.save(path, exif=exif, **options)
    assert image_size(path) == upright.size
    loaded = load_rgb(path)
    assert loaded.mode == "RGB"
    assert loaded.size == upright.size
    if ending == "jpg":
        assert np.abs(_array(loaded) - _array(upright)).max() <= 6  # JPEG loses a little at quality 98
    else:
        np.testing.assert_array_equal(_array(loaded), _array(upright))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage!", b"Exif\x00\x00II*\x00\xff\xff\xff\x7f"])
def test_damaged_exif_does_not_cost_the_image(tmp_path: Path, exif: bytes) -> None:
    ramp(16, 8).save(tmp_path / "a.jpg", exif=exif, quality=98)
    assert image_size(tmp_path / "a.jpg") == load_rgb(tmp_path / "a.jpg").size == (16, 8)


def test_transparent_parts_are_laid_on_white(tmp_path: Path) -> None:
    values = np.zeros((1, 3, 4), dtype=np.uint8)
    values[0, :, 0] = 200
    values[0, :, 3] = (255, 128, 0)
    Image.fromarray(values).save(tmp_path / "rgba.png")
    # alpha compositing: 200 and 0 over 255 at 128/255
    assert _array(load_rgb(tmp_path / "rgba.png"))[0].tolist() == [[200, 0, 0], [227, 127, 127], [255, 255, 255]]

    grey = Image.merge("LA", (Image.new("L", (1, 1), 100), Image.new("L", (1, 1), 51)))
    grey.save(tmp_path / "la.png")
    assert _array(load_rgb(tmp_path / "la.png"))[0, 0].tolist() == [224, 224, 224]  # 100 x 0.2 + 255 x 0.8


@pytest.mark.parametrize("ending", ["png", "gif"])
def test_a_palette_with_a_transparent_colour(tmp_path: Path, ending: str) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    image.save(tmp_path / f"p.{ending}", transparency=1)
    assert _array(load_rgb(tmp_path / f"p.{ending}"))[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_cmyk_inks_become_light(tmp_path: Path) -> None:
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], dtype=np.uint8)
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "cmyk.tif")
    paper_cyan_red_black = [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]]
    assert _array(load_rgb(tmp_path / "cmyk.tif"))[0].tolist() == paper_cyan_red_black
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=95)
    assert np.abs(_array(load_rgb(tmp_path / "cmyk.jpg"))[8, 8] - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_is_scaled_and_not_cut_off(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257, 257 * 100, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{ending}")
    assert _array(load_rgb(tmp_path / f"deep.{ending}"))[0, :, 0].tolist() == [0, 1, 100, 128, 255]


def test_floating_point_grey_is_scaled(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(tmp_path / "float.tif")
    assert _array(load_rgb(tmp_path / "float.tif"))[0, :, 2].tolist() == [0, 128, 255]


def test_one_bit_and_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert _array(load_rgb(tmp_path / "bit.png"))[0, :, 1].tolist() == [255, 0]
    Image.fromarray(np.array([[7, 201]], dtype=np.uint8)).save(tmp_path / "grey.bmp")
    assert _array(load_rgb(tmp_path / "grey.bmp"))[0].tolist() == [[7] * 3, [201] * 3]


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert _array(load_rgb(tmp_path / "moving.gif"))[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_file_cut_short_is_named(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # another test's imports may have switched it on
    rng = np.random.default_rng(5)
    path = tmp_path / f"half.{ending}"
    Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(PlainError, match=f"half.{ending}"):
        load_rgb(path)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "letter.png").write_text("Dear Sir")
    with pytest.raises(PlainError, match=r"letter\.png is not an image"):
        image_size(tmp_path / "letter.png")
    # By its content this would start Pillow's PostScript reader, which runs another program.
    (tmp_path / "script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(PlainError, match=r"script\.png is not an image"):
        load_rgb(tmp_path / "script.png")


def test_a_decompression_bomb_is_refused_whatever_the_host_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20000, 10000)).save(path)
    assert path.stat().st_size < 100_000
    assert 20000 * 10000 > PIXEL_LIMIT  # noqa: SIM300
    for allowed in (Image.MAX_IMAGE_PIXELS, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
        for read in (image_size, load_rgb):
            with pytest.raises(PlainError, match=r"bomb\.png has more than 178 million pixels"):
                read(path)
        assert allowed == Image.MAX_IMAGE_PIXELS
