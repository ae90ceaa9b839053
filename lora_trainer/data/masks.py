"""Masks, and what is padded, as weights of latent cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora_trainer.contracts import PlainError, Prepared
from lora_trainer.data.buckets import Crop
from lora_trainer.data.images import has_alpha, load_alpha, load_grey
from lora_trainer.data.readers import in_order
from lora_trainer.data.scan import Item

_OTHER_SHAPE = 1.05  # more than this between the aspect ratios of an image and its mask is no rounding


@dataclass(frozen=True)
class MaskedImages:
    """Where the masks of a data set's images are."""

    files: Mapping[Path, Path]  # image: the file with its mask
    channels: frozenset[Path]  # images without such a file that may have transparent parts, where it was looked

    def of(self, item: Item) -> Path | None:
        """The file with the mask of the image; its own, where its alpha channel is the mask."""
        return self.files.get(item.path) or (item.path if item.path in self.channels else None)

    def check(self, folder: Path) -> None:
        """Raise PlainError where there is no mask at all."""
        if not self.files and not self.channels:
            raise PlainError(
                f"data.masked_loss is on, but no image of {folder} has a mask: put one beside an image X as "
                "X-masklabel.png, or into the folder mask as X.png, white where it is to be learned; or turn it off."
            )

    def __str__(self) -> str:
        parts = [(self.files, "in files"), (self.channels, "in alpha channels")]
        return ", ".join(f"{len(found)} {where}" for found, where in parts if found)


def masked_images(items: Sequence[Item], *, look_inside: bool) -> MaskedImages:
    """Which of these images have masks; `look_inside` opens those without a file of it, for their alpha channels."""
    files = {item.path: item.mask for item in items if item.mask}
    without = [item.path for item in items if not item.mask] if look_inside else []
    return MaskedImages(files, frozenset(path for path in without if has_alpha(path)))


class Masked(NamedTuple):
    """An image, where its mask is, and what is kept of it."""

    path: Path
    mask: Path | None  # its own path, where its alpha channel is the mask
    crop: Crop
    size: tuple[int, int]  # width, height in pixels, upright


class _Found(NamedTuple):
    cells: Tensor | None = None  # (1, h, w); None: all count alike
    fault: str = ""
    warning: str = ""


class Masks:
    """Weights of latent cells (1, h, w) float32 of pictures, on the CPU."""

    def __init__(self, floor: float, *, wanted: bool) -> None:
        """`floor` is the least weight of a cell outside of the mask; not `wanted`: padding alone is masked."""
        self.unusable: dict[Path, str] = {}  # images whose mask cannot be used, with the reason as a sentence
        self.warnings: list[str] = []
        self._floor = floor
        self._wanted = wanted
        self._cells: dict[Path, Tensor] = {}

    def fill(self, pictures: Sequence[Masked]) -> Iterator[Prepared]:
        """Read the masks of all pictures; those that cannot be used are named in `unusable`."""
        for done, (picture, found) in enumerate(in_order(self._read, pictures, "masks"), 1):
            if found.warning:
                self.warnings.append(found.warning)
            if found.fault:
                self.unusable[picture.path] = found.fault
            if found.cells is not None:
                self._cells[picture.path] = found.cells
            if self._wanted:
                yield Prepared("masks", done, len(pictures))

    def batch(self, pictures: Sequence[tuple[Path, Crop]], mirrored: Sequence[bool]) -> Tensor:
        """(B, 1, h, w) of pictures of one bucket, 0 to 1; a picture without a mask counts 1 everywhere."""
        found = []
        for (path, crop), mirror in zip(pictures, mirrored, strict=True):
            cells = self._cells.get(path)
            if cells is None:
                cells = torch.from_numpy(crop.cells())[None]
            found.append(cells.flip(-1) if mirror else cells)
        return torch.stack(found)

    def _read(self, picture: Masked) -> _Found:
        """Runs in a reader's thread."""
        try:
            mask = self._mask_of(picture) if self._wanted else None
        except PlainError as error:
            return _Found(fault=f"The mask of {picture.path.name} cannot be used: {error}")
        if mask is None and not picture.crop.padded:
            return _Found()
        cells = picture.crop.cells(mask)
        if not cells.any():
            return _Found(fault=_nothing_left(picture, mask is not None))
        if mask is not None and self._floor > 0:
            cells = np.maximum(cells, np.float32(self._floor)) * picture.crop.cells()
        return _Found(torch.from_numpy(cells)[None], warning=_odd(picture, mask) if mask else "")

    @staticmethod
    def _mask_of(picture: Masked) -> Image.Image | None:
        if picture.mask != picture.path:
            return load_grey(picture.mask) if picture.mask else None
        alpha = load_alpha(picture.path)
        return None if alpha.getextrema() == (255, 255) else alpha


def _nothing_left(picture: Masked, masked: bool) -> str:
    if masked:
        return (
            f"The mask of {picture.path.name} is black in all that is trained on of the image, so that nothing of it "
            "would be learned: correct the mask, or take the image out of the folder."
        )
    return f"{picture.path.name} is too thin to be learned from with data.crop: none: cut it, or take another crop."


def _odd(picture: Masked, mask: Image.Image) -> str:
    (width, height), ratio = picture.size, mask.width * picture.size[1] / (mask.height * picture.size[0])
    if 1 / _OTHER_SHAPE <= ratio <= _OTHER_SHAPE:
        return ""
    return (
        f"The mask of {picture.path.name} has {mask.width} x {mask.height} px and the image {width} x {height}, "
        "another shape; it is stretched over the image: check that it is the right mask."
    )
