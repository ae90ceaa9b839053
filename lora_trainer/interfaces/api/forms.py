"""The JSON forms of jobs, events, plans and faults. Text goes out as it is: whoever shows it makes it harmless."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from starlette.responses import Response

from lora_trainer.config.load import ConfigError
from lora_trainer.contracts import PlainError, Sampled
from lora_trainer.jobs.estimate import sentence
from lora_trainer.jobs.events import Numbered, jsonable, plain
from lora_trainer.jobs.job import Job
from lora_trainer.jobs.tasks import Training

if TYPE_CHECKING:  # importing the engine costs seconds, which the host's start must not pay
    from lora_trainer.jobs.checkup import Report
    from lora_trainer.jobs.planned import RunPlan
    from lora_trainer.jobs.uploads import Taken

_NAMED = 100  # files of a kind that are named one by one


def answer(values: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response. Escaped to ASCII, because a file name may hold what UTF-8 refuses; never NaN."""
    body = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return Response(body, status, {"Cache-Control": "no-store", **(headers or {})}, "application/json")


def faults(error: PlainError) -> list[str]:
    """A sentence for each fault."""
    if isinstance(error, ConfigError):
        return [fault.sentence for fault in error.faults]
    return [str(error)]


def job_form(job: Job) -> dict[str, Any]:
    """A job as `GET jobs/{id}` tells it."""
    status, files = job.status, job.files
    pace, left = status.seconds_per_step, status.total_steps - status.step
    going = status.state in ("running", "paused")
    return jsonable({
        "id": job.id,
        "kind": job.task.kind,
        "name": job.name,
        "state": status.state,
        "step": status.step,
        "total_steps": status.total_steps,
        "loss": status.loss,
        "mean_loss": status.mean_loss,
        "best_validation": status.best_validation,
        "best_step": status.best_step,
        "sweep": _place(job.training) if job.training else None,
        "message": status.message,
        "files": files,
        "seconds_per_step": pace,
        "seconds_left": pace * left if pace is not None and going else None,
        "lora": files[-1].stem if files else None,
        "network": job.training.config.network.kind if job.training else None,
        "sample": _sample(job.training) if job.training else None,
        "trigger": job.task.trigger,
        "resumable": job.resumable,
    })  # fmt: skip


def _place(training: Training) -> dict[str, Any] | None:
    """Which runs it is to be compared with, and in what it differs from them."""
    place = training.place
    return {"id": place.sweep, "values": place.values} if place else None


def _sample(training: Training) -> dict[str, Any] | None:
    """What the LoRA is to be tried with; None where no prompt was given."""
    samples = training.config.samples
    if not samples.prompts:
        return None
    return {"prompt": samples.prompts[0], "seed": samples.seed, "size": samples.size or training.resolution}


def event_form(item: Numbered, images: str) -> dict[str, Any]:
    """An event as `GET jobs/{id}/events` tells it; pictures are named by address, `images` being what stands before."""
    values = {"n": item.n, "at": item.at, **plain(item.event)}
    if isinstance(item.event, Sampled):
        del values["paths"]
        values["images"] = [images + quote(path.name, errors="surrogatepass") for path in item.event.paths]
        if item.event.texts:
            values["images"] = []  # what was said is in the event itself
    return values


def plan_form(plan: RunPlan, seconds: float | None) -> dict[str, Any]:
    """What a run would do, as `POST plan` tells it."""
    return jsonable({
        "choices": [choice._asdict() for choice in plan.choices],
        "notes": plan.notes,
        **plan.summary(),
        "steps": plan.steps,
        "epochs": plan.epochs,
        "seconds": seconds,
        "sentence": sentence(plan, seconds),
    })  # fmt: skip


def check_form(report: Report) -> dict[str, Any]:
    """What is in a folder and wrong with it, as `POST check` tells it; of long lists the first hundred."""
    found = report.scan
    return jsonable({
        "folder": found.folder,
        "images": len(found.items),
        "captioned": len(found.items) - len(found.missing_captions),
        "captions_from": dict(found.sources),
        "captions_missing": found.missing_captions[:_NAMED],
        "rows_without_image": found.rows_without_image[:_NAMED],
        "unreadable": [{"name": bad.path.name, "reason": bad.reason} for bad in found.unreadable[:_NAMED]],
        "warnings": found.warnings,
        "excluded": found.excluded[:_NAMED],
        "looked_at": report.looked_at,
        "findings": report.form(_NAMED),
    })  # fmt: skip


def taken_form(taken: Taken) -> dict[str, Any]:
    """What became of files that were sent, as `POST uploads/{id}/finish` tells it; of long lists the first hundred."""
    return jsonable({
        "folder": taken.folder.absolute(),
        "name": taken.folder.name,
        "pictures": len(taken.pictures),
        "captions": taken.captions,
        "already": len(taken.already),
        "added": taken.pictures[:_NAMED],
        "renamed": dict(list(taken.renamed.items())[:_NAMED]),
        "left": [one._asdict() for one in taken.left[:_NAMED]],
        "left_count": len(taken.left),
    })  # fmt: skip
