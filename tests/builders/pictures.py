"""Small pictures whose every corner differs, so that a turn, a mirror or a crop shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def ramp(width: int, height: int, shade: int = 90) -> Image.Image:
    """RGB: red grows to the right, green downwards, blue is `shade`; smooth, so that lossy formats keep it nearly."""
    values = np.empty((height, width, 3), dtype=np.uint8)
    values[..., 0] = np.linspace(20, 230, width, dtype=np.uint8)[None, :]
    values[..., 1] = np.linspace(30, 240, height, dtype=np.uint8)[:, None]
    values[..., 2] = shade
    return Image.fromarray(values)


def picture_folder(folder: Path, sizes: list[tuple[int, int]], captions: bool = True) -> Path:
    """Images 0.png, 1.png, ... of these sizes, each of another shade, with a caption "tag<i>, red, ramp" beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, (width, height) in enumerate(sizes):
        ramp(width, height, shade=(index * 37) % 256).save(folder / f"{index}.png")
        if captions:
            (folder / f"{index}.txt").write_text(f"tag{index}, red, ramp\n", encoding="utf-8")
    return folder
