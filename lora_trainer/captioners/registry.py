"""Which captioners there are, and one of them made from the options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_trainer.captioners.models import KNOWN
from lora_trainer.captioners.places import Place, place_of
from lora_trainer.captioners.wording import wanted
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Captioner, PlainError

if TYPE_CHECKING:
    import torch

HOSTED = ("host", "deepbooru")  # names of a WebUI's own


class Listed(NamedTuple):
    """A captioner to pick from."""

    name: str
    size: str  # of what must be there, or be fetched; "" for a WebUI's own, which sees to that itself


def listed(hosted: Sequence[Captioner] = ()) -> list[Listed]:
    """Every captioner that has a name: the host's own first, for they are at hand."""
    return [*(Listed(one.name, "") for one in hosted), *(Listed(name, known.size) for name, known in KNOWN.items())]


def captioner_of(config: CaptionConfig, device: torch.device, hosted: Sequence[Captioner] = ()) -> Captioner:
    """The captioner that the options name; its model is found now, and loaded with the first caption.

    Raises PlainError where there is none of this name, or its model is not there and may not be fetched.
    """
    for one in hosted:
        if one.name == config.model:
            return one
    if config.model in HOSTED:
        raise PlainError(
            f"The captioner {config.model} is a WebUI's own and works inside of one; here choose one of "
            f"{', '.join(KNOWN)}."
        )
    return _made(place_of(config.model, Path(config.models).expanduser(), download=config.download), config, device)


def _made(place: Place, config: CaptionConfig, device: torch.device) -> Captioner:
    name, folder = config.model, place.folder
    if place.kind == "blip":
        from lora_trainer.captioners.blip import Blip

        return Blip(name, folder, device)
    if place.kind == "coca":
        from lora_trainer.captioners.coca import Coca

        return Coca(name, folder, device, place.architecture)
    if place.kind == "clip":
        from lora_trainer.captioners.clip_tags import ClipTags, tags_of

        return ClipTags(
            name, folder, device, wanted(tags_of(config.tags), config), threshold=config.threshold,
            most=config.max_tags, architecture=place.architecture,
        )  # fmt: skip
    from lora_trainer.captioners.wd14 import Wd14

    return Wd14(name, folder, device, threshold=config.threshold, character_threshold=config.character_threshold)
