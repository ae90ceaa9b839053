"""What is sent to a data set joins it: nothing there changes, and a caption goes with its picture."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.contracts import PlainError
from lora_trainer.data.scan import scan
from lora_trainer.data.taking_in import Taken, take_in


def fill(folder: Path, **files: str | None) -> Path:
    """Files, named with "__" for the dot and "_in_" for a folder; a colour makes a picture, other text is text."""
    for name, content in files.items():
        path = folder / name.replace("_in_", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".png", ".jpg") and content in ("red", "green", "blue", "white"):
            Image.new("RGB", (8, 8), content).save(path)
        else:
            path.write_text(content or "", encoding="utf-8")
    return folder


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    (tmp_path / "sent").mkdir()
    return tmp_path / "sent"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there"


def captions(folder: Path) -> dict[str, str]:
    return {item.name: item.caption for item in scan(folder).items}


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_captions_and_masks_arrives_as_it_is(sent: Path, tmp_path: Path) -> None:
    fill(sent, a__png="red", a__txt="one", b_in_c__jpg="blue", b_in_c__caption="two")
    fill(sent, **{"a-masklabel__png": "white"})
    before = everything(sent)
    taken = take_in(sent, tmp_path / "new")
    assert everything(tmp_path / "new") == before
    assert (sorted(taken.pictures), taken.captions, taken.left, taken.renamed) == (["a.png", "b/c.jpg"], 2, [], {})
    assert everything(sent) == {}


def test_a_taken_name_gets_a_number_and_its_caption_and_mask_too(sent: Path, there: Path) -> None:
    fill(there, a__png="red", a__txt="mine", a_2__png="green")
    fill(sent, a__png="blue", a__txt="other", **{"a-masklabel__png": "white"})
    before = everything(there)
    taken = take_in(sent, there)
    assert before.items() <= everything(there).items()
    assert taken.renamed == {"a.png": "a_3.png", "a.txt": "a_3.txt", "a-masklabel.png": "a_3-masklabel.png"}
    assert captions(there) == {"a.png": "mine", "a_2.png": "", "a_3.png": "other"}


def test_a_folder_of_masks_goes_with_its_pictures(sent: Path, there: Path) -> None:
    fill(there, a__png="red", mask_in_a__png="white", b__png="red")
    fill(sent, a__png="blue", a__txt="two", mask_in_a__png="green", mask_in_b__jpg="white", sub_in_mask_in_c__png="red")
    taken = take_in(sent, there)
    assert {item.name: item.mask for item in scan(there).items} == {
        "a.png": there / "mask/a.png", "a_2.png": there / "mask/a_2.png", "b.png": there / "mask/b.jpg",
        "sub/mask/c.png": None,
    }  # fmt: skip
    assert (there / "mask/a_2.png").read_bytes() == fill(sent, green__png="green").joinpath("green.png").read_bytes()
    assert sorted(taken.pictures) == ["a_2.png", "sub/mask/c.png"], "without a picture beside it none is a mask"
    assert taken.renamed == {"a.png": "a_2.png", "a.txt": "a_2.txt", "mask/a.png": "mask/a_2.png"}
    fill(sent, mask_in_b__jpg="green")
    (left,) = take_in(sent, there).left
    assert "another mask/b.jpg already" in left.reason, "a mask under another name would be a mask of nothing"


@pytest.mark.parametrize("name", ["A.png", "a.jpg"])
def test_a_picture_never_gets_the_caption_of_its_namesake(sent: Path, there: Path, name: str) -> None:
    """Names that differ in case or ending share a caption file, here or on the next system."""
    fill(there, a__png="red", a__txt="mine")
    Image.new("RGB", (8, 8), "blue").save(sent / name)
    take_in(sent, there)
    stem, ending = name.split(".")
    assert captions(there) == {"a.png": "mine", f"{stem}_2.{ending}": ""}


def test_composed_and_decomposed_accents_are_one_name(sent: Path, there: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(there / "caf\u00e9.png")
    Image.new("RGB", (8, 8), "blue").save(sent / "cafe\u0301.png")
    taken = take_in(sent, there)
    assert taken.pictures == ["cafe\u0301_2.png"]


def test_what_is_there_already_is_passed_by_and_a_missing_caption_arrives(sent: Path, there: Path) -> None:
    for folder in (sent, there):
        fill(folder, a__png="red", b__png="blue")
    fill(sent, a__txt="one", b__txt="two")
    fill(there, b__txt="mine")
    before = everything(there)
    taken = take_in(sent, there)
    assert everything(there) == {**before, "a.txt": b"one"}
    assert (taken.pictures, taken.captions, sorted(taken.already)) == ([], 1, ["a.png", "b.png"])
    (left,) = taken.left
    assert left.name == "b.txt"
    assert "stays as it is" in left.reason


def test_captions_that_come_before_or_after_their_pictures_meet_them(sent: Path, there: Path) -> None:
    take_in(fill(sent, a__txt="one"), there)
    take_in(fill(sent, a__png="red", a__txt="one"), there)
    take_in(fill(sent, b__png="blue"), there)
    take_in(fill(sent, b__txt="two"), there)
    assert captions(there) == {"a.png": "one", "b.png": "two"}


def test_a_table_comes_whole_into_a_new_set(sent: Path, tmp_path: Path) -> None:
    table = "filename,prompt,mood\na.png,one,\ngone.png,two,glad\n"
    fill(sent, a__png="red", metadata__csv=table)
    taken = take_in(sent, tmp_path / "new")
    assert (tmp_path / "new" / "metadata.csv").read_text(encoding="utf-8") == table
    assert (taken.captions, taken.left) == (1, [])


def test_a_table_joins_the_one_that_is_there(sent: Path, there: Path) -> None:
    fill(there, a__png="red", c__png="white", metadata__csv="filename,prompt,mood\na.png,mine,glad\n")
    fill(sent, a__png="blue", b__png="green", metadata__csv='filename,prompt\na.png,"one, two"\nb.png,three\n')
    fill(sent, sub_in_d__png="red", sub_in_metadata__csv="file_name,text\nd.png,four\n")
    fill(sent, more__csv="filename,prompt\nc.png,five\n")
    taken = take_in(sent, there)
    assert captions(there) == {
        "a.png": "mine", "a_2.png": "one, two", "b.png": "three", "c.png": "five", "sub/d.png": "four"
    }  # fmt: skip
    assert "a.png,mine,glad" in (there / "metadata.csv").read_text(encoding="utf-8")
    assert (there / "metadata.csv.bak").exists()
    assert not (there / "sub" / "metadata.csv").exists()
    assert taken.captions == 4
    assert all("a.png" in one.name for one in taken.left), "the table says another thing of a.png, which stays"


def test_rows_become_text_files_where_captions_are_text_files(sent: Path, there: Path) -> None:
    fill(there, a__png="red", a__caption="mine")
    take_in(fill(sent, b__png="blue", metadata__csv="filename,prompt\nb.png,two\n"), there)
    assert (there / "b.caption").read_text(encoding="utf-8") == "two\n"
    assert not (there / "metadata.csv").exists()


def test_prompts_go_to_pictures_without_a_caption(sent: Path, there: Path) -> None:
    fill(there, a__png="red", a__txt="mine", b__png="blue")
    fill(sent, a__png="red", b__png="blue", c__png="green", d__png="white", d__txt="its own", e__png="red")
    taken = take_in(sent, there, {f"{name}.png": f"prompt {name}" for name in "abcd"})
    assert captions(there) == {
        "a.png": "mine", "b.png": "prompt b", "c.png": "prompt c", "d.png": "its own", "e.png": ""
    }  # fmt: skip
    assert taken.left == []


def test_what_is_no_picture_is_named_and_left(sent: Path, there: Path) -> None:
    fill(sent, a__png="red", b__png="no picture", c__png="", notes__pdf="x", t__csv="name,text\na,b\n", u__jsonl="{")
    taken = take_in(sent, there)
    assert taken.pictures == ["a.png"]
    assert {one.name for one in taken.left} == {"b.png", "c.png", "notes.pdf", "t.csv", "u.jsonl"}
    assert set(everything(there)) == {"a.png"}
    assert "columns filename,prompt" in next(one.reason for one in taken.left if one.name == "t.csv")


def test_a_broken_table_that_is_there_does_not_cost_the_pictures(sent: Path, there: Path) -> None:
    fill(there, a__png="red", metadata__csv='filename,prompt\na.png,"open\n')
    taken = take_in(fill(sent, b__png="blue"), there, {"b.png": "two"})
    assert taken.pictures == ["b.png"]
    assert "not a CSV table" in taken.left[0].reason


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_nothing_is_written_through_a_link_that_leads_out(sent: Path, there: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (there / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    taken = take_in(fill(sent, sub_in_a__png="red", b__png="blue"), there)
    assert taken.pictures == ["b.png"]
    assert "leads out" in taken.left[0].reason
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_full_disk_is_one_sentence_and_nothing_is_lost(
    sent: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sent, a__png="red", b__png="blue", b__txt="two")
    before = everything(sent)
    real = shutil.move

    def full(source: Path, target: Path) -> object:
        if Path(source).name == "b.png":
            raise OSError(28, "No space left on device")
        return real(source, target)

    monkeypatch.setattr(shutil, "move", full)
    with pytest.raises(PlainError, match=r"After 1 pictures .*No space left"):
        take_in(sent, there)
    monkeypatch.undo()
    assert everything(there) | everything(sent) == before
    again = take_in(sent, there)
    assert again.pictures == ["b.png"]
    assert everything(there) == before


def test_nothing_at_all_is_no_error(sent: Path, there: Path) -> None:
    assert take_in(sent, there) == Taken(there)
