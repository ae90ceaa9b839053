"""What a run will do, decided before anything is trained or written, each choice with its reason."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lora_trainer.config.options import ModelConfig, RunConfig
from lora_trainer.config.tasks import TEXT, check_task
from lora_trainer.contracts import Family, Host, LentModel, PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.drawn import DrawnSet, drawn_scan
from lora_trainer.data.pairs import Pairs
from lora_trainer.data.scan import Scan, scan
from lora_trainer.demo.show import ASSETS
from lora_trainer.families.few_bits import BYTES_A_WEIGHT, Bits
from lora_trainer.families.ldm_names import UNET_PREFIX
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.jobs import method, sliding
from lora_trainer.jobs.caching import settled_cache
from lora_trainer.jobs.checkup import summary
from lora_trainer.jobs.data_choices import class_scan, class_warnings, data_choices, unused_masks
from lora_trainer.jobs.fits import check_fits
from lora_trainer.jobs.planned import (
    Choice,
    RunPlan,
    files_asked_for,
    precision_for,
    result_files,
    save_interval,
    taken,
)
from lora_trainer.jobs.readers import unread_note
from lora_trainer.jobs.validating import hold_out, look_interval, measured_on, validation_choice
from lora_trainer.train.memory import in_gigabytes
from lora_trainer.train.optimizer_kinds import KINDS

_BITS: dict[str, Bits | None] = {"none": None, "8bit": 8, "4bit": 4}

__all__ = ["Choice", "Plan", "files_asked_for", "plan_run"]


@dataclass(frozen=True, kw_only=True)
class Plan(RunPlan):
    """The resolved run of an image model."""

    family: Family
    lent: LentModel
    scan: Scan
    data: DataSet
    pairs: Pairs | None  # the same with the pictures opposite, for a slider of pictures
    held_out: DataSet | None  # what is measured on and not trained on
    resolution: int  # pixels
    clip_skip: int
    cache: str  # where encoded images are kept

    @property
    def samples_per_epoch(self) -> int:
        return self.data.samples_per_epoch

    @property
    def base_name(self) -> str:
        return self.lent.name

    @property
    def owns_base(self) -> bool:
        return self.lent.owned

    @property
    def data_digest(self) -> str:
        own = self.data.digest()
        return hashlib.sha256(f"{own} {self.pairs.digest}".encode()).hexdigest() if self.pairs else own

    @property
    def bits(self) -> Bits | None:
        """Bits of a frozen weight of the UNet; None: as the precision has them."""
        return _BITS[self.config.model.quantize]

    @property
    def smaller(self) -> str:
        less = f"a resolution below {self.resolution}"
        return f"{less}, or model.quantize: 4bit" if self.lent.owned and self.bits != 4 else less

    @property
    def pace_key(self) -> str:
        return f"{self.family.name} {self.resolution}px {self.cache} {self.config.model.quantize}"

    @property
    def data_told(self) -> str:
        images = len(self.scan.items)
        if isinstance(self.data, DrawnSet):
            return f"{images} {'picture' if images == 1 else 'pictures'} that the base model draws"
        captioned = images - len(self.scan.missing_captions)
        share = "all" if captioned == images else captioned or "none"
        of_class = len(self.data.class_items)
        told = f"{images} {'image' if images == 1 else 'images'}, {share} with captions"
        return f"{told}, and as many looks at {of_class} of the class" if of_class else told

    @property
    def size_told(self) -> str:
        return f"at {self.resolution} px"

    @property
    def heaviest_told(self) -> str:
        """ "512 x 768 px, batch of 2": the largest bucket."""
        width, height = max(self.data.bucket_counts(), key=lambda size: size[0] * size[1])
        return f"{width} x {height} px, batch of {self.config.data.batch_size}"

    @property
    def text_rate(self) -> float:
        """Peak learning rate of the text encoders; 0 where they are left alone."""
        return next((rate for part, rate in self.rates.items() if part != "unet"), 0.0)

    def settled(self) -> dict[str, Any]:
        return {
            "data.resolution": self.resolution,
            "model.clip_skip": self.clip_skip,
            "train.text_encoder_learning_rate": self.text_rate,
        }

    def summary(self) -> dict[str, Any]:
        return {
            "images": len(self.scan.items),
            "captioned": len(self.scan.items) - len(self.scan.missing_captions),
            "class_images": len(self.data.class_items),
            "resolution": self.resolution,
            "family": self.family.name,
        }


def plan_run(
    config: RunConfig, host: Host, *, resume: bool = False, processes: int = 1, device: torch.device | None = None
) -> RunPlan:
    """Resolve everything that the configuration leaves open. Raises PlainError; writes nothing, reads no weights."""
    device = device or host.device()
    if config.task == TEXT:
        from lora_trainer.jobs.text_plan import plan_text

        return plan_text(config, host, resume=resume, processes=processes, device=device)
    check_task(config)
    return plan_images(config, host, resume=resume, processes=processes, device=device)


def plan_images(config: RunConfig, host: Host, *, resume: bool, processes: int, device: torch.device) -> Plan:
    """The plan of a run that trains an image model."""
    method.check(config)
    sliding.check(config)
    lent = base_of(config.model, host)
    family = family_named(lent.facts.family)
    resolution = config.data.resolution or family.defaults.resolution
    draws = sliding.draws_pictures(config)
    found = drawn_scan(config.slider.pictures, resolution) if draws else _images(config)
    seed = config.train.seed if config.train.seed is not None else secrets.randbelow(2**31)
    of_class = class_scan(config.data, found)
    trained, kept_back = hold_out(config, found)
    count = len(found.items) + (len(of_class.items) if of_class else 0)
    options, cache_choice = settled_cache(config.data, count, resolution, pairs=bool(config.slider.opposite))
    data = DrawnSet(trained, options, resolution=resolution, seed=seed) if draws else DataSet(
        trained, options, resolution=resolution, seed=seed, class_word=method.class_word(config),
        class_scan=of_class,
    )  # fmt: skip
    others = sliding.opposite_of(config, trained)
    pairs = Pairs(data, others, options, resolution=resolution, seed=seed) if others else None
    files, file_choice = result_files(config, host, resume)
    dtype, dtype_choice = precision_for(config.train.mixed_precision, device) if lent.owned else _lent_dtype(lent)
    clip_skip = config.model.clip_skip or family.defaults.clip_skip
    word = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "no")
    check_fits(
        config, family, lent, {"model.clip_skip": family.defaults.clip_skip, "train.mixed_precision": word}
    )
    rates, rate_choice = _rates(config, family)
    method.check_optimizer(config, rates, device)
    steps, step_choice = _steps(config, data, processes)
    held_out = measured_on(options, kept_back, resolution) if kept_back else None
    validate_every = look_interval(config, steps) if held_out else 0
    save_every, save_choice = save_interval(config, steps)
    alpha = config.network.alpha if config.network.alpha is not None else config.network.rank / 2
    choices = (
        Choice("base model", f"{lent.name} ({family.title})", ""),
        Choice("prediction", _prediction(lent), lent.facts.reason),
        *([] if draws else _found(found)),
        *sliding.choice(config),
        Choice("resolution", f"{resolution} px", "" if config.data.resolution else f"what {family.title} was made for"),
        Choice("buckets", data.bucket_table(), ""),
        *data_choices(config.data, data),
        *([] if draws else [cache_choice]),
        step_choice,
        Choice("batch", _batch(config, processes), ""),
        _network(config, alpha),
        rate_choice,
        Choice("optimizer", *method.optimizer(config)),
        Choice("objective", *method.objective(config, lent.facts.prediction)),
        dtype_choice,
        *_few_bits(config, lent),
        Choice("device", str(device), ""),
        Choice("seed", str(seed), "" if config.train.seed is not None else "drawn; written into the LoRA"),
        save_choice,
        *([validation_choice(config, held_out, validate_every)] if held_out else []),
        file_choice,
    )
    return Plan(
        config=config, family=family, lent=lent, scan=found, data=data, pairs=pairs, held_out=held_out, files=files,
        cache=options.cache,
        device=device, dtype=dtype, processes=processes, seed=seed, resolution=resolution,
        clip_skip=clip_skip,
        alpha=alpha, rates=rates, steps=steps, save_every=save_every, validate_every=validate_every,
        sample_every=config.samples.every or save_every, choices=choices,
        notes=(
            *sliding.heard(config, found.warnings), *class_warnings(of_class), *data.warnings,
            *unused_masks(config.data, data),
            *([] if draws else _unwell(found, data, config.data.trigger)), *unread_note(config.network.kind, host.name),
            *taken(file_choice), *method.advice(config),
        ),
    )  # fmt: skip


def _network(config: RunConfig, alpha: float) -> Choice:
    network = config.network
    told = [network.kind, f"rank {network.rank}"]
    if network.kind != "oft":
        told.append(f"alpha {alpha:g}" + (" / sqrt(rank)" if network.rslora else ""))
    told.append(f"layers with {' or '.join(network.layers)}" if network.layers else f"{network.targets} layers")
    if network.kind == "locon" and not network.layers and network.targets != "all":
        told.append("and the convolutions")
    told += [f"rank of {rule}" for rule in network.ranks]
    if network.init != "default":
        told.append(f"from {network.init} (the file has rank {2 * network.rank})")
    if network.loraplus_ratio != 1:
        told.append(f"up weights at {network.loraplus_ratio:g} times the rate")
    given = network.alpha is not None or network.kind == "oft"
    return Choice("network", ", ".join(told), "" if given else "alpha is half of the rank unless it is given")


def base_of(options: ModelConfig, host: Host) -> LentModel:
    """The base model that the options name, or the host's own; its weights are not read yet. Raises PlainError."""
    if options.base == "demo":
        path: Path | None = ASSETS / "scenes.safetensors"
    else:
        path = host.base_file(options.base)
    lent = host.lend() if path is None else lend_file(path)
    facts = lent.facts
    if options.prediction != "auto":
        facts = replace(facts, prediction=options.prediction, reason="set by model.prediction")
    if options.zero_terminal_snr != "auto":
        facts = replace(facts, zero_terminal_snr=options.zero_terminal_snr == "yes")
    return replace(lent, facts=facts)


def _prediction(lent: LentModel) -> str:
    return lent.facts.prediction + (", zero terminal SNR" if lent.facts.zero_terminal_snr else "")


def _images(config: RunConfig) -> Scan:
    if not config.data.folder:
        raise PlainError(
            "No folder of images is named; give train_data_dir the folder with your pictures, or slider.positive and "
            "slider.negative two prompts."
        )
    metadata = Path(config.data.metadata).expanduser() if config.data.metadata else None
    return scan(Path(config.data.folder).expanduser(), metadata)


def _unwell(found: Scan, data: DataSet, trigger: str) -> list[str]:
    told = summary(found, data.buckets, trigger)
    return [told] if told else []


def _found(found: Scan) -> list[Choice]:
    unreadable = f", {len(found.unreadable)} unreadable and left out" if found.unreadable else ""
    missing = len(found.missing_captions)
    sources = ", ".join(f"{count} from {source}" for source, count in found.sources.items())
    told = f"{len(found.items) - missing} found ({sources or 'none'}), {missing} missing"
    return [Choice("images", f"{len(found.items)}{unreadable}", ""), Choice("captions", told, "")]


def _few_bits(config: RunConfig, lent: LentModel) -> list[Choice]:
    bits = _BITS[config.model.quantize]
    if bits is None:
        return []
    names = [info for key, info in lent.header.items() if key.startswith(UNET_PREFIX)]
    size = sum(math.prod(info.shape) for info in names) * BYTES_A_WEIGHT[bits]
    return [Choice("UNet in memory", f"{bits} bits a weight, about {in_gigabytes(size)}", "asked for")]


def _lent_dtype(lent: LentModel) -> tuple[torch.dtype, Choice]:
    """The dtype of the host's UNet: in another, autograd would keep a converted copy of nearly all weights."""
    stored = next(info.dtype for key, info in lent.header.items() if key.startswith(UNET_PREFIX))
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[stored]
    word = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "no (float32)")
    return dtype, Choice("precision", word, "as the WebUI holds the model")


def _rates(config: RunConfig, family: Family) -> tuple[dict[str, float], Choice]:
    asked = config.train.text_encoder_learning_rate
    rates, reason = {"unet": config.train.learning_rate}, ""
    if sliding.kind_of(config):
        asked, reason = 0.0, "a slider is learned by the UNet alone"
    text = family.defaults.text_encoder_learning_rate if asked is None else asked
    if KINDS[config.optimizer.kind].one_rate and asked is None and text > 0:
        text, reason = config.train.learning_rate, "the optimizer finds one rate for all"
    if text > 0:
        rates |= dict.fromkeys(family.text_parts, text)
    told = ", ".join(f"{part} {rate:g}" for part, rate in rates.items()) + ("" if text > 0 else ", text encoders off")
    return rates, Choice("learning rate", f"{told}; {method.schedule(config)}", reason)


def _steps(config: RunConfig, data: DataSet, processes: int) -> tuple[int, Choice]:
    train = config.train
    if train.steps is not None:
        seen = train.steps * config.data.batch_size * train.gradient_accumulation_steps * processes
        epochs = seen / data.samples_per_epoch
        return train.steps, Choice("steps", f"{train.steps} ({epochs:.3g} epochs)", "asked for")
    epochs, reason = train.epochs, ""
    if epochs is None:
        # What the community's guides agree on: about 100 looks at each image, 1500 to 3000 in all.
        looks = min(max(100 * len(data.items), 1500), 3000)
        epochs = math.ceil(looks / max(1, data.own_samples_per_epoch))
        also = f", and as many at {len(data.class_items)} of the class" if data.class_items else ""
        reason = f"about {looks} looks at {len(data.items)} images{also}"
    steps = data.steps_for(epochs, train.gradient_accumulation_steps, processes)
    return steps, Choice("steps", f"{steps} ({epochs} epochs)", reason)


def _batch(config: RunConfig, processes: int) -> str:
    size, accumulation = config.data.batch_size, config.train.gradient_accumulation_steps
    whole = size * accumulation * processes
    return f"{size} images x {accumulation} accumulated x {processes} processes = {whole} in a step"
