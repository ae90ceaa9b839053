"""The view of the data set: an empty place that javascript/lora_trainer_data.js draws from the HTTP routes.

Only what names a folder goes through gradio, opening one and drawing class images into one: so the machine's own user
may name any folder, as in the form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.api.data_set_forms import data_set_form
from lora_trainer.interfaces.ui import answers
from lora_trainer.interfaces.ui.fields import unsaved
from lora_trainer.interfaces.ui.versions import listen

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry

_ORDER = "(_) => window.loraTrainer.order()"
_ANSWERED = "(text) => { window.loraTrainer && window.loraTrainer.answered(text); return []; }"


def build(registry: Registry) -> None:
    """Make the place and its wires, in the gradio context that is open.

    They have an answer of their own: of two answers that come at once into one field the browser is told the last.
    """
    gr.HTML('<div id="lt_workshop"></div>', elem_id="lt_workshop_block")
    with gr.Row(elem_id="lt_workshop_wires"):
        order = unsaved(gr.Textbox(elem_id="lt_workshop_order", show_label=False))
        answer = unsaved(gr.Textbox(elem_id="lt_workshop_answer", show_label=False))
        button = unsaved(gr.Button("dataset", elem_id="lt_do_dataset"))

    def look_into(asked: str) -> str:
        order = json.loads(asked)
        wanted = order.get("class_images")
        return answers.stamped(opened(registry, order) if wanted is None else class_images(registry, wanted))

    listen(button.click, look_into, [order], [answer], js=_ORDER)
    listen(answer.change, inputs=[answer], js=_ANSWERED)


def opened(registry: Registry, order: Mapping[str, Any]) -> answers.Answer:
    """The data set of a folder, or the faults that keep it shut.

    `order` holds fields of the form as they were typed: folder, metadata, trigger, resolution, crop. It goes back with
    the answer, so that the page knows which of its questions was answered.
    """
    from lora_trainer.jobs.data_sets import CROPS

    answer: answers.Answer = {"kind": "dataset", "asked": dict(order)}
    folder, metadata, trigger, size = (
        str(order.get(name) or "") for name in ("folder", "metadata", "trigger", "resolution")
    )
    resolution = int(size) if size.isdecimal() else None  # what is no number is the form's own fault, and told there
    crop = CROPS[CROPS.index(order["crop"])] if order.get("crop") in CROPS else None
    try:
        found = registry.data_sets.open(
            folder, metadata or None, trigger=trigger, resolution=resolution, crop=crop, by_page=True
        )
    except PlainError as error:
        return answer | {"faults": [one["text"] for one in answers.faults(error)["faults"]]}
    return answer | {"dataset": data_set_form(found)}


def class_images(registry: Registry, raw: Mapping[str, Any]) -> answers.Answer:
    """The id of the job that draws them, or the faults that keep it from it; `raw` holds settings of
    `ClassImagesConfig`."""
    try:
        return {"kind": "class_images", "id": registry.draw_class_images(raw, by_page=True).id}
    except PlainError as error:
        return {"kind": "class_images", "faults": [one["text"] for one in answers.faults(error)["faults"]]}
