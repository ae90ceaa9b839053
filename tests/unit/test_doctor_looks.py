"""Pictures are looked at once: what was seen is remembered, and forgotten where the file changed."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.data.doctor.looks import INDEX, Looks
from lora_trainer.data.scan import scan
from lora_trainer.jobs.checkup import Checkup
from tests.builders.drawn import LONG_AGO, drawn, drawn_folder, settled


def looked_at_anew(folder: Path) -> int:
    """How many pictures a check has to decode."""
    looking = Checkup(folder).look()
    with closing(looking):
        first = next(looking)
    return first.total - first.done


def test_a_second_look_decodes_nothing_and_finds_the_same(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    drawn(20).resize((300, 500)).save(tmp_path / "tall.png")
    settled(tmp_path)
    first = Checkup(tmp_path, resolution=256)
    assert [event.done for event in first.look()] == list(range(8))
    second = Checkup(tmp_path, resolution=256)
    assert [event.done for event in second.look()] == [7]
    assert second.scan.items == first.scan.items == scan(tmp_path).items
    assert second.report().findings == first.report().findings != ()


def test_what_is_remembered_is_what_was_seen(tmp_path: Path) -> None:
    found = scan(drawn_folder(tmp_path))
    looks = Looks(tmp_path)
    list(looks.take(found.items))
    again = Looks(tmp_path)
    assert again.of(found.items) == {}, "nothing is believed before the files were asked"
    again.recall(found.items)
    assert again.of(found.items) == looks.of(found.items)
    assert len({look.digest for look in again.of(found.items).values()}) == 6


def test_a_changed_file_is_looked_at_again_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    list(Checkup(tmp_path).look())
    drawn(99).save(tmp_path / "2.png")
    os.utime(tmp_path / "2.png", (LONG_AGO + 60, LONG_AGO + 60))
    (tmp_path / "3.png").unlink()
    assert looked_at_anew(tmp_path) == 1
    list(Checkup(tmp_path).look())
    stored = json.loads((tmp_path / INDEX).read_text())["looks"]
    assert set(stored) == {"0.png", "1.png", "2.png", "4.png", "5.png"}
    assert looked_at_anew(tmp_path) == 0


def test_a_file_that_changed_a_moment_ago_is_not_trusted_to_its_time(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    (tmp_path / "0.png").touch()
    list(Checkup(tmp_path).look())
    assert looked_at_anew(tmp_path) == 1


def test_a_look_that_is_left_half_way_is_gone_on_with(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 40, size=64)
    with closing(Checkup(tmp_path).look()) as looking:
        for event in looking:
            if event.done == 10:
                break
    assert 0 < looked_at_anew(tmp_path) <= 30


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"layout": 1}', '{"layout": 1, "looks": {"0.png": [1]}}', '{"layout": 0, "looks": {}}',
     '{"layout": 1, "looks": {"0.png": [1, 2, "", 0, "", 0.0, 0.0, false, false, "", 0, 0]}}', "\udc80"],
)  # fmt: skip
def test_a_broken_index_only_costs_time(tmp_path: Path, text: str) -> None:
    drawn_folder(tmp_path, 2)
    (tmp_path / INDEX).parent.mkdir(parents=True)
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    checkup = Checkup(tmp_path, resolution=64)
    assert len(list(checkup.look())) == 3
    assert checkup.report().looked_at == 2
    assert looked_at_anew(tmp_path) == 0


def test_rows_of_an_index_that_are_no_looks_are_not_believed(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2)
    list(Checkup(tmp_path).look())
    stored = json.loads((tmp_path / INDEX).read_text())
    stored["looks"]["1.png"][-3:-1] = ["128", None]  # width and height
    (tmp_path / INDEX).write_text(json.dumps(stored))
    assert Checkup(tmp_path).scan.items == scan(tmp_path).items


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission there")
def test_a_folder_that_may_not_be_written_is_checked_all_the_same(tmp_path: Path) -> None:
    folder = drawn_folder(tmp_path / "set")
    (folder / ".cache").write_text("a file where the cache's folder should be, for the superuser's sake")
    folder.chmod(0o555)
    try:
        checkup = Checkup(folder, resolution=64)
        list(checkup.look())
        assert (checkup.report().looked_at, checkup.report().findings) == (6, ())
    finally:
        folder.chmod(0o755)


def test_two_thousand_tiny_files_are_looked_at_once(tmp_path: Path) -> None:
    for index in range(2000):
        Image.new("RGB", (8, 8), (index % 256, index // 256, 0)).save(tmp_path / f"{index}.bmp")
    settled(tmp_path)
    assert looked_at_anew(tmp_path) == 2000
    begun = time.process_time()
    checkup = Checkup(tmp_path)
    list(checkup.look())
    assert checkup.report().looked_at == 2000
    assert time.process_time() - begun < 20  # about 1.5 s here; with every pair compared it would be minutes
    assert looked_at_anew(tmp_path) == 0
