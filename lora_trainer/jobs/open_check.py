"""The examination of an opened data set: goes on in the background, and is told as far as it has come."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from lora_trainer.data.buckets import Buckets
from lora_trainer.data.doctor.examine import Report, examine
from lora_trainer.data.doctor.findings import KINDS, Wanted
from lora_trainer.data.doctor.looks import Looks
from lora_trainer.data.doctor.remedies import remedy
from lora_trainer.data.workshop.edits import Edit
from lora_trainer.data.workshop.opened import Workshop
from lora_trainer.data.workshop.query import Filter
from lora_trainer.jobs.checkup import STEP

_READERS = 1  # threads that look: a training beside it keeps the others
_YIELD = 3.0  # while something else runs, looking rests so many times as long as it works
_SHARE = 10  # judging what was seen takes at most this part of the time, however often it is asked


class OpenCheck:
    """Looks at the pictures of one opened data set. Every method may be called from any thread."""

    def __init__(self, workshop: Workshop, cache: Path, busy: Callable[[], bool]) -> None:
        self._workshop = workshop
        self._busy = busy
        self._index = cache / "looks.json"
        self._looks: Looks | None = None
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._judging = threading.Lock()
        self._report: tuple[tuple[object, ...], float, float, Report] | None = None  # of what, when, seconds, report

    def report(self, resolution: int) -> Report:
        """What is wrong as far as it was looked; the first call begins to look."""
        snapshot = self._workshop.watch()
        looks = self._looking()
        with self._judging:
            seen = looks.of(snapshot.scan.items)
            asked = (snapshot.revision, id(snapshot.scan), len(seen), resolution, self._workshop.trigger)
            known = self._report
            if known and (known[0] == asked or (
                (known[0][0], *known[0][3:]) == (asked[0], *asked[3:]) and len(seen) < len(snapshot.scan.items)
                and time.monotonic() - known[1] < _SHARE * known[2]
            )):  # fmt: skip
                return known[3]
            begun = time.monotonic()
            report = examine(snapshot.scan, self._wanted(resolution), seen)
            self._report = (asked, time.monotonic(), time.monotonic() - begun, report)
            self._tell(report)
            return report

    def fix(self, kinds: Sequence[str], resolution: int) -> list[str]:
        """Apply the remedies of these kinds, from what was seen by now; a sentence for each. Raises PlainError."""
        return [self._fix(kind, resolution) for kind in dict.fromkeys(kinds)]

    def close(self) -> None:
        """Look at no more pictures."""
        self._closed.set()

    def _fix(self, kind: str, resolution: int) -> str:
        workshop = self._workshop
        with workshop.changing():
            looks = self._looking()
            scan = workshop.snapshot.scan
            looks.recall(scan.items)
            finding = examine(scan, self._wanted(resolution), looks.of(scan.items)).of(kind)
            if finding is None:
                return f"{kind}: nothing to do, none was found."
            if KINDS[kind].remedy == "trigger":  # captions: so that it can be undone, wherever they stand
                edit = Edit(action="prepend", text=workshop.trigger)
                count, _ = workshop.edit(edit, finding.images, Filter(), preview=False)
                return f"{kind}: {edit.sentence(count)}"
            return f"{kind}: {remedy(finding, scan, workshop.metadata, workshop.trigger)}"

    def _looking(self) -> Looks:
        """What was seen so far; begins to look where something was not."""
        with self._lock:
            items = self._workshop.snapshot.scan.items
            if self._looks is None:
                self._looks = Looks(self._workshop.folder, self._index, _READERS)
                self._looks.recall(items)
            if (self._thread is None or not self._thread.is_alive()) and not self._closed.is_set():
                unseen = len(self._looks.of(items)) < len(items)
                if unseen:
                    self._thread = threading.Thread(target=self._look, args=(self._looks,), name="check", daemon=True)
                    self._thread.start()
            return self._looks

    def _look(self, looks: Looks) -> None:
        with closing(looks.take(self._workshop.snapshot.scan.items)) as course:
            begun = time.monotonic()
            for _ in course:
                rest = _YIELD * (time.monotonic() - begun) if self._busy() else 0.0
                if self._closed.wait(rest):
                    return
                begun = time.monotonic()

    def _wanted(self, resolution: int) -> Wanted:
        buckets = Buckets(resolution, min(STEP, resolution))
        return Wanted(buckets, self._workshop.trigger, tokens=self._workshop.tokens)

    def _tell(self, report: Report) -> None:
        found: dict[str, list[str]] = defaultdict(list)
        for finding in report.findings:
            for name in finding.acted_on or finding.images:
                found[name].append(finding.kind)
        self._workshop.found = dict(found)
