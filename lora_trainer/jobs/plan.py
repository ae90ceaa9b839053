"""What a run will do, decided before anything is trained or written, each choice with its reason."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Family, Host, LentModel, PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.scan import Scan, scan
from lora_trainer.demo.show import ASSETS
from lora_trainer.families.ldm_names import UNET_PREFIX
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.jobs.checkup import summary
from lora_trainer.jobs.files import RunFiles, check_writable, run_files, untouched
from lora_trainer.jobs.readers import unread_note

CHECKPOINTS_IN_A_RUN = 10  # where save_steps is silent


class Choice(NamedTuple):
    """A value that was decided for the user, and why."""

    name: str
    value: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """The resolved run: no field is open any more."""

    config: RunConfig
    family: Family
    lent: LentModel
    scan: Scan
    data: DataSet
    files: RunFiles
    device: torch.device
    dtype: torch.dtype
    processes: int
    seed: int
    resolution: int  # pixels
    clip_skip: int
    alpha: float
    rates: dict[str, float]  # peak learning rate by trained part
    steps: int
    save_every: int
    sample_every: int  # 0: none while training
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]  # what the user should know before it runs

    @property
    def data_name(self) -> str:
        """Name of the data set: its folder's, without the place."""
        return Path(self.config.data.folder).expanduser().resolve().name

    @property
    def text_rate(self) -> float:
        """Peak learning rate of the text encoders; 0 where they are left alone."""
        return next((rate for part, rate in self.rates.items() if part != "unet"), 0.0)

    @property
    def warmup_steps(self) -> int:
        return round(self.config.train.warmup * self.steps)

    @property
    def precision(self) -> str:
        """As the option spells it."""
        return {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(self.dtype, "no")

    @property
    def epochs(self) -> float:
        return self.steps * self.samples_per_step / max(1, self.data.samples_per_epoch)

    @property
    def samples_per_step(self) -> int:
        train = self.config.train
        return self.config.data.batch_size * train.gradient_accumulation_steps * self.processes

    def text(self) -> str:
        """The resolved run for a person to read."""
        rows = [(choice.name, choice.value, choice.reason) for choice in self.choices]
        wide = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{wide}}  {value}" + (f"   ({why})" if why else "") for name, value, why in rows]
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join([*lines, *notes])


def plan_run(
    config: RunConfig, host: Host, *, resume: bool = False, processes: int = 1, device: torch.device | None = None
) -> Plan:
    """Resolve everything that the configuration leaves open. Raises PlainError; writes nothing, reads no weights."""
    if config.task == "text-generation":
        raise PlainError(
            "task_type: text-generation was asked, but this version trains image models only; "
            "use task_type: stable-diffusion with an SD1, SD2 or SDXL checkpoint."
        )
    lent = _base(config, host)
    family = family_named(lent.facts.family)
    found = _images(config)
    resolution = config.data.resolution or family.defaults.resolution
    seed = config.train.seed if config.train.seed is not None else secrets.randbelow(2**31)
    data = DataSet(found, config.data, resolution=resolution, seed=seed)
    files, file_choice = _files(config, host, resume)
    device = device or host.device()
    dtype, dtype_choice = _dtype(config.train.mixed_precision, device) if lent.owned else _lent_dtype(lent)
    rates, rate_choice = _rates(config, family)
    steps, step_choice = _steps(config, data, processes)
    save_every, save_choice = _save_every(config, steps)
    alpha = config.network.alpha if config.network.alpha is not None else config.network.rank / 2
    choices = (
        Choice("base model", f"{lent.name} ({family.title})", ""),
        Choice("prediction", _prediction(lent), lent.facts.reason),
        Choice("images", _images_found(found), ""),
        Choice("captions", _captions_found(found), ""),
        Choice("resolution", f"{resolution} px", "" if config.data.resolution else f"what {family.title} was made for"),
        Choice("buckets", data.bucket_table(), ""),
        step_choice,
        Choice("batch", _batch(config, processes), ""),
        _network(config, alpha),
        rate_choice,
        dtype_choice,
        Choice("device", str(device), ""),
        Choice("seed", str(seed), "" if config.train.seed is not None else "drawn; written into the LoRA"),
        save_choice,
        file_choice,
    )
    return Plan(
        config=config, family=family, lent=lent, scan=found, data=data, files=files, device=device, dtype=dtype,
        processes=processes, seed=seed, resolution=resolution,
        clip_skip=config.model.clip_skip or family.defaults.clip_skip,
        alpha=alpha, rates=rates, steps=steps, save_every=save_every,
        sample_every=config.samples.every or save_every, choices=choices,
        notes=(
            *found.warnings, *data.warnings, *_unwell(found, data, config.data.trigger),
            *unread_note(config.network.kind, host.name), *_taken(file_choice),
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


def _base(config: RunConfig, host: Host) -> LentModel:
    if config.model.base == "demo":
        path: Path | None = ASSETS / "scenes.safetensors"
    else:
        path = host.base_file(config.model.base)
    lent = host.lend() if path is None else lend_file(path)
    facts = lent.facts
    if config.model.prediction != "auto":
        facts = replace(facts, prediction=config.model.prediction, reason="set by model.prediction")
    if config.model.zero_terminal_snr != "auto":
        facts = replace(facts, zero_terminal_snr=config.model.zero_terminal_snr == "yes")
    return replace(lent, facts=facts)


def _prediction(lent: LentModel) -> str:
    return lent.facts.prediction + (", zero terminal SNR" if lent.facts.zero_terminal_snr else "")


def _images(config: RunConfig) -> Scan:
    if not config.data.folder:
        raise PlainError("No folder of images is named; give train_data_dir the folder with your pictures.")
    metadata = Path(config.data.metadata).expanduser() if config.data.metadata else None
    return scan(Path(config.data.folder).expanduser(), metadata)


def _unwell(found: Scan, data: DataSet, trigger: str) -> list[str]:
    told = summary(found, data.buckets, trigger)
    return [told] if told else []


def _images_found(found: Scan) -> str:
    unreadable = f", {len(found.unreadable)} unreadable and left out" if found.unreadable else ""
    return f"{len(found.items)}{unreadable}"


def _captions_found(found: Scan) -> str:
    missing = len(found.missing_captions)
    sources = ", ".join(f"{count} from {source}" for source, count in found.sources.items())
    return f"{len(found.items) - missing} found ({sources or 'none'}), {missing} missing"


def files_asked_for(config: RunConfig, host: Host) -> RunFiles:
    """Where the configuration says that the run writes, whatever is there already."""
    return run_files(config.output.directory, _name(config), host.paths())


def _name(config: RunConfig) -> str | None:
    """The LoRA's name; without a name or a folder of its own it is called after the images'."""
    if config.output.name or config.output.directory or not config.data.folder:
        return config.output.name
    return Path(config.data.folder).expanduser().resolve().name


def _files(config: RunConfig, host: Host, resume: bool) -> tuple[RunFiles, Choice]:
    wanted = files_asked_for(config, host)
    check_writable(wanted.folder)
    check_writable(wanted.work)
    files = wanted if resume else untouched(config.output.directory, _name(config), host.paths())
    reason = ""
    if files != wanted:
        reason = f"{wanted.name} is there already and is left alone; resume (train --resume) goes on from it"
    return files, Choice("result", str(files.lora), reason)


def _taken(choice: Choice) -> list[str]:
    return [f"The result goes to {choice.value}: {choice.reason}."] if choice.reason else []


def _dtype(asked: str, device: torch.device) -> tuple[torch.dtype, Choice]:
    """Arithmetic of the frozen base, with the reason; the LoRA's own weights are always float32."""
    if device.type != "cuda":
        if asked == "bf16":
            return torch.bfloat16, Choice("precision", "bf16", "asked for")
        reason = "asked for" if asked == "no" else "exact, and the CPU gains nothing from fp16"
        return torch.float32, Choice("precision", "no (float32)", reason)
    if asked == "no":
        return torch.float32, Choice("precision", "no (float32)", "asked for")
    if asked == "fp16":
        return torch.float16, Choice("precision", "fp16", "asked for")
    supported = torch.cuda.is_bf16_supported()
    if asked == "bf16" and not supported:
        raise PlainError("mixed_precision: bf16 was asked, but this GPU has no bf16; use fp16.")
    if supported:
        return torch.bfloat16, Choice("precision", "bf16", "asked for" if asked == "bf16" else "this GPU has it")
    return torch.float16, Choice("precision", "fp16", "this GPU has no bf16")


def _lent_dtype(lent: LentModel) -> tuple[torch.dtype, Choice]:
    """The dtype of the host's UNet: in another, autograd would keep a converted copy of nearly all weights."""
    stored = next(info.dtype for key, info in lent.header.items() if key.startswith(UNET_PREFIX))
    dtype = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[stored]
    word = {torch.float16: "fp16", torch.bfloat16: "bf16"}.get(dtype, "no (float32)")
    return dtype, Choice("precision", word, "as the WebUI holds the model")


def _rates(config: RunConfig, family: Family) -> tuple[dict[str, float], Choice]:
    asked = config.train.text_encoder_learning_rate
    text = family.defaults.text_encoder_learning_rate if asked is None else asked
    rates = {"unet": config.train.learning_rate}
    if text > 0:
        rates |= dict.fromkeys(family.text_parts, text)
    told = ", ".join(f"{part} {rate:g}" for part, rate in rates.items()) + ("" if text > 0 else ", text encoders off")
    return rates, Choice("learning rate", f"{told}; {config.train.schedule}", "")


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
        epochs = math.ceil(looks / max(1, data.samples_per_epoch))
        reason = f"about {looks} looks at {len(data.items)} images"
    steps = data.steps_for(epochs, train.gradient_accumulation_steps, processes)
    return steps, Choice("steps", f"{steps} ({epochs} epochs)", reason)


def _batch(config: RunConfig, processes: int) -> str:
    size, accumulation = config.data.batch_size, config.train.gradient_accumulation_steps
    whole = size * accumulation * processes
    return f"{size} images x {accumulation} accumulated x {processes} processes = {whole} in a step"


def _save_every(config: RunConfig, steps: int) -> tuple[int, Choice]:
    every = config.output.save_steps
    reason = ""
    if every is None:
        every = max(1, steps // CHECKPOINTS_IN_A_RUN)
        reason = f"{CHECKPOINTS_IN_A_RUN} in the run"
    kept = f", the last {config.output.keep_last} kept" if config.output.keep_last else ""
    return every, Choice("checkpoints", f"every {every} steps{kept}" if every else "only at the end", reason)
