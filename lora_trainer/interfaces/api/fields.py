"""Single values out of a request's body or query, each refused in a sentence where it is not what is wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from lora_trainer.interfaces.api.requests import Refused

T = TypeVar("T")


def only(given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise Refused where a body holds anything else."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise Refused(422, *(f"{name} is not known here; this address takes {', '.join(known)}." for name in unknown))


def text_in(given: Mapping[str, Any], name: str, default: str | None = None, *, what: str = "text") -> str:
    """A text; without a default it must be there."""
    value = given.get(name, default)
    if not isinstance(value, str):
        raise Refused(422, f"{name} is {value!r:.100}, but {what} is wanted.")
    return value


def optional_text(given: Mapping[str, Any], name: str, what: str = "text") -> str | None:
    """A text, or None where it is left out."""
    return None if given.get(name) is None else text_in(given, name, what=what)


def switch_in(given: Mapping[str, Any], name: str) -> bool:
    """True or false; false where it is left out."""
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise Refused(422, f"{name} is {value!r:.100}, but true or false is wanted.")
    return value


def texts_in(given: Mapping[str, Any], name: str) -> list[str] | None:
    """A list of texts, or None where it is left out; a single text is a list of one."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Refused(422, f"{name} is {value!r:.100}, but a list of texts is wanted.")
    return value


def pixels_in(given: Mapping[str, Any], name: str) -> int | None:
    """A resolution, or None where it is left out."""
    value = given.get(name)
    if value is not None and (type(value) is not int or not 64 <= value <= 4096):
        raise Refused(422, f"{name} is {value!r:.100}, but a whole number from 64 to 4096 is wanted.")
    return value


def share_in(given: Mapping[str, Any], name: str) -> float | None:
    """A number from 0 to 1, or None where it is left out."""
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Refused(422, f"{name} is {value!r:.100}, but a number from 0 (left, top) to 1 (right, bottom) is wanted.")
    return float(value)


def one_of(value: str, choices: Collection[T], name: str) -> T:
    """The choice that is spelled so."""
    found = next((choice for choice in choices if choice == value), None)
    if found is None:
        raise Refused(422, f"{name} is {value!r:.100}, but one of {', '.join(map(str, choices))} is wanted.")
    return found


def chosen(request: Request, name: str, choices: Collection[T], default: str) -> T:
    """A choice of the query."""
    return one_of(request.query_params.get(name, default), choices, name)
