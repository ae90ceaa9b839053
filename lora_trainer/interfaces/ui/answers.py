"""What the page is told when the form changes, when Start is pressed, or when settings are brought in: plain JSON.

The form's values come by dotted path, with "subject" and "strength" beside them; the answers are drawn by
javascript/lora_trainer.js.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.leaves import leaves
from lora_trainer.config.load import ConfigError, load
from lora_trainer.config.presets import steps_of
from lora_trainer.config.sweep import variants
from lora_trainer.contracts import PlainError
from lora_trainer.interfaces.ui.fields import elem_id, label, lends, looked_at, raw_of, shown_of

if TYPE_CHECKING:
    from lora_trainer.jobs.foresight import Foreseen
    from lora_trainer.jobs.plan import Plan
    from lora_trainer.jobs.planned import RunPlan
    from lora_trainer.jobs.registry import Registry

Answer = dict[str, Any]


def asked(values: Mapping[str, Any], *, lent: bool = False) -> dict[str, Any]:
    """The settings that the form asks for, without what its strength will add; `lent` as in `applies.counts`."""
    raw = raw_of(values, lent=lent)
    if "data.folder" in raw:  # as file managers copy it: blanks and quotes around
        raw["data.folder"] = raw["data.folder"].strip().strip('"').strip()
    return {path: value for path, value in raw.items() if path != "data.folder" or value}


def planned(registry: Registry, values: Mapping[str, Any]) -> Answer:
    """What Start would do, or the faults that keep it from it; nothing is said of a form with nothing to learn from.

    "form" and "strength" go along for the browser to remember, "held" for its rules of what it hides.
    """
    raw, strength = asked(values, lent=lends(registry.host)), values.get("strength")
    form = {"form": raw, "strength": strength, "held": looked_at(values)}
    if not _has_something_to_learn(raw):
        return {"kind": "empty"} | form
    try:
        several = [variant.raw for variant in variants(raw)] or [raw]
        plans = [with_strength(registry, one, strength)[0] for one in several]
    except PlainError as error:
        return faults(error) | form
    return _together([told(registry, plan) for plan in plans]) | form


def started(registry: Registry, values: Mapping[str, Any]) -> Answer:
    """The id of the job that was begun or queued, or the faults that kept it from it."""
    raw = asked(values, lent=lends(registry.host))
    try:
        if not _has_something_to_learn(raw):
            raise PlainError("No folder with images is named; name one, or drop images into the form.")
        strength = values.get("strength")
        jobs = registry.sweep(raw, by_page=True, settled=lambda one: with_strength(registry, one, strength)[1])
    except PlainError as error:
        return faults(error)
    return {"kind": "started", "id": jobs[0].id}


def _has_something_to_learn(raw: Mapping[str, Any]) -> bool:
    """A folder of images, or the prompts of a slider, which needs none."""
    return any(path in raw for path in ("data.folder", "slider.positive", "slider.negative"))


def with_strength(registry: Registry, raw: dict[str, Any], strength: str | None) -> tuple[Plan, dict[str, Any]]:
    """The plan and the settings it is of, with the steps that a strength makes of the usual number.

    A length that is given in steps or epochs is kept. Raises PlainError.
    """
    plan = _of_images(registry.plan(raw, by_page=True))
    if strength is None or "train.steps" in raw or "train.epochs" in raw:
        return plan, raw
    steps = steps_of(strength, plan.steps)
    if steps == plan.steps:
        return plan, raw
    raw = raw | {"train.steps": steps}
    return _of_images(registry.plan(raw, by_page=True)), raw


def _of_images(plan: RunPlan) -> Plan:
    """The form is for image models; settings that were brought in may be for a language model."""
    from lora_trainer.jobs.plan import Plan

    if not isinstance(plan, Plan):
        raise PlainError("These settings train a language model; start them in the view 'Language model'.")
    return plan


def told(registry: Registry, plan: Plan) -> Answer:
    """The plan in numbers; the page makes the sentence, in its language. "unoffered" are the fields it hides."""
    from lora_trainer.jobs.fits import unoffered
    from lora_trainer.jobs.sliding import draws_pictures, kind_of

    decided = {choice.name: choice.value for choice in plan.choices}
    found = plan.scan
    return {
        "kind": "plan",
        "images": len(found.items),
        "captioned": None if kind_of(plan.config) == "prompts" else len(found.items) - len(found.missing_captions),
        "drawn": draws_pictures(plan.config),
        "resolution": plan.resolution,
        "steps": plan.steps,
        "epochs": plan.epochs,
        "seconds": registry.seconds(plan),
        "memory": _foreseen(registry.memory(plan, count=False)),
        "base": plan.lent.name,
        "family": plan.family.title,
        "prediction": decided.get("prediction", plan.lent.facts.prediction),
        "notes": list(plan.notes),
        "choices": [choice._asdict() for choice in plan.choices],
        "unoffered": [elem_id(path) for path in unoffered(plan.family, plan.lent)],
    }


def memory(registry: Registry, values: Mapping[str, Any]) -> Answer:
    """What memory the run will take, counted if need be; null where that cannot be told. Of a sweep its first run's.

    "of" says of which settings it is: the plan that stands there by then may be of others.
    """
    raw, strength = asked(values, lent=lends(registry.host)), values.get("strength")
    of = {"kind": "memory", "of": {"form": raw, "strength": strength}}
    try:
        first = next((variant.raw for variant in variants(raw)), raw)
        plan, _ = with_strength(registry, first, strength)
        return of | {"memory": _foreseen(registry.memory(plan, count=True))}
    except PlainError:  # which the plan of the same settings tells
        return of | {"memory": None}


def _foreseen(found: Foreseen | None) -> Answer | None:
    return found._asdict() | {"whole": found.whole} if found else None


def _together(plans: list[Answer]) -> Answer:
    """One answer for all runs of a sweep: what the first of them does, and how long they take together."""
    seconds = [plan["seconds"] for plan in plans]
    return plans[0] | {"runs": len(plans), "together": None if None in seconds else sum(seconds)}


def faults(error: PlainError) -> Answer:
    """Every fault as a sentence, with the field it belongs to."""
    if not isinstance(error, ConfigError):
        return {"kind": "faults", "faults": [{"text": str(error), "field": None}]}
    named = {name: leaf for leaf in leaves() for name in (leaf.path, leaf.option.alias) if name}
    found: list[Answer] = []
    for one in error.faults:
        leaf = named.get(one.path)
        told = one._replace(path=label(leaf)) if leaf else one
        found.append({"text": told.sentence, "field": elem_id(leaf.path) if leaf else None})
    return {"kind": "faults", "faults": found}


def stamped(answer: Answer) -> str:
    """As text, never twice the same, since the browser is only told of changes."""
    return json.dumps(answer | {"at": time.time_ns()}, ensure_ascii=False)


def continued(registry: Registry, job_id: str) -> dict[str, Any]:
    """The settings of a job, to be gone on with from the LoRA it made. Raises PlainError."""
    try:
        job = registry.job(job_id)
    except KeyError as error:
        raise PlainError("This job is not known any more; name its LoRA under 'Start from'.") from error
    lora = next((file for file in reversed(job.files) if Path(file).suffix == ".safetensors"), None)
    if lora is None:
        raise PlainError(f"{job.name} has written no LoRA yet, so there is nothing to train on from.")
    raw = raw_of(shown_of(load(job.raw)))
    return raw | {"network.start_from": str(lora), "output.name": _next_name(job.name)}


def _next_name(name: str) -> str:
    """ "lighthouse_2" after "lighthouse", "_3" after that."""
    stem, _, number = name.rpartition("_")
    return f"{stem}_{int(number) + 1}" if stem and number.isdecimal() else f"{name}_2"
