"""What the remedies do: nothing is deleted, what was changed can be had back, and the next look is better."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lora_trainer.contracts import PlainError
from lora_trainer.data.doctor.findings import KINDS, REMEDIES
from lora_trainer.data.excluded import EXCLUDED, read_excluded, with_excluded
from lora_trainer.data.scan import scan
from lora_trainer.jobs.checkup import FIXABLE, Checkup
from tests.builders.drawn import drawn, drawn_folder


def fixed(folder: Path, *kinds: str, **asked: object) -> tuple[Checkup, list[str]]:
    checkup = Checkup(folder, **{"resolution": 128, **asked})  # type: ignore[arg-type]
    list(checkup.look())
    return checkup, checkup.fix(kinds)


def bytes_of_images(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.png")}


def test_every_remedy_is_told_and_belongs_to_a_kind() -> None:
    assert {kind.remedy for kind in KINDS.values() if kind.remedy} == set(REMEDIES)
    assert {"trigger_missing", "duplicate", "unreadable"} <= set(FIXABLE)


def test_copies_and_what_is_bad_are_left_out_and_no_file_is_touched(tmp_path: Path) -> None:
    drawn_folder(tmp_path)
    shutil.copy(tmp_path / "1.png", tmp_path / "copy.png")
    drawn(2).save(tmp_path / "near.jpg", quality=50)
    drawn(30).resize((30, 30)).save(tmp_path / "tiny.png")
    drawn(31).filter(ImageFilter.GaussianBlur(3)).save(tmp_path / "soft.png")
    (tmp_path / "# broken.png").write_bytes(b"nothing")
    before = bytes_of_images(tmp_path)
    kinds = ("unreadable", "duplicate", "near_duplicate", "tiny", "blurry")
    checkup, told = fixed(tmp_path, *kinds)
    assert [sentence.partition(":")[0] for sentence in told] == list(kinds)
    assert set(read_excluded(tmp_path)) == {"# broken.png", "copy.png", "near.jpg", "tiny.png", "soft.png"}
    assert [item.name for item in scan(tmp_path).items] == [f"{index}.png" for index in range(6)]
    assert checkup.report().findings == ()
    assert bytes_of_images(tmp_path) == before
    (tmp_path / EXCLUDED).unlink()
    assert len(scan(tmp_path).items) == 10


def test_the_list_of_excluded_ones_is_added_to_and_obeyed_as_people_write_it(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 4)
    (tmp_path / "sub").mkdir()
    drawn(9).save(tmp_path / "sub" / "ä 🐈.png")
    (tmp_path / EXCLUDED).write_bytes("\ufeff# mine\r\n0.PNG\r\n\r\n.\\sub\\ä 🐈.png\r\ngone.png\r\n".encode())
    found = scan(tmp_path)
    assert [item.name for item in found.items] == ["1.png", "2.png", "3.png"]
    assert set(found.excluded) == {"0.png", "sub/ä 🐈.png"}
    assert any("2 images are left out" in warning for warning in found.warnings)
    text = with_excluded(tmp_path, ["1.png", "gone.png"])
    assert text.splitlines()[0] == "# mine"
    assert text.splitlines()[-1] == "1.png"
    assert text.count("gone.png") == 1
    (tmp_path / EXCLUDED).write_text(with_excluded(tmp_path, ["1.png", "2.png", "3.png"]), encoding="utf-8")
    with pytest.raises(PlainError, match=f"All 5 images .* excluded by {EXCLUDED}"):
        scan(tmp_path)
    for name in ("two\nlines.png", "back\\slash.png", "surrogate\udc80.png"):
        with pytest.raises(PlainError, match="does not fit into a line"):
            with_excluded(tmp_path, [name])


def test_of_names_that_differ_in_case_only_the_one_that_is_listed_goes(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2)
    shutil.copy(tmp_path / "0.png", tmp_path / "A.png")
    if (tmp_path / "a.png").exists():
        pytest.skip("this file system knows no case")
    shutil.copy(tmp_path / "0.png", tmp_path / "a.png")
    fixed(tmp_path, "duplicate")
    assert [item.name for item in scan(tmp_path).items] == ["0.png", "1.png"]
    (tmp_path / EXCLUDED).write_text("a.png\n", encoding="utf-8")
    assert [item.name for item in scan(tmp_path).items] == ["0.png", "1.png", "A.png"]


def test_an_excluded_image_still_owns_its_row_of_the_table(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2, caption="")
    (tmp_path / "metadata.csv").write_text("filename,prompt\n0.png,a cat\n1.png,a dog\n", encoding="utf-8")
    (tmp_path / EXCLUDED).write_text("1.png\n", encoding="utf-8")
    assert scan(tmp_path).rows_without_image == ()


def test_the_trigger_is_put_in_front_wherever_captions_stand(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 5, caption="")
    table = 'filename,prompt\n0.png,"a cat, asleep"\n1.png,"mycat, up"\n'
    (tmp_path / "metadata.csv").write_text(table, encoding="utf-8")
    (tmp_path / "2.txt").write_text("a cat in a box", encoding="utf-8")
    (tmp_path / "3.caption").write_text("a cat on a mat", encoding="utf-8")
    checkup, _ = fixed(tmp_path, "trigger_missing", trigger="mycat")
    assert [item.caption for item in checkup.scan.items] == [
        "mycat, a cat, asleep", "mycat, up", "mycat, a cat in a box", "mycat, a cat on a mat", "",
    ]  # fmt: skip
    assert checkup.report().of("trigger_missing") is None
    assert (tmp_path / "2.txt.bak").read_text(encoding="utf-8") == "a cat in a box"
    assert '"a cat, asleep"' in (tmp_path / "metadata.csv.bak").read_text(encoding="utf-8")


def test_a_table_elsewhere_is_the_one_that_is_mended(tmp_path: Path) -> None:
    folder = drawn_folder(tmp_path / "set", 2, caption="")
    table = tmp_path / "my.csv"
    table.write_text("filename,prompt,by\n0.png,an old,x\n1.png,a dog out,y\n0.png,a cat in,z\n", encoding="utf-8")
    checkup, _ = fixed(folder, "doubled_rows", "trigger_missing", metadata=table, trigger="t")
    assert table.read_text(encoding="utf-8").splitlines() == [
        "filename,prompt,by", '1.png,"t, a dog out",y', '0.png,"t, a cat in",z',
    ]  # fmt: skip
    assert checkup.report().findings == ()


def test_odd_encodings_become_utf8_with_the_text_as_it_was_read(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 1, caption="")
    old = "ねこが、マットの上\r\n".encode("cp932")
    (tmp_path / "0.txt").write_bytes(old)
    checkup, _ = fixed(tmp_path, "not_unicode")
    assert (tmp_path / "0.txt").read_bytes() == "ねこが、マットの上\r\n".encode()
    assert (tmp_path / "0.txt.bak").read_bytes() == old
    assert checkup.report().of("not_unicode") is None


def test_opacity_becomes_a_mask_that_is_upright_and_no_image_of_the_set(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 1)
    holed = drawn(5, 128).crop((0, 0, 128, 64)).convert("RGBA")
    holed.paste((0, 0, 0, 0), (0, 0, 32, 64))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    holed.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "holed.png", exif=exif)
    drawn(6).save(tmp_path / "kept-masklabel.png")  # no mask: there is no image of that name
    checkup, told = fixed(tmp_path, "transparent")
    mask = Image.open(tmp_path / "holed-masklabel.png")
    assert (mask.mode, mask.size) == ("L", (128, 64))
    assert np.array_equal(np.asarray(mask), np.asarray(holed.getchannel("A")))
    assert [item.name for item in checkup.scan.items] == ["0.png", "holed.png", "kept-masklabel.png"]
    assert "1 mask written" in told[0]
    Image.new("L", (4, 4)).save(tmp_path / "holed-masklabel.png")
    again = fixed(tmp_path, "transparent")[1]
    assert again == ["transparent: nothing to do, none was found."], "a mask that is there is left alone"
    assert Image.open(tmp_path / "holed-masklabel.png").size == (4, 4)


def test_what_cannot_be_mended_is_a_sentence_and_leaves_everything_whole(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2, caption="")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat here"}\n', encoding="utf-8")
    with pytest.raises(PlainError, match="not a CSV table"):
        fixed(tmp_path, "trigger_missing", trigger="t")
    assert fixed(tmp_path, "duplicate")[1] == ["duplicate: nothing to do, none was found."]
    with pytest.raises(PlainError, match="no remedy"):
        fixed(tmp_path, "no_caption")


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such permission there")
def test_a_list_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2)
    shutil.copy(tmp_path / "1.png", tmp_path / "2.png")
    checkup = Checkup(tmp_path, resolution=128)
    list(checkup.look())
    (tmp_path / EXCLUDED).mkdir()  # even the superuser cannot write a file there
    with pytest.raises(PlainError, match="cannot be written"):
        checkup.fix(["duplicate"])
