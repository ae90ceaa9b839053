"""The jobs of this process: submitted from anywhere, trained one after the other in a thread of their own.

Nothing here is tied to a page or a request, so a job outlives both; what a crash must not take is in a record.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lora_trainer.config.load import load
from lora_trainer.config.options import RunConfig
from lora_trainer.config.sweep import variants
from lora_trainer.contracts import Event, Finished, Host, Judged, PlainError, Told
from lora_trainer.jobs.estimate import Paces, kind_of
from lora_trainer.jobs.faults import note_trace, unforeseen, with_saved
from lora_trainer.jobs.files import RunFiles
from lora_trainer.jobs.foresight import Foreseen, Foresight, shape_of
from lora_trainer.jobs.job import Job, WrongMoment
from lora_trainer.jobs.limits import check_allowed, load_allowed
from lora_trainer.jobs.records import Records
from lora_trainer.jobs.tasks import Chore, Place, Task, Training

if TYPE_CHECKING:  # importing the engine costs seconds, which the host's start must not pay
    from lora_trainer.captioners.registry import Listed
    from lora_trainer.jobs.checkup import Report
    from lora_trainer.jobs.data_sets import DataSets
    from lora_trainer.jobs.plan import Plan
    from lora_trainer.jobs.planned import RunPlan

REMEMBERED = 50  # jobs that are over
LOOKING = 20.0  # seconds that one check looks at pictures: shorter than the patience of browsers and proxies
_log = logging.getLogger(__name__)


class Registry:
    """Takes jobs, trains one at a time, and knows them all. Every method may be called from any thread."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._records = Records((host.paths().runs or Path("output")) / "jobs")
        self._paces = Paces(self._records)
        self._foresight = Foresight(self._records)
        self._jobs: dict[str, Job] = {}  # oldest first
        self._queue: deque[Job] = deque()
        self._worker: threading.Thread | None = None
        self._closing = False
        self._data_sets: DataSets | None = None
        self._news = threading.Condition()  # guards what stands above, and tells the worker of a new job
        self._submitting = threading.Lock()  # two jobs must not find the same name free
        alone = self._records.claim()
        known = [self._recalled(id, record, alone) for id, record in self._records.read_all().items()]
        self._jobs |= {job.id: job for job in sorted(filter(None, known), key=lambda job: job.queued)}

    @property
    def host(self) -> Host:
        """Who is trained in."""
        return self._host

    @property
    def data_sets(self) -> DataSets:
        """The data sets that are open."""
        from lora_trainer.jobs.data_sets import DataSets

        with self._news:
            if self._data_sets is None:
                self._data_sets = DataSets(self._host, lambda: any(job.state == "running" for job in self.jobs()))
            return self._data_sets

    def plan(self, raw: Mapping[str, Any], *, by_page: bool = False) -> RunPlan:
        """What a run of these settings would do; nothing is trained or written. Raises ConfigError and PlainError.

        `by_page` as in `limits.load_allowed`.
        """
        from lora_trainer.jobs.plan import plan_run

        return plan_run(load_allowed(raw, self._host, by_page=by_page), self._host)

    def check(
        self, folder: str, metadata: str | None = None, *, trigger: str = "", resolution: int | None = None
    ) -> Report:
        """What is in a folder of images, and what is wrong with them.

        Pictures are looked at for LOOKING seconds at most, and the next call goes on from there. Raises PlainError.
        """
        from lora_trainer.jobs.checkup import RESOLUTION, Checkup

        for name, path in (("folder", folder), ("metadata", metadata)):
            if path:
                check_allowed(path, self._host.paths(), name)
        table = Path(metadata).expanduser() if metadata else None
        checkup = Checkup(Path(folder).expanduser(), table, trigger=trigger, resolution=resolution or RESOLUTION)
        until = time.monotonic() + LOOKING
        with closing(checkup.look()) as looking:
            for _ in looking:
                if time.monotonic() > until:
                    break
        return checkup.report()

    def seconds(self, plan: RunPlan) -> float | None:
        """Seconds that the run will take, judged by the last one of its kind; None where there was none."""
        pace = self._paces.seconds_per_step(kind_of(plan))
        return None if pace is None else pace * plan.steps

    def memory(self, plan: Plan, *, count: bool) -> Foreseen | None:
        """What memory the run will take; without `count` only where that is known already."""
        return self._foresight.foresee(plan) if count else self._foresight.known(plan)

    def submit(self, raw: Mapping[str, Any], *, resume: bool = False, by_page: bool = False) -> Job:
        """Queue a run; with `resume` it goes on from the newest state found where it writes.

        Raises ConfigError and PlainError at once, as far as the faults can be seen before the run.
        """
        config = load_allowed(raw, self._host, by_page=by_page)
        with self._submitting:
            task, notes = self._task(config, resume)
            former = self._last_of(task.files) if resume else None
            if former:
                former.again(task, raw)
                return self._queued(former, notes)
            return self._queued(self._new(task, raw), notes)

    def sweep(
        self, raw: Mapping[str, Any], *, by_page: bool = False,
        settled: Callable[[dict[str, Any]], dict[str, Any]] = dict[str, Any],
    ) -> list[Job]:  # fmt: skip
        """Queue a run for each combination of the lists in the settings, or the one run where there is none.

        `settled` has the last word on the settings of each run. Raises ConfigError and PlainError before any of them
        is queued. `by_page` as in `limits.load_allowed`.
        """
        several = [variant._replace(raw=settled(variant.raw)) for variant in variants(raw)]
        if not several:
            return [self.submit(settled(dict(raw)), by_page=by_page)]
        sweep = _new_id()
        with self._submitting:
            found = [
                self._task(load_allowed(variant.raw, self._host, by_page=by_page), resume=False) for variant in several
            ]
            return [
                self._queued(self._new(replace(task, place=Place(sweep, variant.values)), variant.raw), notes)
                for variant, (task, notes) in zip(several, found, strict=True)
            ]

    def caption(self, raw: Mapping[str, Any], *, by_page: bool = False) -> Job:
        """Queue the captioning of a folder, or of the opened data set whose id is `dataset`.

        Raises ConfigError and PlainError at once, as far as the faults can be seen before. `by_page` as in
        `limits.load_allowed`.
        """
        from lora_trainer.jobs.caption_jobs import caption_chore

        return self.add(caption_chore(raw, self.data_sets, by_page=by_page), raw)

    def draw_class_images(self, raw: Mapping[str, Any], *, by_page: bool = False) -> Job:
        """Queue the drawing of class images; `raw` holds settings of `ClassImagesConfig`. Raises as `caption` does."""
        from lora_trainer.jobs.class_images import class_images_chore

        return self.add(class_images_chore(raw, self._host, by_page=by_page), raw)

    def answers(self, raw: Mapping[str, Any], *, by_page: bool = False) -> Job:
        """Queue questions to a language model; `raw` holds settings of `AskConfig`. Raises as `caption` does."""
        from lora_trainer.jobs.asking import answers_chore

        return self.add(answers_chore(raw, self._host, by_page=by_page), raw)

    def fetch_model(self, raw: Mapping[str, Any], *, by_page: bool = False) -> Job:
        """Queue the fetching of the language model `raw["base"]`. Raises PlainError. `by_page` as in
        `limits.load_allowed`."""
        from lora_trainer.jobs.fetching import fetching_chore

        return self.add(fetching_chore(raw, self._host, by_page=by_page), raw)

    def to_fetch(self, base: str) -> str:
        """The name of a language model that is not here and may be on the hub; empty for any other."""
        from lora_trainer.families.language.place import to_fetch

        return to_fetch(base, self._host.paths().checkpoints)

    def captioners(self) -> list[Listed]:
        """Every captioner that can be named, and whether it is here."""
        from lora_trainer.jobs.caption_jobs import captioners

        return captioners(self._host)

    def make_plain(self, id: str, raw: Mapping[str, Any]) -> Job:
        """Queue the making of a plain LoRA of what that job wrote, of the rank in `raw`.

        Raises KeyError for an unknown job, and PlainError for one that has written none.
        """
        from lora_trainer.jobs.plain_job import plain_chore

        return self.add(plain_chore(self.job(id), raw, self._host), raw)

    def add(self, chore: Chore, raw: Mapping[str, Any]) -> Job:
        """Queue a chore; `raw` is what was asked for, to be looked up later."""
        return self._queued(self._new(chore, raw), [])

    def _new(self, task: Task, raw: Mapping[str, Any]) -> Job:
        id = _new_id()
        job = Job(id, dict(raw), task)
        job.changed = self._write
        with self._news:
            self._jobs[id] = job
        return job

    def resume(self, id: str) -> Job:
        """Let a paused job go on, or queue a stopped or failed one again, from its newest state.

        Raises KeyError for an unknown job, and PlainError for one that cannot go on.
        """
        job = self.job(id)
        with self._submitting:
            if not job.ended:
                job.go_on()
            elif job.training is None:
                raise WrongMoment(f"{job.name} is no training that could be resumed; start it again, and it goes on.")
            elif job.state == "done":
                raise WrongMoment(f"The order was to resume {job.name}, but it is done; start a new run to train on.")
            else:
                task, notes = self._task(load(job.record()["config"]), resume=True)
                job.again(replace(task, place=job.training.place), job.raw)
                self._queued(job, notes)
        return job

    def jobs(self) -> list[Job]:
        """Every job that is known, newest first."""
        with self._news:
            return list(reversed(self._jobs.values()))

    def job(self, id: str) -> Job:
        """The job of that id. Raises KeyError."""
        with self._news:
            return self._jobs[id]

    def close(self, seconds: float) -> None:
        """Stop what is under way, wait for it up to `seconds`, and begin nothing more; for the end of a server.

        Jobs that wait stay in their records as waiting, so that they can be resumed.
        """
        with self._news:
            self._closing = True
            self._queue.clear()
            self._news.notify_all()
        for job in self.jobs():
            if job.state in ("running", "paused"):
                job.stop()
        if self._data_sets:
            self._data_sets.close_all()
        if self._worker:
            self._worker.join(seconds)
        self._records.give_back()

    # --- submitting ---

    def _task(self, config: RunConfig, resume: bool) -> tuple[Training, list[str]]:
        """The run resolved, under a name that no other job writes to; and what to tell of that."""
        from lora_trainer.jobs.plan import files_asked_for, plan_run

        plan = plan_run(config, self._host, resume=resume)
        asked, files, notes = files_asked_for(config, self._host), plan.files, list[str]()
        if resume and self._writing(files):
            raise PlainError(f"{files.name} was asked to be resumed, but it is in the queue or under way already.")
        number = 1
        while self._writing(files):
            number += 1
            config = _named(config, f"{plan.files.name}-{number}", None)
            files = plan_run(config, self._host).files
        if files != asked:
            if files == plan.files:
                config = _named(config, files.name, files.folder if asked.folder != files.folder else None)
            notes.append(f"The result goes to {files.lora}, because the name {asked.name} is taken.")
        resolution = plan.summary().get("resolution", 0)
        return Training(config, files, plan.steps, resolution, kind_of(plan), resume, shape=shape_of(plan)), notes

    def _writing(self, files: RunFiles) -> bool:
        return any(job.training.files.lora == files.lora for job in self.jobs() if job.training and not job.ended)

    def _last_of(self, files: RunFiles) -> Job | None:
        """The newest job that wrote these files."""
        return next((job for job in self.jobs() if job.training and job.training.files.lora == files.lora), None)

    def _queued(self, job: Job, notes: list[str]) -> Job:
        for note in notes:
            job.take(Told(note, "warning"))
        self._write(job)
        with self._news:
            self._jobs[job.id] = self._jobs.pop(job.id)  # newest first counts from the last start
            self._queue.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="lora-trainer", daemon=True)
                self._worker.start()
            self._news.notify_all()
        return job

    # --- working ---

    def _work(self) -> None:
        while job := self._next():
            if job.begin():
                job.end(self._carried_out(job))
            self._tidy()

    def _next(self) -> Job | None:
        with self._news:
            self._news.wait_for(lambda: self._queue or self._closing)
            return None if self._closing else self._queue.popleft()

    def _carried_out(self, job: Job) -> Finished:
        """Run to the end. This is where every error ends: as one sentence for the user, with its trace in the log."""
        finished: Finished | None = None
        task = job.task
        try:
            course = task.course(self._host, job.control)
            with closing(cast("Generator[Event, None, None]", course)) as events:
                for event in events:
                    if isinstance(event, Finished):
                        finished = event
                    else:
                        job.take(event)
                        if isinstance(event, Judged) and job.training:
                            self._foresight.learn(job.training.shape, event)
        except PlainError as error:
            return Finished("failed", job.step, self._newest(job), with_saved(job, str(error)))
        except (Exception, SystemExit) as error:
            note_trace(job, error)
            return Finished("failed", job.step, self._newest(job), with_saved(job, unforeseen(error, job)))
        pace = job.status.seconds_per_step
        if pace is not None and job.training:
            self._paces.learn(job.training.pace, pace)
        return finished or Finished("failed", job.step, self._newest(job), "The job ended without saying how.")

    @staticmethod
    def _newest(job: Job) -> Path | None:
        return next(reversed(job.files), None)

    # --- remembering ---

    def _write(self, job: Job) -> None:
        self._records.write(job.id, job.record, job.log.everything())

    def _recalled(self, id: str, record: Mapping[str, Any], alone: bool) -> Job | None:
        """The job of a record; None if it is of no use, or if another server has it under way at this moment."""
        try:
            if not alone and record["status"]["state"] in ("queued", "running", "paused"):
                return None
            job = Job.remembered(id, record, lambda: self._records.events(id))
        except (KeyError, TypeError, ValueError, PlainError) as error:
            _log.warning("The record of job %s is of no use (%r) and is passed over.", id, error)
            return None
        job.changed = self._write
        return job

    def _tidy(self) -> None:
        """Forget the oldest of those that are over."""
        with self._news:
            over = [id for id, job in self._jobs.items() if job.ended][:-REMEMBERED]
            for id in over:
                del self._jobs[id]
        for id in over:
            self._records.forget(id)


def _new_id() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _named(config: RunConfig, name: str, folder: Path | None) -> RunConfig:
    """The same run under another name; `folder` where that changes too."""
    if folder is not None:
        return replace(config, output=replace(config.output, directory=str(folder)))
    return replace(config, output=replace(config.output, name=name))


# "Reload UI" makes a WebUI execute its extensions' scripts anew, while modules imported by them stay: this is the one
# place of ours that outlives it. A training that goes on through a reload has to hang somewhere, and to be found
# again by scripts that know nothing of it; the host offers no such place of its own.
_of_this_process: dict[str, Registry] = {}
_making = threading.Lock()


def registry_of(host: Host) -> Registry:
    """The one registry of this process for hosts of this name; made at the first call."""
    with _making:
        if host.name not in _of_this_process:
            _of_this_process[host.name] = Registry(host)
        return _of_this_process[host.name]
