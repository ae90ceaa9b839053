"""What the doctor sees in pictures that were drawn to have one thing wrong with them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_trainer.data.doctor.examine import Report
from lora_trainer.data.doctor.look import blur_of, likeness_of, look_at
from lora_trainer.data.doctor.pictures import BLURRED
from lora_trainer.data.images import image_size
from lora_trainer.jobs.checkup import Checkup
from tests.builders.drawn import drawn, drawn_folder


def looked(folder: Path, **asked: object) -> Report:
    """The report of a folder, for a training at 128 px."""
    checkup = Checkup(folder, **{"resolution": 128, **asked})  # type: ignore[arg-type]
    list(checkup.look())
    return checkup.report()


def kinds(report: Report) -> set[str]:
    return {finding.kind for finding in report.findings}


def images(report: Report, kind: str) -> set[str]:
    finding = report.of(kind)
    return set(finding.images) if finding else set()


def test_good_pictures_with_good_captions_are_healthy(tmp_path: Path) -> None:
    report = looked(drawn_folder(tmp_path))
    assert report.findings == ()
    assert (report.trainable, report.looked_at) == (True, 6)
    assert "Nothing is wrong" in report.text()


def test_broken_files_are_found_in_header_and_in_pixels(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    (tmp_path / "none.png").write_bytes(b"not an image")
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    drawn(40).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    report = looked(tmp_path)
    finding = report.of("unreadable")
    assert finding is not None
    assert (set(finding.images), finding.severity) == ({"none.png", "cut.png", "cut.jpg"}, "error")
    assert not report.trainable


def test_pictures_smaller_than_their_bucket_are_tiny_and_much_smaller_ones_a_warning(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    drawn(20).resize((120, 120)).save(tmp_path / "near.png")
    report = looked(tmp_path)
    assert images(report, "tiny") == {"near.png"}
    assert report.of("tiny").severity == "advice"  # type: ignore[union-attr]
    drawn(21).resize((60, 60)).save(tmp_path / "far.png")
    report = looked(tmp_path)
    assert images(report, "tiny") == {"near.png", "far.png"}
    assert report.of("tiny").severity == "warning"  # type: ignore[union-attr]
    assert images(looked(tmp_path, resolution=256), "tiny") == {f"{n}.png" for n in range(6)} | {"near.png", "far.png"}


@pytest.mark.parametrize("seed", range(6))
def test_the_measure_of_blur_tells_sharp_from_blurred_at_any_contrast(seed: int) -> None:
    picture = drawn(seed, 512).convert("L")
    values = [np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) for radius in (0, 1, 3, 6)]
    blurs = [blur_of(grey) for grey in values]
    # The measure is that of Crete et al.; where sharp ends was set by these and by some forty photographs.
    assert blurs[0] < 0.45
    assert blurs[1] < BLURRED <= blurs[2] < blurs[3] + 0.1
    assert blurs[0] < blurs[1] < blurs[2]
    assert blur_of(values[2] * 0.3 + 100) == pytest.approx(blurs[2], abs=0.01)
    assert blur_of(np.full((64, 64), 7.0, dtype=np.float32)) == 0.0


def test_a_blurred_picture_is_found_and_a_sharp_subject_before_a_soft_background_is_not(tmp_path: Path) -> None:
    drawn_folder(tmp_path, size=256)
    picture = drawn(30, 256)
    soft = picture.filter(ImageFilter.GaussianBlur(3))
    soft.save(tmp_path / "soft.png")
    portrait = drawn(31, 256).filter(ImageFilter.GaussianBlur(3))
    portrait.paste(drawn(32, 256).resize((100, 100), Image.Resampling.LANCZOS), (80, 80))
    portrait.save(tmp_path / "portrait.png")
    assert images(looked(tmp_path), "blurry") == {"soft.png"}
    half = np.asarray(picture.convert("L"), dtype=np.float32).copy()
    sharp = blur_of(half)
    half[:, 128:] = np.asarray(soft.convert("L"))[:, 128:]
    assert blur_of(half) == pytest.approx(sharp, abs=0.1), "the sharpest tile counts, not the mean of all"


def test_transparent_parts_and_not_merely_an_alpha_channel(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    opaque, holed = drawn(20).convert("RGBA"), drawn(21).convert("RGBA")
    holed.paste((0, 0, 0, 0), (0, 0, 40, 128))
    opaque.save(tmp_path / "opaque.png")
    holed.save(tmp_path / "holed.webp", lossless=True)
    palette = drawn(22).quantize(16)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((5, 5)))
    assert images(looked(tmp_path), "transparent") == {"holed.webp", "palette.png"}
    assert look_at(tmp_path / "holed.webp").transparent == pytest.approx(40 / 128, abs=0.001)


def test_turned_by_exif(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        drawn(20 + orientation).save(tmp_path / f"exif{orientation}.jpg", exif=exif)
    report = looked(tmp_path)
    assert images(report, "turned") == {"exif6.jpg"}
    assert report.of("turned").severity == "advice"  # type: ignore[union-attr]


def test_a_turned_picture_is_judged_upright(tmp_path: Path) -> None:
    wide = drawn(3, 256).crop((0, 0, 256, 128))
    wide.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen, turn by 90 degrees clockwise
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = look_at(tmp_path / "upright.png"), look_at(tmp_path / "turned.png")
    assert (turned.width, turned.height) == (256, 128) == image_size(tmp_path / "turned.png")
    assert (upright.likeness ^ turned.likeness).bit_count() == 0
    assert turned.tones == upright.tones


def test_a_shape_that_no_bucket_holds(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    drawn(20, 512).resize((640, 128)).save(tmp_path / "wide.png")
    drawn(21, 512).resize((512, 128)).save(tmp_path / "bearable.png")  # as wide as the widest bucket, 256 x 64
    report = looked(tmp_path)
    assert images(report, "extreme_aspect") == set()  # 640:128 = 5, of which 4 fits: a fifth is lost
    drawn(22, 512).resize((128, 900)).save(tmp_path / "tall.png")  # 900 / 128 = 7.03: 43 % is lost
    report = looked(tmp_path)
    assert images(report, "extreme_aspect") == {"tall.png"}
    assert "43 % of tall.png" in report.of("extreme_aspect").sentence  # type: ignore[union-attr]


def test_grey_among_colour_but_not_a_grey_set(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    drawn(20).convert("L").save(tmp_path / "grey.jpg", quality=60)
    drawn(21).convert("L").convert("RGB").save(tmp_path / "grey.png")
    assert images(looked(tmp_path), "grey") == {"grey.jpg", "grey.png"}
    for index in range(6):
        (tmp_path / f"{index}.png").unlink()
    assert images(looked(tmp_path), "grey") == set()


def test_hard_names_endings_links_and_circles(tmp_path: Path) -> None:
    folder = drawn_folder(tmp_path / "a folder 🐈")
    drawn(20).save(folder / "with space, and 🐈‍⬛.PNG")
    shutil.copy(folder / "0.png", folder / "COPY.PnG")
    if sys.platform != "win32":
        (folder / "circle").symlink_to(folder)
        (folder / "nowhere.png").symlink_to(folder / "gone.png")
        os.mkfifo(folder / "pipe")
    report = looked(folder)
    assert len(report.scan.items) == 8
    assert images(report, "duplicate") == {"0.png", "COPY.PnG"}


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="the superuser reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    (tmp_path / "0.png").chmod(0)
    assert images(looked(tmp_path), "unreadable") == {"0.png"}


def test_one_shade_has_no_likeness() -> None:
    assert likeness_of(Image.new("RGB", (64, 64), (10, 200, 30))) == 0
    assert likeness_of(drawn(0)) != 0
