"""What gradio 3.41, 4 and 6 spell differently, in one place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

Listener = Callable[..., Any]  # `button.click`, `.then` of what it returned, ...


def major() -> int:
    """gradio's major version."""
    return int(gr.__version__.partition(".")[0])


def listen(
    on: Listener,
    fn: Callable[..., Any] | None = None,
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    js: str | None = None,
) -> Any:
    """Answer an event at once, outside of the host's queue, without a spinner and without a name in its API.

    `js` runs in the browser: before `fn`, what it returns takes the place of the inputs; without `fn` it is all.
    """
    more: dict[str, Any] = {"api_visibility": "private"} if major() >= 6 else {"api_name": False}
    if js is not None:
        more["_js" if major() < 4 else "js"] = js
    return on(fn, inputs=list(inputs), outputs=list(outputs), queue=False, show_progress="hidden", **more)


def update(**properties: Any) -> Any:
    """New properties of a component, as a handler returns them."""
    return gr.update(**properties)
