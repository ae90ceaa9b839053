"""What is told and noted where a job broke off by an error."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from datetime import datetime

from lora_trainer.jobs.job import Job

_log = logging.getLogger(__name__)


def note_trace(job: Job, error: BaseException) -> None:
    """Put the error's trace into the console and, of a training, into its log."""
    _log.error("The job %s broke off.", job.name, exc_info=error)
    log = job.training.files.log if job.training else None
    if log and log.is_file():
        with suppress(OSError), log.open("a", encoding="utf-8") as file:  # the console has it in any case
            file.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} the training broke off:\n")
            file.writelines(traceback.format_exception(error))


def unforeseen(error: BaseException, job: Job) -> str:
    """A sentence on an error that no other place has put into words."""
    from lora_trainer.train.memory import is_out_of_memory  # imports torch
    from lora_trainer.train.told import in_words
    from lora_trainer.weights.write import NO_ROOM

    if is_out_of_memory(error) and job.training is None:
        return "Out of memory; choose a smaller model, or close what else uses the device."
    if is_out_of_memory(error):
        return (
            "Out of memory before the first step, while images, captions and LoRA were made ready; lower resolution or "
            "network.rank, or close what else uses the device."
        )
    told, what = in_words(error).rstrip("."), "The training" if job.training else "The work"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{what} broke off because the disk is full ({told}); free some space, then start it again."
    if isinstance(error, OSError):
        return (
            f"{what} broke off because a file could not be read or written ({told}); look whether it and its "
            "drive are there and open to you, then start it again."
        )
    return f"{what} broke off by an error that nobody foresaw ({told}); the console and the log have its trace."


def with_saved(job: Job, text: str) -> str:
    """The error with what is left of the work."""
    if job.resumable_from is not None:
        return f"{text} What was learnt up to step {job.resumable_from} is saved; Resume goes on from there."
    newest = next(reversed(job.files), None)
    return f"{text} What was learnt is in {newest}." if newest else text
