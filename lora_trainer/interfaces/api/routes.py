"""The routes under /lora_trainer/v1, hung into an application that is there already. docs/api.md is the page for users.

Plain starlette: the hosts bring fastapi 0.94 with pydantic 1 and newer ones with pydantic 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route

from lora_trainer.config.surfaces import json_schema
from lora_trainer.contracts import Host, Sampled
from lora_trainer.interfaces.api.captions import caption_routes
from lora_trainer.interfaces.api.data_sets import data_set_routes
from lora_trainer.interfaces.api.forms import answer, check_form, event_form, job_form, plan_form
from lora_trainer.interfaces.api.requests import (
    VERBS,
    Admit,
    Handler,
    Refused,
    guarded,
    mapping_of,
    number_of,
    switch_of,
)
from lora_trainer.interfaces.api.uploads import upload_routes
from lora_trainer.jobs.job import Job, WrongMoment
from lora_trainer.jobs.registry import Registry

PREFIX = "/lora_trainer/v1"
MOST_EVENTS = 5000  # in one answer: all that a job keeps
_LAST_NUMBER = 2**53 - 1  # that a browser can count to


def mount(app: Starlette, registry: Registry, host: Host, admit: Admit) -> None:
    """Hang the routes into `app`, before its own; a second time replaces the first.

    `admit` tells whether a request carries the credentials that the host asks for.
    """
    routes = [
        Route(path, guarded(handlers, admit, host.name), methods=VERBS)
        for path, handlers in routes_of(registry).items()
    ]
    unknown = Route("/{rest:path}", guarded({}, admit, host.name), methods=VERBS)
    ours = Mount(PREFIX, routes=[*routes, unknown], name="lora_trainer")
    others = [route for route in app.router.routes if getattr(route, "name", None) != ours.name]
    app.router.routes[:] = [ours, *others]


def routes_of(registry: Registry) -> dict[str, dict[str, Handler]]:
    """Every route by its path below PREFIX and its verb."""
    desk = _Desk(registry)
    jobs: dict[str, dict[str, Handler]] = {
        "/schema": {"GET": desk.schema},
        "/plan": {"POST": desk.plan},
        "/check": {"POST": desk.check},
        "/jobs": {"GET": desk.jobs, "POST": desk.submit},
        "/jobs/{id}": {"GET": desk.job},
        "/jobs/{id}/events": {"GET": desk.events},
        "/jobs/{id}/images/{name}": {"GET": desk.image},
        "/jobs/{id}/stop": {"POST": desk.stop},
        "/jobs/{id}/pause": {"POST": desk.pause},
        "/jobs/{id}/resume": {"POST": desk.resume},
        "/jobs/{id}/save": {"POST": desk.save},
        "/jobs/{id}/sample": {"POST": desk.sample},
        "/jobs/{id}/plain": {"POST": desk.plain},
        **upload_routes(registry),
    }
    return jobs | data_set_routes(registry) | caption_routes(registry)


class _Desk:
    """The handlers. What may take long (planning, scanning, reading files) is done in a thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def schema(self, request: Request) -> Response:
        return answer(json_schema())

    async def plan(self, request: Request) -> Response:
        raw = await mapping_of(request)

        def form() -> dict[str, Any]:
            plan = self._registry.plan(raw)
            return plan_form(plan, self._registry.seconds(plan))

        return answer(await run_in_threadpool(form))

    async def check(self, request: Request) -> Response:
        given = await mapping_of(request)
        folder, metadata = given.pop("folder", None), given.pop("metadata", None)
        trigger, resolution = given.pop("trigger", ""), given.pop("resolution", None)
        if given:
            wanted = "give folder, and metadata, trigger and resolution if wanted"
            raise Refused(422, *(f"{name} is not known here; {wanted}." for name in given))
        if not isinstance(folder, str) or not folder:
            raise Refused(422, f"folder is {folder!r}, but the path of a folder with images is wanted.")
        if metadata is not None and not isinstance(metadata, str):
            raise Refused(422, f"metadata is {metadata!r}, but the path of a file is wanted.")
        if not isinstance(trigger, str):
            raise Refused(422, f"trigger is {trigger!r}, but a word is wanted.")
        if resolution is not None and (type(resolution) is not int or not 64 <= resolution <= 4096):
            raise Refused(422, f"resolution is {resolution!r}, but a whole number from 64 to 4096 is wanted.")

        def form() -> dict[str, Any]:
            return check_form(self._registry.check(folder, metadata, trigger=trigger, resolution=resolution))

        return answer(await run_in_threadpool(form))

    async def submit(self, request: Request) -> Response:
        raw = await mapping_of(request)
        resume = switch_of(request, "resume")
        if resume:
            job = await run_in_threadpool(lambda: self._registry.submit(raw, resume=True))
            return answer({"id": job.id, "ids": [job.id]})
        jobs = await run_in_threadpool(lambda: self._registry.sweep(raw))
        return answer({"id": jobs[0].id, "ids": [job.id for job in jobs]})

    async def jobs(self, request: Request) -> Response:
        forms = await run_in_threadpool(lambda: [job_form(job) for job in self._registry.jobs()])
        return answer({"jobs": forms})

    async def job(self, request: Request) -> Response:
        job = self._job(request)
        return answer(await run_in_threadpool(job_form, job))

    async def events(self, request: Request) -> Response:
        job = self._job(request)
        after = number_of(request, "after", 0, _LAST_NUMBER)
        limit = number_of(request, "limit", MOST_EVENTS, MOST_EVENTS)
        state = job.state  # before the events: whoever reads "done" has all of them, but for a limit
        found = await run_in_threadpool(job.events, after, limit)
        images = f"{request.scope.get('root_path', '')}/jobs/{job.id}/images/"
        forms = [event_form(item, images) for item in found]
        last = found[-1].n if found else min(after, job.log.last)
        return answer({"events": forms, "state": state, "last": last})

    async def image(self, request: Request) -> Response:
        job, name = self._job(request), request.path_params["name"]
        path = await run_in_threadpool(_picture, job, name)
        if path is None:
            raise Refused(404, f"{job.name} has no picture {name}; its events tell which there are.")
        headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
        return FileResponse(path, media_type="image/png", headers=headers)

    async def stop(self, request: Request) -> Response:
        return await self._ordered(request, Job.stop)

    async def pause(self, request: Request) -> Response:
        return await self._ordered(request, Job.pause)

    async def resume(self, request: Request) -> Response:
        return await self._ordered(request, lambda job: self._registry.resume(job.id))

    async def save(self, request: Request) -> Response:
        return await self._ordered(request, Job.save_now)

    async def sample(self, request: Request) -> Response:
        return await self._ordered(request, Job.sample_now)

    async def plain(self, request: Request) -> Response:
        job, raw = self._job(request), await mapping_of(request)
        made = await run_in_threadpool(self._registry.make_plain, job.id, raw)
        return answer({"id": made.id})

    async def _ordered(self, request: Request, order: Any) -> Response:
        job = self._job(request)
        await mapping_of(request)  # nothing is expected in it, but a body must be JSON and small here too
        try:
            await run_in_threadpool(order, job)
        except WrongMoment as error:
            raise Refused(409, str(error)) from error
        return answer({"id": job.id, "state": job.state})

    def _job(self, request: Request) -> Job:
        id = request.path_params["id"]
        try:
            return self._registry.job(id)
        except KeyError as error:
            raise Refused(404, f"There is no job {id}; GET {PREFIX}/jobs lists them.") from error


def _picture(job: Job, name: str) -> Path | None:
    """The sample of that name, if the job drew it and it is still there: no other file can be had."""
    for item in reversed(job.log.everything()):
        if isinstance(item.event, Sampled) and not item.event.texts:
            for path in item.event.paths:
                if path.name == name and path.is_file():
                    return path
    return None
