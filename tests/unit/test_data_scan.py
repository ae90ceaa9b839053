"""What a scan finds in a folder, and what it says."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.contracts import PlainError
from lora_trainer.data.scan import scan
from tests.builders.pictures import picture_folder, ramp


def test_images_of_sub_folders_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.png", "9.PNG", "a/2.jpg", "a/11.jpg", "B/1.webp", "b.Jpeg", ".hidden.png", "__MACOSX/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        ramp(20, 10).save(tmp_path / name)
    (tmp_path / ".cache" / "lora_trainer").mkdir(parents=True)
    ramp(20, 10).save(tmp_path / ".cache" / "lora_trainer" / "1.png")
    (tmp_path / "notes.md").write_text("not an image")
    found = scan(tmp_path)
    assert [item.name for item in found.items] == ["9.PNG", "10.png", "b.Jpeg", "a/2.jpg", "a/11.jpg", "B/1.webp"]
    assert {item.size for item in found.items} == {(20, 10)}
    assert found.items[3].path == tmp_path / "a" / "2.jpg"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    elsewhere = picture_folder(tmp_path / "elsewhere", [(20, 10)])
    folder = picture_folder(tmp_path / "set", [(20, 10)])
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "nowhere.png").symlink_to(tmp_path / "gone.png")
    assert [item.name for item in scan(folder).items] == ["0.png", "linked/0.png"]


def test_captions_by_source_and_what_is_missing(tmp_path: Path) -> None:
    picture_folder(tmp_path, [(8, 8)] * 5, captions=False)
    (tmp_path / "metadata.csv").write_text("filename,prompt\n0.png,from csv\n1.png,\ngone.png,nobody\n")
    rows = [{"file_name": "0.png", "text": "x"}, {"file_name": "1.png", "text": "from jsonl"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for index in (0, 2):
        (tmp_path / f"{index}.txt").write_text("from txt,\nsecond line\n")
    for index in (0, 2, 3):
        (tmp_path / f"{index}.caption").write_text("from caption")
    found = scan(tmp_path)
    assert [(item.caption, item.caption_source) for item in found.items] == [
        ("from csv", "metadata.csv"), ("from jsonl", "metadata.jsonl"), ("from txt, second line", ".txt"),
        ("from caption", ".caption"), ("", ""),
    ]  # fmt: skip
    assert found.missing_captions == ("4.png",)
    assert found.rows_without_image == ("gone.png",)
    assert found.sources == {"metadata.csv": 1, "metadata.jsonl": 1, ".txt": 1, ".caption": 1}
    said = " ".join(found.warnings)
    assert "1 of 5 images have no caption" in said
    assert "4.png" in said
    assert "gone.png" in said


def test_metadata_elsewhere_names_files_from_the_folder_from_itself_or_in_full(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("a/1.png", "a/2.png", "b/2.png", "b/Ünder.png", "3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        ramp(8, 8).save(folder / name)
    table = tmp_path / "my.csv"
    decomposed = unicodedata.normalize("NFD", "b/ünder.png")
    table.write_text(
        f"filename,prompt\n1.png,bare\n2.png,ambiguous\n./set/a/2.png,beside\n{folder / 'b' / '2.png'},full\n"
        f"{decomposed},accent\n3.png,plain\n", encoding="utf-8",
    )  # fmt: skip
    relative = Path(os.path.relpath(folder))
    for start in (folder, relative):
        found = scan(start, table)
        captions = {item.name: item.caption for item in found.items}
        assert captions == {
            "a/1.png": "bare", "a/2.png": "beside", "b/2.png": "full", "b/Ünder.png": "accent", "3.png": "plain",
        }  # fmt: skip
        assert found.rows_without_image == ("2.png",)
        assert found.sources == {"my.csv": 5}


def test_repeats_from_folder_names(tmp_path: Path) -> None:
    for name in ("10_cat/1.png", "10_cat/sub/1.png", "2023_summer/1.png", "cat_3/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        ramp(8, 8).save(tmp_path / name)
    found = scan(tmp_path)
    assert {item.name: item.repeats for item in found.items} == {
        "10_cat/1.png": 10, "10_cat/sub/1.png": 10, "2023_summer/1.png": 1, "cat_3/1.png": 1,
    }  # fmt: skip
    assert any("10_cat" in warning and "10 times" in warning for warning in found.warnings)


def test_unreadable_images_are_left_out_and_named(tmp_path: Path) -> None:
    picture_folder(tmp_path, [(8, 8), (8, 8)])
    (tmp_path / "bad.png").write_bytes(b"nothing")
    (tmp_path / "metadata.csv").write_text("filename,prompt\nbad.png,a caption\n")
    found = scan(tmp_path)
    assert len(found.items) == 2
    assert [one.path.name for one in found.unreadable] == ["bad.png"]
    assert "bad.png" in found.unreadable[0].reason
    assert any("1 of 3 images cannot be read" in warning for warning in found.warnings)
    assert found.rows_without_image == ()  # its file is there


def test_older_encodings_are_told_without_a_flood(tmp_path: Path) -> None:
    picture_folder(tmp_path, [(8, 8)] * 9, captions=False)
    for index in range(9):
        (tmp_path / f"{index}.txt").write_bytes("一个女孩。樱花".encode("gbk"))
    found = scan(tmp_path)
    assert {item.caption for item in found.items} == {"一个女孩。樱花"}
    assert sum("gbk" in warning for warning in found.warnings) == 3
    assert any("6 more" in warning for warning in found.warnings)


def test_faults_are_plain_sentences(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match="does not exist"):
        scan(tmp_path / "gone")
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(PlainError, match="is a file"):
        scan(tmp_path / "file.png")
    with pytest.raises(PlainError, match=r"None of the 1 images.*file\.png"):
        scan(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlainError, match=r"no images.*\.png, \.jpg"):
        scan(tmp_path / "empty")
    with pytest.raises(PlainError, match=r"metadata file .*my\.csv does not exist"):
        scan(tmp_path, tmp_path / "my.csv")


def test_sizes_are_read_from_headers_alone(tmp_path: Path) -> None:
    path = tmp_path / "1.png"
    Image.effect_noise((300, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:100])  # header whole, pixels gone
    assert scan(tmp_path).items[0].size == (300, 200)
