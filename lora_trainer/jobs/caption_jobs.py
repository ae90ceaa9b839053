"""Captioning as a job, in the same queue as trainings: of any folder, or of a data set that is open."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_trainer.captioners.models import KNOWN
from lora_trainer.captioners.registry import HOSTED, Listed, listed
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.config.load import load_as
from lora_trainer.contracts import Control, Event, Finished, Host, PlainError, Told
from lora_trainer.data.caption_sources import TABLES
from lora_trainer.data.workshop.opened import Workshop
from lora_trainer.jobs.captioning import Plan, caption_folder, captioner_for, plan_captions
from lora_trainer.jobs.data_sets import DataSets
from lora_trainer.jobs.limits import check_allowed, check_fetching, paths_for
from lora_trainer.jobs.tasks import Chore

DEMO = "demo"  # the embedded captioner, which knows the drawn scenes of the demo and nothing else
SAVE_EVERY = 3.0  # seconds: so often those who look at the data set see new captions

_ENDINGS = {"csv": TABLES[0], "txt": ".txt", "caption": ".caption"}  # the option `format` as a data set has it
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # on the Hugging Face hub


def captioners(host: Host) -> list[Listed]:
    """Every captioner that can be named."""
    own = Listed(DEMO, "Demo, for its drawn scenes only", "sentences", True, "", "", False)
    return [*listed(Path(CaptionConfig().models), host.captioners()), own]


def caption_chore(raw: Mapping[str, Any], data_sets: DataSets, *, by_page: bool) -> Chore:
    """The captioning that is asked for, ready for the queue. Raises ConfigError and PlainError.

    `raw` holds settings of `CaptionConfig`, and the id of an open data set as `dataset` in the place of its folder.
    """
    given = dict(raw)
    id = given.pop("dataset", None)
    config = load_as(CaptionConfig, given)
    host = data_sets.host
    workshop = _workshop(data_sets, id) if id is not None else None
    if workshop:
        if config.input or config.output:
            raise PlainError("dataset names the folder and where its captions go already; leave input and output out.")
        formats = {ending: name for name, ending in _ENDINGS.items()}
        config = replace(config, input=str(workshop.folder), format=config.format or formats[workshop.format])
        if workshop.metadata and config.format == "csv":
            config = replace(config, output=str(workshop.metadata))
    _check_paths(config, host, by_page=by_page, opened=workshop is not None)
    plan = plan_captions(config, in_step=workshop is not None)
    if not config.download:  # else a model that is not there would be fetched now
        captioner_for(config, host).close()

    def start(host: Host, control: Control) -> Iterator[Event]:
        return _in_step(config, host, control, workshop) if workshop else caption_folder(config, host, control)

    return Chore("captions", plan.scan.folder.name, len(plan.work), start, config.trigger)


def _workshop(data_sets: DataSets, id: object) -> Workshop:
    try:
        return data_sets.of(str(id)).workshop
    except KeyError as error:
        raise PlainError(
            f"dataset is {id!r:.100}, but no data set of that id is open; open its folder first."
        ) from error


def _check_paths(config: CaptionConfig, host: Host, *, by_page: bool, opened: bool) -> None:
    """Raise PlainError where a request names a file or folder that it may not; those of an open data set it may."""
    paths = paths_for(host, by_page=by_page)
    named = [("models", config.models)] if config.models != CaptionConfig().models else []
    if not opened:
        named += [(what, path) for what, path in (("input", config.input), ("output", config.output)) if path]
    model = config.model
    if model not in (*KNOWN, *HOSTED, DEMO) and (not _REPOSITORY.fullmatch(model) or Path(model).exists()):
        named.append(("model", model))
    if len(config.tags) == 1 and (config.tags[0].endswith(".txt") or Path(config.tags[0]).expanduser().is_file()):
        named.append(("tags", config.tags[0]))  # a file with tags, then
    for what, path in named:
        check_allowed(path, paths, what)
    if config.download and model not in (*KNOWN, *HOSTED, DEMO) and not Path(model).expanduser().exists():
        check_fetching(paths, "download")  # those that are known are few, and of known sizes


def _in_step(config: CaptionConfig, host: Host, control: Control, workshop: Workshop) -> Iterator[Event]:
    """Into an open data set: written wherever an image has a caption, as one step that can be undone."""
    shelves = list[_Shelf]()

    def shelf(plan: Plan) -> _Shelf:
        shelves.append(_Shelf(workshop, plan, config))
        return shelves[0]

    for event in caption_folder(config, host, control, shelf):
        left = shelves[0].left if shelves else []
        if isinstance(event, Finished) and left:
            yield Told(
                f"{len(left)} images are gone, or were given another caption meanwhile, and are left as they are, such "
                f"as {left[0]}.", "warning",
            )  # fmt: skip
        yield event


class _Shelf:
    """Implements `CaptionFiles` for an open data set."""

    def __init__(self, workshop: Workshop, plan: Plan, config: CaptionConfig) -> None:
        self._workshop = workshop
        self._seen = {item.name: item.caption for item in plan.work}
        self._model = config.model
        self._new_in = _ENDINGS[config.format or "csv"]
        self._work = f"captions {time.time_ns()}"
        self._waiting: dict[str, str] = {}
        self._written = 0
        self._saved = time.monotonic()
        self.left: list[str] = []  # images that are gone, or that somebody else gave a caption

    def put(self, name: str, caption: str) -> None:
        """Take it, and write all that were taken if the last time is long ago."""
        self._waiting[name] = caption
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write what was taken. Raises PlainError."""
        if self._waiting:
            captions, self._waiting = self._waiting, {}
            self._written += len(captions)
            what = f"{self._written} captions written by {self._model}."
            self.left += self._workshop.describe(captions, self._seen, what=what, work=self._work, new_in=self._new_in)
        self._saved = time.monotonic()
