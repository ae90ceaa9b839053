"""Data files of text: JSON Lines, JSON, CSV, Parquet and plain text, as records with the place each came from."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import read_text

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PLAIN = (".txt", ".md")
_WRAPPERS = ("data", "train", "rows", "examples", "conversations")  # keys below which a JSON file keeps its list


class Record(NamedTuple):
    """One row of a data file, or the whole of a text file."""

    place: str  # "pairs.jsonl, line 3"
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Records:
    """Everything found in a folder."""

    records: tuple[Record, ...]
    files: dict[str, int]  # records by file name
    warnings: tuple[str, ...]


def read_records(path: Path) -> Records:
    """The records of a data file, or of all data files of a folder and its sub-folders.

    Plain text counts only where no table is there, since a folder of tables often has a README beside them. Raises
    PlainError where nothing is there, or a file is not what its ending says.
    """
    if not path.exists():
        raise PlainError(f"There is no folder or file {path}; give train_data_dir the folder with your texts.")
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file, path))
    tables = [file for file in files if file.suffix.lower() in TABLES]
    plain = [file for file in files if file.suffix.lower() in PLAIN]
    if not tables and not plain:
        raise PlainError(_nothing(path))
    warnings: list[str] = []
    if tables and plain:
        warnings.append(f"{len(plain)} plain text files, {plain[0].name} for one, are left out beside the data files.")
    records: list[Record] = []
    found: dict[str, int] = {}
    for file in tables or plain:
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        before = len(records)
        records += _read(file, name, warnings)
        found[name] = len(records) - before
    return Records(tuple(records), found, tuple(warnings))


def _counts(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and not hidden and file.suffix.lower() in (*TABLES, *PLAIN)


def _nothing(path: Path) -> str:
    wanted = "a language model needs .jsonl, .json, .csv, .parquet or .txt files"
    if path.is_file():
        return f"{path} is no data file that is known here: {wanted}."
    found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
    return f"No texts are in {path} (found: {found}); {wanted}."


def _read(file: Path, name: str, warnings: list[str]) -> list[Record]:
    ending = file.suffix.lower()
    if ending == ".parquet":
        return list(_parquet(file, name))
    text, warning = read_text(file)
    if warning:
        warnings.append(warning)
    if ending in (".jsonl", ".ndjson"):
        return list(_json_lines(text, name))
    if ending == ".json":
        return list(_json(text, name))
    if ending in (".csv", ".tsv"):
        return list(_csv(text, name, "\t" if ending == ".tsv" else ","))
    return [Record(name, {"text": text})] if text.strip() else []


def _json_lines(text: str, name: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside of JSON text
        if line.strip():
            place = f"{name}, line {number}"
            yield Record(place, _mapping(_parsed(line, place), place))


def _json(text: str, name: str) -> Iterator[Record]:
    if not text.strip():
        return
    try:
        content = _parsed(text, name)
    except PlainError:
        # Some tools write JSON Lines under this ending.
        if "\n{" not in text.strip():
            raise
        yield from _json_lines(text, name)
        return
    if isinstance(content, Mapping):
        held = cast("Mapping[str, Any]", content)
        key = next((key for key in _WRAPPERS if _is_rows(held.get(key))), None)
        content = held[key] if key else [held]
    if not isinstance(content, list):
        raise PlainError(f"{name} holds a {type(content).__name__} where a list of samples is wanted.")
    for number, row in enumerate(cast("list[Any]", content), 1):
        place = f"{name}, sample {number}"
        yield Record(place, _mapping(row, place))


def _is_rows(value: Any) -> bool:
    """Whether it is a list of samples; the turns of a single conversation are a list too."""
    rows = cast("list[Any]", value) if isinstance(value, list) else []
    first = cast("Mapping[str, Any]", rows[0]) if rows and isinstance(rows[0], Mapping) else None
    return first is not None and not ({"from", "role"} & first.keys())


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise PlainError(f"{place} is nested too deeply to be a sample.") from error
    except ValueError as error:
        raise PlainError(f"{place} is not JSON ({error}); mend the line or leave it out.") from error


def _mapping(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PlainError(f'{place} holds a {type(value).__name__} where an object such as {{"prompt": ...}} is wanted.')
    return cast("Mapping[str, Any]", value)


def _csv(text: str, name: str, delimiter: str) -> Iterator[Record]:
    before = csv.field_size_limit(sys.maxsize if sys.maxsize < 2**31 else 2**31 - 1)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            values = {str(key).strip(): value for key, value in row.items() if key is not None}
            if None in row:
                raise PlainError(f"{place} has more fields than the first line names; put texts with commas in quotes.")
            if any(values.values()):
                yield Record(place, values)
    except csv.Error as error:
        raise PlainError(f"{name} is not CSV ({error}); save it as CSV with quotes around texts.") from error
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path, name: str) -> Iterator[Record]:
    try:
        from pyarrow import ArrowInvalid  # pyright: ignore[reportMissingImports] - optional
        from pyarrow.parquet import ParquetFile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise PlainError(
            f"{name} is a Parquet file, which the package pyarrow reads; install it, or save the data as JSON Lines."
        ) from error
    try:
        number = 0
        for batch in ParquetFile(file).iter_batches():
            for row in cast("list[dict[str, Any]]", batch.to_pylist()):
                number += 1
                yield Record(f"{name}, row {number}", row)
    except (ArrowInvalid, OSError) as error:
        raise PlainError(f"{name} is damaged or no Parquet file ({error}); download or write it again.") from error
