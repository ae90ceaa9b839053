"""Drawn pictures of many kinds, each different from the others and sharp, for the doctor to look at."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from lora_trainer.demo.scenes import draw, random_scene

LONG_AGO = 1_000_000_000  # seconds: a time of change at which a file counts as settled


def drawn(seed: int, size: int = 128) -> Image.Image:
    """A scene of the demo's world."""
    rng = np.random.default_rng(seed)
    return draw(random_scene(rng), "plain", size, rng)


def drawn_folder(folder: Path, count: int = 6, size: int = 128, caption: str = "a scene, number {}") -> Path:
    """Images 0.png, 1.png, ... with captions beside them; all with a time of change in the past."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        drawn(index, size).save(folder / f"{index}.png")
        if caption:
            (folder / f"{index}.txt").write_text(caption.format(index) + "\n", encoding="utf-8")
    return settled(folder)


def settled(folder: Path) -> Path:
    """The folder, with every file in it as if it had been left alone for long."""
    for path in folder.rglob("*"):
        if path.is_file() and ".cache" not in path.parts:
            os.utime(path, (LONG_AGO, LONG_AGO))
    return folder
