"""What people's folders really hold: names, captions, pictures and numbers that a data set has to bear."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Finished, PlainError, Told
from lora_trainer.data import images
from lora_trainer.data.caption_files import CaptionFiles, JsonLines, Sidecars, Table
from lora_trainer.data.images import load_rgb, load_small
from lora_trainer.data.scan import scan
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.captioning import Controls, caption_folder

# Opened in a spreadsheet these are run, in a page drawn, in a table taken apart; in a data set they are words.
CAPTIONS = ["=cmd|' /C calc'!A0", "@SUM(1+1), -1, +2", "<img src=x onerror=alert(1)>", 'a "quoted", word', "猫🐈, é"]
NAMES = ["a b.PNG", "🐈.png", 'comma, "q".png', "=1+1.png", "<b>.png", "'.png", "con.png", "new\nline.png", "tab\t.png",
         "a.b.c.png", "-a.png", "猫" * 82 + ".png", "%41.png", "#1.png"]  # fmt: skip
NAMELESS = [" lead.png", "back\\slash.png", os.fsdecode(b"half\xff.png")]  # a row of a table cannot name these
LONG = "x" * 249 + ".png"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")


def put(folder: Path, names: Sequence[str]) -> None:
    picture = Image.new("RGB", (8, 8), "red")
    for name in names:
        picture.save(folder / name, "PNG")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt", "caption"])
def test_every_name_and_caption_comes_back_as_it_was_given(tmp_path: Path, kind: str) -> None:
    names = [*NAMES, *(NAMELESS if kind in ("txt", "caption") else [])]
    if kind == "caption":
        names.remove("猫" * 82 + ".png")  # 246 bytes: no room for the longer ending
    put(tmp_path, names)
    wanted = {name: CAPTIONS[number % len(CAPTIONS)] for number, name in enumerate(names)}
    files: CaptionFiles = Sidecars(tmp_path, f".{kind}")
    if kind == "csv":
        files = Table(tmp_path / "metadata.csv", tmp_path, names)
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").touch()
        files = JsonLines(tmp_path / "metadata.jsonl", tmp_path, names)
    for name, caption in wanted.items():
        files.put(name, caption)
    files.save()
    assert {item.name: item.caption for item in scan(tmp_path).items} == wanted
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")], "nothing unfinished is left"


@pytest.mark.parametrize("name", NAMELESS)
def test_a_name_that_no_table_can_hold_is_told_at_once(tmp_path: Path, name: str) -> None:
    table = Table(tmp_path / "metadata.csv", tmp_path, [name, "b.png"])
    with pytest.raises(PlainError, match="rename the file"):
        table.put(name, "a")
    table.put("b.png", "b")
    table.save()
    assert (tmp_path / "metadata.csv").read_text(encoding="utf-8") == "filename,prompt\nb.png,b\n"


class Speaker:
    name = "host"
    makes: Literal["sentences", "tags"] = "sentences"
    batch_size = 4

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        return ["said" for _ in images]

    def lacks(self) -> None:
        """Nothing."""

    def close(self) -> None:
        pass


class Host(Standalone):
    def captioners(self, **more: Any) -> Sequence[Any]:
        return (Speaker(),)


@pytest.mark.parametrize("kind", ["csv", "txt"])
def test_captioning_leaves_out_what_cannot_be_kept_and_keeps_the_rest(tmp_path: Path, kind: Literal["csv"]) -> None:
    put(tmp_path, ["a.png", *NAMELESS, LONG])
    *events, end = caption_folder(CaptionConfig(input=str(tmp_path), model="host", format=kind), Host(), Controls())
    told = " ".join(event.text for event in events if isinstance(event, Told))
    assert ("3 images are left out" if kind == "csv" else "1 images are left out") in told
    assert isinstance(end, Finished)
    assert end.outcome == "done"
    said = {item.name for item in scan(tmp_path).items if item.caption == "said"}
    assert said == ({"a.png", LONG} if kind == "csv" else {"a.png", *NAMELESS})


def test_a_name_as_long_as_can_be_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match="too long"):
        Sidecars(tmp_path, ".caption").put("x" * 250 + ".png", "a")


def test_links_that_lead_nowhere_and_pipes_are_passed_by(tmp_path: Path) -> None:
    put(tmp_path, ["a.png"])
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "none.png")
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    found = scan(tmp_path)
    assert [item.name for item in found.items] == ["a.png"]
    assert found.unreadable == ()


def test_pictures_of_other_kinds_are_told_and_not_passed_by_in_silence(tmp_path: Path) -> None:
    (tmp_path / "phone.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(PlainError, match=r"no images.*phone\.HEIC\. Save such as PNG"):
        scan(tmp_path)
    put(tmp_path, ["a.png"])
    assert any("phone.HEIC" in warning for warning in scan(tmp_path).warnings)


def test_an_avif_that_this_pillow_cannot_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf")
    Image.init()
    monkeypatch.setattr(images, "_formats", lambda: ("PNG",))
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    with pytest.raises(PlainError, match=r"needs Pillow 11\.3 or newer"):
        load_rgb(tmp_path / "a.avif")


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_what_moves_or_has_pages_the_first_picture_counts(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "green", "blue")]
    more = {"lossless": True} if name.endswith("webp") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
    whole = load_rgb(tmp_path / name)
    small = load_small((tmp_path / name).read_bytes(), tmp_path / name, 4)
    assert (whole.size, whole.getpixel((3, 3))) == ((8, 6), (255, 0, 0))
    assert (small.size, small.image.getpixel((1, 1))) == ((8, 6), (255, 0, 0))


def test_what_is_empty_costs_nothing_but_itself(tmp_path: Path) -> None:
    put(tmp_path, ["a.png"])
    for name in ("zero.png", "zero.jpg", "a.txt"):
        (tmp_path / name).touch()
    found = scan(tmp_path)
    assert sorted(one.path.name for one in found.unreadable) == ["zero.jpg", "zero.png"]
    assert found.missing_captions == ("a.png",)
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(PlainError, match="an empty first line"):
        scan(tmp_path)


def test_the_cost_of_a_scan_grows_with_its_images_and_not_with_their_square(tmp_path: Path) -> None:
    """Ten times the images: ten times the work, where every pair looked at would be a hundred times."""
    seconds = []
    for number in (1000, 10_000):
        names = [f"sub/image {n}.png" for n in range(number)]
        rows = "".join(f'image {n}.png,"a cat, {n}"\n' for n in range(number))
        (tmp_path / "metadata.csv").write_text(f"filename,prompt\n{rows}", encoding="utf-8")
        began = time.process_time()
        found = scan(tmp_path, size_of=lambda path: (8, 8), files=names)
        table = Table(tmp_path / "new.csv", tmp_path, names)
        for item in found.items:
            table.put(item.name, item.caption)
        seconds.append(time.process_time() - began)
        assert found.missing_captions == ()
    assert seconds[1] < 30 * seconds[0]
