"""Images to the tensors that vision models of the CLIP tradition were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# Mean and deviation of CLIP's training images, channels R G B of 0..1 (openai/CLIP, clip/clip.py, _transform).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class Look(NamedTuple):
    """How a model sees images."""

    height: int  # pixels
    width: int
    fit: Literal["squash", "shortest"]  # stretched to the size, or its middle cut out
    resample: int = Image.Resampling.BICUBIC
    mean: tuple[float, ...] = CLIP_MEAN
    deviation: tuple[float, ...] = CLIP_DEVIATION


def pixels(images: Sequence[Image.Image], look: Look) -> Tensor:
    """Images as (B, 3, height, width) float32, normalised.

    Done here and not by the libraries' own image processors, because which of them there are (for numpy, PIL or
    torchvision) changes between the releases that hosts ship; the tests compare with them.
    """
    import torch

    resample = Image.Resampling(look.resample)
    seen = np.stack([np.asarray(_fitted(image.convert("RGB"), look, resample), dtype=np.float32) for image in images])
    scaled = (seen / 255.0 - np.array(look.mean, np.float32)) / np.array(look.deviation, np.float32)
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), dtype=np.float32))


def _fitted(image: Image.Image, look: Look, resample: Image.Resampling) -> Image.Image:
    if look.fit == "squash":
        return image.resize((look.width, look.height), resample)
    side = min(look.width, look.height)
    short = min(image.size)
    # Truncated, and the middle rounded, as torchvision's Resize and CenterCrop do.
    image = image.resize((int(side * image.width / short), int(side * image.height / short)), resample)
    left, top = round((image.width - look.width) / 2), round((image.height - look.height) / 2)
    return image.crop((left, top, left + look.width, top + look.height))
