"""A plain LoRA of what a training made, as a job: for programs that cannot read its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lora_trainer.contracts import Control, Event, Finished, Host, PlainError, Prepared, Saved
from lora_trainer.jobs.export import write_plain
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.lora_files import LoraFile, read
from lora_trainer.jobs.plain import making_plain
from lora_trainer.jobs.plan import base_of
from lora_trainer.jobs.tasks import Chore
from lora_trainer.networks.changes import changes_of

RANK = 32  # where none is asked for: loses little of what ranks up to 16 learn, and the file stays small
_HIGHEST = 1024  # as network.rank


def plain_chore(job: Job, raw: Mapping[str, Any], host: Host) -> Chore:
    """The plain LoRA of the job's newest file, `raw` being {"rank": ...}, ready for the queue. Raises PlainError.

    It is written beside that file under a name that is free.
    """
    rank = raw.get("rank", RANK)
    if raw.keys() - {"rank"} or not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _HIGHEST:
        raise PlainError(f"A plain LoRA takes a rank from 1 to {_HIGHEST} and nothing else; send for example rank: 32.")
    source = next((path for path in reversed(job.files) if path.suffix == ".safetensors"), None)
    if job.training is None or source is None:
        raise PlainError(f"{job.name} has written no LoRA yet that could be made a plain one; train it first.")
    lora = read(source)
    changes = changes_of(lora.state)
    base = _base(job, lora, host) if any(change.needs_base for change in changes.values()) else None
    made = _free(source)

    def start(host: Host, control: Control) -> Iterator[Event]:
        return _course(lora, rank, base, source, made, host, control)

    return Chore("plain", source.stem, len(changes), start)


def _course(
    lora: LoraFile, rank: int, base: Path | None, source: Path, made: Path, host: Host, control: Control
) -> Iterator[Event]:
    making, done = making_plain(lora, rank, base, source.name), 0
    while True:
        try:
            done, total = next(making)
        except StopIteration as ended:
            told = write_plain(ended.value, lora, made, rank)
            host.announce(made)
            yield Saved(done, made, final=True)
            yield Finished("done", done, made, told.replace("\n", " "))
            return
        yield Prepared("layers", done, total)
        if control.take().stop:
            yield Finished("stopped", done, None, "Stopped; nothing was written.")
            return


def _base(job: Job, lora: LoraFile, host: Host) -> Path:
    """The checkpoint the file was trained on, on whose weights its change depends."""
    assert job.training is not None
    lent = base_of(job.training.config.model, host)
    trained_on = Path(lora.metadata.get("ss_sd_model_name", lent.name)).stem
    if lent.path is None or Path(lent.name).stem != trained_on:
        raise PlainError(
            f"{job.name} was trained on {trained_on}, and its change depends on that checkpoint's weights, but "
            f"{lent.name} is loaded; load {trained_on} and try again."
        )
    return lent.path


def _free(source: Path) -> Path:
    """A name beside it that nothing has."""
    endings = ("_plain" if number == 1 else f"_plain_{number}" for number in count(1))
    names = (source.with_name(f"{source.stem}{ending}.safetensors") for ending in endings)
    return next(path for path in names if not path.exists())
