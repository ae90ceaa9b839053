"""Every option there is: turning it changes something that can be seen, and where it cannot count it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from lora_trainer.config.applies import Needed, letting, needs, told
from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import ConfigError, load
from lora_trainer.config.surfaces import json_schema, options_page
from lora_trainer.families import tokenizer
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.fits import unoffered
from lora_trainer.jobs.plan import Plan, plan_run
from lora_trainer.networks.file import write_lora
from tests.builders.language import write_model, write_pairs
from tests.builders.lender import Lender
from tests.builders.looks import Looks
from tests.builders.networks import base_model, put_on
from tests.builders.runs import write_pictures
from tests.builders.slim import write_slim
from tests.unit.test_data_masks import half

LEAVES = {leaf.path: leaf for leaf in leaves()}


class Turned(NamedTuple):
    """One option, another value than its default, and how deep to look for what that changes."""

    path: str
    value: Any
    look: str = "learnt"  # a way of tests/builders/looks.py
    given: Mapping[str, Any] = MappingProxyType({})  # on both sides; so is what it counts with


LONG = {"train.steps": 40, "train.warmup": 0.0}
DRAWN = {"samples.prompts": ["blocks"], "samples.sampling_steps": 2, "samples.size": 64}
HELD = {"validation.share": 0.4, "train.steps": 4}
SHUFFLED = {"data.shuffle_captions": True}
MASKED = {"data.masked_loss": True}
OF_CLASS = {"data.regularization": "{}/bare", "data.class_prompt": "blocks"}
TEXT = {"task": "text-generation", "model.base": "{}/llama", "data.folder": "{}/texts", "data.resolution": None}
ANSWERED = {**TEXT, "samples.prompts": ["cats"], "text.answer_tokens": 4}
LOW = {"objective.timesteps": "low_noise"}
LOGIT = {"objective.timesteps": "logit_normal"}
BENT = {"objective.loss": "huber"}
PRODIGY = {"train.learning_rate": 1.0, "train.text_encoder_learning_rate": 0, "output.precision": "fp32",
           "train.steps": 4}  # fmt: skip
SLIDING = {"slider.positive": "an old barn", "slider.negative": "a new barn", "output.precision": "fp32"}
PRESERVED = {"data.trigger": "blocks", "objective.preserve": 1.0, "objective.preserve_class": "cat"}

EVERY = (
    Turned("task", "text-generation", "plan"),
    Turned("model.base", "{}/other.safetensors", "run"),
    Turned("model.download", True, "run", {**TEXT, "model.base": "nobody/nothing"}),
    Turned("model.aside", True, "aside", TEXT),
    Turned("model.prediction", "v_prediction"),
    Turned("model.zero_terminal_snr", "yes"),
    Turned("model.quantize", "4bit", "plan"),
    Turned("model.clip_skip", 2, given={"train.text_encoder_learning_rate": 0}),
    Turned("data.folder", "{}/class", "batches"),
    Turned("data.metadata", "{}/other.csv", "batches"),
    Turned("data.resolution", 128, "batches", {"data.upscale": True}),
    Turned("data.batch_size", 2, "batches"),
    Turned("data.repeats", 2, "plan", {"train.steps": None, "train.epochs": 3}),
    Turned("data.buckets", False, "batches", {"data.bucket_step": 32}),
    Turned("data.bucket_step", 32, "batches"),
    Turned("data.upscale", True, "batches", {"data.resolution": 128}),
    Turned("data.crop", "none", "batches", {"data.buckets": False}),
    Turned("data.masked_loss", True),
    Turned("data.mask_floor", 0.3, "batches", MASKED),
    Turned("data.regularization", "{}/class", "batches", {"data.batch_size": 2}),
    Turned("data.class_prompt", "other blocks", "batches", OF_CLASS),
    Turned("data.prior_weight", 0.5, "batches", OF_CLASS),
    Turned("data.trigger", "ohwx", "batches"),
    Turned("data.shuffle_captions", True, "batches"),
    Turned("data.keep_tokens", 2, "batches", SHUFFLED),
    Turned("data.caption_dropout", 0.9, "batches"),
    Turned("data.flip", True, "batches"),
    Turned("data.cache", "disk", "cached"),
    Turned("network.kind", "loha"),
    Turned("network.rank", 3),
    Turned("network.alpha", 3.5),
    Turned("network.targets", "all"),
    Turned("network.layers", ["to_q"]),
    Turned("network.ranks", ["mid_block = 2"]),
    Turned("network.init", "olora"),
    Turned("network.rslora", True),
    Turned("network.loraplus_ratio", 8.0),
    Turned("network.factor", 2),
    Turned("network.dropout", 0.3),
    Turned("network.rank_dropout", 0.3),
    Turned("network.module_dropout", 0.3),
    Turned("network.start_from", "{}/start.safetensors"),
    Turned("train.epochs", 2, "plan", {"train.steps": None}),
    Turned("train.steps", 3, "run"),
    Turned("train.learning_rate", 1e-3, "run"),
    Turned("train.text_encoder_learning_rate", 0),
    Turned("train.schedule", "rex", "plan", LONG),
    Turned("train.schedule_cycles", 2, "plan", {**LONG, "train.schedule": "cosine_with_restarts"}),
    Turned("train.schedule_power", 1.0, "plan", {**LONG, "train.schedule": "polynomial"}),
    Turned("train.warmup", 0.5, "plan", {"train.steps": 40}),
    Turned("train.weight_decay", 0.9, "run"),
    Turned("train.gradient_accumulation_steps", 2, "run"),
    Turned("train.max_gradient_norm", 1e-4, "run"),
    Turned("train.min_snr_gamma", 1.0),
    Turned("train.noise_offset", 0.2),
    Turned("train.ema", 0.9, "run"),
    Turned("train.mixed_precision", "bf16", "plan"),
    Turned("train.gradient_checkpointing", "yes", "ladder"),
    Turned("train.attention_slicing", "yes", "ladder"),
    Turned("train.compile", True, "run"),
    Turned("train.seed", 12),
    Turned("optimizer.kind", "adafactor", "run"),
    Turned("optimizer.prodigy_coefficient", 0.5, "plan", PRODIGY),
    Turned("objective.loss", "huber"),
    Turned("objective.huber_delta", 0.5, given=BENT),
    Turned("objective.huber_schedule", "constant", given=BENT),
    Turned("objective.weighting", "debiased"),
    Turned("objective.timesteps", "high_noise"),
    Turned("objective.min_timestep", 500),
    Turned("objective.max_timestep", 500),
    Turned("objective.timestep_power", 6.0, given=LOW),
    Turned("objective.logit_mean", 1.0, given=LOGIT),
    Turned("objective.logit_std", 0.3, given=LOGIT),
    Turned("objective.pyramid_noise", 3),
    Turned("objective.pyramid_discount", 0.8, given={"objective.pyramid_noise": 3}),
    Turned("objective.input_perturbation", 0.1),
    Turned("objective.preserve", 2.0, given={"data.trigger": "blocks", "objective.preserve_class": "cat"}),
    Turned("objective.preserve_class", "dog", given=PRESERVED),
    Turned("slider.positive", "a tall barn", "run", SLIDING),
    Turned("slider.negative", "a low barn", "run", SLIDING),
    Turned("slider.target", "a barn", "run", SLIDING),
    Turned("slider.strength", 1.0, "run", SLIDING),
    Turned("slider.keep", ["red", "blue"], "run", SLIDING),
    Turned("slider.pictures", 3, "plan", {**SLIDING, "data.folder": None}),
    Turned("slider.opposite", "{}/before", "plan"),
    Turned("validation.share", 0.4, "plan"),
    Turned("validation.folder", "{}/class", "plan"),
    Turned("validation.every", 2, "run", HELD),
    Turned("validation.timesteps", 2, "run", HELD),
    Turned("validation.patience", 1, "run", {**HELD, "train.learning_rate": 1.0}),
    Turned("output.directory", "{}/out/elsewhere", "plan"),
    Turned("output.name", "other", "run"),
    Turned("output.save_steps", 1, "run"),
    Turned("output.keep_last", 1, "run", {"output.save_steps": 1, "train.steps": 4}),
    Turned("output.precision", "fp32", "run"),
    Turned("output.tensorboard", True, "run"),
    Turned("samples.prompts", ["blocks"], "run", {}),
    Turned("samples.negative", "red", "run", DRAWN),
    Turned("samples.every", 1, "run", DRAWN),
    Turned("samples.size", 128, "run", DRAWN),
    Turned("samples.sampling_steps", 1, "run", DRAWN),
    Turned("samples.guidance", 1.5, "run", DRAWN),
    Turned("samples.seed", 7, "run", DRAWN),
    Turned("text.max_length", 16, "plan", TEXT),
    Turned("text.train_on", "all", "plan", TEXT),
    Turned("text.template", "plain", "plan", TEXT),
    Turned("text.prompt_column", "output", "plan", TEXT),
    Turned("text.response_column", "instruction", "plan", TEXT),
    Turned("text.packing", True, "plan", TEXT),
    Turned("text.quantize", "4bit", "plan", TEXT),
    Turned("text.answer_tokens", 8, "run", ANSWERED),
    Turned("text.temperature", 2.0, "run", ANSWERED),
)


def each(turned: Turned) -> Any:
    """A case of the walk; whole runs with the newest libraries only."""
    marks = [pytest.mark.slow] if turned.look == "run" else []
    return pytest.param(turned, id=turned.path, marks=marks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("every")
    pictures = write_pictures(made / "pictures", 5, ((64, 64), (128, 64)))
    rows = [f'{n}.png,"blocks, number {n}, red, green, blue, grey"' for n in range(5)]
    (pictures / "metadata.csv").write_text("\n".join(["filename,prompt", *rows]), encoding="utf-8")
    (made / "other.csv").write_text("\n".join(["filename,prompt", *(f"{n}.png,house" for n in range(5))]), "utf-8")
    for number in range(5):
        half((64, 64) if number % 2 == 0 else (128, 64)).save(pictures / f"{number}-masklabel.png")
    write_pictures(made / "class", 3)
    write_pictures(made / "before", 5, ((64, 64), (128, 64)))
    write_pictures(made / "bare", 3)
    (made / "bare" / "metadata.csv").unlink()
    write_slim(made / "base.safetensors", "sd1", seed=1)
    write_slim(made / "other.safetensors", "sd1", seed=2)
    write_model(made / "llama")
    write_pairs(made / "texts")
    base = base_model("sd1", seed=1)
    network = put_on(base, rank=2)
    notes = {"ss_base_model_version": "sd_v1"}
    write_lora(made / "start.safetensors", network.state(), kohya_name=base.kohya_name, metadata=notes,
               precision="fp32")  # fmt: skip
    network.eject()
    return made


@pytest.fixture(scope="module")
def looks(folder: Path) -> Looks:
    return Looks(folder / "base.safetensors")


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """What was seen without the option, for those that share the rest."""
    return {}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, which would take a minute; and the vocabulary, a quarter of a second for each run, read once."""

    def compile(module: torch.nn.Module) -> None:
        raise RuntimeError("there is no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    monkeypatch.setattr(tokenizer, "_byte_pair_encoder", _encoders.setdefault("read", tokenizer._byte_pair_encoder))


_encoders: dict[str, Any] = {}


def settings(folder: Path, turned: Turned) -> dict[str, Any]:
    small = {
        "model.base": "{}/base.safetensors", "data.folder": "{}/pictures", "data.resolution": 64, "data.batch_size": 1,
        "network.rank": 4, "train.steps": 2, "train.learning_rate": 1e-2, "train.seed": 11,
        "output.directory": "{}/out/lora", "output.save_steps": 0, "output.tensorboard": False,
    }  # fmt: skip
    rest = {path: value for path, value in letting(LEAVES[turned.path]).items() if path not in turned.given}
    raw = {**small, **rest, **turned.given}
    return {path: filled(value, folder) for path, value in raw.items() if value is not None}


def filled(value: Any, folder: Path) -> Any:
    return value.replace("{}", str(folder)) if isinstance(value, str) else value


def test_the_walk_goes_over_every_option_there_is() -> None:
    assert [turned.path for turned in EVERY] == list(LEAVES)


@pytest.mark.parametrize("turned", [each(turned) for turned in EVERY])
def test_turning_it_changes_what_can_be_seen(
    turned: Turned, folder: Path, looks: Looks, seen: dict[str, str]
) -> None:
    if turned.path == "optimizer.prodigy_coefficient":
        pytest.importorskip("prodigyopt")
    raw = settings(folder, turned)
    known = f"{turned.look} {raw}"
    if known not in seen:
        seen[known] = looks.look(turned.look, raw)
    if seen.setdefault(turned.look, known) == known:  # once for each way of looking
        assert looks.look(turned.look, raw) == seen[known], "the same settings look alike"
        seen[turned.look] = "proved"
    before = seen[known]
    after = looks.look(turned.look, {**raw, turned.path: filled(turned.value, folder)})
    assert after != before


CONDITIONAL = [leaf for leaf in LEAVES.values() if needs(leaf.option)]


@pytest.mark.parametrize("leaf", CONDITIONAL, ids=lambda leaf: leaf.path)
def test_where_it_cannot_count_it_is_refused_with_the_way_out(leaf: Leaf) -> None:
    turned = next(turned for turned in EVERY if turned.path == leaf.path)
    let = letting(leaf)
    assert load({**let, leaf.path: turned.value})
    for need in needs(leaf.option):
        rest = {path: value for path, value in let.items() if path not in need.paths}
        with pytest.raises(ConfigError) as caught:
            load({**rest, **unmet(need), leaf.path: turned.value})
        (fault,) = [fault for fault in caught.value.faults if fault.path == leaf.path]
        assert f"counts only where {need.words}" in fault.text
        assert f"leave it out, or {need.remedy}" in fault.text
    for page in (options_page(), str(json_schema())):
        assert told(leaf) in page


def unmet(need: Needed) -> dict[str, Any]:
    """Values of others with which the need is not met."""
    found: dict[str, Any] = {}
    for path in need.paths:
        other = LEAVES[path]
        candidates = [other.default, *other.choices, *need.values, ["to_q"] if other.many else "to_q"]
        found[path] = next(value for value in candidates if not need.met(lambda _, value=value: value))
    return {path: value for path, value in found.items() if value is not None}


def test_what_a_family_has_no_use_for_is_refused_and_not_offered(folder: Path) -> None:
    raw = settings(folder, Turned("model.clip_skip", 2))
    write_slim(folder / "sdxl.safetensors", "sdxl")
    assert plan_run(load({**raw, "model.clip_skip": 3}), Standalone())
    raw["model.base"] = str(folder / "sdxl.safetensors")
    plan = plan_run(load(raw), Standalone())
    assert isinstance(plan, Plan)
    assert unoffered(plan.family, plan.lent) == ["model.clip_skip"]
    assert plan_run(load({**raw, "model.clip_skip": 2}), Standalone()).settled()["model.clip_skip"] == 2, "its own"
    with pytest.raises(ConfigError, match=r"clip_skip is 3, but it counts only for a base of the family sd1.*leave it"):
        plan_run(load({**raw, "model.clip_skip": 3}), Standalone())


def test_what_a_lent_model_decides_is_refused_and_not_offered(folder: Path) -> None:
    host = Lender(folder / "base.safetensors", folder / "loras", folder / "runs")
    raw = settings(folder, Turned("train.mixed_precision", "bf16"))
    del raw["model.base"]
    plan = plan_run(load(raw), host)
    assert isinstance(plan, Plan)
    assert {"train.mixed_precision", "model.quantize"} == set(unoffered(plan.family, plan.lent))
    assert plan_run(load({**raw, "train.mixed_precision": "no"}), host), "as it is held anyway"
    with pytest.raises(ConfigError, match=r"mixed_precision is 'bf16', but the WebUI holds base as no.*leave it out"):
        plan_run(load({**raw, "train.mixed_precision": "bf16"}), host)
