"""Image files of any kind to upright 8-bit RGB."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image

from lora_trainer.contracts import PlainError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif")

OTHER_ENDINGS = (  # of pictures that are not read
    ".heic", ".heif", ".jxl", ".jp2", ".psd", ".raw", ".dng", ".cr2", ".nef", ".arw", ".svg", ".tga", ".ico",
)  # fmt: skip

# Pillow chooses its reader by content, not by ending; without this list a ".png" could start its PostScript reader,
# which runs an external interpreter.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")

# Twice Pillow's own warning mark of a quarter GiB of RGB, the size at which it raises DecompressionBombError. Asked
# here once more because hosts raise or clear Pillow's process-wide limit.
PIXEL_LIMIT = 2 * (1024 * 1024 * 1024 // 4 // 3)

# What Pillow's readers raise on damaged or hostile files; it does not wrap them in one class.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    EOFError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

WHITE, BLACK = (255, 255, 255), (0, 0, 0)

_ORIENTATION = 0x0112  # EXIF 2.3, table 4: 1 upright, 5 to 8 lie on their side
_SIDEWAYS = (5, 6, 7, 8)
_UPRIGHT_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257  # TIFF 6.0, section 8


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as the image is seen upright, from the file's header alone.

    Raises PlainError for a file that is no image, is damaged in its header, or is too large.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            _refuse_bomb(image)
            return _upright_size(image)
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


@contextmanager
def header(path: Path) -> Iterator[Image.Image]:
    """The image with its header read, and no pixel yet. Raises PlainError that names the file if it is damaged."""
    try:
        with Image.open(path, formats=_formats()) as image:
            yield image
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


def load_rgb(path: Path, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    """The image upright, in 8-bit RGB.

    Turned as its EXIF orientation says; transparent parts are laid on `ground`; of an animation the first frame; 16-bit
    and floating-point grey is scaled to 8 bits. Raises PlainError that names the file if it is damaged, cut short or
    too large.
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            _refuse_bomb(image)
            # The TIFF reader turns the pixels itself while loading, in every release since Pillow 6.
            turn = 1 if image.format == "TIFF" else _orientation(image)
            image.load()
            upright = _to_rgb(image, ground)
            return upright.transpose(_UPRIGHT_BY[turn]) if turn in _UPRIGHT_BY else upright
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


class Small(NamedTuple):
    """An image made small to be judged, and what is lost on the way to it."""

    image: Image.Image  # upright, 8-bit RGB
    size: tuple[int, int]  # of the whole image, as `image_size` gives it
    transparent: float  # share of its pixels that are not wholly opaque
    turned: bool  # whether its EXIF orientation is another than upright


def load_small(data: bytes, path: Path, side: int, ground: tuple[int, int, int] = WHITE) -> Small:
    """The image in a file's bytes, no side longer than `side` pixels; never enlarged. Transparent parts are laid on
    `ground`.

    Read to its end, so that one cut short is found, but JPEG is decoded at a fraction of its size. Raises PlainError
    that names the file (`path`) as `load_rgb` does.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            _refuse_bomb(image)
            size, turn = _upright_size(image), _orientation(image)
            image.draft(None, (side, side))  # pyright: ignore[reportArgumentType]  # its stubs know no None in Pillow 9
            image.load()
            transparent = _transparent(image)
            small = _to_rgb(image, ground)
            small.thumbnail((side, side), Image.Resampling.BICUBIC)
            # the TIFF reader has turned the pixels itself
            upright = small.transpose(_UPRIGHT_BY[turn]) if turn in _UPRIGHT_BY and image.format != "TIFF" else small
            return Small(upright, size, transparent, turn in _UPRIGHT_BY)
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


def load_alpha(path: Path) -> Image.Image:
    """How opaque each pixel of the image is, upright, 8-bit grey: 255 is wholly so. Raises PlainError as `load_rgb`."""
    try:
        with Image.open(path, formats=_formats()) as image:
            _refuse_bomb(image)
            turn = 1 if image.format == "TIFF" else _orientation(image)
            image.load()
            alpha = image.convert("RGBA").getchannel("A") if _has_alpha(image) else Image.new("L", image.size, 255)
            return alpha.transpose(_UPRIGHT_BY[turn]) if turn in _UPRIGHT_BY else alpha
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


def load_grey(path: Path) -> Image.Image:
    """A mask: the image upright, in 8-bit grey; transparent parts of it are black. Raises PlainError as `load_rgb`."""
    return load_rgb(path, BLACK).convert("L")


def has_alpha(path: Path) -> bool:
    """Whether the image can have transparent parts, from its header alone. Raises PlainError as `image_size`."""
    try:
        with Image.open(path, formats=_formats()) as image:
            return _has_alpha(image)
    except _DAMAGED as error:
        raise PlainError(_sentence(path, error)) from error


def _transparent(image: Image.Image) -> float:
    if not _has_alpha(image):
        return 0.0
    alpha = image.convert("RGBA").getchannel("A").histogram()
    return 1 - alpha[255] / sum(alpha)


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _formats() -> tuple[str, ...]:
    """Those formats that the installed Pillow can read: naming another one makes Image.open raise KeyError."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _refuse_bomb(image: Image.Image) -> None:
    if image.width * image.height > PIXEL_LIMIT:
        raise Image.DecompressionBombError


def _upright_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":  # readers differ in whether `size` is already turned; the tags are the file's own
        tags = image.tag_v2  # type: ignore[attr-defined]
        width, height = int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT])
    else:
        width, height = image.size
    return (height, width) if _orientation(image) in _SIDEWAYS else (width, height)


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info and "Raw profile type exif" not in image.info:
        return 1  # getexif would decode the whole image in search of a late chunk
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, struct.error):
        return 1  # damaged EXIF says nothing, and the pixels are whole all the same


def _to_rgb(image: Image.Image, ground: tuple[int, int, int] = WHITE) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _scaled_grey(image).convert("RGB")
    if _has_alpha(image):
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*ground, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _scaled_grey(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits to 8; Pillow's own convert() cuts values off at 255 instead."""
    values = np.asarray(image).astype(np.float64)
    if image.mode.startswith("I;16"):
        top = 65535.0
    else:  # 32-bit modes do not tell their range: take the smallest usual one that holds every value
        tops = (65535.0, 2.0**31 - 1) if image.mode == "I" else (1.0, 255.0, 65535.0, float(np.nanmax(values)))
        top = next((top for top in tops if values.max() <= top), tops[-1])
    return Image.fromarray(np.rint(np.nan_to_num(values).clip(0, top) * (255.0 / top)).astype(np.uint8), mode="L")


def _sentence(path: Path, error: BaseException) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"{path.name} has more than {PIXEL_LIMIT // 10**6} million pixels, which no training image needs: "
            "scale it down or take it out of the folder."
        )
    if isinstance(error, FileNotFoundError):
        return f"{path} was not found: it has been moved or deleted since the folder was read."
    if isinstance(error, PermissionError):
        return f"{path} may not be read: change its permissions or take it out of the folder."
    if isinstance(error, Image.UnidentifiedImageError) and path.suffix.lower() == ".avif" and "AVIF" not in Image.OPEN:
        return f"{path.name} needs Pillow 11.3 or newer, and {PIL.__version__} is installed: save it as PNG or JPEG."
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path.name} is not an image that can be read: replace it or take it out of the folder."
    return f"{path.name} is damaged or cut short ({error}): replace it or take it out of the folder."
