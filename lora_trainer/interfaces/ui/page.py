"""The tab as gradio blocks: the form on the left; on the right an empty place that javascript/lora_trainer.js draws.
The views to which a switch above leads are workshop.py's (the data set) and language.py's (language models).

Between form and script there is one hidden text field each way, `lt_order` and `lt_answer`, and hidden buttons that
the script presses; all else that it shows comes from the HTTP routes, so that a reload of the page loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import gradio as gr

from lora_trainer.config.leaves import leaves
from lora_trainer.config.load import dump_yaml, load
from lora_trainer.config.sweep import apart
from lora_trainer.contracts import Host, PlainError
from lora_trainer.interfaces.api.forms import taken_form
from lora_trainer.interfaces.ui import answers, language, workshop
from lora_trainer.interfaces.ui.fields import folds, label, lends, rules, unsaved
from lora_trainer.interfaces.ui.folders import open_folder
from lora_trainer.interfaces.ui.form import Form, build, build_advanced
from lora_trainer.interfaces.ui.sources import brought
from lora_trainer.interfaces.ui.uploads import keep
from lora_trainer.interfaces.ui.versions import listen, update

if TYPE_CHECKING:
    from lora_trainer.jobs.registry import Registry

_CHANGED = "() => { window.loraTrainer && window.loraTrainer.changed(); return []; }"
_ANSWERED = "(text) => { window.loraTrainer && window.loraTrainer.answered(text); return []; }"
_ORDER = "(...row) => [window.loraTrainer.order(), ...row.slice(1)]"
_SUBMIT = "(...row) => { window.loraTrainer.submitting(); return row; }"


class _Wires(NamedTuple):
    """The hidden components between form and script."""

    order: Any
    answer: Any
    buttons: dict[str, Any]


def page(registry: Registry, host: Host) -> gr.Blocks:
    """The whole tab. Handlers ask the registry in this process; what runs is drawn from the HTTP routes."""
    blocks = gr.Blocks(analytics_enabled=False, title="LoRA Trainer")
    with blocks, gr.Column(elem_id="lt_page"):
        gr.HTML('<div id="lt_views"></div>', elem_id="lt_views_block")
        with gr.Row(elem_id="lt_columns"):
            with gr.Column(scale=5, min_width=300, elem_id="lt_form"):
                form = build(host)
                start = unsaved(gr.Button("Start training", variant="primary", elem_id="lt_start"))
                offered = {"rules": rules(lent=lends(host)), "folds": folds(skip=form.by_path)}
                gr.HTML(_frame("lt_plan", host, rules=json.dumps(offered)), elem_id="lt_plan_block")
                gr.HTML('<div id="lt_tools"></div>', elem_id="lt_tools_block")
                with gr.Accordion("Advanced options", open=False, elem_id="lt_advanced"):
                    build_advanced(form)
            language.build(registry)
            with gr.Column(scale=6, min_width=300, elem_id="lt_watch"):
                gr.HTML(_frame("lt_run", host), elem_id="lt_run_block")
        workshop.build(registry)
        wires = _wires()
        _wire_form(form, wires, start, registry)
        _wire_sources(form, wires, registry, host)
    return blocks


def _frame(name: str, host: Host, **data: str) -> str:
    """An empty place that the script draws in, with what it should know."""
    known = {"lends": "yes" if lends(host) else "no", "host": host.name, **data}
    more = "".join(f' data-{key}="{escape(value)}"' for key, value in known.items())
    return f'<div id="{escape(name)}"{more}></div>'


def _wires() -> _Wires:
    """Hidden by the style sheet, not by gradio, which keeps from the browser what it hides itself."""
    with gr.Row(elem_id="lt_wires"):
        order = unsaved(gr.Textbox(elem_id="lt_order", show_label=False))
        answer = unsaved(gr.Textbox(elem_id="lt_answer", show_label=False))
        names = ("plan", "memory", "bring", "save", "open")
        buttons = {name: unsaved(gr.Button(name, elem_id=f"lt_do_{name}")) for name in names}
    listen(answer.change, inputs=[answer], js=_ANSWERED)
    return _Wires(order, answer, buttons)


def _wire_form(form: Form, wires: _Wires, start: Any, registry: Registry) -> None:
    for changing in form.row:
        listen(changing.change, js=_CHANGED)

    def plan(*row: Any) -> str:
        return _sent(lambda: answers.planned(registry, form.named(row)))

    def memory(*row: Any) -> str:
        return _sent(lambda: answers.memory(registry, form.named(row)))

    def begin(*row: Any) -> str:
        return _sent(lambda: answers.started(registry, form.named(row)))

    def save(*row: Any) -> str:
        return _sent(lambda: {"kind": "yaml", "text": _as_yaml(registry, form.named(row))})

    listen(wires.buttons["plan"].click, plan, form.row, [wires.answer])
    listen(wires.buttons["memory"].click, memory, form.row, [wires.answer])
    listen(start.click, begin, form.row, [wires.answer], js=_SUBMIT)
    listen(wires.buttons["save"].click, save, form.row, [wires.answer])
    listen(form.subject.input, form.preset, [form.subject], form.preset_components)
    trigger, prompts = form.by_path["data.trigger"], form.by_path["samples.prompts"]
    for telling in (trigger.blur, form.subject.input):
        listen(telling, form.prompt, [trigger, prompts, form.subject], [prompts])
    # A strength that is chosen by hand takes the place of a length that is given.
    lengths = [form.by_path["train.steps"], form.by_path["train.epochs"]]
    listen(form.strength.input, lambda: [update(value=""), update(value="")], (), lengths)


def _wire_sources(form: Form, wires: _Wires, registry: Registry, host: Host) -> None:
    def bring(order: str, *row: Any) -> list[Any]:
        try:
            found = brought(json.loads(order), form.named(row), registry, host.paths())
        except PlainError as error:
            return [answers.stamped(answers.faults(error) | {"kind": "refused"}), *(update() for _ in form.row)]
        filled = form.filled(found.config, found.strength, found.lists)
        left = [label(leaf) for leaf in leaves() if leaf.path in found.left]
        return [answers.stamped({"kind": "brought", "what": found.note, "left": left}), *filled]

    def dropped(files: Sequence[Any] | None, folder: str) -> list[Any]:
        if not files:
            return [update(), update(), update()]
        try:
            kept = keep([getattr(file, "name", file) for file in files], folder or "", host.paths())
        except PlainError as error:
            return [update(value=None), update(), answers.stamped(answers.faults(error))]
        told = answers.stamped({"kind": "taken", **taken_form(kept)})
        return [update(value=None), update(value=str(kept.folder)), told]

    def show(order: str, request: gr.Request) -> str:
        return _sent(lambda: open_folder(registry, json.loads(order)["id"], _from_here(request)))

    listen(wires.buttons["bring"].click, bring, [wires.order, *form.row], [wires.answer, *form.row], js=_ORDER)
    listen(form.drop.upload, dropped, [form.drop, form.by_path["data.folder"]],
           [form.drop, form.by_path["data.folder"], wires.answer])  # fmt: skip
    listen(wires.buttons["open"].click, show, [wires.order], [wires.answer], js="(_) => window.loraTrainer.order()")


def _as_yaml(registry: Registry, values: dict[str, Any]) -> str:
    """What Start would run, as YAML; with its steps where there is a folder to count them from."""
    raw, lists = apart(answers.asked(values, lent=lends(registry.host)))
    if "data.folder" in raw:
        _, raw = answers.with_strength(registry, raw, values.get("strength"))
    return dump_yaml(load(raw), lists)


def _from_here(request: gr.Request) -> bool:
    """Whether the browser runs on this machine; through a proxy nobody can tell."""
    client = getattr(request, "client", None)
    return "x-forwarded-for" not in request.headers and getattr(client, "host", "") in ("127.0.0.1", "::1")


def _sent(make: Callable[[], answers.Answer]) -> str:
    try:
        return answers.stamped(make())
    except PlainError as error:
        return answers.stamped(answers.faults(error))
