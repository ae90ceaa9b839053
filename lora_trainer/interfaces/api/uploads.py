"""Pictures that are sent to a data set, over HTTP: begun, then file by file, then finished together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.api.forms import answer, taken_form
from lora_trainer.interfaces.api.requests import Handler, Refused, mapping_of, save_body, takes_bytes
from lora_trainer.jobs.events import jsonable

if TYPE_CHECKING:  # importing Pillow costs time, which the host's start must not pay
    from lora_trainer.jobs.registry import Registry
    from lora_trainer.jobs.uploads import Upload

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
            trained = [job.task.config.data.folder for job in self._registry.jobs()]
            found = known_sets(paths, filter(None, trained))[:_MOST_SETS]
            sets = [{"folder": folder.absolute(), "name": folder.name} for folder in found]
            return jsonable({"place": place_of(paths).absolute(), "sets": sets})

        return answer(await run_in_threadpool(form))

    async def begin(self, request: Request) -> Response:
        from lora_trainer.jobs.limits import check_allowed
        from lora_trainer.jobs.uploads import Upload

        given = _only(await mapping_of(request), folder=str, name=str)
        folder, name = given.get("folder", ""), given.get("name", "")

        def begun() -> Upload:
            paths = self._registry.host.paths()
            if folder:
                check_allowed(folder, paths, "folder")
            return Upload.begin(paths, folder=Path(folder).expanduser() if folder else None, name=name.strip())

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
        given = _only(await mapping_of(request), prompts=bool, infotexts=dict)
        texts = given.get("infotexts", {})
        if not all(isinstance(text, str) for text in texts.values()):
            raise Refused(422, "infotexts holds something that is no text; give the text of each name.")
        taken = await run_in_threadpool(
            lambda: upload.finish(prompts=given.get("prompts", False), infotexts=texts),
        )
        return answer(taken_form(taken))

    async def cancel(self, request: Request) -> Response:
        id = request.path_params["id"]
        await mapping_of(request)
        try:
            await run_in_threadpool(self._upload(request).cancel)
        except Refused:  # it is forgotten already, as was wanted
            return answer({"id": id})
        return answer({"id": id})

    def _upload(self, request: Request) -> Upload:
        from lora_trainer.jobs.uploads import Upload

        id = request.path_params["id"]
        try:
            return Upload(id, self._registry.host.paths())
        except KeyError as error:
            raise Refused(404, "This sending is not known, or finished already; begin a new one.") from error


def _only(given: dict[str, Any], **kinds: type) -> dict[str, Any]:
    """The values, all of them known and of their kind; null stands for a value left out."""
    wrong = [f"{name} is not known here; {' and '.join(kinds)} are." for name in given if name not in kinds]
    given = {name: value for name, value in given.items() if value is not None}
    words = {str: "a text", bool: "true or false", dict: "an object"}
    wrong += [
        f"{name} is {value!r}, but {words[kinds[name]]} is wanted."
        for name, value in given.items() if name in kinds and not isinstance(value, kinds[name])
    ]  # fmt: skip
    if wrong:
        raise Refused(422, *wrong)
    return given
