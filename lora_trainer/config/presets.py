"""Starting points for someone who knows what the pictures show and nothing of ranks: data, with a reason each.

A subject sets the same settings in every preset, so that choosing another one undoes the first. A strength lengthens
or shortens what the engine would choose by the number of images; lengths given in steps or epochs win over it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_trainer.config.options import RunConfig


class Subject(NamedTuple):
    """What is to be learned, and the settings that suit it."""

    name: str  # "character"
    title: str
    settings: Mapping[str, Any]  # by dotted path, as `load` reads them
    prompt: str  # to draw samples of, with {trigger} where the trigger word goes
    reason: str  # for the user, one sentence


class Strength(NamedTuple):
    """How long to train, as a multiple of what is chosen by the number of images."""

    name: str  # "normal"
    title: str
    factor: float
    reason: str


def _subject(name: str, title: str, prompt: str, reason: str, settings: Mapping[str, Any]) -> Subject:
    return Subject(name, title, MappingProxyType(dict(settings)), prompt, reason)


# Ranks, rates and what goes with them are the middle of what the community's guides for SD 1.5 and SDXL recommend.
SUBJECTS = (
    _subject(
        "character", "Character", "{trigger}, portrait, looking at the viewer",
        "A face and its clothes fit into rank 16; mirrored pictures would move a parting or a scar to the other side.",
        {
            "network.rank": 16, "network.targets": "attention", "train.learning_rate": 1e-4,
            "data.caption_dropout": 0.05, "data.flip": False,
        },
    ),
    _subject(
        "style", "Style", "a house by the sea, {trigger}",
        "Brushwork is in every layer, so more layers and rank 32; captions drop out more often so that the style "
        "comes without being named, and mirrored pictures show it as well.",
        {
            "network.rank": 32, "network.targets": "linear", "train.learning_rate": 1e-4,
            "data.caption_dropout": 0.1, "data.flip": True,
        },
    ),
    _subject(
        "object", "Object", "{trigger} on a wooden table",
        "One thing needs little room, so rank 8 keeps it from learning the backgrounds; mirrored pictures would turn "
        "letters and logos around.",
        {
            "network.rank": 8, "network.targets": "attention", "train.learning_rate": 1e-4,
            "data.caption_dropout": 0.05, "data.flip": False,
        },
    ),
)  # fmt: skip

STRENGTHS = (
    Strength("light", "Light", 0.5, "Half as long: keeps more of the base model, and is a quick first try."),
    Strength("normal", "Normal", 1.0, "About a hundred looks at each image, 1500 to 3000 in all."),
    Strength("strong", "Strong", 2.0, "Twice as long: a closer likeness, with less freedom for other prompts."),
)

FIRST_SUBJECT, FIRST_STRENGTH = "character", "normal"  # what an untouched form stands at


def subject(name: str) -> Subject:
    """The preset of that name. Raises KeyError."""
    return {one.name: one for one in SUBJECTS}[name]


def strength(name: str) -> Strength:
    """The strength of that name. Raises KeyError."""
    return {one.name: one for one in STRENGTHS}[name]


def subject_of(config: RunConfig) -> str | None:
    """Name of the preset that the configuration agrees with; None where it agrees with none."""
    nested = asdict(config)
    for one in SUBJECTS:
        if all(_at(nested, path) == value for path, value in one.settings.items()):
            return one.name
    return None


def steps_of(strength_name: str, normal: int) -> int:
    """Optimizer steps of a run that would take `normal` steps at normal strength."""
    return max(1, round(normal * strength(strength_name).factor))


def _at(nested: Mapping[str, Any], path: str) -> Any:
    section, _, name = path.rpartition(".")
    return nested[section][name] if section else nested[name]
