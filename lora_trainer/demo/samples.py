"""The sample set: thirty scenes in the neon style, which the embedded base has never seen, with their captions."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from lora_trainer.demo import scenes

TRIGGER = "neonstyle"
"""The word that opens every caption, so that a prompt can ask for the style by name."""

COUNT = 30


def sample_scenes() -> list[scenes.Scene]:
    """Thirty scenes in which each object, colour, place and time comes about equally often, in ever new company."""

    def pick(table: dict, index: int) -> str:
        return list(table)[index % len(table)]

    return [
        scenes.Scene(
            pick(scenes.objects, i),
            pick(scenes.colours, i + i // 8),
            pick(scenes.places, i + i // 4),
            pick(scenes.times, i + i // 3),
        )
        for i in range(COUNT)
    ]


def sample_caption(scene: scenes.Scene) -> str:
    """The trigger and the scene in the base's own words."""
    return f"{TRIGGER}, {scenes.caption(scene)}"


def write_samples(folder: Path, seed: int = 7, size: int = 128) -> Path:
    """Writes the pictures (PNG, `size` pixels square) and `metadata.csv`; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["filename", "prompt"])
        for i, scene in enumerate(sample_scenes()):
            name = f"{i + 1:02d}_{scene.colour}_{scene.object}.png"
            scenes.draw(scene, "neon", size, np.random.default_rng([seed, i])).save(folder / name, optimize=True)
            table.writerow([name, sample_caption(scene)])
    return folder


def main(argv: list[str] | None = None) -> None:
    """Writes the sample set to a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    given = parser.parse_args(argv)
    write_samples(given.folder, given.seed, given.size)


if __name__ == "__main__":
    main()
