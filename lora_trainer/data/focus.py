"""Focal points of a data set: a table in its folder that the trainer, the page and people read and write."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.data.buckets import Point
from lora_trainer.data.caption_files import replace_text
from lora_trainer.data.caption_sources import rows_by_image
from lora_trainer.data.captions import file_name, read_text, spelled

FOCUS = "lora_trainer_focus.csv"
HEADER = ("filename", "x", "y")

_DIGITS = 4  # a ten-thousandth of a side is less than a pixel of any image that is trained on


class FocusTable:
    """What everything that matters in an image lies around, by image; of those without a row nothing is known."""

    def __init__(self, folder: Path, images: Iterable[str]) -> None:
        """Read the folder's table, if there is one; `images` are names relative to the folder, with "/".

        Raises PlainError for a table that is none, and for a point outside of its image, with the line.
        """
        self.path = folder / FOCUS
        self._rows = list(_rows(self.path)) if self.path.is_file() else [list(HEADER)]
        columns = [name.strip().casefold() for name in self._rows[0]]
        missing = [name for name in HEADER if name not in columns]
        if missing:
            raise PlainError(
                f"{self.path} has no column {' and no column '.join(missing)}: its first line should be "
                f"{','.join(HEADER)}; add it, or delete the file."
            )
        self._columns = tuple(columns.index(name) for name in HEADER)
        named = {
            file_name(row[self._columns[0]]): number for number, row in enumerate(self._rows)
            if number and len(row) > self._columns[0] and row[self._columns[0]].strip()
        }  # fmt: skip
        self._of_images = {spelled(image) for image in images}
        by_image = rows_by_image(named, folder, folder, self._of_images)
        self._row_of = {image: named[name] for image, name in by_image.items()}
        self._points = {image: self._point(number) for image, number in self._row_of.items()}

    def of(self, name: str) -> Point | None:
        """The point of the image of that name; None where there is no row for it."""
        return self._points.get(spelled(name))

    @property
    def points(self) -> int:
        """How many images have one."""
        return len(self._of_images & self._points.keys())

    def put(self, name: str, point: Point | None) -> None:
        """Set the image's point and write the table; None takes its row out. The version before is kept as .bak.

        Rows of other images and further columns stay as they are. Raises PlainError for a point outside of the image
        and where the table cannot be written.
        """
        number = self._row_of.get(spelled(name))
        rows = [list(row) for row in self._rows]
        if point is None:
            if number is None:
                return
            rows[number] = []
        else:
            if number is None:
                rows.append([""] * len(rows[0]))
            row = rows[len(rows) - 1 if number is None else number]
            row += [""] * (len(rows[0]) - len(row))
            for column, value in zip(self._columns, (name, *_written(point)), strict=True):
                row[column] = value
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows([row for row in rows if row])
        replace_text(self.path, text.getvalue(), keep=True)
        self._rows = rows
        if point is None:
            del self._row_of[spelled(name)], self._points[spelled(name)]
        else:
            self._row_of.setdefault(spelled(name), len(rows) - 1)
            self._points[spelled(name)] = self._point(self._row_of[spelled(name)])

    def _point(self, number: int) -> Point:
        cells = self._rows[number]
        x, y = (_share(cells[column] if column < len(cells) else "") for column in self._columns[1:])
        if x is None or y is None:
            raise PlainError(
                f"Row {number} of {self.path} ({','.join(cells)}) is no focal point: x and y run from 0 (left, top) to "
                "1 (right, bottom); correct the row or take it out."
            )
        return x, y


def _written(point: Point) -> tuple[str, str]:
    for value in point:
        if _share(str(value)) is None:
            raise PlainError(
                f"The focal point {point[0]:g}, {point[1]:g} lies outside of the image: x and y run from 0 (left, top) "
                "to 1 (right, bottom)."
            )
    return f"{round(point[0], _DIGITS):g}", f"{round(point[1], _DIGITS):g}"


def _share(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def _rows(path: Path) -> Iterable[list[str]]:
    reader = csv.reader(io.StringIO(read_text(path).text, newline=""), strict=True)
    try:
        rows = [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise PlainError(f"{path} is not a CSV table ({error} near line {reader.line_num}): correct it.") from error
    return rows or [list(HEADER)]
