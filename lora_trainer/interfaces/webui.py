"""What the doorbell of a WebUI rings: the tab, the routes. Imports nothing heavy until it is rung."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lora_trainer.contracts import PlainError
from lora_trainer.hosts import beside, detect

if TYPE_CHECKING:
    from fastapi import FastAPI

TITLE = "LoRA Trainer"
ELEM_ID = "lora_trainer"
_log = logging.getLogger(__name__)


def tabs() -> list[tuple[Any, str, str]]:
    """The tab for `on_ui_tabs`: the page, or a sentence in its place that says what keeps it away."""
    return [(_page(), TITLE, ELEM_ID)]


def started(_blocks: Any, app: FastAPI) -> None:
    """Put the routes into the application that the WebUI has started, for `on_app_started`."""
    from lora_trainer.interfaces.api.routes import mount
    from lora_trainer.jobs.registry import registry_of

    try:
        host = detect.host()
    except PlainError:  # told by the tab
        return
    from lora_trainer.hosts.a1111.access import admit

    mount(app, registry_of(host), host, admit)


def _page() -> Any:
    """The page as gradio blocks.

    A WebUI drops a tab whose making fails, and its user would look at nothing: so every error is told in the tab.
    """
    from lora_trainer.interfaces.ui.notice import notice

    try:
        host = detect.host()
        if absent := beside.missing():
            return notice(absent)
        beside.bring_optional()
        from lora_trainer.interfaces.ui.page import page
        from lora_trainer.jobs.registry import registry_of

        return page(registry_of(host), host)
    except PlainError as error:
        return notice(str(error))
    except Exception as error:
        _log.exception("The tab could not be made.")
        return notice(
            f"The page could not be made ({type(error).__name__}: {error}); the console has the whole story. If the "
            "extension was updated just now, restart the WebUI itself: Reload UI keeps its old code."
        )
