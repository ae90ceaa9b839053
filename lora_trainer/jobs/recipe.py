"""How a run tells what it was: inside the LoRA, beside it, and in the state that a resumed run checks."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lora_trainer.config.load import dump, dump_yaml, load
from lora_trainer.contracts import PlainError
from lora_trainer.data.scan import Item
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.planned import RunPlan
from lora_trainer.networks.metadata import RunFacts, build
from lora_trainer.networks.network import alpha_of
from lora_trainer.train.ladder import CHECKPOINTING
from lora_trainer.train.optimizer_kinds import KINDS
from lora_trainer.weights.write import write_whole

# Options that a state's tensors depend on.
_SHAPING = tuple(
    f"network.{name}"
    for name in ("kind", "rank", "alpha", "targets", "layers", "ranks", "init", "rslora", "factor")
)  # fmt: skip


def resolved_config(plan: RunPlan) -> dict[str, Any]:
    """The configuration with what was left open filled in: the same file, data and machine give the same LoRA."""
    config = dump(plan.config)
    if plan.config.network.kind != "oft":  # which has none
        config["network"]["alpha"] = plan.alpha
    config["train"] |= {
        "steps": plan.steps, "epochs": None, "seed": plan.seed, "mixed_precision": plan.precision
    }  # fmt: skip
    config["output"]["save_steps"] = plan.save_every
    for path, value in plan.settled().items():
        section, _, name = path.partition(".")
        config[section][name] = value
    return config


def recipe(plan: RunPlan) -> dict[str, Any]:
    """The configuration as it is written into the LoRA: without the folders of the machine it was trained on, so that
    the same run gives the same bytes wherever it writes, and nobody's user name is published."""
    config = resolved_config(plan)
    del config["output"]["directory"]
    config["data"]["folder"] = plan.data_name
    config["data"]["metadata"] = _last_part(plan.config.data.metadata)
    config["data"]["regularization"] = _last_part(plan.config.data.regularization)
    config["slider"]["opposite"] = _last_part(plan.config.slider.opposite)
    config["model"]["base"] = plan.base_name
    config["network"]["start_from"] = _last_part(plan.config.network.start_from)
    return config


def lora_metadata(plan: Plan, name: str, step: int, measures: Sequence[str] = ()) -> dict[str, str]:
    """The notes of a LoRA file called `name`, written after `step` steps that took `measures` to save memory."""
    config = plan.config
    train, data = config.train, config.data
    twice = 1 if config.network.init == "default" else 2  # what was learnt and what was taken off, side by side
    return build(
        RunFacts(
            name=name,
            base_name=plan.lent.name,
            base_version=plan.family.metadata_version,
            architecture=plan.family.modelspec_architecture,
            prediction=plan.lent.facts.prediction,
            zero_terminal_snr=plan.lent.facts.zero_terminal_snr,
            resolution=plan.resolution,
            clip_skip=plan.clip_skip,
            kind=config.network.kind,
            rank=config.network.rank * twice,
            alpha=0.0 if config.network.kind == "oft" else alpha_of(replace(config.network, alpha=plan.alpha)) * twice,
            convolutions=config.network.kind == "locon" or config.network.targets == "all",
            factor=config.network.factor,
            dropout=config.network.dropout,
            rank_dropout=config.network.rank_dropout,
            module_dropout=config.network.module_dropout,
            learning_rate=train.learning_rate,
            text_encoder_learning_rate=plan.text_rate,
            schedule=plan.schedule.kind,
            warmup_steps=plan.warmup_steps,
            optimizer=KINDS[config.optimizer.kind].title,
            step=step,
            steps=plan.steps,
            epochs=math.ceil(plan.epochs),
            batch_size=data.batch_size,
            gradient_accumulation_steps=train.gradient_accumulation_steps * plan.processes,
            gradient_checkpointing=train.gradient_checkpointing == "yes" or CHECKPOINTING in measures,
            max_gradient_norm=train.max_gradient_norm,
            min_snr_gamma=train.min_snr_gamma,
            noise_offset=train.noise_offset,
            mixed_precision=plan.precision,
            seed=plan.seed,
            images=len(plan.data.items),
            class_images=len(plan.data.class_items),
            prior_weight=data.prior_weight,
            repeats=data.repeats,
            data_name=plan.data_name,
            caption_dropout=data.caption_dropout,
            shuffle_captions=data.shuffle_captions,
            keep_tokens=data.keep_tokens,
            flip=data.flip,
            tag_frequency=tag_counts(plan.data.items),
            buckets=plan.data.bucket_counts(),
            recipe=recipe(plan),
        )
    )


def write_recipe(plan: RunPlan) -> None:
    """Write `<name>.yaml`: `train --config` with it repeats the run."""
    text = dump_yaml(load(resolved_config(plan))).encode("utf-8")

    def fill(file: BinaryIO) -> None:
        file.write(text)

    write_whole(plan.files.recipe, fill)


def resumable_facts(plan: RunPlan) -> dict[str, Any]:
    """What must agree between a state and the run that goes on from it."""
    return {
        "seed": plan.seed,
        "config": resolved_config(plan),
        "data": plan.data_digest,
        "base": plan.base_name,
    }


def what_changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences on what differs since the checkpoint. Raises PlainError where the weights would not fit."""
    # Read anew, so that options which that version did not have yet stand at their defaults.
    before, after = _flat(dump(load(then["config"]))), _flat(now["config"])
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


def tag_counts(items: Sequence[Item]) -> Counter[str]:
    """How many images each comma-separated tag of the captions stands at."""
    return Counter(tag for item in items for tag in {tag.strip() for tag in item.caption.split(",")} if tag)


def _last_part(path: str | None) -> str | None:
    return Path(path).name if path else None


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value)
    return flat
