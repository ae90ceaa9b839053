"""What the data workshop costs on a folder of 10,000 pictures, and how that grows from half as many.

    python tests/bench/workshop.py [number of images]

The last column should stay near 2 (twice the images, twice the work) or below, and "open, known" under a second. The
images are those of scan.py; small pictures are timed on 200 of them.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from scan import make  # noqa: E402

from lora_trainer.data.workshop.edits import Edit  # noqa: E402
from lora_trainer.data.workshop.opened import Workshop  # noqa: E402
from lora_trainer.data.workshop.query import Filter, ordered, tag_counts  # noqa: E402
from lora_trainer.data.workshop.thumbs import small_jpeg  # noqa: E402
from lora_trainer.jobs.checkup import token_counter  # noqa: E402

MINUTE_AGO = 60


def measured(count: int, table: bool) -> dict[str, float]:
    """Processor seconds of each act on a folder of `count` images, captioned beside them or in a table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        make(folder, count)
        if table:
            _into_a_table(folder)
        for path in folder.iterdir():
            os.utime(path, (time.time() - MINUTE_AGO,) * 2)
        return _acts(folder)


def _acts(folder: Path) -> dict[str, float]:
    found = dict[str, float]()
    tokens = token_counter()
    tokens("the vocabulary is read once")

    def timed(what: str, act: Callable[[], object], times: int = 1) -> object:
        gc.collect()
        begun = time.process_time()
        for _ in range(times):
            result = act()
        found[what] = (time.process_time() - begun) / times
        return result

    def opened() -> Workshop:
        workshop = Workshop(folder, None, cache=folder / ".cache/lora_trainer", tokens=tokens, trigger="photo")
        workshop.read()
        return workshop

    def page(sort: str) -> list[list[str]]:
        snapshot = workshop.watch()
        facts = workshop.facts(snapshot)
        items = ordered(Filter().of(snapshot.scan.items, facts), sort, facts, descending=False)  # type: ignore[arg-type]
        return [facts.flags(item) for item in items[:100]]

    timed("open, new", opened)
    workshop = timed("open, known", opened)
    assert isinstance(workshop, Workshop)
    name = next(iter(workshop.snapshot.items))
    numbers = iter(range(100))
    timed("a page of 100", lambda: page("name"), 5)
    timed("a page by tokens", lambda: page("tokens"))
    timed("tags", lambda: tag_counts(workshop.snapshot.scan.items, workshop.facts(workshop.snapshot)))
    timed("a caption saved", lambda: workshop.save(name, f"new {next(numbers)}", workshop.snapshot.version(name)), 5)
    edit = Edit(action="replace", find="photo", replacement="picture")
    timed("an edit of all, previewed", lambda: workshop.edit(edit, None, Filter(), preview=True))
    timed("an edit of all", lambda: workshop.edit(edit, None, Filter(), preview=False))
    timed("undone", workshop.undo)
    timed("a look for others' changes", workshop.refresh)
    paths = list(workshop.snapshot.paths.values())[:200]
    timed("200 small pictures", lambda: [small_jpeg(path) for path in paths])
    return found


def _into_a_table(folder: Path) -> None:
    rows = ["filename,prompt\n"]
    for path in sorted(folder.glob("*.txt")):
        image = next(path.with_suffix(ending).name for ending in (".jpg", ".png") if path.with_suffix(ending).exists())
        rows.append(f'{image},"{path.read_text(encoding="utf-8")}"\n')
        path.unlink()
    (folder / "metadata.csv").write_text("".join(rows), encoding="utf-8")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    for table in (False, True):
        half, whole = measured(count // 2, table), measured(count, table)
        print(f"\n{'a table' if table else 'text files':28}{count // 2:>9}{count:>9}  ratio")
        for what, seconds in whole.items():
            print(f"{what:28}{half[what]:9.3f}{seconds:9.3f}{seconds / max(half[what], 1e-9):7.1f}")


if __name__ == "__main__":
    main()
