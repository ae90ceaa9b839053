"""Image files that a data set passes by: those that a list in its folder names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import file_name, is_text, read_text, spelled

EXCLUDED = "lora_trainer_excluded.txt"
HEADING = "# Images that are not trained on, one name a line, relative to this folder; take a line out to have it back."


def without_excluded(folder: Path, images: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """The images that are left, and the excluded ones. Raises PlainError where none is left."""
    listed = set(read_excluded(folder))
    exact = listed.intersection(images)
    loose = {spelled(name) for name in listed - exact}  # typed by hand, or on a system that knows no case
    excluded = tuple(image for image in images if image in exact or (loose and spelled(image) in loose))
    gone = set(excluded)
    left = [image for image in images if image not in gone]
    if not left:
        raise PlainError(
            f"All {len(images)} images in {folder} are excluded by {EXCLUDED} there: take lines out of that file, or "
            "delete it."
        )
    return left, excluded


def read_excluded(folder: Path) -> list[str]:
    """Names on the folder's list, relative to it, with "/"; lines that begin with "#" say something else."""
    path = folder / EXCLUDED
    if not path.is_file():
        return []
    lines = [line.strip() for line in read_text(path).text.splitlines()]
    return [file_name(line) for line in lines if line and not line.startswith("#")]


def with_excluded(folder: Path, names: Iterable[str]) -> str:
    """The list's text with these names added; what stands there stays.

    Raises PlainError for a name that no line can hold.
    """
    path = folder / EXCLUDED
    text = read_text(path).text if path.is_file() else f"{HEADING}\n"
    known = set(read_excluded(folder))
    lines = [_line(name) for name in names if name not in known]
    return "\n".join([text.rstrip("\n"), *lines, ""])


def _line(name: str) -> str:
    line = f"./{name}" if name.startswith("#") else name  # else it would be read as a comment
    if [file_name(part) for part in line.splitlines()] != [name] or not is_text(name):
        raise PlainError(f"The name {name!r} does not fit into a line of {EXCLUDED}: rename the file, or move it away.")
    return line
