"""Captions into files: nothing that was there is lost, and what is written is read again as it was meant."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_files import Sidecars, Table
from lora_trainer.data.scan import scan

HARD = ['a "quoted" cat, on a mat', "=1+1", "<b>bold</b> & 'co'", "青い空、猫", "emoji 🐈‍⬛", "ends in a comma,", "  "]


def images(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return list(names)


def test_what_a_table_is_given_the_scan_finds_again(tmp_path: Path) -> None:
    names = images(tmp_path, *(f"{index} a,b \U0001f408.png" for index in range(len(HARD))))
    table = Table(tmp_path / "metadata.csv", tmp_path, names)
    for name, caption in zip(names, HARD, strict=True):
        table.put(name, caption)
    table.save()
    found = {item.name: item.caption for item in scan(tmp_path).items}
    assert found == {name: caption.strip() for name, caption in zip(names, HARD, strict=True)}
    # RFC 4180, 2.6 and 2.7: cells with commas or quotes stand in quotes, and quotes inside are doubled.
    assert '"a ""quoted"" cat, on a mat"' in (tmp_path / "metadata.csv").read_text(encoding="utf-8")
    assert not (tmp_path / "metadata.csv.bak").exists()


def test_other_rows_columns_mark_and_line_ends_stay(tmp_path: Path) -> None:
    names = images(tmp_path, "a.png", "sub/b.png", "c.png")
    path = tmp_path / "metadata.csv"
    before = (
        "\ufeffid,prompt,file_name,artist\r\n"
        '1,"old, a",./A.PNG,me\r\n'
        '2,"gone, but kept",gone.png,"x ""y"""\r\n'
        "3,old b,sub\\b.png\r\n"
    ).encode()
    path.write_bytes(before)
    table = Table(path, tmp_path, names)
    for name, caption in (("a.png", "new a"), ("sub/b.png", "new b"), ("c.png", "new, c")):
        table.put(name, caption)
    table.save()
    assert path.read_bytes() == (
        "\ufeffid,prompt,file_name,artist\r\n"
        "1,new a,./A.PNG,me\r\n"
        '2,"gone, but kept",gone.png,"x ""y"""\r\n'
        "3,new b,sub\\b.png\r\n"
        ',"new, c",c.png,\r\n'
    ).encode()
    assert (tmp_path / "metadata.csv.bak").read_bytes() == before


def test_the_kept_version_is_the_one_from_before_the_run_and_no_change_writes_nothing(tmp_path: Path) -> None:
    (name,) = images(tmp_path, "a.png")
    path = tmp_path / "metadata.csv"
    path.write_text("filename,prompt\na.png,first\n", encoding="utf-8")
    table = Table(path, tmp_path, [name])
    for caption in ("second", "third"):
        table.put(name, caption)
        table.save()
    assert (tmp_path / "metadata.csv.bak").read_text(encoding="utf-8") == "filename,prompt\na.png,first\n"
    time = path.stat().st_mtime_ns
    again = Table(path, tmp_path, [name])
    again.put(name, "third")
    again.save()
    assert path.stat().st_mtime_ns == time
    assert (tmp_path / "metadata.csv.bak").read_text(encoding="utf-8") == "filename,prompt\na.png,first\n"


def test_a_table_in_an_old_encoding_becomes_utf8_and_keeps_its_words(tmp_path: Path) -> None:
    names = images(tmp_path, "a.png", "b.png")
    path = tmp_path / "metadata.csv"
    path.write_bytes("filename,prompt\na.png,あおいそらのしたのねこ\n".encode("cp932"))
    table = Table(path, tmp_path, names)
    table.put("b.png", "空")
    table.save()
    assert path.read_text(encoding="utf-8") == "filename,prompt\na.png,あおいそらのしたのねこ\nb.png,空\n"


def test_of_two_rows_for_a_file_the_one_that_counts_is_changed(tmp_path: Path) -> None:
    names = images(tmp_path, "a.png")
    path = tmp_path / "metadata.csv"
    path.write_text("filename,prompt\na.png,one\na.png,two\n", encoding="utf-8")
    table = Table(path, tmp_path, names)
    table.put("a.png", "three")
    table.save()
    assert scan(tmp_path).items[0].caption == "three"
    assert path.read_text(encoding="utf-8").count("one") == 1


def test_a_file_that_is_no_table_is_refused_and_left(tmp_path: Path) -> None:
    names = images(tmp_path, "a.png")
    path = tmp_path / "metadata.csv"
    path.write_text("name;caption\n", encoding="utf-8")
    with pytest.raises(PlainError, match="needs the columns"):
        Table(path, tmp_path, names)
    assert path.read_text(encoding="utf-8") == "name;caption\n"


@pytest.mark.parametrize("ending", [".txt", ".caption"])
def test_a_text_file_beside_an_image(tmp_path: Path, ending: str) -> None:
    names = images(tmp_path, "a.b c.PNG", "sub/d.png")
    old = tmp_path / f"a.b c{ending}"
    old.write_text("old\n", encoding="utf-8")
    old.chmod(0o640)
    sidecars = Sidecars(tmp_path, ending)
    for name in names:
        sidecars.put(name, "two\nlines, 猫")
    assert {item.name: item.caption for item in scan(tmp_path).items} == dict.fromkeys(names, "two lines, 猫")
    assert old.with_name(old.name + ".bak").read_text(encoding="utf-8") == "old\n"
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []
    if os.name != "nt":
        assert stat.S_IMODE(old.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_link_stays_one(tmp_path: Path) -> None:
    (name,) = images(tmp_path, "a.png")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.txt").write_text("old", encoding="utf-8")
    (tmp_path / "a.txt").symlink_to(elsewhere / "a.txt")
    Sidecars(tmp_path, ".txt").put(name, "new")
    assert (tmp_path / "a.txt").is_symlink()
    assert (elsewhere / "a.txt").read_text(encoding="utf-8") == "new\n"


def test_what_cannot_be_written_is_told_and_the_old_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = images(tmp_path, "a.png")
    (tmp_path / "a.txt").write_text("old", encoding="utf-8")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(PlainError, match="No space left"):
        Sidecars(tmp_path, ".txt").put(name, "new")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.txt"]
