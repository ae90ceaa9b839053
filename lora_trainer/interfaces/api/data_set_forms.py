"""The JSON forms of opened data sets and their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lora_trainer.interfaces.api.forms import check_form
from lora_trainer.jobs.events import jsonable

if TYPE_CHECKING:  # importing the workshop costs a moment, which the host's start must not pay
    from lora_trainer.jobs.data_sets import Opened, Shown

TOKENS = 75  # of a caption that a text encoder reads at once


def data_set_form(opened: Opened) -> dict[str, Any]:
    """A data set as `GET datasets/{id}` tells it; before it is read, and where it cannot be, without its content."""
    workshop = opened.workshop
    found = workshop.snapshot.scan if workshop.state == "ready" else None
    focused, warnings = opened.focused() if found else (0, [])
    return jsonable({
        "id": opened.id,
        "folder": workshop.folder,
        "state": workshop.state,
        "message": workshop.message,
        "images": len(found.items) if found else 0,
        "captioned": len(found.items) - len(found.missing_captions) if found else 0,
        "done": len(found.items) if found else workshop.seen,
        "revision": workshop.revision,
        "format": workshop.format if found else None,
        "formats": workshop.formats if found else [],
        "warnings": [*found.warnings, *warnings] if found else [],
        "writable": workshop.writable,
        "trigger": workshop.trigger,
        "token_limit": TOKENS,
        "can_undo": workshop.can_undo,
        "can_redo": workshop.can_redo,
        "masks": sum(item.mask is not None for item in found.items) if found else 0,
        "focused": focused,
    })  # fmt: skip


def image_form(image: Shown, opened: Opened, root: str) -> dict[str, Any]:
    """An image as `GET datasets/{id}/images` tells it; `root` is what stands before its addresses."""
    addresses = {
        "thumb": thumb_address(root, opened, image.name),
        "picture": _address(root, opened, "pictures", image.name),
    }
    crop = {"bucket": image.crop.size, **image.crop.kept._asdict()}
    framed = {"mask": image.mask, "focus": image.focus, "crop": crop}
    told = {name: value for name, value in image._asdict().items() if name not in framed}
    return jsonable(told | addresses | framed)


def open_check_form(opened: Opened, root: str) -> dict[str, Any]:
    """What is wrong as `GET datasets/{id}/check` tells it: as `POST check`, with an address for each named image."""
    report = opened.check()
    form = check_form(report)
    known = opened.workshop.snapshot.paths
    lists = [names for finding in form["findings"] for names in (finding["images"], *finding["groups"])]
    names = dict.fromkeys(name for names in lists for name in names)
    thumbs = {name: thumb_address(root, opened, name) for name in names if name in known}
    return form | {"thumbs": thumbs, "revision": opened.workshop.revision}


def thumb_address(root: str, opened: Opened, name: str) -> str:
    """Where an image's small picture is to be had; another address once the image changes."""
    return _address(root, opened, "thumbs", name)


def _address(root: str, opened: Opened, kind: str, name: str) -> str:
    return f"{root}/datasets/{opened.id}/{kind}/{quote(name, errors='surrogatepass')}?v={opened.mark(name)}"
