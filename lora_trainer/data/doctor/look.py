"""What one look at an image file tells: its content's digest, its likeness, sharpness, transparency and colour."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lora_trainer.contracts import PlainError
from lora_trainer.data.images import load_small

# Pixels of the longest side at which pictures are judged: the smallest resolution that people train at, so that a
# photograph which is soft at its full size and sharp at this one counts as sharp.
SIDE = 512

_BLUR_TAPS = 9  # Crete et al. 2007, section 3: pixels over which the picture is blurred once more
_TILES = 4  # in each direction
_LIKENESS_SIDE = 32  # Zauner 2010, section 3.2.1: the picture is reduced to 32 x 32
_LIKENESS_TERMS = 8  # and the 8 x 8 lowest frequencies of it are kept
_FLAT = 0.5 * _LIKENESS_SIDE**2  # a wave of half a grey step, of 255, through the whole picture
_TONES_SIDE = 4
# Most that the channels of a grey picture's pixel differ, of 255; the chroma that JPEG leaves in grey stays below.
_GREY_CHROMA = 12
_GREY_SHARE = 99  # per cent of the pixels that have to be so


class Look(NamedTuple):
    """What was seen of one file; `fault` says why nothing was."""

    digest: str  # SHA-256 of its bytes
    likeness: int  # 64-bit perceptual hash: pictures that look alike differ in few bits; 0 where nothing is to be seen
    tones: str  # hex of 4 x 4 RGB colours, which the likeness knows nothing of
    blur: float  # 0 sharp .. 1 blurred
    transparent: float  # share of pixels that are not opaque
    turned: bool  # by its EXIF orientation
    grey: bool
    width: int = 0  # pixels, upright
    height: int = 0
    fault: str = ""  # a sentence


def look_at(path: Path) -> Look:
    """Read the file once and judge what is in it; one that cannot be read gives a Look with its fault."""
    try:
        data = path.read_bytes()
    except OSError as error:
        told = f"{path} cannot be read ({error.strerror}): change its permissions or take it out of the folder."
        return _blind("", told)
    digest = hashlib.sha256(data).hexdigest()
    try:
        small = load_small(data, path, SIDE)
    except PlainError as error:
        return _blind(digest, str(error))
    values = np.asarray(small.image.convert("L"), dtype=np.float32)
    return Look(
        digest, likeness_of(small.image), _tones(small.image), blur_of(values), round(small.transparent, 4),
        small.turned, _is_grey(small.image), *small.size,
    )  # fmt: skip


def _blind(digest: str, fault: str) -> Look:
    return Look(digest, 0, "", 0.0, 0.0, False, False, fault=fault)


# --- sharpness -------------------------------------------------------------------------------------------------------


def blur_of(grey: np.ndarray) -> float:
    """How blurred a picture is, 0 to 1, from its grey values (H, W): blurring it once more changes a blurred one less.

    The measure of Crete, Dolmiere, Ladret and Nicolas, "The blur effect: perception and estimation with a new
    no-reference perceptual blur metric" (SPIE 6492, 2007), which unlike the variance of the Laplacian does not hang
    on contrast: a flat drawing with crisp lines is sharp. We depart in one thing: it is taken for each of 4 x 4 tiles,
    and the sharpest of those with at least the mean variation counts, because a portrait before a soft background is
    a sharp picture. A picture without any variation, or too small to be blurred, counts as sharp.
    """
    if min(grey.shape) < _TILES * _BLUR_TAPS:
        return 0.0
    both = [_variation(grey), [tiles.T for tiles in _variation(np.ascontiguousarray(grey.T))]]
    before = np.stack([first for first, _ in both])  # (2, tiles, tiles): across, down
    lost = np.stack([second for _, second in both])
    total = before.sum(axis=0)
    told = total >= max(float(total.mean()), 1e-6)
    if not told.any():
        return 0.0
    shares = 1 - lost / np.maximum(before, 1e-6)
    return round(float(shares.max(axis=0)[told].min().clip(0, 1)), 3)


def _variation(grey: np.ndarray) -> list[np.ndarray]:
    """Sums by tile of the differences between neighbours in a row, and of how much of them blurring takes away."""
    half = _BLUR_TAPS // 2
    padded = np.pad(grey, ((0, 0), (half + 1, half)), mode="edge").cumsum(axis=1, dtype=np.float64)
    blurred = (padded[:, _BLUR_TAPS:] - padded[:, :-_BLUR_TAPS]) / _BLUR_TAPS
    before = np.abs(np.diff(grey, axis=1))
    lost = np.maximum(before - np.abs(np.diff(blurred, axis=1)), 0)
    return [_by_tile(before), _by_tile(lost)]


def _by_tile(values: np.ndarray) -> np.ndarray:
    rows = [len(values) * number // _TILES for number in range(_TILES)]
    columns = [values.shape[1] * number // _TILES for number in range(_TILES)]
    return np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)


# --- likeness --------------------------------------------------------------------------------------------------------


def likeness_of(image: Image.Image) -> int:
    """64-bit perceptual hash: which of the lowest frequencies of the grey picture are above their median.

    Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), section 3.2.1 (DCT hash). The
    constant term is left out, so one bit is always 0. Bits stand so that each of the four 16-bit pieces holds high and
    low frequencies: pieces of low ones alone would be the same in many pictures. 0 for a picture of one shade, of
    which the hash would be noise.
    """
    reduced = image.convert("L").resize((_LIKENESS_SIDE, _LIKENESS_SIDE), Image.Resampling.BOX)
    rows = _cosines()
    terms = (rows @ np.asarray(reduced, dtype=np.float64) @ rows.T).reshape(-1)
    if np.abs(terms[1:]).max() < _FLAT:
        return 0
    above = terms > np.median(terms[1:])
    above[0] = False
    spread = above.reshape(16, 4).T.reshape(-1)
    return int.from_bytes(np.packbits(spread).tobytes(), "big")


@cache
def _cosines() -> np.ndarray:
    """The first rows of the cosine transform (DCT-II), (8, 32)."""
    terms = np.arange(_LIKENESS_TERMS)[:, None]
    places = (np.arange(_LIKENESS_SIDE) + 0.5) / _LIKENESS_SIDE
    return np.cos(np.pi * terms * places)


def _tones(image: Image.Image) -> str:
    return image.resize((_TONES_SIDE, _TONES_SIDE), Image.Resampling.BOX).tobytes().hex()


def _is_grey(image: Image.Image) -> bool:
    values = np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.int16)
    chroma = values.max(axis=-1) - values.min(axis=-1)
    return bool(np.percentile(chroma, _GREY_SHARE) <= _GREY_CHROMA)
