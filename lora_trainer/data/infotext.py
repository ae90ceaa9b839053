"""The prompt that a picture was drawn with, as a WebUI writes it into the file, made a caption.

Facts of the format from AUTOMATIC1111's WebUI v1.10.1: modules/images.py (`read_info_from_image`: PNG text
"parameters", else the EXIF comment, else a GIF's), modules/infotext_utils.py (`parse_generation_parameters`) and
modules/extra_networks.py (`re_extra_net`).
"""

from __future__ import annotations

import re
from pathlib import Path

from lora_trainer.contracts import PlainError
from lora_trainer.data.captions import one_line
from lora_trainer.data.images import header

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, tables 3 and 4
_CODE = 8  # bytes before the comment that name its encoding: EXIF 2.3, table 9
_NETWORK = re.compile(r"<\w+:[^>]+>")  # <lora:name:0.8>, <hypernet:name:1>
_PARAMETER = re.compile(r'\s*\w[\w /-]+:\s*(?:"(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_FEWEST = 3  # parameters that make a line one of settings
_NEGATIVE = "Negative prompt:"


def infotext(path: Path) -> str:
    """What a WebUI wrote into the picture when it drew it; "" where there is nothing, or nothing that can be read."""
    try:
        with header(path) as image:
            written = image.info.get("parameters")
            if isinstance(written, str):
                return written
            exif = image.getexif() if image.info.get("exif") else None
            comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT, b"") if exif else b""
            if not comment and image.format == "GIF":
                comment = image.info.get("comment", b"")
            return _decoded(comment)
    except PlainError:
        return ""


def prompt_of(text: str) -> str:
    """The positive prompt of an infotext as one line, without the networks that it calls; "" where there is none."""
    lines = text.strip().split("\n")
    if len(_PARAMETER.findall(lines[-1])) >= _FEWEST:
        lines = lines[:-1]
    negative = next((number for number, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    return without_networks("\n".join(lines[:negative]))


def without_networks(prompt: str) -> str:
    """A prompt as one line, without <lora:...> and the like, nor the commas that stood between these."""
    if not _NETWORK.search(prompt):
        return one_line(prompt)
    parts = (one_line(part) for part in _NETWORK.sub("", prompt).split(","))
    return ", ".join(part for part in parts if part)


def _decoded(comment: bytes | str) -> str:
    if isinstance(comment, str):
        return comment
    code, text = comment[:_CODE], comment[_CODE:]
    if code.startswith(b"UNICODE"):  # the standard names no byte order; the WebUI's library writes the larger end first
        little = text[:2] == b"\xff\xfe" or (len(text) > 1 and text[0] and not text[1])
        return text.decode("utf-16-le" if little else "utf-16-be", errors="replace").lstrip("\ufeff")
    if code.startswith(b"ASCII"):
        return text.decode("utf-8", errors="replace")
    return comment.decode("utf-8", errors="ignore").strip("\0")
