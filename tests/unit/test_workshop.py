"""A data set kept open: captions in step wherever they stand, nothing lost, whoever else writes there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.data.images import image_size
from lora_trainer.data.scan import scan
from lora_trainer.data.workshop import memory, watched
from lora_trainer.data.workshop.edits import Edit
from lora_trainer.data.workshop.opened import Changed, NoSuchImage
from lora_trainer.data.workshop.query import Filter
from tests.builders.pictures import picture_folder, ramp
from tests.builders.workshops import caption_of, opened, saved

ROOT = Path(__file__).resolve().parents[2]
ALL = Filter()
RED_TO_BLUE = Edit(action="replace", find="red", replacement="blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return picture_folder(tmp_path / "set", [(32, 32)] * 3)


def texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_an_image_with_captions_in_several_places_has_them_kept_in_step(folder: Path) -> None:
    (folder / "metadata.csv").write_text("filename,prompt\n0.png,of the table\n", "utf-8")
    (folder / "0.caption").write_text("of the caption file", "utf-8")
    workshop = opened(folder)
    assert caption_of(workshop, "0.png") == "of the table"
    assert workshop.formats == ["metadata.csv", ".txt"]
    saved(workshop, "0.png", "one for all")
    assert (folder / "metadata.csv").read_text("utf-8") == "filename,prompt\n0.png,one for all\n"
    assert (folder / "0.txt").read_text("utf-8") == (folder / "0.caption").read_text("utf-8") == "one for all\n"
    assert (folder / "metadata.csv.bak").read_text("utf-8") == "filename,prompt\n0.png,of the table\n"
    saved(workshop, "0.png", "")
    assert scan(folder).items[0].caption == "", "an empty caption is empty everywhere"
    workshop.undo()
    workshop.undo()
    assert scan(folder).items[0].caption == "of the table"
    assert (folder / "0.txt").read_text("utf-8") == "tag0, red, ramp\n"
    assert (folder / "0.caption").read_text("utf-8") == "of the caption file\n"


def test_a_table_keeps_its_mark_line_ends_columns_and_foreign_rows(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set", [(32, 32)] * 2, captions=False)
    before = '\ufeffid,filename,prompt,score\r\n1,0.png,"a, ""b""",0.5\r\n2,gone.png,x,0.1\r\n'
    (folder / "metadata.csv").write_bytes(before.encode("utf-8"))
    workshop = opened(folder)
    saved(workshop, "0.png", "c, d")
    saved(workshop, "1.png", "new")
    after = '\ufeffid,filename,prompt,score\r\n1,0.png,"c, d",0.5\r\n2,gone.png,x,0.1\r\n,1.png,new,\r\n'
    assert (folder / "metadata.csv").read_bytes().decode("utf-8") == after
    workshop.undo()
    workshop.undo()
    assert (folder / "metadata.csv").read_bytes().decode("utf-8") == before
    assert (folder / "metadata.csv.bak").read_bytes().decode("utf-8") == before


def test_lines_of_json_are_edited_too(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set", [(32, 32)] * 2, captions=False)
    lines = '{"file_name": "0.png", "text": "ä", "score": [1, 2]}\n{"file_name": "1.png", "text": "b"}\n'
    (folder / "metadata.jsonl").write_text(lines, "utf-8")
    workshop = opened(folder)
    saved(workshop, "0.png", "new ü")
    assert (folder / "metadata.jsonl").read_text("utf-8") == lines.replace('"ä"', '"new ü"')
    workshop.undo()
    assert (folder / "metadata.jsonl").read_text("utf-8") == lines


def test_a_table_that_lies_elsewhere(tmp_path: Path, folder: Path) -> None:
    table = tmp_path / "elsewhere" / "captions.csv"
    table.parent.mkdir()
    table.write_text("filename,prompt\n0.png,there\n", "utf-8")
    workshop = opened(folder, table)
    assert (caption_of(workshop, "0.png"), workshop.format) == ("there", "metadata.csv")
    saved(workshop, "0.png", "new")
    assert table.read_text("utf-8") == "filename,prompt\n0.png,new\n"
    table.write_text("filename,prompt\n0.png,by another\n", "utf-8")
    with pytest.raises(Changed) as refused:
        saved(workshop, "0.png", "mine")
    assert refused.value.caption == "by another"
    assert (folder / "0.txt").read_text("utf-8") == "new\n"


@pytest.mark.parametrize(("encoding", "text"), [("cp932", "白いねこのえ"), ("gbk", "一只白色的猫坐着")])
def test_older_encodings_are_read_and_become_utf8_with_the_old_bytes_kept(
    tmp_path: Path, encoding: str, text: str
) -> None:
    folder = picture_folder(tmp_path / "set", [(32, 32)], captions=False)
    (folder / "0.txt").write_bytes(text.encode(encoding))
    workshop = opened(folder)
    assert caption_of(workshop, "0.png") == text
    saved(workshop, "0.png", f"{text}!")
    assert (folder / "0.txt").read_text("utf-8") == f"{text}!\n"
    assert (folder / "0.txt.bak").read_bytes() == text.encode(encoding)


def test_images_of_one_name_share_their_text_file(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set", [(32, 32)])
    ramp(32, 32).save(folder / "0.jpg")
    workshop = opened(folder)
    saved(workshop, "0.png", "for both")
    assert caption_of(workshop, "0.jpg") == "for both"
    count, _ = workshop.edit(Edit(action="append", text="once"), None, ALL, preview=False)
    assert (count, (folder / "0.txt").read_text("utf-8")) == (2, "for both, once\n")
    workshop.undo()
    assert caption_of(workshop, "0.jpg") == caption_of(workshop, "0.png") == "for both"


def test_where_first_captions_go(tmp_path: Path) -> None:
    bare = opened(picture_folder(tmp_path / "bare", [(32, 32)] * 2, captions=False))
    saved(bare, "0.png", "x")
    assert (bare.folder / "metadata.csv").read_text("utf-8") == "filename,prompt\n0.png,x\n"
    folder = picture_folder(tmp_path / "caption", [(32, 32)] * 2, captions=False)
    (folder / "1.caption").write_text("y", "utf-8")
    workshop = opened(folder)
    saved(workshop, "0.png", "x")
    assert (folder / "0.caption").read_text("utf-8") == "x\n"
    workshop.undo()
    assert not (folder / "0.caption").exists(), "what was not there is not there again"
    assert sorted(path.suffix for path in folder.glob("*.png")) == [".png", ".png"]


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_stay_links(tmp_path: Path, folder: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("linked", "utf-8")
    (folder / "0.txt").unlink()
    (folder / "0.txt").symlink_to(real)
    (folder / "loop").symlink_to(folder)
    (folder / "9.png").symlink_to(folder / "1.png")
    workshop = opened(folder)
    assert list(workshop.snapshot.items) == ["0.png", "1.png", "2.png", "9.png"]
    saved(workshop, "0.png", "new")
    assert (folder / "0.txt").is_symlink()
    assert real.read_text("utf-8") == "new\n"


def test_an_edit_of_all_is_one_step_and_a_preview_none(folder: Path) -> None:
    workshop = opened(folder)
    before = texts(folder)
    count, examples = workshop.edit(RED_TO_BLUE, None, ALL, preview=True)
    assert (count, examples[0].before, examples[0].after) == (3, "tag0, red, ramp", "tag0, blue, ramp")
    assert (texts(folder), workshop.can_undo) == (before, False)
    workshop.edit(RED_TO_BLUE, None, ALL, preview=False)
    saved(workshop, "1.png", "another step")
    workshop.undo()
    assert workshop.undo().count == 3
    assert texts(folder) == before
    assert not workshop.can_undo
    workshop.redo()
    assert caption_of(workshop, "2.png") == "tag2, blue, ramp"
    saved(workshop, "2.png", "a new branch")
    assert not workshop.can_redo
    assert workshop.edit(RED_TO_BLUE, ["1.png"], ALL, preview=True)[0] == 0
    with pytest.raises(PlainError, match="not there any more"):
        workshop.edit(RED_TO_BLUE, ["nobody.png"], ALL, preview=True)
    assert workshop.edit(Edit(action="set", text="x"), None, Filter(tags=("blue",)), preview=True)[0] == 2


def test_steps_outlive_the_server(folder: Path) -> None:
    before = texts(folder)
    first = opened(folder)
    first.edit(RED_TO_BLUE, None, ALL, preview=False)
    saved(first, "0.png", "later")
    first.undo()
    second = opened(folder)
    assert (second.can_undo, second.can_redo) == (True, True)
    second.redo()
    assert caption_of(second, "0.png") == "later"
    second.undo()
    second.undo()
    assert texts(folder) == before


def test_what_another_program_wrote_is_neither_undone_nor_replaced(folder: Path) -> None:
    workshop = opened(folder)
    workshop.edit(RED_TO_BLUE, None, ALL, preview=False)
    (folder / "1.txt").write_text("by hand", "utf-8")
    now = texts(folder)
    with pytest.raises(PlainError, match=r"1 captions .* such as that of 1\.png, and nothing was touched"):
        workshop.undo()
    assert texts(folder) == now
    assert workshop.can_undo
    (folder / "2.png").unlink()
    (folder / "1.txt").write_text("tag1, blue, ramp", "utf-8")
    assert workshop.undo().count == 2, "an image that is gone is passed over"
    (folder / "1.txt").unlink()
    version = workshop.snapshot.version("1.png")
    with pytest.raises(Changed):
        workshop.save("1.png", "mine", version)
    with pytest.raises(NoSuchImage):
        workshop.save("2.png", "mine", "")


def test_a_change_within_the_same_tick_of_the_clock_is_noticed(folder: Path) -> None:
    workshop = opened(folder)
    version = workshop.snapshot.version("0.png")
    was = (folder / "0.txt").stat()
    (folder / "0.txt").write_text("tag0, RED, ramp\n", "utf-8")  # as many bytes
    os.utime(folder / "0.txt", ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(Changed):
        workshop.save("0.png", "mine", version)
    assert caption_of(workshop, "0.png") == "tag0, RED, ramp"


def test_a_table_that_appears_is_not_written_past(folder: Path) -> None:
    workshop = opened(folder)
    version = workshop.snapshot.version("0.png")
    (folder / "metadata.csv").write_text("filename,prompt\n0.png,of a new table\n", "utf-8")
    with pytest.raises(Changed) as refused:
        workshop.save("0.png", "mine", version)
    workshop.save("0.png", "mine", refused.value.version)
    assert scan(folder).items[0].caption == "mine"


def test_a_disk_that_refuses_half_way_leaves_whole_files_and_a_step_to_undo(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = opened(folder)
    before = texts(folder)
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target).name == "1.txt":
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PlainError, match="cannot be written"):
        workshop.edit(RED_TO_BLUE, None, ALL, preview=False)
    monkeypatch.undo()
    assert [caption_of(workshop, f"{n}.png") for n in range(3)] == [
        "tag0, blue, ramp",
        "tag1, red, ramp",
        "tag2, red, ramp",
    ]
    assert not [path for path in folder.iterdir() if path.name.startswith(".") and path.name != ".cache"]
    workshop.undo()
    assert texts(folder) == before


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from lora_trainer.data.workshop import store
from lora_trainer.data.workshop.edits import Edit
from lora_trainer.data.workshop.query import Filter
from tests.builders.workshops import opened
write, count = store._write_text, 0
def counted(*given):
    global count
    count += 1
    if count == 20:
        print("now", flush=True)
        import time; time.sleep(60)
    return write(*given)
store._write_text = counted
opened(Path(sys.argv[1])).edit(Edit(action="append", text="more"), None, Filter(), preview=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_server_killed_within_an_edit_of_all_leaves_a_step_that_can_be_undone(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "set", [(16, 16)] * 40)
    before = texts(folder)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(ROOT)], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"now\n"
    process.kill()
    process.wait()
    process.stdout.close()
    half = texts(folder)
    assert sum(text.endswith(", more\n") for text in half.values()) == 19
    assert all(
        text.removesuffix(", more\n") + "\n" == before[name] or text == before[name] for name, text in half.items()
    )
    history = folder / ".cache/lora_trainer/history.jsonl"
    history.write_bytes(history.read_bytes() + b'{"what": "cut o')
    workshop = opened(folder)
    assert workshop.undo().count == 19
    assert texts(folder) == before
    assert workshop.redo().count == 40
    assert opened(folder).undo().count == 40
    assert texts(folder) == before


def test_a_known_folder_is_opened_without_opening_its_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = time.time() - 60
    for path in folder.iterdir():
        os.utime(path, (old, old))
    first = opened(folder)
    looked = list[str]()
    monkeypatch.setattr(memory, "image_size", lambda path: looked.append(path.name) or image_size(path))
    read = memory.read_text
    monkeypatch.setattr(memory, "read_text", lambda path: looked.append(path.name) or read(path))
    again = opened(folder)
    assert looked == []
    assert again.snapshot.scan.items == first.snapshot.scan.items
    (folder / "1.txt").write_text("changed", "utf-8")
    ramp(48, 16).save(folder / "2.png")
    third = opened(folder)
    assert sorted(looked) == ["1.txt", "2.png"]
    assert (caption_of(third, "1.png"), third.snapshot.items["2.png"].size) == ("changed", (48, 16))


def test_a_folder_that_goes_away_and_comes_back(folder: Path, tmp_path: Path) -> None:
    workshop = opened(folder)
    folder.rename(tmp_path / "away")
    with pytest.raises(PlainError, match="does not exist"):
        workshop.refresh()
    assert workshop.state == "failed"
    shutil.copytree(tmp_path / "away", folder)
    workshop.refresh()
    assert (workshop.state, caption_of(workshop, "0.png")) == ("ready", "tag0, red, ramp")


def test_looking_for_others_changes_takes_a_small_share_of_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workshop = opened(folder)
    looks = list[float]()
    real = watched.listing
    monkeypatch.setattr(watched, "listing", lambda where: looks.append(0) or real(where))
    workshop.watch()
    assert looks == [], "two seconds have not gone by"
    workshop._looked -= 3
    workshop.watch()
    assert len(looks) == 1
    workshop._looked -= 3
    workshop._cost = 1.0  # a listing that takes a second is made every twenty
    workshop.watch()
    assert len(looks) == 1
