"""How a run tells what it was: inside the LoRA, beside it, and in the state that a resumed run checks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lora_trainer.config.load import dump
from lora_trainer.contracts import PlainError
from lora_trainer.jobs.plan import Plan
from lora_trainer.weights.write import write_whole


# Options that a state's tensors depend on.
_SHAPING = ("network.kind", "network.rank", "network.alpha", "network.targets")


def resolved_config(plan: Plan) -> dict[str, Any]:
    """The configuration with what was left open filled in: the same file, data and machine give the same LoRA."""
    config = dump(plan.config)
    config["data"]["resolution"] = plan.resolution
    config["model"]["clip_skip"] = plan.clip_skip
    config["network"]["alpha"] = plan.alpha
    config["train"] |= {"steps": plan.steps, "epochs": None, "seed": plan.seed}
    config["train"]["text_encoder_learning_rate"] = max(
        (rate for part, rate in plan.rates.items() if part != "unet"), default=0.0
    )
    config["output"]["save_steps"] = plan.save_every
    return config


def recipe(plan: Plan) -> dict[str, Any]:
    """The configuration as it is written into the LoRA: without the folders of the machine it was trained on, so that
    the same run gives the same bytes wherever it writes, and nobody's user name is published."""
    config = resolved_config(plan)
    del config["output"]["directory"]
    config["data"]["folder"] = plan.data_name
    config["data"]["metadata"] = None if plan.config.data.metadata is None else "metadata.csv"
    config["model"]["base"] = plan.lent.name
    if plan.config.network.start_from:
        config["network"]["start_from"] = plan.start_name
    return config


def write_recipe(plan: Plan) -> None:
    """Write `<name>.yaml`: `train --config` with it repeats the run."""
    from lora_trainer.config.load import dump_yaml, load

    text = dump_yaml(load(resolved_config(plan)))
    write_whole(plan.files.recipe, lambda file: file.write(text.encode("utf-8")))


def resumable_facts(plan: Plan) -> dict[str, Any]:
    """What must agree between a state and the run that goes on from it."""
    return {"seed": plan.seed, "config": resolved_config(plan), "data": plan.data.fingerprint, "base": plan.lent.name}


def what_changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on what differs since the checkpoint. Raises PlainError where the weights would not fit."""
    before, after = _flat(then["config"]), _flat(now["config"])
    changed = {name: (before.get(name), value) for name, value in after.items() if before.get(name) != value}
    network = {name: pair for name, pair in changed.items() if name in _SHAPING}
    if network:
        listed = ", ".join(f"{name} was {old} and is {new}" for name, (old, new) in network.items())
        raise PlainError(
            f"The checkpoint cannot be resumed with another network: {listed}; set it back, or start a new run with "
            "lora_path set to the checkpoint's .safetensors."
        )
    sentences = [
        f"Since the checkpoint {name} changed from {old} to {new}."
        for name, (old, new) in changed.items()
        if not name.startswith("output.")
    ]
    if then["data"] != now["data"]:
        sentences.append("Since the checkpoint the images or captions changed; from here on the new ones are used.")
    return sentences


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat
