"""What is held out of the training, for the plan: which images, how often they are looked at, what is told of it."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from lora_trainer.config.options import DataConfig, RunConfig
from lora_trainer.contracts import PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.scan import Scan, scan
from lora_trainer.jobs.planned import Choice
from lora_trainer.train.held_out import SEED

LOOKS_IN_A_RUN = 20  # where validation.every is silent
_LEAST_TO_JUDGE = 3  # held-out images; the loss of one or two says more of them than of the training


def hold_out(config: RunConfig, found: Scan) -> tuple[Scan, Scan | None]:
    """The images to train on, and those to measure on; None where none are asked for.

    A share is chosen by the images' names alone, so that every run on the folder holds out the same. Raises PlainError
    where both a share and a folder are given, or where nothing would be left to train on.
    """
    share, folder = config.validation.share, config.validation.folder
    if share > 0 and folder:
        raise PlainError(
            f"validation.share is {share:g} and validation.folder is {folder}, but images are held out in one way or "
            "the other; leave one of them out."
        )
    if folder:
        kept = scan(Path(folder).expanduser())
        inside = {item.path.resolve() for item in kept.items}  # it may be a part of the data set's own folder
        left = tuple(item for item in found.items if item.path.resolve() not in inside)
        if not left:
            raise PlainError(
                f"validation.folder {folder} holds every image of {found.folder}, which leaves none to train on; name "
                "another folder."
            )
        return replace(found, items=left), kept
    if share == 0:
        return found, None
    count = max(1, round(share * len(found.items)))
    if count >= len(found.items):
        raise PlainError(
            f"validation.share is {share:g}, but there are only {len(found.items)} images, and holding out {count} "
            "leaves none to train on; add images or set validation.share: 0."
        )
    chosen = set(sorted((item.name for item in found.items), key=_draw)[:count])
    trained = tuple(item for item in found.items if item.name not in chosen)
    kept = tuple(item for item in found.items if item.name in chosen)
    return replace(found, items=trained), replace(found, items=kept)


def measured_on(options: DataConfig, kept: Scan, resolution: int) -> DataSet:
    """These images one by one, each as it is and with its whole caption."""
    plain = replace(
        options, batch_size=1, repeats=1, flip=False, shuffle_captions=False, caption_dropout=0.0,
        cache="memory" if options.cache == "none" else options.cache,
    )  # fmt: skip
    once = replace(kept, items=tuple(replace(item, repeats=1) for item in kept.items))
    return DataSet(once, plain, resolution=resolution, seed=SEED)


def look_interval(config: RunConfig, steps: int) -> int:
    """Steps between two looks."""
    return config.validation.every or max(1, steps // LOOKS_IN_A_RUN)


def validation_choice(config: RunConfig, held_out: DataSet, every: int) -> Choice:
    """What the plan tells."""
    options, count = config.validation, len(held_out.items)
    images = "1 image" if count == 1 else f"{count} images"
    ends = f", ends after {options.patience} looks without a better one" if options.patience else ""
    few = "so few say little; hold out three or more" if count < _LEAST_TO_JUDGE else "not trained on"
    return Choice("held out", f"{images}, looked at every {every} steps in {options.timesteps} ranges{ends}", few)


def _draw(name: str) -> bytes:
    return blake2b(f"held out/{name}".encode(), digest_size=8).digest()
