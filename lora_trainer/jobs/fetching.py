"""A model that is fetched from the Hugging Face hub because somebody asked for it, told as it comes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_trainer.contracts import Control, Event, Finished, Host, HostPaths, PlainError, Prepared, Told
from lora_trainer.families.language.place import needed, to_fetch
from lora_trainer.jobs.limits import check_fetching, paths_for
from lora_trainer.jobs.tasks import Chore
from lora_trainer.weights.fetching import fetch


def fetched(
    repository: str, wanted: Callable[[Sequence[str]], Sequence[str]], what: str, control: Control
) -> Iterator[Event]:  # fmt: skip
    """Fetch the files of a repository that are `wanted`, until a stop is ordered. Raises PlainError.

    `control` is the page's or command's own: a host's Interrupt belongs to what is shown in the host, as this is not.
    """
    yield Told(f"Fetching {repository}.")
    for here, whole in fetch(repository, wanted):
        yield Prepared(what, math.ceil(here / 1e6), math.ceil(whole / 1e6), "MB")
        if control.stopped():
            return


def language_model_fetched(base: str, paths: HostPaths, control: Control) -> Iterator[Event]:
    """Fetch a language model that is named as on the hub and is not here; nothing where it is. Raises PlainError."""
    repository = to_fetch(base, paths.checkpoints)
    if not repository:
        return
    yield from fetched(repository, needed, "language model", control)
    if not control.stopped() and to_fetch(base, paths.checkpoints):
        raise PlainError(f"{base} was fetched, but not all of it is here; fetch it again, or look at it on the hub.")


def fetching_chore(raw: Mapping[str, Any], host: Host, *, by_page: bool = False) -> Chore:
    """The fetching of the language model `raw["base"]`, ready for the queue. Raises PlainError.

    `by_page` as in `limits.load_allowed`.
    """
    base = raw.get("base", "")
    if raw.keys() - {"base"} or not isinstance(base, str) or not base:
        raise PlainError("base is wanted, and nothing else: the model's name on the Hugging Face hub, owner/name.")
    paths = paths_for(host, by_page=by_page)
    check_fetching(paths, "base")
    if not to_fetch(base, paths.checkpoints):
        raise PlainError(f"{base} is nothing that could be fetched: it is here already, or no owner/name of the hub.")
    return Chore("model", base, 0, start=lambda host, control: _course(base, host, control))


def _course(base: str, host: Host, control: Control) -> Iterator[Event]:
    done = 0
    for event in language_model_fetched(base, host.paths(), control):
        host.report(event)
        yield event
        done = event.done if isinstance(event, Prepared) else done
    if control.stopped() and to_fetch(base, host.paths().checkpoints):
        yield Finished("stopped", done, None, f"Stopped while {base} was fetched; what has come is kept.")
    else:
        yield Finished("done", done, None, f"{base} is here.")
