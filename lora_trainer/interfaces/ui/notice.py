"""A sentence in the place of the page, where the page cannot be made."""

from __future__ import annotations

from html import escape

import gradio as gr


def notice(sentence: str) -> gr.Blocks:
    """Blocks that show the sentence, as text, and nothing else."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML(f'<p role="alert">{escape(sentence)}</p>', elem_id="lt_notice")
    return blocks
