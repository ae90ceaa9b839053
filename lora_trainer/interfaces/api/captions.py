"""The routes of work that takes its turn among the trainings: captioning, drawing, asking, fetching a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lora_trainer.interfaces.api.forms import answer
from lora_trainer.interfaces.api.requests import Handler, mapping_of

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry


def caption_routes(registry: Registry) -> dict[str, dict[str, Handler]]:
    """Every such route by its path and its verb."""

    async def captioners(request: Request) -> Response:
        def forms() -> list[dict[str, Any]]:
            return [one._asdict() for one in registry.captioners()]

        return answer({"captioners": await run_in_threadpool(forms)})

    async def caption(request: Request) -> Response:
        raw = await mapping_of(request)
        job = await run_in_threadpool(registry.caption, raw)
        return answer({"id": job.id})

    async def class_images(request: Request) -> Response:
        raw = await mapping_of(request)
        job = await run_in_threadpool(registry.draw_class_images, raw)
        return answer({"id": job.id})

    async def answers(request: Request) -> Response:
        raw = await mapping_of(request)
        job = await run_in_threadpool(registry.answers, raw)
        return answer({"id": job.id})

    async def models(request: Request) -> Response:
        raw = await mapping_of(request)
        job = await run_in_threadpool(registry.fetch_model, raw)
        return answer({"id": job.id})

    return {
        "/captioners": {"GET": captioners}, "/captions": {"POST": caption}, "/class_images": {"POST": class_images},
        "/answers": {"POST": answers}, "/models": {"POST": models},
    }  # fmt: skip
