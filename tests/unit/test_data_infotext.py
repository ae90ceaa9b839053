"""The prompt out of a picture, as the WebUI writes it into each kind of file."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from lora_trainer.data.infotext import infotext, prompt_of

# As AUTOMATIC1111 v1.10.1 writes it (modules/processing.py, create_infotext).
WRITTEN = (
    "a red boat, (evening light:1.2) <lora:my boats:0.8>, 小舟 🚤\nsecond line\n"
    "Negative prompt: blurry, <lora:bad:1>\n"
    'Steps: 20, Sampler: Euler a, Schedule type: Automatic, CFG scale: 7, Seed: 5, Size: 512x512, Model: "a, b"'
)
PROMPT = "a red boat, (evening light:1.2), 小舟 🚤 second line"


def exif(comment: bytes) -> bytes:
    made = Image.Exif()
    made[0x8769] = {0x9286: comment}
    return made.tobytes()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("a.png", "text"),
        ("a.jpg", b"UNICODE\0" + WRITTEN.encode("utf-16-be")),  # as piexif's helper dumps it
        ("a.webp", b"UNICODE\0" + WRITTEN.encode("utf-16-be")),
        ("a.jpeg", b"UNICODE\0" + WRITTEN.encode("utf-16-le")),
        ("a.jpg", b"ASCII\0\0\0" + WRITTEN.encode()),
        ("a.gif", "comment"),
    ],
)
def test_the_prompt_is_found_in_every_kind_of_file(tmp_path: Path, name: str, more: str | bytes) -> None:
    path, image = tmp_path / name, Image.new("RGB", (8, 8), "red")
    if more == "text":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("parameters", WRITTEN)
        image.save(path, pnginfo=notes)
    elif more == "comment":
        image.save(path, comment=WRITTEN.encode())
    else:
        assert isinstance(more, bytes)
        image.save(path, exif=exif(more))
    assert prompt_of(infotext(path)) == PROMPT


def test_a_picture_of_no_webui_has_none(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif(b""))
    (tmp_path / "no.png").write_text("no picture", encoding="utf-8")
    assert [infotext(tmp_path / name) for name in ("a.png", "a.jpg", "no.png")] == ["", "", ""]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("", ""),
        ("a cat", "a cat"),
        ("a cat\nSteps: 20, Sampler: Euler, Seed: 1", "a cat"),
        ("Negative prompt: bad\nSteps: 20, Sampler: Euler, Seed: 1", ""),
        ("note: a cat: here", "note: a cat: here"),  # fewer settings than make a line of them
        ("<lora:a:1> <hypernet:b:0.5:x>", ""),
        ("<lora:a:1>, a cat,, blue ,<lyco:b:1>", "a cat, blue"),
        ("a,b , c", "a,b , c"),  # nothing was taken out, and so nothing is put in order
        ("5 < 6 and 7 > 6", "5 < 6 and 7 > 6"),
        ("<b>bold</b> <script>", "<b>bold</b> <script>"),
    ],
)
def test_the_prompt_of_an_infotext(text: str, prompt: str) -> None:
    assert prompt_of(text) == prompt
