"""What a plan says of crops, masks and regularisation images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.scan import Scan, scan
from lora_trainer.jobs.planned import Choice


def class_scan(config: DataConfig, found: Scan) -> Scan | None:
    """The regularisation images; None where no folder is named.

    Raises PlainError for a folder that is unfit.
    """
    if not config.regularization:
        return None
    folder = Path(config.regularization).expanduser()
    if folder.exists():
        own, other = found.folder.resolve(), folder.resolve()
        if own == other or own in other.parents or other in own.parents:
            raise PlainError(
                f"data.regularization {folder} and the training images' folder {found.folder} lie in one another, so "
                "that images would count as both: give each a folder of its own."
            )
    return scan(folder)


def class_warnings(found: Scan | None) -> Iterator[str]:
    """What the scan of the regularisation images says, but for missing captions, which the class prompt gives."""
    for warning in found.warnings if found else ():
        if "have no caption and are trained on without one" not in warning:
            yield f"Regularisation images: {warning}"


def data_choices(config: DataConfig, data: DataSet) -> Iterator[Choice]:
    """What the options of this room come to, as far as any is set."""
    known = data.focal_points_known()
    if config.crop == "focal":
        yield Choice("crop", f"around focal points, {known} of them known, the others found first", "")
    elif config.crop == "none":
        yield Choice("crop", "none: the whole image is kept, padding is not learned", "")
    elif known:
        yield Choice("crop", f"the middle, of {known} images around their focal points", "")
    if config.masked_loss:
        floor = f"; black parts count {config.mask_floor:g}" if config.mask_floor else ""
        yield Choice("masks", f"{data.masks}{floor}", "")
    if data.class_items:
        count = len(data.class_items)
        yield Choice(
            "regularization",
            f"{count} images, each step's share half, weight {config.prior_weight:g}",
            f"an epoch shows as many of them as of yours, so it has {data.samples_per_epoch} looks",
        )


def unused_masks(config: DataConfig, data: DataSet) -> Iterator[str]:
    """A sentence where masks lie there and do not count."""
    if data.masks.files and not config.masked_loss:
        yield (
            f"{len(data.masks.files)} images have masks, which do not count: turn data.masked_loss on to learn only "
            "what they show white."
        )
