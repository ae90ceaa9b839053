"""What the doctor says about captions and the files that they stand in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.jobs.checkup import Checkup, token_counter
from tests.builders.drawn import drawn, drawn_folder
from tests.unit.test_doctor_pictures import images, kinds, looked

# open_clip itself is not imported: it draws in torchvision, which not every installation can load
with_vocabulary = pytest.mark.skipif(find_spec("open_clip") is None, reason="the vocabulary is open_clip's")


def said(folder: Path, *captions: str, **asked: object):
    """The report of a folder whose images 0.png, 1.png, ... have these captions."""
    drawn_folder(folder, len(captions), caption="")
    for index, caption in enumerate(captions):
        if caption:
            (folder / f"{index}.txt").write_text(caption, encoding="utf-8")
    return looked(folder, **asked)


def test_no_caption(tmp_path: Path) -> None:
    report = said(tmp_path, "a red barn", "", " \n")
    assert kinds(report) == {"no_caption"}
    assert images(report, "no_caption") == {"1.png", "2.png"}
    assert "2 of 3 images have no caption" in report.of("no_caption").sentence


@with_vocabulary
def test_captions_are_too_long_in_tokens_not_in_letters(tmp_path: Path) -> None:
    # "cat" and " " apart, CLIP's vocabulary has a token for each of these words
    just, over = " ".join(["cat"] * 75), " ".join(["cat"] * 76)
    long_words = " ".join(["photograph"] * 60)  # 659 letters, 60 tokens
    report = said(tmp_path, just, over, long_words)
    assert images(report, "caption_too_long") == {"1.png"}
    assert "1.png: 76" in report.of("caption_too_long").sentence


@with_vocabulary
def test_tokens_are_those_of_the_training() -> None:
    # CLIP's tokenizer: "neon" and "barn" are words of its vocabulary, "," is a token of its own
    assert token_counter()("a neon barn, at night") == 6


def test_trigger_missing_only_where_one_is_asked_for(tmp_path: Path) -> None:
    captions = ("mycat, on a mat", "a cat on a mat", "mycats are many", "mycat")
    assert "trigger_missing" not in kinds(said(tmp_path, *captions))
    assert images(looked(tmp_path, trigger="mycat"), "trigger_missing") == {"1.png", "2.png"}


def test_the_same_caption_in_half_of_the_images(tmp_path: Path) -> None:
    report = said(tmp_path, "a cat", "a cat", "a cat", "a dog on grass", "a hen in snow", "a pig in mud")
    assert images(report, "same_caption") == {"0.png", "1.png", "2.png"}
    assert report.of("same_caption").severity == "warning"
    (tmp_path / "2.txt").write_text("a cat asleep", encoding="utf-8")
    assert "same_caption" not in kinds(looked(tmp_path))


def test_the_trigger_alone_everywhere_is_a_known_way_to_train(tmp_path: Path) -> None:
    report = said(tmp_path, "mycat", "mycat", "mycat", trigger="mycat")
    assert {finding.kind: finding.severity for finding in report.findings} == {"same_caption": "advice"}


def test_captions_that_are_file_names_and_captions_of_one_word(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 2)
    for number, (name, caption) in enumerate({
        "IMG_2041.png": "img 2041", "a red barn at night.png": "a red barn at night", "x.png": "barn",
        "y.png": "猫がいる", "z.png": "...",
    }.items()):  # fmt: skip
        drawn(50 + number).save(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    report = looked(tmp_path)
    assert images(report, "file_name_caption") == {"IMG_2041.png"}
    assert images(report, "one_word_caption") == {"x.png", "z.png"}


def test_a_table_with_quotes_newlines_a_mark_and_rows_too_many(tmp_path: Path) -> None:
    drawn_folder(tmp_path, 3, caption="")
    (tmp_path / "metadata.csv").write_bytes(
        "\ufefffilename,prompt\r\n"
        '0.png,"a ""quoted"" barn,\r\nin two lines"\r\n'
        "1.png,an old caption\r\n1.png,a new caption\r\n"
        "2.PNG,another one\r\ngone.png,nobody at all\r\n".encode()
    )
    report = looked(tmp_path)
    assert [item.caption for item in report.scan.items] == [
        'a "quoted" barn, in two lines', "a new caption", "another one",
    ]  # fmt: skip
    assert (images(report, "doubled_rows"), images(report, "rows_without_image")) == ({"1.png"}, {"gone.png"})
    assert kinds(report) == {"doubled_rows", "rows_without_image"}


@pytest.mark.parametrize(("encoding", "text"), [("cp932", "ねこが、マットの上"), ("gbk", "一只猫。在垫子上")])
def test_odd_encodings_in_files_and_tables(tmp_path: Path, encoding: str, text: str) -> None:
    drawn_folder(tmp_path, 3, caption="")
    (tmp_path / "0.txt").write_bytes(text.encode(encoding))
    (tmp_path / "1.txt").write_text(f"{text} 1", encoding="utf-8")
    (tmp_path / "metadata.csv").write_bytes(f"filename,prompt\n2.png,{text} 2\n".encode(encoding))
    report = looked(tmp_path)
    assert [item.caption for item in report.scan.items] == [text, f"{text} 1", f"{text} 2"]
    assert images(report, "not_unicode") == {"0.txt", "metadata.csv"}


def test_what_cannot_be_checked_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match="does not exist"):
        Checkup(tmp_path / "none")
    with pytest.raises(PlainError, match="no images"):
        Checkup(tmp_path)
    drawn_folder(tmp_path, 1)
    (tmp_path / "metadata.csv").write_text("filename,prompt\n0.png,\"open\n", encoding="utf-8")
    with pytest.raises(PlainError, match="not a CSV table"):
        Checkup(tmp_path)
    (tmp_path / "metadata.csv").write_text("name,prompt\n", encoding="utf-8")
    with pytest.raises(PlainError, match="needs the columns filename,prompt"):
        Checkup(tmp_path)
