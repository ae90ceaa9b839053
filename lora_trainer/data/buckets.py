"""Aspect buckets: to which size an image is scaled and cropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from PIL import Image

from lora_trainer.contracts import PlainError

# Shortest and longest side of a bucket as shares of the resolution: 512 and 2048 at 1024 pixels, as in the list of
# training sizes of SDXL (Podell et al. 2023, arXiv 2307.01952, appendix I).
_SHORTEST, _LONGEST = 0.5, 2.0


@dataclass(frozen=True)
class Crop:
    """How an image becomes a training picture: scaled to `resized`, then cut to `width` x `height`; all in pixels."""

    resized: tuple[int, int]  # width, height
    left: int
    top: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the bucket."""
        return self.width, self.height

    def apply(self, image: Image.Image) -> Image.Image:
        """Scale with Lanczos and cut."""
        if image.size != self.resized:
            image = image.resize(self.resized, Image.Resampling.LANCZOS)
        return image.crop((self.left, self.top, self.left + self.width, self.top + self.height))

    def sizes(self, width: int, height: int, mirrored: bool = False) -> tuple[int, int, int, int, int, int]:
        """Original height and width, crop top and left, target height and width: SDXL's size conditioning.

        The original size is the image's before scaling, the crop's corner is counted in the scaled image, as the
        paper defines it (arXiv 2307.01952, section 2.2) and diffusers trains it
        (examples/text_to_image/train_text_to_image_sdxl.py). kohya's sd-scripts gives the offset of the image fitted
        *into* the bucket instead (library/train_util.py, get_crop_ltrb). A mirrored image is cut from its other side.
        """
        left = self.resized[0] - self.width - self.left if mirrored else self.left
        return height, width, self.top, left, self.height, self.width


@dataclass(frozen=True)
class Buckets:
    """The sizes that images may be trained at."""

    resolution: int  # pixels; no bucket has a larger area than its square
    step: int  # pixels; sides are multiples of it
    keep_shape: bool = True  # False: one square for all
    upscale: bool = False  # whether images smaller than their bucket are enlarged to it

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

    def fit(self, width: int, height: int) -> Crop:
        """Where an image of this size (upright, pixels) belongs: the bucket of the nearest aspect ratio.

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
        return _cover(width, height, shape)

    def enlarges(self, width: int, height: int) -> bool:
        """Whether an image of this size can only be used by enlarging it although `upscale` is off."""
        return not self.upscale and min(width, height) < self.step

    def _within(self, side: int, available: int) -> int:
        return max(self.step, min(side, available // self.step * self.step))


def _cover(width: int, height: int, shape: tuple[int, int]) -> Crop:
    """The smallest scaling of the image that covers the shape, cut in the middle."""
    scale = max(shape[0] / width, shape[1] / height)
    resized = (max(shape[0], round(width * scale)), max(shape[1], round(height * scale)))
    return Crop(resized, (resized[0] - shape[0]) // 2, (resized[1] - shape[1]) // 2, *shape)
