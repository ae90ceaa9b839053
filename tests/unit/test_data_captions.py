"""Caption files in the encodings and spellings that people have."""

from __future__ import annotations

import codecs
import random
from pathlib import Path

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import read_csv, read_jsonl, read_text, shape_caption

JAPANESE = "桜の木の下に立つ少女、青い空"
CHINESE = "一个女孩站在樱花树下。蓝天白云。阳光明媚"
WESTERN = "un café à côté de l'église, été"


@pytest.mark.parametrize("text", [JAPANESE, CHINESE, WESTERN, "a cat"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
)
def test_unicode_is_read_without_a_word(tmp_path: Path, text: str, mark: bytes, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + text.encode(encoding))
    assert read_text(path) == (text, None)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (JAPANESE, "cp932"),
        ("1girl, さくら", "cp932"),
        (CHINESE, "gbk"),
        ("1girl, 樱花", "gbk"),
        (WESTERN, "cp1252"),
        ("naïve, über", "cp1252"),
    ],
)
def test_older_encodings_are_recognised_and_told(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    found, warning = read_text(path)
    assert found == text
    assert warning is not None
    assert encoding in warning
    assert "a.txt" in warning


def _csv(folder: Path, text: str) -> Path:
    path = folder / "metadata.csv"
    path.write_bytes(text.encode())
    return path


def test_csv_quotes_commas_and_line_breaks(tmp_path: Path) -> None:
    path = _csv(tmp_path, '\ufefffilename,prompt\r\n1.png,"a cat, ""Tom"",\r\n on a mat"\r\nsub\\2.png,dog\r\n\r\n')
    assert read_csv(path).captions == {"1.png": 'a cat, "Tom", on a mat', "sub/2.png": "dog"}


def test_csv_header_in_any_order_case_and_spacing(tmp_path: Path) -> None:
    assert read_csv(_csv(tmp_path, "id, Prompt ,FileName\n7,cat,1.png\n")).captions == {"1.png": "cat"}
    assert read_csv(_csv(tmp_path, "file_name,text\n1.png,cat\n")).captions == {"1.png": "cat"}


def test_csv_rows_twice_the_last_one_counts(tmp_path: Path) -> None:
    table = read_csv(_csv(tmp_path, "filename,prompt\n1.png,old\n1.png,new\n"))
    assert table.captions == {"1.png": "new"}
    assert len(table.warnings) == 1
    assert "1.png" in table.warnings[0]


def test_csv_commas_without_quotes_belong_to_the_caption(tmp_path: Path) -> None:
    table = read_csv(_csv(tmp_path, "filename,prompt\n1.png,cat, sitting, tree\n"))
    assert table.captions == {"1.png": "cat, sitting, tree"}
    assert "quotes" in table.warnings[0]


def test_csv_faults_are_plain(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match=r"filename,prompt.*found: image;label"):
        read_csv(_csv(tmp_path, "image;label\n1.png;cat\n"))
    with pytest.raises(PlainError, match=r"filename,prompt.*empty"):
        read_csv(_csv(tmp_path, ""))
    with pytest.raises(PlainError, match=r"line 3.*quotes"):
        read_csv(_csv(tmp_path, 'filename,prompt\n1.png,"a cat\n2.png,dog\n'))


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "metadata.jsonl"
    path.write_text('{"file_name": "1.png", "text": "cat"}\n\n{"file_name": "2.png", "prompt": "dog", "x": 1}\n')
    assert read_jsonl(path).captions == {"1.png": "cat", "2.png": "dog"}
    for line, wanted in (
        ("{oops", "Line 1 .*JSON"),
        ('{"file_name": "1.png"}', "Line 1 .*text; found: file_name"),
        ("3", "found: 3"),
    ):
        path.write_text(line)
        with pytest.raises(PlainError, match=wanted):
            read_jsonl(path)


def _shaped(caption: str, seed: int = 0, **options: object) -> str:
    settings = {"trigger": "", "shuffle": False, "keep_tokens": 0, "dropout": 0.0} | options
    return shape_caption(caption, rng=random.Random(seed), **settings)  # type: ignore[arg-type]


def test_the_trigger_stands_in_front_once() -> None:
    assert _shaped("red, cat", trigger="sks") == "sks, red, cat"
    assert _shaped("sks, red", trigger="sks") == "sks, red"
    assert _shaped("sksual", trigger="sks") == "sks, sksual"
    assert _shaped("", trigger="sks") == "sks"


def test_shuffling_keeps_the_first_tags_and_loses_none() -> None:
    tags = [f"t{number}" for number in range(8)]
    seen = set()
    for seed in range(40):
        shaped = _shaped(", ".join(tags), seed, trigger="sks", shuffle=True, keep_tokens=2).split(", ")
        assert shaped[:3] == ["sks", "t0", "t1"]
        assert sorted(shaped[1:]) == tags
        seen.add(tuple(shaped))
    assert len(seen) > 30  # 720 arrangements
    assert _shaped("sks, a, b, c", 1, trigger="sks", shuffle=True).startswith("sks, ")


def test_dropout_drops_the_share_and_the_same_ones_when_shuffling() -> None:
    dropped = [_shaped("a, b, c", seed, trigger="sks", dropout=0.25) == "" for seed in range(2000)]
    assert 0.21 < sum(dropped) / 2000 < 0.29  # four standard deviations of a binomial share
    assert dropped == [_shaped("a, b, c", s, trigger="sks", dropout=0.25, shuffle=True) == "" for s in range(2000)]
    assert _shaped("a", dropout=1.0) == ""
