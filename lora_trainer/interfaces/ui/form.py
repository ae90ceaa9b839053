"""The form: what a beginner fills in on top, every other option folded below, all of them read off the options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import load
from lora_trainer.config.options import RunConfig
from lora_trainer.config.presets import FIRST_STRENGTH, FIRST_SUBJECT, STRENGTHS, SUBJECTS, subject, subject_of
from lora_trainer.config.surfaces import TITLES
from lora_trainer.contracts import Host
from lora_trainer.interfaces.ui.fields import (
    component,
    elem_id,
    lends,
    sectioned,
    shown_of,
    takes_several,
    unsaved,
    value_at,
)
from lora_trainer.interfaces.ui.versions import update

_MODELS = (".safetensors", ".ckpt")  # what a checkpoint's name ends with
_DROPPABLE = ["image", ".txt", ".caption", ".csv", ".jsonl", ".zip"]


class Form(NamedTuple):
    """The components of the form; their values travel as one row, in the order of `row`."""

    by_path: dict[str, Any]
    subject: Any
    strength: Any
    drop: Any

    @property
    def row(self) -> list[Any]:
        """Every component whose value counts."""
        return [*self.by_path.values(), self.subject, self.strength]

    def named(self, values: Sequence[Any]) -> dict[str, Any]:
        """A row of values by path, with "subject" and "strength"."""
        return dict(zip([*self.by_path, "subject", "strength"], values, strict=True))

    def filled(
        self, config: RunConfig, strength: str | None = None, lists: Mapping[str, Sequence[Any]] | None = None
    ) -> list[Any]:
        """A row of updates that shows a configuration, at normal strength unless one is given.

        `lists` are values to be tried one after the other, by path; a field for numbers shows them all.
        """
        values = shown_of(config)
        values |= {path: ", ".join(map(str, several)) for path, several in (lists or {}).items() if takes_several(path)}
        return [
            *(update(value=values[path]) for path in self.by_path),
            update(value=subject_of(config)),
            update(value=strength or FIRST_STRENGTH),
        ]

    def preset(self, name: str | None) -> list[Any]:
        """Updates of the settings that a subject decides, in the order of `preset_components`."""
        if name is None:
            return [update() for _ in self.preset_components]
        values = shown_of(load(subject(name).settings))
        return [update(value=values[path]) for path in subject(name).settings]

    @staticmethod
    def prompt(trigger: str, prompts: str, name: str | None) -> Any:
        """An update that proposes a sample prompt for a trigger word; what was written by hand stays."""
        word = trigger.strip()
        proposals = {one.name: one.prompt.format(trigger=word) for one in SUBJECTS}
        if not word or name is None or prompts.strip() not in ("", *proposals.values()):
            return update()
        return update(value=proposals[name])

    @property
    def preset_components(self) -> list[Any]:
        """The components that a subject decides about."""
        return [self.by_path[path] for path in SUBJECTS[0].settings]


def first_config() -> RunConfig:
    """What an untouched form stands for."""
    return load(subject(FIRST_SUBJECT).settings)


def build(host: Host) -> Form:
    """Make the components, in the gradio context that is open."""
    config = first_config()
    known = {leaf.path: leaf for leaf in leaves()}
    made: dict[str, Any] = {}
    drop = _images(made, known, config)
    with gr.Row(elem_id="lt_names"):
        _put(
            made, known["output.name"], config, label="Name", placeholder="my_cat",
            info="The LoRA's file is called so.",
        )  # fmt: skip
        _put(
            made, known["data.trigger"], config, label="Trigger word", placeholder="e.g. ohwx_cat",
            info="A rare word that will call the LoRA.",
        )  # fmt: skip
    chosen = _choices()
    _put(
        made, known["samples.prompts"], config, label="Sample prompts", placeholder="ohwx_cat on a sofa",
        info="Drawn as the training goes on, one a line; leave it empty to draw nothing.",
    )  # fmt: skip
    if not lends(host):
        _put_checkpoints(made, known["model.base"], host)
    return Form(made, *chosen, drop)


def build_advanced(form: Form) -> None:
    """Every option that is not on top, folded by section; the rarer ones folded once more."""
    config = first_config()
    for section, (plain, advanced) in sectioned(skip=form.by_path).items():
        with gr.Accordion(TITLES[section].capitalize(), open=False, elem_id=elem_id(f"fold.{section or 'run'}")):
            _put_all(form.by_path, plain, config)
            if advanced:
                with gr.Accordion("More", open=False, elem_id=elem_id(f"more.{section}")):
                    _put_all(form.by_path, advanced, config)


def _images(made: dict[str, Any], known: Mapping[str, Leaf], config: RunConfig) -> Any:
    _put(
        made, known["data.folder"], config, label="Folder with the images", placeholder="/pictures/my_cat",
        info="15 to 50 pictures; captions beside them (.txt, metadata.csv) are found.",
    )  # fmt: skip
    return unsaved(
        gr.File(
            label="Or drop the images here", file_count="multiple", file_types=_DROPPABLE, elem_id="lt_drop", height=96
        )
    )


def _choices() -> tuple[Any, Any]:
    with gr.Row(elem_id="lt_choices"):
        subjects = gr.Radio(
            choices=[(one.title, one.name) for one in SUBJECTS], value=FIRST_SUBJECT, label="What is on the pictures",
            elem_id="lt_subject",
        )  # fmt: skip
        strengths = gr.Radio(
            choices=[(one.title, one.name) for one in STRENGTHS], value=FIRST_STRENGTH, label="Strength of training",
            elem_id="lt_strength",
        )  # fmt: skip
    return unsaved(subjects), unsaved(strengths)


def _put_checkpoints(made: dict[str, Any], leaf: Leaf, host: Host) -> None:
    """A choice of the files in the host's folders, that takes any other path too."""
    files = [
        str(file)
        for folder in host.paths().checkpoints
        for file in sorted(Path(folder).rglob("*"))
        if file.suffix.lower() in _MODELS
    ]
    made[leaf.path] = unsaved(
        gr.Dropdown(
            choices=["demo", *files], value=files[0] if files else "demo", allow_custom_value=True, label="Base model",
            info="A file or folder; 'demo' is the small model that comes with the trainer.", elem_id=elem_id(leaf.path),
        )
    )  # fmt: skip


def _put_all(made: dict[str, Any], group: Sequence[Leaf], config: RunConfig) -> None:
    for leaf in group:
        _put(made, leaf, config)


def _put(made: dict[str, Any], leaf: Leaf, config: RunConfig, **more: Any) -> None:
    made[leaf.path] = component(leaf, value_at(config, leaf.path), **more)
