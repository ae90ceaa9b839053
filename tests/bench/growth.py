"""How the work on every picture of a folder grows with their number: reading, small pictures, the doctor.

    python tests/bench/growth.py [number of images]

Processor seconds, so that a busy machine tells the same. Each column has twice the images of the one before; "growth"
is that from the first to the third: 4 is in proportion, 16 would be the square. The images are different from each
other, 320 x 240 px JPEG with a caption file each, so that a search for copies has to look at all.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lora_trainer.data.buckets import Buckets  # noqa: E402
from lora_trainer.data.doctor.examine import examine  # noqa: E402
from lora_trainer.data.doctor.findings import Wanted as Judged  # noqa: E402
from lora_trainer.data.doctor.looks import Looks  # noqa: E402
from lora_trainer.data.workshop.opened import Workshop  # noqa: E402
from lora_trainer.data.workshop.thumbs import Thumbs, Wanted, thumb_file  # noqa: E402
from lora_trainer.jobs.checkup import STEP, token_counter  # noqa: E402

RESOLUTION = 256
MINUTE_AGO = 60  # what is older than a moment is remembered


def make(folder: Path, count: int) -> None:
    """That many images, none like another."""
    folder.mkdir()
    for index in range(count):
        blocks = np.random.default_rng(index).integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{index:05}.jpg")
        (folder / f"{index:05}.txt").write_text(f"mycat, thing {index % 700}, number {index}", encoding="utf-8")
    for path in folder.iterdir():
        os.utime(path, (time.time() - MINUTE_AGO,) * 2)


def measured(count: int) -> dict[str, float]:
    """Processor seconds of each act on a folder of `count` images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        make(folder, count)
        return _acts(folder)


def _acts(folder: Path) -> dict[str, float]:
    found = dict[str, float]()
    cache, tokens = folder / ".cache/lora_trainer", token_counter()
    tokens("the vocabulary is read once")

    def timed(what: str, act: Callable[[], object]) -> None:
        begun, on_the_clock = time.process_time(), time.monotonic()
        act()
        found[what] = time.process_time() - begun
        print(f"  {what}: {found[what]:.2f} s, {time.monotonic() - on_the_clock:.2f} s on the clock", file=sys.stderr)

    def opened() -> Workshop:
        made = Workshop(folder, None, cache=cache, tokens=tokens, trigger="mycat")
        made.read()
        return made

    timed("read, new", opened)
    timed("read, known", opened)
    workshop = opened()
    items, files = workshop.snapshot.scan.items, workshop.snapshot.files
    looks = Looks(folder, cache / "looks.json", 1)

    def thumbnails() -> None:
        thumbs = Thumbs()
        wanted = [Wanted(folder / item.name, thumb_file(cache, item.name, files[item.name])) for item in items]
        thumbs.later("all", wanted)
        for one in wanted:
            thumbs.get(one)
        thumbs.close()

    def seen() -> None:
        for _ in looks.take(items):
            pass

    judged = Judged(Buckets(RESOLUTION, STEP), "mycat", tokens=tokens)
    timed("small pictures, all", thumbnails)
    timed("looked at by the doctor", seen)
    timed("judged, near copies too", lambda: examine(workshop.snapshot.scan, judged, looks.of(items)))
    return found


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    counts = [count // 4, count // 2, count]
    columns = [measured(one) for one in counts]
    print(f"{'':26}{''.join(f'{one:>9}' for one in counts)}   growth   ms an image")
    for what in columns[0]:
        seconds = [column[what] for column in columns]
        told = "".join(f"{one:9.2f}" for one in seconds)
        print(f"{what:26}{told}{seconds[-1] / max(seconds[0], 1e-9):9.1f}{1000 * seconds[-1] / count:14.2f}")


if __name__ == "__main__":
    main()
