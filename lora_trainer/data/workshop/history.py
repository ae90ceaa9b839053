"""What was done to the captions, step by step, to be undone and done again; written down before it is done.

A step that a killed server left half done can be undone as a whole one: of each of its captions the log knows how it
was and how it should become, and either may be found.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lora_trainer.data.hashes import write_whole

_FILE = "history.jsonl"
_MOST = 64 << 20  # bytes of steps that are kept: some two hundred edits of ten thousand captions
_log = logging.getLogger(__name__)


class Change(NamedTuple):
    """One caption at one place."""

    name: str  # of the image
    path: str  # of the file it stands in; relative to the data set's folder where it lies below
    source: str  # as in `caption_sources.Place`
    before: str | None  # None: there is no such file or row
    after: str | None


class Step(NamedTuple):
    """Changes that are one for whoever made them."""

    what: str  # a sentence
    lines: tuple[str, ...]  # the changes as they stand in the log: a tenth of their size as objects
    work: str = ""  # steps of the same work that follow each other become one

    def changes(self) -> list[Change]:
        """Each caption that it changed, in order."""
        return [Change(*row) for line in self.lines for row in json.loads(line)["changes"]]


class History:
    """The steps of one data set. Without a file that can be written they are forgotten with the process."""

    def __init__(self, cache: Path) -> None:
        """`cache` is the folder of the log; what an earlier server left in it is read."""
        self._file = cache / _FILE
        self._done: list[Step] = []
        self._undone: list[Step] = []
        self._read()

    @property
    def last(self) -> Step | None:
        """What `undo` would take back."""
        return self._done[-1] if self._done else None

    @property
    def next(self) -> Step | None:
        """What `redo` would do again."""
        return self._undone[-1] if self._undone else None

    def do(self, what: str, changes: Sequence[Change], work: str = "") -> None:
        """To be called before the first of these changes is made; what was undone is gone.

        A step of the same `work` as the last one becomes one with it, under this name.
        """
        line = json.dumps({"what": what, "work": work, "changes": changes}, separators=(",", ":"))
        self._do(Step(what, (line,), work))
        self._append(line)
        self._shorten()

    def _do(self, step: Step) -> None:
        if step.work and self._done and self._done[-1].work == step.work and not self._undone:
            step = step._replace(lines=(*self._done.pop().lines, *step.lines))
        self._undone.clear()
        self._done.append(step)

    def not_done(self) -> None:
        """To be called where none of the changes given to `do` last could be made."""
        self._drop()
        self._append('{"not_done":1}')

    def undone(self) -> None:
        """To be called after the last step was taken back."""
        self._undone.append(self._done.pop())
        self._append('{"undone":1}')

    def redone(self) -> None:
        """To be called before the first change of the step is made again."""
        self._done.append(self._undone.pop())
        self._append('{"redone":1}')

    def _drop(self) -> None:
        step = self._done.pop()
        if len(step.lines) > 1:
            self._done.append(step._replace(lines=step.lines[:-1]))

    def _append(self, line: str) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab") as file:
                if file.tell() and not self._ends_whole():
                    file.write(b"\n")
                file.write(f"{line}\n".encode("ascii"))
        except OSError as error:
            _log.warning("What is done to captions can be undone only until the server ends: %s", error)

    def _ends_whole(self) -> bool:
        with self._file.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"

    def _read(self) -> None:
        try:
            lines = self._file.read_text("ascii").splitlines()
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _log.warning("What was done to captions before cannot be undone any more: %s", error)
            return
        for line in lines:
            self._take(line)
        self._shorten()

    def _take(self, line: str) -> None:
        """A line of the log; one that was cut off by a crash says nothing, for nothing was done yet."""
        try:
            values: Mapping[str, Any] = json.loads(line)
        except ValueError:
            return
        if "changes" in values:
            self._do(Step(str(values["what"]), (line,), str(values["work"])))
        elif "not_done" in values and self._done:
            self._drop()
        elif "undone" in values and self._done:
            self._undone.append(self._done.pop())
        elif "redone" in values and self._undone:
            self._done.append(self._undone.pop())

    def _shorten(self) -> None:
        size = sum(len(line) for step in (*self._done, *self._undone) for line in step.lines)
        while size > _MOST and len(self._done) > 1:
            size -= sum(map(len, self._done.pop(0).lines))
        try:
            if self._file.stat().st_size <= 2 * _MOST:
                return
            lines = [line for step in (*self._done, *reversed(self._undone)) for line in step.lines]
            text = "\n".join([*lines, *['{"undone":1}'] * len(self._undone), ""])
            write_whole(self._file, text.encode("ascii"))
        except OSError:
            return  # it is only too long
