"""The routes of opened data sets: to look through them, to edit captions, to have them checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.api.data_set_forms import data_set_form, image_form, open_check_form
from lora_trainer.interfaces.api.fields import (
    chosen,
    one_of,
    only,
    optional_text,
    pixels_in,
    share_in,
    switch_in,
    text_in,
    texts_in,
)
from lora_trainer.interfaces.api.forms import answer
from lora_trainer.interfaces.api.requests import Handler, Refused, mapping_of, number_of, switch_of

if TYPE_CHECKING:
    from lora_trainer.jobs.data_sets import Filter, Opened
    from lora_trainer.jobs.registry import Registry

MOST_IMAGES = 500  # in one answer
LARGEST_EDIT = 16 << 20  # bytes of a body that names images one by one
_EXAMPLES = 50
_LAST_IMAGE = 2**31 - 1
_PICTURE = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, max-age=31536000, immutable"}


def data_set_routes(registry: Registry) -> dict[str, dict[str, Handler]]:
    """Every route of data sets by its path and its verb."""
    desk = _Desk(registry)
    return {
        "/datasets": {"POST": desk.open},
        "/datasets/{id}": {"GET": desk.data_set},
        "/datasets/{id}/images": {"GET": desk.images},
        "/datasets/{id}/names": {"GET": desk.names},
        "/datasets/{id}/thumbs/{name:path}": {"GET": desk.thumb},
        "/datasets/{id}/pictures/{name:path}": {"GET": desk.picture},
        "/datasets/{id}/tags": {"GET": desk.tags},
        "/datasets/{id}/check": {"GET": desk.check},
        "/datasets/{id}/captions": {"POST": desk.save},
        "/datasets/{id}/edit": {"POST": desk.edit},
        "/datasets/{id}/focus": {"POST": desk.focus},
        "/datasets/{id}/fix": {"POST": desk.fix},
        "/datasets/{id}/undo": {"POST": desk.undo},
        "/datasets/{id}/redo": {"POST": desk.redo},
        "/datasets/{id}/refresh": {"POST": desk.refresh},
        "/datasets/{id}/close": {"POST": desk.close},
    }


class _Desk:
    """The handlers; all that reads or writes files is done in a thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    # --- looking ---

    async def open(self, request: Request) -> Response:
        given = await mapping_of(request)
        only(given, ("folder", "metadata", "trigger", "resolution", "crop"))
        folder = text_in(given, "folder", what="the path of a folder with images")
        if not folder:
            raise Refused(422, "folder is empty, but the path of a folder with images is wanted.")
        metadata = optional_text(given, "metadata", "the path of a file")
        trigger, resolution = optional_text(given, "trigger", "a word"), pixels_in(given, "resolution")
        crop = optional_text(given, "crop", "center, focal or none")

        def form() -> dict[str, Any]:
            from lora_trainer.jobs.data_sets import CROPS

            sets, mode = self._registry.data_sets, one_of(crop, CROPS, "crop") if crop else None
            return data_set_form(sets.open(folder, metadata, trigger=trigger, resolution=resolution, crop=mode))

        return answer(await run_in_threadpool(form))

    async def data_set(self, request: Request) -> Response:
        def form(opened: Opened) -> dict[str, Any]:
            with suppress(PlainError):  # a folder that is gone is told by the form
                opened.workshop.watch()
            return data_set_form(opened)

        return await self._told(request, form)

    async def images(self, request: Request) -> Response:
        from lora_trainer.jobs.data_sets import SORTS

        offset = number_of(request, "offset", 0, _LAST_IMAGE)
        limit = number_of(request, "limit", 100, MOST_IMAGES)
        sort, descending = chosen(request, "sort", SORTS, "name"), switch_of(request, "descending")
        which, root = _lens(request), _root(request)

        def form(opened: Opened) -> dict[str, Any]:
            page = opened.page(which, sort, descending=descending, offset=offset, limit=limit)
            images = [image_form(image, opened, root) for image in page.images]
            return {"total": page.total, "revision": page.revision, "images": images}

        return await self._told(request, form, read=True)

    async def names(self, request: Request) -> Response:
        from lora_trainer.jobs.data_sets import SORTS

        sort, descending = chosen(request, "sort", SORTS, "name"), switch_of(request, "descending")
        which = _lens(request)

        def form(opened: Opened) -> dict[str, Any]:
            names, revision = opened.names(which, sort, descending=descending)
            return {"names": names, "revision": revision}

        return await self._told(request, form, read=True)

    async def thumb(self, request: Request) -> Response:
        def picture(opened: Opened, name: str) -> bytes:
            return opened.thumb(name).read_bytes()

        return await self._picture(request, "thumbs", picture)

    async def picture(self, request: Request) -> Response:
        return await self._picture(request, "pictures", lambda opened, name: opened.large(name))

    async def tags(self, request: Request) -> Response:
        text = request.query_params.get("text", "")

        def form(opened: Opened) -> dict[str, Any]:
            counts, sentences = opened.tags(text)
            return {"tags": [{"tag": tag, "count": count} for tag, count in counts], "sentences": sentences}

        return await self._told(request, form, read=True)

    async def check(self, request: Request) -> Response:
        root = _root(request)
        return await self._told(request, lambda opened: open_check_form(opened, root), read=True)

    # --- changing ---

    async def save(self, request: Request) -> Response:
        from lora_trainer.jobs.data_sets import Changed

        given = await mapping_of(request)
        only(given, ("name", "caption", "version"))
        name, caption, version = (text_in(given, key) for key in ("name", "caption", "version"))

        def form(opened: Opened) -> dict[str, Any]:
            snapshot = opened.workshop.save(name, caption, version)
            facts, item = opened.workshop.facts(snapshot), snapshot.items[name]
            return {
                "name": name, "caption": item.caption, "version": snapshot.version(name),
                "tokens": facts.tokens(item.caption), "flags": facts.flags(item),
                "starts_with_trigger": facts.starts_with_trigger(item), "revision": snapshot.revision,
            }  # fmt: skip

        try:
            return await self._told(request, form, read=True)
        except Changed as error:
            told = {"faults": [str(error)], "caption": error.caption, "version": error.version}
            return answer(told, 409)

    async def edit(self, request: Request) -> Response:
        from lora_trainer.jobs.data_sets import ACTIONS, Edit

        given = await mapping_of(request, LARGEST_EDIT)
        only(given, (*(field.name for field in fields(Edit)), "names", "filter", "preview"))
        edit = Edit(
            action=one_of(text_in(given, "action"), ACTIONS, "action"),
            find=text_in(given, "find", ""),
            replacement=text_in(given, "replacement", ""),
            text=text_in(given, "text", ""),
            regex=switch_in(given, "regex"),
            whole_tag=switch_in(given, "whole_tag"),
        )
        names, preview = texts_in(given, "names"), switch_in(given, "preview")
        inner = given.get("filter")
        if names is None and inner is None:
            raise Refused(422, 'Give names, or filter: which captions are meant ("filter": {} means all).')
        if not isinstance(inner, dict | None):
            raise Refused(422, f"filter is {inner!r:.100}, but an object with tag, not_tag, text and flag is wanted.")
        which = _filter(inner or {})

        def form(opened: Opened) -> dict[str, Any]:
            count, examples = opened.workshop.edit(edit, names, which, preview=preview)
            shown = [example._asdict() for example in examples[:_EXAMPLES]]
            return {"count": count, "examples": shown, "revision": opened.workshop.revision}

        return await self._told(request, form, read=True)

    async def focus(self, request: Request) -> Response:
        given = await mapping_of(request)
        only(given, ("name", "x", "y"))
        name, x, y = text_in(given, "name"), share_in(given, "x"), share_in(given, "y")
        if (x is None) != (y is None):
            raise Refused(422, "x and y belong together: give both, or neither to forget the point.")
        point, root = None if x is None or y is None else (x, y), _root(request)

        def form(opened: Opened) -> dict[str, Any]:
            shown = opened.focus(name, point)
            return image_form(shown, opened, root) | {"revision": opened.workshop.revision}

        return await self._told(request, form, read=True)

    async def fix(self, request: Request) -> Response:
        from lora_trainer.jobs.checkup import FIXABLE

        given = await mapping_of(request)
        only(given, ("kinds",))
        kinds = [one_of(kind, FIXABLE, "kinds") for kind in texts_in(given, "kinds") or []]

        def form(opened: Opened) -> dict[str, Any]:
            return {"done": opened.fix(kinds), "revision": opened.workshop.revision}

        return await self._told(request, form, read=True)

    async def undo(self, request: Request) -> Response:
        return await self._stepped(request, lambda opened: opened.workshop.undo()._asdict())

    async def redo(self, request: Request) -> Response:
        return await self._stepped(request, lambda opened: opened.workshop.redo()._asdict())

    async def refresh(self, request: Request) -> Response:
        await mapping_of(request)

        def form(opened: Opened) -> dict[str, Any]:
            opened.workshop.refresh()
            return data_set_form(opened)

        return await self._told(request, form)

    async def close(self, request: Request) -> Response:
        await mapping_of(request)
        opened = self._opened(request)
        await run_in_threadpool(self._registry.data_sets.close, opened.id)
        return answer({"id": opened.id})

    # --- what they have in common ---

    async def _stepped(self, request: Request, step: Callable[[Opened], dict[str, Any]]) -> Response:
        await mapping_of(request)
        return await self._told(
            request, lambda opened: step(opened) | {"revision": opened.workshop.revision}, read=True
        )

    async def _told(
        self, request: Request, form: Callable[[Opened], Mapping[str, Any]], *, read: bool = False
    ) -> Response:
        """What `form` says of the data set; `read` where it must have been read before."""
        opened = self._opened(request)
        if read and opened.workshop.state == "scanning":
            raise Refused(409, f"{opened.workshop.folder} is still being read; ask again in a moment.")
        from lora_trainer.jobs.data_sets import NoSuchImage

        try:
            return answer(await run_in_threadpool(form, opened))
        except NoSuchImage as error:
            raise Refused(404, str(error)) from error

    async def _picture(self, request: Request, kind: str, make: Callable[[Opened, str], bytes]) -> Response:
        opened, name = self._opened(request), _name(request, kind)

        def made() -> tuple[str, bytes | None]:
            if name not in opened.workshop.snapshot.paths:
                raise Refused(404, f"There is no image {name!r} in this data set; look at its list.")
            mark = f'"{opened.mark(name)}"'
            return mark, None if mark in request.headers.get("if-none-match", "") else make(opened, name)

        mark, data = await run_in_threadpool(made)
        headers = _PICTURE | {"ETag": mark}
        return Response(None, 304, headers) if data is None else Response(data, 200, headers, "image/jpeg")

    def _opened(self, request: Request) -> Opened:
        id = request.path_params["id"]
        try:
            return self._registry.data_sets.of(id)
        except KeyError as error:
            raise Refused(404, f"No data set {id} is open; POST its folder to /datasets.") from error


def _filter(given: Mapping[str, Any]) -> Filter:
    from lora_trainer.jobs.data_sets import FLAGS, Filter

    only(given, ("tag", "not_tag", "text", "flag"))
    flag = optional_text(given, "flag") or ""
    if flag:
        one_of(flag, FLAGS, "flag")
    tags, without = (tuple(texts_in(given, name) or ()) for name in ("tag", "not_tag"))
    return Filter(tags, without, optional_text(given, "text") or "", flag)


def _lens(request: Request) -> Filter:
    """What the query of a list narrows it to."""
    query = request.query_params
    given = {name: query.get(name) for name in ("text", "flag")}
    return _filter({name: query.getlist(name) for name in ("tag", "not_tag")} | given)


def _name(request: Request, kind: str) -> str:
    """The image's name in the address, byte for byte: servers put signs of their own for bytes that are no text."""
    marker = f"/{request.path_params['id']}/{kind}/".encode()
    _, found, raw = request.scope.get("raw_path", b"").partition(b"?")[0].partition(marker)
    if not found:
        return request.path_params["name"]
    try:
        return unquote_to_bytes(raw).decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise Refused(404, "The address holds no name of an image; take it from the list.") from error


def _root(request: Request) -> str:
    return request.scope.get("root_path", "")
