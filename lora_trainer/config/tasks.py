"""Which settings mean something for which task: others are refused, since they would promise what is not done."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any

from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import ConfigError, Fault
from lora_trainer.config.options import RunConfig
from lora_trainer.config.values import shown

TEXT, IMAGES = "text-generation", "stable-diffusion"

# What a language model's run takes, besides everything in the section "text".
_FOR_TEXT = frozenset({
    "task", "model.base", "model.download", "model.aside",
    "data.folder", "data.batch_size", "data.repeats",
    "network.kind", "network.rank", "network.alpha", "network.targets", "network.layers", "network.ranks",
    "network.init", "network.rslora", "network.loraplus_ratio", "network.dropout", "network.rank_dropout",
    "network.module_dropout", "network.start_from", "validation.share", "validation.every", "validation.patience",
    "train.epochs", "train.steps", "train.learning_rate", "train.schedule", "train.schedule_cycles",
    "train.schedule_power", "train.ema", "optimizer.kind", "optimizer.prodigy_coefficient", "train.warmup",
    "train.weight_decay",
    "train.gradient_accumulation_steps", "train.max_gradient_norm", "train.mixed_precision",
    "train.gradient_checkpointing", "train.seed",
    "output.directory", "output.name", "output.save_steps", "output.keep_last", "output.precision",
    "output.tensorboard", "samples.prompts", "samples.every", "samples.seed",
})  # fmt: skip


def check_task(config: RunConfig) -> None:
    """Raise ConfigError with each setting that was changed and does nothing in this task."""
    faults = list(_faults(config))
    if faults:
        raise ConfigError(faults)


def applies(leaf: Leaf, task: str) -> bool:
    """Whether a setting means something for that task."""
    if task == TEXT:
        return leaf.section == "text" or leaf.path in _FOR_TEXT
    return leaf.section != "text" and leaf.path not in ("model.download", "model.aside")


def _faults(config: RunConfig) -> Iterator[Fault]:
    what = "a language model" if config.task == TEXT else "an image model"
    for leaf in leaves():
        value: Any = reduce(getattr, leaf.path.split("."), config)
        if value != leaf.default and not applies(leaf, config.task):
            yield Fault(leaf.path, f"is {shown(value)}, but it does nothing for {what}; remove it")
    if config.task == TEXT and config.network.kind not in ("lora", "dora"):
        text = f"is {config.network.kind!r}, but servers of language models read lora and dora; write one of these"
        yield Fault("network.kind", text)
    if config.task == TEXT and config.text.quantize != "none":
        for path, value, plain in (
            ("network.kind", config.network.kind, "lora"), ("network.init", config.network.init, "default")
        ):  # fmt: skip
            if value != plain:
                text = f"is {value!r}, which needs the base's weights as they were; set text.quantize: none, or {plain}"
                yield Fault(path, text)
    if config.task == TEXT and config.network.targets == "all":
        yield Fault("network.targets", "is 'all', but a language model has no convolutions; write attention or linear")
