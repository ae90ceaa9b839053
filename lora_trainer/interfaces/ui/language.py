"""The view of language models: their form, and the box in which one is asked without and with an adapter.

The form stands where that of the images stands, the runs are drawn beside it as theirs are; what is told of a form and
the answers are javascript/lora_trainer_language.js's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.options import RunConfig
from lora_trainer.config.surfaces import TITLES
from lora_trainer.config.tasks import TEXT, applies
from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.ui import answers
from lora_trainer.interfaces.ui.fields import component, elem_id, raw_of, unsaved, value_at
from lora_trainer.interfaces.ui.versions import listen

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry

ASKED = ("base", "adapter", "prompt", "system", "tokens", "temperature")  # of AskConfig, what the box has fields for
_CHANGED = "() => { window.loraTrainer && window.loraTrainer.languageChanged(); return []; }"
_ANSWERED = "(text) => { window.loraTrainer && window.loraTrainer.answered(text); return []; }"
_ORDER = "(...row) => [window.loraTrainer.languageOrder(), ...row.slice(1)]"


class _Top(NamedTuple):
    """A field above the folded ones, in words that suit a language model."""

    path: str
    label: str
    info: str
    placeholder: str = ""


_TOP = (
    _Top("model.base", "Language model",
         "Folder of a transformers model with safetensors, a GGUF file, or owner/name on the Hugging Face hub.",
         "/models/llama-3.2-1b"),
    _Top("data.folder", "Folder with the texts", "JSONL, JSON, CSV, Parquet or plain text; columns are recognised.",
         "/texts/my_trade"),
    _Top("output.name", "Name of the adapter", "Its folder is called so.", "my_trade"),
    _Top("train.epochs", "Epochs", "How often all texts are seen; empty takes 3.", "3"),
    _Top("network.rank", "Rank", "Size of the adapter; 8 to 64 is usual."),
    _Top("samples.prompts", "Sample questions", "Asked before, while and after the training, one a line.",
         "What is a gusset?"),
)  # fmt: skip
_SAID = {"train.learning_rate": "Peak learning rate of the adapter."}  # where the option's own sentence is on images


def build(registry: Registry) -> None:
    """Make the view, in the gradio context that is open."""
    made: dict[str, Any] = {}
    known = {leaf.path: leaf for leaf in leaves()}
    with gr.Column(scale=5, min_width=300, elem_id="lt_language"):
        for top in _TOP:
            _put(made, known[top.path], label=top.label, info=top.info, placeholder=top.placeholder)
        start = unsaved(gr.Button("Start training", variant="primary", elem_id="lt_language_start"))
        gr.HTML('<div id="lt_language_plan"></div>', elem_id="lt_language_plan_block")
        with gr.Accordion("Advanced options", open=False, elem_id="lt_language_advanced"):
            _fold(made)
        gr.HTML('<div id="lt_try"></div>', elem_id="lt_try_block")
        with gr.Row(elem_id="lt_language_wires"):
            order = unsaved(gr.Textbox(elem_id="lt_language_order", show_label=False))
            answer = unsaved(gr.Textbox(elem_id="lt_language_answer", show_label=False))
            buttons = {
                name: unsaved(gr.Button(name, elem_id=f"lt_do_language_{name}")) for name in _DOES
            }
    row = [order, *made.values()]
    for field in made.values():
        listen(field.change, js=_CHANGED)
    for name, button in buttons.items():
        listen(button.click, partial(_answered, _DOES[name], registry, list(made)), row, [answer], js=_ORDER)
    listen(start.click, js="() => { window.loraTrainer.languageStart(); return []; }")
    listen(answer.change, inputs=[answer], js=_ANSWERED)


def _put(made: dict[str, Any], leaf: Leaf, **more: Any) -> None:
    given = {name: value for name, value in more.items() if value}
    value = value_at(RunConfig(), leaf.path)
    made[leaf.path] = component(leaf, value, elem_id=elem_id(f"language.{leaf.path}"), **given)


def _fold(made: dict[str, Any]) -> None:
    """Everything else that a language model takes, by section."""
    elsewhere = {"task", "model.download", *made}  # a model is fetched by a button of its own
    shown = [leaf for leaf in leaves() if applies(leaf, TEXT) and leaf.path not in elsewhere]
    for section in dict.fromkeys(leaf.section for leaf in shown):
        title = {"data": "texts", "text": "texts and answers", "model": "language model",
                 "validation": "held-out texts"}.get(section, TITLES[section])
        with gr.Accordion(title.capitalize(), open=False, elem_id=elem_id(f"language.fold.{section}")):
            for leaf in _plain_first(leaf for leaf in shown if leaf.section == section):
                _put(made, leaf, info=_SAID.get(leaf.path))


def _plain_first(group: Iterable[Leaf]) -> list[Leaf]:
    return sorted(group, key=lambda leaf: leaf.option.advanced)


def _answered(
    do: Callable[[Registry, dict[str, Any], Mapping[str, Any]], answers.Answer], registry: Registry, paths: list[str],
    order: str, *values: Any,
) -> str:  # fmt: skip
    raw = raw_of(dict(zip(paths, values, strict=True)))
    told = {path: value.strip().strip('"') if path.endswith((".base", ".folder")) else value
            for path, value in raw.items()}  # fmt: skip
    given = json.loads(order) if order else {}
    try:
        found = do(registry, {**told, "task": TEXT}, given)
    except PlainError as error:
        found = answers.faults(error)
        found |= {"did": given.get("do", "")}
    return answers.stamped(found | {"view": "language"})


def _planned(registry: Registry, raw: dict[str, Any], order: Mapping[str, Any]) -> answers.Answer:
    """What a start would do; nothing is said of a form without model or texts, but that a model must be fetched."""
    absent = registry.to_fetch(raw.get("model.base", ""))
    if absent:
        return {"kind": "absent", "base": absent}
    if not raw.get("model.base") or not raw.get("data.folder"):
        return {"kind": "empty"}
    plan = registry.plan(raw, by_page=True)
    return {
        "kind": "plan", **plan.summary(), "steps": plan.steps, "seconds": registry.seconds(plan),
        "notes": list(plan.notes), "choices": [choice._asdict() for choice in plan.choices],
        "host": registry.host.name,
    }  # fmt: skip


def _begun(registry: Registry, raw: dict[str, Any], order: Mapping[str, Any]) -> answers.Answer:
    if order.get("aside"):
        raw["model.aside"] = True
    return {"kind": "started", "id": registry.submit(raw, by_page=True).id}


def _fetching(registry: Registry, raw: dict[str, Any], order: Mapping[str, Any]) -> answers.Answer:
    return {"kind": "fetching", "id": registry.fetch_model({"base": raw.get("model.base", "")}, by_page=True).id}


def _asked(registry: Registry, raw: dict[str, Any], order: Mapping[str, Any]) -> answers.Answer:
    wanted = {name: order[name] for name in ASKED if order.get(name) not in (None, "")}
    return {"kind": "asked", "id": registry.answers({"base": raw.get("model.base", ""), **wanted}, by_page=True).id}


_DOES = {"plan": _planned, "start": _begun, "ask": _asked, "fetch": _fetching}
