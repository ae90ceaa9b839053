"""What is wrong with pictures, each by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lora_trainer.data.buckets import Buckets, Crop
from lora_trainer.data.doctor.findings import Finding, count
from lora_trainer.data.doctor.look import Look
from lora_trainer.data.scan import Item, Scan

Size = tuple[int, int]  # width, height in pixels

# Of `look.blur_of`. Photographs and drawings that are sharp at 512 pixels measure 0.03 to 0.4, very soft ones up to
# 0.5; blurred by a Gaussian of 3 pixels they measure 0.62 to 0.86, of 2 pixels most are above 0.6.
BLURRED = 0.6
LOST = 1 / 3  # share of the picture that its crop may take away
_VERY_SMALL = 0.5  # of a bucket's side


def about_pictures(scan: Scan, buckets: Buckets, looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Findings about files and pictures; `looks` holds, by name, those that were looked at."""
    yield from _unreadable(scan, looks)
    crops = _crops(scan.items, buckets)
    yield from _tiny(scan.items, crops, buckets.resolution)
    yield from _blurry(scan.items, looks)
    yield from _transparent(scan.items, looks)
    yield from _turned(scan.items, looks)
    yield from _extreme(scan.items, crops)
    yield from _grey(scan.items, looks)


def _unreadable(scan: Scan, looks: Mapping[str, Look]) -> Iterator[Finding]:
    faults = {bad.path.relative_to(scan.folder).as_posix(): bad.reason for bad in scan.unreadable}
    faults |= {name: look.fault for name, look in looks.items() if look.fault}
    if faults:
        first = next(iter(faults.values()))
        yield Finding(
            "unreadable", "error", tuple(faults),
            f"{count(len(faults), 'image')} cannot be read and will not be trained on. {first}",
        )  # fmt: skip


def _crops(items: Sequence[Item], buckets: Buckets) -> dict[Size, Crop]:
    """How images of each size would be cut if they were large enough."""
    whole = replace(buckets, upscale=True)
    return {size: whole.fit(*size) for size in {item.size for item in items}}


def _tiny(items: Sequence[Item], crops: Mapping[Size, Crop], resolution: int) -> Iterator[Finding]:
    small = [item for item in items if _falls_short(item.size, crops[item.size], 1)]
    if not small:
        return
    least = min(small, key=lambda item: item.width * item.height)
    very = any(_falls_short(item.size, crops[item.size], _VERY_SMALL) for item in small)
    yield Finding(
        "tiny", "warning" if very else "advice", _names(small),
        f"{count(len(small), 'image', 'does', 'do')} not fill the bucket of that shape at {resolution} px "
        "(the smallest, "
        f"{least.name}, has {least.width} x {least.height}): trained at a smaller size, or enlarged, "
        "such an image teaches softness; find a larger version, train at a lower resolution, or leave it out.",
    )  # fmt: skip


def _blurry(items: Sequence[Item], looks: Mapping[str, Look]) -> Iterator[Finding]:
    soft = [item for item in items if item.name in looks and looks[item.name].blur >= BLURRED]
    if soft:
        worst = max(soft, key=lambda item: looks[item.name].blur)
        yield Finding(
            "blurry", "warning", _names(soft),
            f"{count(len(soft), 'image', 'is', 'are')} blurred everywhere (the most: {worst.name}), and the LoRA "
            "learns blur "
            "as it learns everything else: take a sharper one, or leave it out if it is not meant so.",
        )  # fmt: skip


def _transparent(items: Sequence[Item], looks: Mapping[str, Look]) -> Iterator[Finding]:
    found = [item for item in items if item.name in looks and looks[item.name].transparent > 0 and item.mask is None]
    if found:
        yield Finding(
            "transparent", "advice", _names(found),
            f"{count(len(found), 'image', 'has', 'have')} transparent parts and no mask; they are trained on as white: "
            "put a background behind if the LoRA shall not learn a white one, and say 'white background' in the "
            "caption if it may; or turn data.masked_loss on, and they are not learned at all.",
        )  # fmt: skip


def _turned(items: Sequence[Item], looks: Mapping[str, Look]) -> Iterator[Finding]:
    found = [item for item in items if item.name in looks and looks[item.name].turned]
    if found:
        yield Finding(
            "turned", "advice", _names(found),
            f"{count(len(found), 'image', 'is', 'are')} turned upright as the EXIF orientation says (such as "
            f"{found[0].name}): "
            "nothing is to be done unless one now lies on its side, because another program turned the picture and "
            "left the mark.",
        )  # fmt: skip


def _extreme(items: Sequence[Item], crops: Mapping[Size, Crop]) -> Iterator[Finding]:
    lost = {size: crop.lost for size, crop in crops.items()}
    found = [item for item in items if lost[item.size] > LOST]
    if found:
        worst = max(found, key=lambda item: lost[item.size])
        yield Finding(
            "extreme_aspect", "warning", _names(found),
            f"{count(len(found), 'image', 'is', 'are')} so long or so wide that even the nearest bucket cuts away "
            f"more than a third ({round(100 * lost[worst.size])} % of {worst.name}, {worst.width} x {worst.height}), "
            "perhaps what the caption speaks of: cut it yourself, into several if need be.",
        )  # fmt: skip


def _grey(items: Sequence[Item], looks: Mapping[str, Look]) -> Iterator[Finding]:
    seen = [item for item in items if item.name in looks and not looks[item.name].fault]
    grey = [item for item in seen if looks[item.name].grey]
    if grey and 2 * len(grey) <= len(seen):
        yield Finding(
            "grey", "advice", _names(grey),
            f"{len(grey)} of {count(len(seen), 'image', 'is', 'are')} grey among coloured ones: say so in the caption "
            "('monochrome'), or the LoRA mixes grey into everything.",
        )  # fmt: skip


def _falls_short(size: Size, crop: Crop, share: float) -> bool:
    return size[0] < share * crop.width or size[1] < share * crop.height


def _names(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(item.name for item in items)
