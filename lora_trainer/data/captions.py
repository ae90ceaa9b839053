"""Caption text: which bytes mean what, tables of captions, and how a caption is shown to the model."""

from __future__ import annotations

import codecs
import csv
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from lora_trainer.contracts import PlainError

FILE_COLUMNS = ("filename", "file_name")
TEXT_COLUMNS = ("prompt", "text", "caption")

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class Text(NamedTuple):
    """A text file's content, and how its bytes were understood."""

    text: str
    warning: str | None  # a sentence when it was not Unicode


@dataclass(frozen=True)
class Table:
    """Captions by file name as a metadata file gives them."""

    path: Path
    captions: dict[str, str]  # file name as written, with "/" between folders
    warnings: tuple[str, ...]
    doubles: tuple[str, ...] = ()  # file names with more than one row
    is_unicode: bool = True


def read_text(path: Path) -> Text:
    """A text file in UTF-8 (with or without mark) or marked UTF-16; anything older is guessed, and the guess is told.

    Raises PlainError if the file cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PlainError(f"{path} cannot be read ({error.strerror}): check that it may be.") from error
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return Text(data.decode(encoding, errors="replace"), None)
    try:
        return Text(data.decode("utf-8"), None)
    except UnicodeDecodeError:
        encoding = legacy_encoding(data)
        warning = f"{path.name} is not UTF-8 and was read as {encoding}: save it as UTF-8 if its text looks wrong."
        return Text(data.decode(encoding, errors="replace"), warning)


def legacy_encoding(data: bytes) -> str:
    """The likeliest of cp932 (Japanese), gbk (Chinese) and cp1252 (Western) for bytes that are not UTF-8.

    Nearly any bytes decode as each of them, so the first that decodes would often be wrong. Western letters stand
    alone between ASCII, while Chinese and Japanese ones take two bytes; Japanese sentences contain full-width kana,
    and Chinese ones read as Japanese contain half-width kana, which people do not type.
    """
    high = [byte >= 0x80 for byte in data]
    if not any(first and second for first, second in pairwise(high)):
        return "cp1252"
    japanese = _decoded(data, "cp932")
    if japanese is not None:
        kana = any("\u3041" <= letter <= "\u30ff" for letter in japanese)
        half_width = any("\uff61" <= letter <= "\uff9f" for letter in japanese)
        if kana and not half_width:
            return "cp932"
    if _decoded(data, "gbk") is not None:
        return "gbk"
    return "cp932" if japanese is not None else "cp1252"


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def one_line(text: str) -> str:
    """Caption text as one line: line breaks and tabs are spaces to a tokenizer anyway, and spoil logs and tables."""
    return " ".join(text.split())


def read_csv(path: Path) -> Table:
    """Captions from an RFC 4180 table whose header has a file and a text column, in any order, case and company.

    The last of several rows for one file counts. Raises PlainError for missing columns or broken quotes.
    """
    text, warning = read_text(path)
    # strict: without it an unclosed quote silently swallows all rows below it
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        file_column, text_column = columns_of(path, header)
        pairs, unquoted = _csv_pairs(reader, len(header), file_column, text_column)
    except csv.Error as error:
        raise PlainError(
            f"{path.name} is not a CSV table ({error} near line {reader.line_num}): put captions that contain commas "
            'or quotes in quotes, and double the quotes inside ("").'
        ) from error
    warnings = list[str]()
    if unquoted:
        warnings.append(
            f"{path.name} has {_count(unquoted, 'row')} with more cells than columns; the rest of the row was taken "
            "into the last column: put captions that contain commas in quotes."
        )
    return _table(path, pairs, warning, warnings)


def columns_of(path: Path, header: Sequence[str]) -> tuple[int, int]:
    """Which cells of a row hold the file's name and its caption. Raises PlainError where the header lacks one."""
    names = [name.strip().lower() for name in header]
    file_column = next((names.index(name) for name in FILE_COLUMNS if name in names), None)
    text_column = next((names.index(name) for name in TEXT_COLUMNS if name in names), None)
    if file_column is None or text_column is None:
        found = ",".join(name.strip() for name in header) or "an empty first line"
        raise PlainError(f"{path.name} needs the columns filename,prompt in its first line; found: {found[:200]}.")
    return file_column, text_column


def _csv_pairs(
    rows: Iterator[list[str]], width: int, file_column: int, text_column: int
) -> tuple[list[tuple[str, str]], int]:
    """(file name, caption) of each row, and how many rows had more cells than the header."""
    pairs, unquoted = [], 0
    for row in rows:
        unquoted += fold(row, width)
        if file_column < len(row) and row[file_column].strip():
            pairs.append((row[file_column], row[text_column] if text_column < len(row) else ""))
    return pairs, unquoted


def fold(row: list[str], width: int) -> bool:
    """Join what a row has beyond `width` cells to the last of these, in place; whether there was anything."""
    beyond = len(row) > width
    if beyond:
        row[width - 1 :] = [",".join(row[width - 1 :])]
    return beyond


def read_jsonl(path: Path) -> Table:
    """Captions from a file with one JSON object a line, each with `file_name` and `text` (or prompt, caption).

    Raises PlainError for a line that is no such object.
    """
    text, warning = read_text(path)
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            pairs.append(_jsonl_pair(path, number, line))
    return _table(path, pairs, warning, [])


def _jsonl_pair(path: Path, number: int, line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise PlainError(f"Line {number} of {path.name} is not JSON ({error}): write one object a line.") from error
    row = {str(key).strip().lower(): value for key, value in row.items()} if isinstance(row, dict) else {}
    name = next((row[key] for key in FILE_COLUMNS if key in row), None)
    caption = next((row[key] for key in TEXT_COLUMNS if key in row), None)
    if not isinstance(name, str) or not isinstance(caption, str):
        found = ", ".join(row) or line.strip()[:80]
        raise PlainError(f"Line {number} of {path.name} needs the texts file_name and text; found: {found}.")
    return name, caption


def _table(path: Path, pairs: Sequence[tuple[str, str]], guessed: str | None, others: Sequence[str]) -> Table:
    """`guessed` is the warning of the text's encoding, `others` further ones."""
    captions: dict[str, str] = {}
    doubles = set()
    for name, caption in pairs:
        key = file_name(name)
        if key in captions:
            doubles.add(key)
        captions[key] = one_line(caption)
    warnings = [*([guessed] if guessed else []), *others]
    if doubles:
        named = ", ".join(sorted(doubles)[:3])
        files = _count(len(doubles), "file")
        warnings.append(f"{path.name} names {files} more than once ({named}); the last row counts.")
    return Table(path, captions, tuple(warnings), tuple(sorted(doubles)), is_unicode=guessed is None)


def file_name(cell: str) -> str:
    """The name of a file as a table means it, with "/" between folders."""
    return cell.strip().replace("\\", "/").removeprefix("./")


def is_text(name: str) -> bool:
    """Whether a file's name can be written as UTF-8; systems that take any bytes have names that cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def spelled(name: str) -> str:
    """A name as it is compared: tables come from other systems, with other letter case and composed accents."""
    return normalize("NFC", name).casefold()


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def with_trigger(caption: str, trigger: str) -> str:
    """The caption with the trigger word in front, unless it stands there already."""
    if not trigger or caption == trigger or caption.startswith((f"{trigger},", f"{trigger} ")):
        return caption
    return f"{trigger}, {caption}" if caption else trigger


def shape_caption(
    caption: str, *, trigger: str, shuffle: bool, keep_tokens: int, dropout: float, rng: random.Random
) -> str:
    """The caption as it is shown to the model this time.

    With the chance `dropout` it is empty, trigger word and all, so that the model goes on learning what no prompt
    means. `shuffle` mixes the tags between commas, but for the first `keep_tokens` of the caption's own; the trigger
    word stays in front in any case. The draw for dropout comes first, so shuffling does not change who is dropped.
    """
    if rng.random() < dropout:
        return ""
    if shuffle:
        tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
        if trigger and tags and tags[0] == trigger:
            tags = tags[1:]
        kept, mixed = tags[:keep_tokens], tags[keep_tokens:]
        # Sorting by random(), because that alone of Random's methods draws the same numbers in every Python release.
        draws = [rng.random() for _ in mixed]
        caption = ", ".join(kept + [mixed[index] for index in sorted(range(len(mixed)), key=draws.__getitem__)])
    return with_trigger(caption, trigger)
