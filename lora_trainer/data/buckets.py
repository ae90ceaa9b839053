"""Aspect buckets: to which size an image is scaled, and which part of it is kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_trainer.contracts import PlainError

# Shortest and longest side of a bucket as shares of the resolution: 512 and 2048 at 1024 pixels, as in the list of
# training sizes of SDXL (Podell et al. 2023, arXiv 2307.01952, appendix I).
_SHORTEST, _LONGEST = 0.5, 2.0
CELL = 8  # pixels of a latent cell's side, in every family

CropMode = Literal["center", "focal", "none"]
CROPS: tuple[CropMode, ...] = get_args(CropMode)
Point = tuple[float, float]  # right and down from the upper left corner, as shares (0..1) of the upright image


class Kept(NamedTuple):
    """Edges of what is trained on, as shares (0..1) of the upright image."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Crop:
    """How an image becomes a training picture: scaled to `resized`, then cut to `width` x `height`; all in pixels.

    Where the scaled image is smaller than that, `left` or `top` is negative and the image is padded.
    """

    resized: tuple[int, int]  # width, height
    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the bucket."""
        return self.width, self.height

    @property
    def padded(self) -> bool:
        """Whether the scaled image does not fill the bucket."""
        return self.resized[0] < self.width or self.resized[1] < self.height

    @property
    def free(self) -> bool:
        """Whether anything is cut away, so that it matters where."""
        return self.resized[0] > self.width or self.resized[1] > self.height

    @property
    def kept(self) -> Kept:
        """The part of the image that is trained on."""
        width, height = self.resized
        left, top = max(0, self.left), max(0, self.top)
        right, bottom = min(width, self.left + self.width), min(height, self.top + self.height)
        return Kept(left / width, top / height, right / width, bottom / height)

    @property
    def lost(self) -> float:
        """Share of the image that is cut away."""
        kept = self.kept
        return 1 - (kept.right - kept.left) * (kept.bottom - kept.top)

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale with Lanczos and cut; a padded part repeats the pixels of the edge beside it.

        Repeated, because the VAE sees a few cells far: a hard edge of another colour would show in cells that count.
        """
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.LANCZOS)
        if not self.padded:
            return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))
        right, bottom = self.width + self.left - self.resized[0], self.height + self.top - self.resized[1]
        margins = ((-self.top, bottom), (-self.left, right), (0, 0))
        return Image.fromarray(np.pad(np.asarray(image), margins, mode="edge"))

    def cells(self, mask: Image.Image | None = None) -> NDArray[np.float32]:
        """(height / 8, width / 8): how much each latent cell counts, 0 to 1.

        That is the mean of the mask's pixels (8-bit grey of any size, laid over the whole image) in the cell, as kohya
        scales masks (sd-scripts, library/custom_train_functions.py, apply_masked_loss: mode "area"); without a mask
        1. A cell that is padded in any part counts 0, whatever the mask says.
        """
        rows, columns = self.height // CELL, self.width // CELL
        found = np.ones((rows, columns), dtype=np.float32)
        if mask is not None:
            scaled = mask if mask.size == self.resized else mask.resize(self.resized, Image.Resampling.BOX)
            # beyond the image Pillow's crop gives 0
            cut = scaled.crop((self.left, self.top, self.left + self.width, self.top + self.height))
            values = np.asarray(cut, dtype=np.float32) / 255
            found = values.reshape(rows, CELL, columns, CELL).mean(axis=(1, 3))
        if self.padded:
            inside = np.zeros_like(found)
            last_row, last_column = (self.resized[1] - self.top) // CELL, (self.resized[0] - self.left) // CELL
            inside[-(self.top // CELL) : last_row, -(self.left // CELL) : last_column] = 1
            found = found * inside
        return found

    def sizes(self, width: int, height: int, mirrored: bool = False) -> tuple[int, int, int, int, int, int]:
        """Original height and width, crop top and left, target height and width: SDXL's size conditioning.

        The original size is the image's before scaling, the crop's corner is counted in the scaled image, as the
        paper defines it (arXiv 2307.01952, section 2.2) and diffusers trains it
        (examples/text_to_image/train_text_to_image_sdxl.py). kohya's sd-scripts gives the offset of the image fitted
        *into* the bucket instead (library/train_util.py, get_crop_ltrb). A mirrored image is cut from its other side;
        of a padded one nothing is cut, so its corner is 0.
        """
        left = self.resized[0] - self.width - self.left if mirrored else self.left
        return height, width, max(0, self.top), max(0, left), self.height, self.width


@dataclass(frozen=True)
class Buckets:
    """The sizes that images may be trained at."""

    resolution: int  # pixels; no bucket has a larger area than its square
    step: int  # pixels; sides are multiples of it
    keep_shape: bool = True  # False: one square for all
    upscale: bool = False  # whether images smaller than their bucket are enlarged to it
    crop: CropMode = "center"  # what becomes of an image whose shape is not its bucket's

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of every bucket: for each width the greatest height that fits the area.

        Raises PlainError if not even one step fits.
        """
        side = self.resolution // self.step * self.step
        if side == 0:
            raise PlainError(
                f"bucket_step {self.step} is larger than the resolution {self.resolution}: make it {self.resolution} "
                "or less."
            )
        if not self.keep_shape:
            return ((side, side),)
        shortest = max(self.step, math.ceil(self.resolution * _SHORTEST / self.step) * self.step)
        longest = max(side, int(self.resolution * _LONGEST) // self.step * self.step)
        found = {(side, side)}
        for long in range(side, longest + 1, self.step):
            short = self.resolution**2 // long // self.step * self.step
            if short >= min(shortest, side):
                found |= {(long, short), (short, long)}
        return tuple(sorted(found))

    def fit(self, width: int, height: int, focus: Point | None = None) -> Crop:
        """Where an image of this size (upright, pixels) belongs: the bucket of the nearest aspect ratio.

        What is kept lies around `focus`, or else in the middle; with `crop` "none" nothing is cut, and the bucket is
        padded. The bucket itself hangs on neither.

        Without `upscale`, an image that does not fill that bucket gets one of its own: each side of the bucket that
        is longer than the image is shortened to the greatest multiple of `step` within the image. An image with a
        side below one step is enlarged until that side is one step; less the UNet cannot take.
        """
        ratio = math.log(width / height)
        # of equally near ones the larger, then the wider, so that the choice does not hang on the order of the list
        shape = min(self.shapes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - ratio), 9), -s[0] * s[1], -s[0]))
        if not self.upscale:
            shape = (self._within(shape[0], width), self._within(shape[1], height))
            if not self.keep_shape:
                shape = (min(shape), min(shape))
        if self.crop == "none":
            return _contain(width, height, shape)
        return _cover(width, height, shape, focus)

    def enlarges(self, width: int, height: int) -> bool:
        """Whether an image of this size can only be used by enlarging it although `upscale` is off."""
        return not self.upscale and min(width, height) < self.step

    def _within(self, side: int, available: int) -> int:
        return max(self.step, min(side, available // self.step * self.step))


def _cover(width: int, height: int, shape: tuple[int, int], focus: Point | None) -> Crop:
    """The smallest scaling of the image that covers the shape, cut around the focus as far as the edges allow."""
    scale = max(shape[0] / width, shape[1] / height)
    resized = (max(shape[0], round(width * scale)), max(shape[1], round(height * scale)))
    share = focus or (0.5, 0.5)
    left, top = (
        min(max(0, math.floor(at * whole - part / 2)), whole - part)
        for at, whole, part in zip(share, resized, shape, strict=True)
    )
    return Crop(resized, left, top, *shape)


def _contain(width: int, height: int, shape: tuple[int, int]) -> Crop:
    """The largest scaling of the image that fits into the shape, in the middle of it.

    Padding before the image is a multiple of a cell, so that the fewest cells are neither image nor padding.
    """
    scale = min(shape[0] / width, shape[1] / height)
    resized = (min(shape[0], max(1, round(width * scale))), min(shape[1], max(1, round(height * scale))))
    left, top = ((whole - part) // 2 // CELL * CELL for whole, part in zip(shape, resized, strict=True))
    return Crop(resized, -left, -top, *shape)
