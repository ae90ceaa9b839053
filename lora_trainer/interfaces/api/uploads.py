"""Pictures that are sent to a data set, over HTTP: begun, then file by file, then finished together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.api.fields import only, switch_in, text_in
from lora_trainer.interfaces.api.forms import answer, taken_form
from lora_trainer.interfaces.api.requests import Handler, Refused, mapping_of, save_body, takes_bytes
from lora_trainer.jobs.events import jsonable

if TYPE_CHECKING:  # importing Pillow costs time, which the host's start must not pay
    from lora_trainer.jobs.data_sets import Opened
    from lora_trainer.jobs.registry import Registry
    from lora_trainer.jobs.uploads import Upload

LARGEST_TEXTS = 16 << 20  # bytes of the texts of many pictures
_MOST_SETS = 200  # data sets that a list offers


def upload_routes(registry: Registry) -> dict[str, dict[str, Handler]]:
    """The routes by path and verb, as `routes.routes_of` has them."""
    desk = _Desk(registry)
    return {
        "/uploads": {"GET": desk.sets, "POST": desk.begin},
        "/uploads/{id}/files": {"POST": desk.file},
        "/uploads/{id}/finish": {"POST": desk.finish},
        "/uploads/{id}/cancel": {"POST": desk.cancel},
    }


class _Desk:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def sets(self, request: Request) -> Response:
        from lora_trainer.jobs.uploads import known_sets, place_of

        def form() -> dict[str, Any]:
            paths = self._registry.host.paths()
            trained = [job.training.config.data.folder for job in self._registry.jobs() if job.training]
            found = known_sets(paths, filter(None, trained))[:_MOST_SETS]
            sets = [{"folder": folder.absolute(), "name": folder.name} for folder in found]
            return jsonable({"place": place_of(paths).absolute(), "sets": sets})

        return answer(await run_in_threadpool(form))

    async def begin(self, request: Request) -> Response:
        from lora_trainer.jobs.limits import check_allowed
        from lora_trainer.jobs.uploads import Upload

        given = await mapping_of(request)
        only(given, ("folder", "dataset", "name"))
        folder, id = text_in(given, "folder", ""), text_in(given, "dataset", "")
        name = text_in(given, "name", "").strip()

        def begun() -> Upload:
            paths = self._registry.host.paths()
            if id:  # it was looked at when it was opened, whether it may be named
                return Upload.begin(paths, folder=self._opened(id).workshop.folder)
            if folder:
                check_allowed(folder, paths, "folder")
            return Upload.begin(paths, folder=Path(folder).expanduser() if folder else None, name=name)

        return answer({"id": (await run_in_threadpool(begun)).id})

    @takes_bytes
    async def file(self, request: Request) -> Response:
        upload, name = self._upload(request), request.query_params.get("name", "")
        told = request.headers.get("content-length", "0")
        size = int(told) if told.isdecimal() else 0
        try:
            path = await run_in_threadpool(upload.place_for, name, size)
        except PlainError as error:
            raise Refused(413 if size > upload.most(name) else 422, str(error)) from error
        room = await run_in_threadpool(upload.room)
        kept = await save_body(request, path, min(room, upload.most(name)))
        return answer({"name": name, "bytes": kept})

    async def finish(self, request: Request) -> Response:
        upload = self._upload(request)
        given = await mapping_of(request, LARGEST_TEXTS)
        only(given, ("prompts", "infotexts"))
        prompts, texts = switch_in(given, "prompts"), given.get("infotexts", {})
        if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
            raise Refused(422, f"infotexts is {texts!r:.100}, but an object with the text of each name is wanted.")
        taken = await run_in_threadpool(lambda: upload.finish(prompts=prompts, infotexts=texts))
        return answer(taken_form(taken))

    async def cancel(self, request: Request) -> Response:
        id = request.path_params["id"]
        await mapping_of(request)
        try:
            await run_in_threadpool(self._upload(request).cancel)
        except Refused:  # it is forgotten already, as was wanted
            return answer({"id": id})
        return answer({"id": id})

    def _opened(self, id: str) -> Opened:
        try:
            return self._registry.data_sets.of(id)
        except KeyError as error:
            raise Refused(404, "This data set is not open any more; open it again.") from error

    def _upload(self, request: Request) -> Upload:
        from lora_trainer.jobs.uploads import Upload

        id = request.path_params["id"]
        try:
            return Upload(id, self._registry.host.paths())
        except KeyError as error:
            raise Refused(404, "This sending is not known, or finished already; begin a new one.") from error
