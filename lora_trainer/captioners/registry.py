"""Which captioners there are, and one of them made from the options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lora_trainer.captioners.models import KNOWN, Known
from lora_trainer.captioners.places import Place, found_place, place_of
from lora_trainer.captioners.wording import wanted
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Captioner, HostCaptioner, PlainError

if TYPE_CHECKING:
    import torch

HOSTED = ("host", "deepbooru")  # names of a WebUI's own

_HOSTED_TITLES = {"host": "BLIP of the WebUI", "deepbooru": "DeepBooru of the WebUI"}


class Listed(NamedTuple):
    """A captioner to pick from."""

    name: str
    title: str
    makes: Literal["sentences", "tags"]
    here: bool  # whether it can describe now, with nothing to be fetched
    size: str  # of what must be there, or be fetched; "" for a WebUI's own that is there
    where: str  # where its model lies, or should be put; "" for a WebUI's own that is there
    hosted: bool  # a WebUI's own


def listed(models: Path, hosted: Sequence[HostCaptioner] = ()) -> list[Listed]:
    """Every captioner that has a name: the host's own first, for they are at hand. `models` is the folder of models."""
    return [*map(_hosted, hosted), *(_known(name, known, models) for name, known in KNOWN.items())]


def _hosted(one: HostCaptioner) -> Listed:
    lack = one.lacks()
    size, where = (lack.size, lack.where) if lack else ("", "")
    return Listed(one.name, _HOSTED_TITLES.get(one.name, one.name), one.makes, lack is None, size, where, True)


def _known(name: str, known: Known, models: Path) -> Listed:
    place = found_place(name, models)
    makes: Literal["sentences", "tags"] = "sentences" if known.kind in ("blip", "coca") else "tags"
    where = place.folder if place else models / name
    return Listed(name, known.title, makes, place is not None, known.size, str(where.absolute()), False)


def captioner_of(config: CaptionConfig, device: torch.device, hosted: Sequence[HostCaptioner] = ()) -> Captioner:
    """The captioner that the options name; its model is found now, and loaded with the first caption.

    Raises PlainError where there is none of this name, or its model is not there.
    """
    for one in hosted:
        if one.name == config.model:
            lack = None if config.download else one.lacks()
            if lack:
                raise PlainError(lack.sentence)
            return one
    if config.model in HOSTED:
        raise PlainError(
            f"The captioner {config.model} is a WebUI's own and works inside of one; here choose one of "
            f"{', '.join(KNOWN)}."
        )
    return _made(place_of(config.model, Path(config.models).expanduser()), config, device)


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
