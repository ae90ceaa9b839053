"""How long it takes to scan and bucket a folder of 10,000 images with captions, and to walk an epoch's order.

    python tests/bench/scan.py [number of images]

The goal is under a minute on one core. The images are photographs in kind: JPEG and PNG of about a megapixel with an
orientation in their EXIF, of which only the header should be read.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from lora_trainer.config.options import DataConfig  # noqa: E402
from lora_trainer.data.dataset import DataSet  # noqa: E402
from lora_trainer.data.scan import scan  # noqa: E402


def make(folder: Path, count: int) -> None:
    """`count` images of eight shapes, each with a caption file; copies of a few, for the disk's sake."""
    exif = Image.Exif()
    exif[0x0112] = 6
    shapes = [(1024, 1024), (1152, 896), (896, 1152), (1344, 768)]
    originals = []
    for index, shape in enumerate(shapes):
        for ending in ("jpg", "png"):
            original = folder / f"original{index}.{ending}"
            Image.radial_gradient("L").resize(shape).convert("RGB").save(original, exif=exif)
            originals.append(original)
    for index in range(count):
        original = originals[index % len(originals)]
        shutil.copyfile(original, folder / f"{index}{original.suffix}")
        (folder / f"{index}.txt").write_text(f"photo, number {index}", encoding="utf-8")
    for original in originals:
        original.unlink()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, count)
        start = time.perf_counter()
        found = scan(folder)
        scanned = time.perf_counter()
        data = DataSet(found, DataConfig(folder=name), resolution=1024, seed=1)
        bucketed = time.perf_counter()
        data._order.micro_batch(1_000_000 // 2 - 1)
        ordered = time.perf_counter()
    print(f"{len(found.items)} images, {len(data.bucket_counts())} buckets: {data.bucket_table()}")
    print(f"scan {scanned - start:.2f} s, buckets {bucketed - scanned:.2f} s")
    print(f"order of a million samples {ordered - bucketed:.2f} s")


if __name__ == "__main__":
    main()
