"""The page in a server of our own, without a WebUI around it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_trainer.contracts import Host

if TYPE_CHECKING:
    from fastapi import FastAPI

    from lora_trainer.jobs.registry import Registry


def hang(app: FastAPI, registry: Registry, host: Host, head: str) -> None:
    """Put the page at the root of `app`; `head` goes into its HTML head. Needs gradio 6."""
    import gradio as gr
    from gradio.themes import Default

    from lora_trainer.interfaces.ui.page import page

    # Fonts of the system only: gradio's own themes load theirs from elsewhere.
    theme = Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    gr.mount_gradio_app(
        app, page(registry, host), path="/", theme=theme, head=head, footer_links=[], run_history=False,
        ssr_mode=False, show_error=True,
    )  # fmt: skip
