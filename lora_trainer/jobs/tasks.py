"""What a job does, as it was resolved when it was submitted: a training, or a chore that takes its turn among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

from lora_trainer.config.load import dump, load
from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Control, Event, Host
from lora_trainer.jobs.files import RunFiles, files_at

Kind = Literal["training", "captions", "class_images", "answers", "plain", "model"]
ChoreKind = Literal["captions", "class_images", "answers", "plain", "model"]
CHORES: tuple[ChoreKind, ...] = get_args(ChoreKind)


class Place(NamedTuple):
    """A run's place in a sweep."""

    sweep: str  # the same for all its runs
    values: dict[str, Any]  # what varies, by path


@dataclass(frozen=True)
class Training:
    """A run, with a state to go on from."""

    kind: ClassVar[Kind] = "training"
    config: RunConfig  # with the name under which it really writes
    files: RunFiles
    steps: int
    resolution: int  # pixels
    pace: str  # runs that take as long a step, by `estimate.kind_of`
    resume: bool = False
    place: Place | None = None  # None: no part of a sweep
    shape: str = ""  # runs that take as much memory, by `foresight.shape_of`

    @property
    def name(self) -> str:
        """Name of the LoRA, without folder and ending."""
        return self.files.name

    @property
    def trigger(self) -> str:
        """Word that the LoRA is called by."""
        return self.config.data.trigger

    def course(self, host: Host, control: Control) -> Iterator[Event]:
        """The run, event by event."""
        from lora_trainer.jobs.run import run

        return run(self.config, host=host, control=control, resume=self.resume)

    def record(self) -> dict[str, Any]:
        """What `training_of` wants, as JSON values."""
        return {
            "config": dump(self.config), "name": self.name, "folder": str(self.files.folder.absolute()),
            "work": str(self.files.work.absolute()), "steps": self.steps, "resolution": self.resolution,
            "kind": self.pace, "shape": self.shape, "place": self.place and [self.place.sweep, self.place.values],
        }  # fmt: skip


@dataclass(frozen=True)
class Chore:
    """Work that takes its turn among trainings, such as describing images; it ends for good, and is ordered anew."""

    kind: ChoreKind
    name: str  # to be shown; such as that of the folder
    steps: int  # images; of "plain" modules, of "model" MB as it is told
    start: Callable[[Host, Control], Iterator[Event]] | None = None  # None: of an earlier server
    trigger: str = ""

    def course(self, host: Host, control: Control) -> Iterator[Event]:
        """The work, event by event; `Prepared` tells how far it is. The last one is Finished."""
        return self.start(host, control) if self.start else iter(())

    def record(self) -> dict[str, Any]:
        """What `task_of` wants, as JSON values."""
        return {"chore": self.kind, "name": self.name, "steps": self.steps, "trigger": self.trigger}


Task = Training | Chore


def task_of(record: Mapping[str, Any]) -> Task:
    """The task of a record. Raises KeyError, TypeError, ValueError and ConfigError for a foreign one."""
    if "chore" in record:
        kind = CHORES[CHORES.index(record["chore"])]  # ValueError for an unknown one
        return Chore(kind, str(record["name"]), int(record["steps"]), trigger=str(record["trigger"]))
    config = load(record["config"])
    files = files_at(Path(record["folder"]), record["name"], Path(record["work"]), config.task)
    place = Place(str(given[0]), dict(given[1])) if (given := record.get("place")) else None
    return Training(config, files, record["steps"], record["resolution"], record["kind"], place=place,
                    shape=record.get("shape", ""))  # fmt: skip
