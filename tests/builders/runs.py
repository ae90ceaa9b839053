"""A small but whole run: a slim checkpoint in a real layout, some pictures, and the configuration that joins them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lora_trainer.config.load import load
from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Event
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.run import Controls, run
from tests.builders.slim import write_slim


def write_pictures(folder: Path, count: int = 6, sides: tuple[tuple[int, int], ...] = ((64, 64),)) -> Path:
    """Pictures of random blocks with a `metadata.csv`; sizes (width, height) taken in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["filename,prompt"]
    for index in range(count):
        width, height = sides[index % len(sides)]
        blocks = np.random.default_rng(index).integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(folder / f"{index}.png")
        rows.append(f'{index}.png,"blocks, number {index}"')
    (folder / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return folder


def small_run(folder: Path, family: str = "sd1", **options: Any) -> RunConfig:
    """A run of 6 steps that takes a second; `options` are dotted names with "__" for the dot."""
    base = folder / f"{family}.safetensors"
    if not base.exists():
        write_slim(base, family, seed=1)
    pictures = folder / "pictures"
    if not pictures.exists():
        write_pictures(pictures)
    values = {
        "model.base": str(base),
        "data.folder": str(pictures),
        "data.resolution": 64,
        "data.batch_size": 2,
        "network.rank": 4,
        "train.steps": 6,
        "train.learning_rate": 1e-2,
        "train.seed": 11,
        "output.directory": str(folder / "out" / "lora"),
        "output.save_steps": 2,
        "output.tensorboard": False,
    }
    return load(values | {name.replace("__", "."): value for name, value in options.items()})


def run_all(config: RunConfig, *, control: Controls | None = None, resume: bool = False) -> list[Event]:
    """Every event of a run from start to end."""
    return list(run(config, host=Standalone(), control=control or Controls(), resume=resume))
