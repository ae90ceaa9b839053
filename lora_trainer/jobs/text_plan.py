"""What a language model's run will do: base recognised, data read and counted in tokens, the rest chosen."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.config.tasks import check_task
from lora_trainer.contracts import Host, PlainError
from lora_trainer.data.text.dataset import TextData
from lora_trainer.data.text.records import Records, read_records
from lora_trainer.data.text.samples import Columns, Sample, Understood, understand
from lora_trainer.data.text.tokens import Counted, Encoded, cut_to, encode
from lora_trainer.data.text.wording import Wording, wording_for
from lora_trainer.families.language.load import load_tokenizer, pad_of
from lora_trainer.families.language.place import place_of
from lora_trainer.families.language.quantise import BYTES_A_WEIGHT, why_not_quantised
from lora_trainer.families.language.recognise import LanguageFacts, recognise
from lora_trainer.jobs import method
from lora_trainer.jobs.planned import Choice, RunPlan, precision_for, result_files, save_interval, taken
from lora_trainer.jobs.validating import look_interval
from lora_trainer.networks.peft_folder import PART
from lora_trainer.train.held_out import SEED
from lora_trainer.train.memory import room

LONGEST = 2048  # tokens, where text.max_length is silent: longer rows cost memory by their square
USUAL_EPOCHS = 3  # as published recipes for instruction tuning have it (Alpaca, Zephyr)
_SHOWN = 300  # characters of the example


@dataclass(frozen=True, kw_only=True)
class TextPlan(RunPlan):
    """The resolved run of a language model."""

    facts: LanguageFacts
    wording: Wording
    counted: Counted
    data: TextData
    held_out: TextData | None  # for validation
    max_length: int  # tokens
    base_bytes: int  # memory that the base's weights take
    free: int | None  # bytes of the device's memory; None where nobody says
    held: int  # bytes of it that the host's own model takes

    @property
    def samples_per_epoch(self) -> int:
        return self.data.samples_per_epoch

    @property
    def base_name(self) -> str:
        return self.facts.name

    @property
    def owns_base(self) -> bool:
        return True

    @property
    def data_digest(self) -> str:
        return self.data.digest()

    @property
    def smaller(self) -> str:
        return f"text.max_length below {self.max_length}"

    @property
    def pace_key(self) -> str:
        text = self.config.text
        return f"{self.facts.name} {self.max_length}tokens {'packed' if text.packing else 'single'} {text.quantize}"

    @property
    def data_told(self) -> str:
        count = len(self.counted.encoded)
        return f"{count} {'sample' if count == 1 else 'samples'}, {self.counted.tokens:,} tokens"

    @property
    def size_told(self) -> str:
        return f"at up to {self.max_length} tokens"

    @property
    def heaviest_told(self) -> str:
        """ "812 tokens, batch of 2": the longest row."""
        return f"{self.data.widest} tokens, batch of {self.config.data.batch_size}"

    def settled(self) -> dict[str, Any]:
        return {"text.max_length": self.max_length, "text.template": self.wording.form}

    def summary(self) -> dict[str, Any]:
        return {
            "samples": len(self.counted.encoded),
            "tokens": self.counted.tokens,
            "learnt": self.counted.targets,
            "max_length": self.max_length,
            "base": self.facts.name,
            "family": self.facts.kind,
            "parameters": self.facts.parameters,
            "bytes": self.base_bytes,
            "free": self.free,
            "held": self.held,
        }


def plan_text(
    config: RunConfig, host: Host, *, resume: bool, processes: int, device: torch.device
) -> TextPlan:  # fmt: skip
    """Resolve everything that the configuration leaves open. Raises PlainError; writes nothing, reads no weights."""
    check_task(config)
    facts = recognise(place_of(config.model.base, host.paths().checkpoints))
    tokenizer = load_tokenizer(facts)
    records = _records(config)
    understood = understand(records.records, Columns(config.text.prompt_column, config.text.response_column))
    wording = _wording(config, tokenizer, understood)
    encoded = [encode(sample, wording, config.text.train_on) for sample in understood.samples]
    _check_vocabulary(facts, encoded)
    max_length, length_choice = _max_length(config, facts, encoded)
    seed = config.train.seed if config.train.seed is not None else secrets.randbelow(2**31)
    apart = _held_out(len(encoded), config)
    counted = _counted(understood.samples, encoded, max_length, apart, wanted=False)
    measured = _counted(understood.samples, encoded, max_length, apart, wanted=True)
    if not counted.encoded:
        raise PlainError(
            f"No answer begins within {max_length} tokens, so nothing can be learnt; raise text.max_length."
        )
    data = _data(config, counted, seed, pad_of(tokenizer), max_length, processes)
    held_out = TextData(measured.encoded, batch_size=1, seed=seed, pad=pad_of(tokenizer)) if measured.encoded else None
    files, file_choice = result_files(config, host, resume)
    rates = {PART: config.train.learning_rate}
    method.check_optimizer(config, rates, device)
    dtype, dtype_choice = precision_for(config.train.mixed_precision, device)
    steps, step_choice = _steps(config, data, processes)
    save_every, save_choice = save_interval(config, steps)
    validate_every = look_interval(config, steps) if held_out else 0
    alpha = config.network.alpha if config.network.alpha is not None else config.network.rank / 2
    there, held = room(device), host.held()
    free = there.free if there else None
    choices = (
        Choice("base model", f"{facts.name} ({facts.architecture}, {_count(facts.parameters)} parameters)", ""),
        _memory(config, facts, dtype, device),
        *_room(config, device, host, free, held),
        Choice("texts", _found(records, understood), ", ".join(f"{n} as {f}" for f, n in understood.forms.items())),
        Choice("wording", wording.form, wording.reason),
        Choice("tokens", f"{counted.tokens:,}, of which {counted.targets:,} are learnt", _learnt(config)),
        length_choice,
        Choice("rows", _rows(config, data), ""),
        *([_measured(config, held_out, validate_every)] if held_out else []),
        step_choice,
        Choice("batch", _batch(config, processes), ""),
        Choice(
            "network",
            f"{config.network.kind}, rank {config.network.rank}, alpha {alpha:g}, {config.network.targets} layers",
            "" if config.network.alpha is not None else "alpha is half of the rank unless it is given",
        ),
        Choice("learning rate", f"{config.train.learning_rate:g}; {method.schedule(config)}", ""),
        Choice("optimizer", *method.optimizer(config)),
        dtype_choice,
        Choice("device", str(device), ""),
        Choice("seed", str(seed), "" if config.train.seed is not None else "drawn; written into the recipe"),
        save_choice,
        file_choice,
        Choice("example", _example(understood.samples[0], wording), understood.samples[0].place),
    )
    return TextPlan(
        config=config, files=files, device=device, dtype=dtype, processes=processes, seed=seed, alpha=alpha,
        rates=rates, steps=steps, save_every=save_every, validate_every=validate_every,
        sample_every=config.samples.every or save_every, choices=choices,
        notes=(*records.warnings, *understood.warnings, *_shortened(counted, max_length), *taken(file_choice)),
        facts=facts, wording=wording, counted=counted, data=data, held_out=held_out, max_length=max_length,
        base_bytes=_base_bytes(config, facts, dtype), free=free, held=held,
    )  # fmt: skip


def _records(config: RunConfig) -> Records:
    if not config.data.folder:
        raise PlainError("No texts are named; give train_data_dir the folder with your data files.")
    return read_records(Path(config.data.folder).expanduser())


def _wording(config: RunConfig, tokenizer: Any, understood: Understood) -> Wording:
    if config.text.template == "auto" and not any(sample.turns for sample in understood.samples):
        return Wording("plain", tokenizer, "the data is plain text")
    return wording_for(config.text.template, tokenizer)


def _check_vocabulary(facts: LanguageFacts, encoded: list[Encoded]) -> None:
    highest = max((max(one.ids) for one in encoded if one.ids), default=0)
    if facts.vocabulary is not None and highest >= facts.vocabulary:
        raise PlainError(
            f"The tokenizer of {facts.name} gives token {highest}, but the model has weights for {facts.vocabulary} "
            "tokens; they do not belong together, so get the tokenizer's files of this very model."
        )


def _max_length(config: RunConfig, facts: LanguageFacts, encoded: list[Encoded]) -> tuple[int, Choice]:
    asked = config.text.max_length
    if asked is not None:
        if facts.context and asked > facts.context:
            raise PlainError(
                f"text.max_length is {asked}, but {facts.name} was made for {facts.context} tokens; lower it."
            )
        return asked, Choice("longest sample", f"{asked} tokens", "asked for")
    longest = max(len(one.ids) for one in encoded)
    limit = min(LONGEST, facts.context or LONGEST)
    if longest <= limit:
        return max(longest, 8), Choice("longest sample", f"{max(longest, 8)} tokens", "the longest of the data")
    reason = "what the model was made for" if limit == facts.context else "longer rows need much memory"
    return limit, Choice("longest sample", f"{limit} tokens", reason)


def _held_out(count: int, config: RunConfig) -> set[int]:
    """Numbers of the samples that are kept to measure on: every run on the same data keeps the same."""
    share = config.validation.share
    if share == 0:
        if config.validation.patience:
            raise PlainError(
                f"validation.patience is {config.validation.patience}, but nothing is held out to measure on; set "
                "validation.share: 0.1, or validation.patience: 0."
            )
        return set()
    wanted = max(1, round(count * share))
    if wanted >= count:
        raise PlainError(
            f"validation.share is {share:g}, but there are only {count} samples, and holding out {wanted} leaves none "
            "to train on; add samples or set validation.share: 0."
        )
    return set(sorted(range(count), key=lambda number: sample_seed(SEED, number, "held out"))[:wanted])


def _counted(
    samples: tuple[Sample, ...], encoded: list[Encoded], limit: int, apart: set[int], *, wanted: bool
) -> Counted:  # fmt: skip
    chosen = [(one, not samples[number].turns) for number, one in enumerate(encoded) if (number in apart) == wanted]
    return cut_to(chosen, limit)


def _data(config: RunConfig, counted: Counted, seed: int, pad: int, limit: int, processes: int) -> TextData:
    return TextData(
        counted.encoded, batch_size=config.data.batch_size, seed=seed, pad=pad, repeats=config.data.repeats,
        packed_to=limit if config.text.packing else 0,
        micro_batches=config.train.gradient_accumulation_steps * processes,
    )  # fmt: skip


def _steps(config: RunConfig, data: TextData, processes: int) -> tuple[int, Choice]:
    train = config.train
    if train.steps is not None:
        seen = train.steps * config.data.batch_size * train.gradient_accumulation_steps * processes
        return train.steps, Choice("steps", f"{train.steps} ({seen / data.samples_per_epoch:.3g} epochs)", "asked for")
    epochs = train.epochs or USUAL_EPOCHS
    steps = data.steps_for(epochs)
    return steps, Choice("steps", f"{steps} ({epochs} epochs)", "" if train.epochs else "as usual for fine-tuning")


def _base_bytes(config: RunConfig, facts: LanguageFacts, dtype: torch.dtype) -> int:
    kind = config.text.quantize
    return facts.bytes_at(torch.empty((), dtype=dtype).element_size() if kind == "none" else BYTES_A_WEIGHT[kind])


def _memory(config: RunConfig, facts: LanguageFacts, dtype: torch.dtype, device: torch.device) -> Choice:
    kind, size = config.text.quantize, _base_bytes(config, facts, dtype)
    if kind == "none":
        how = f"dequantised from {facts.stored}" if facts.gguf else f"stored as {facts.stored}"
        return Choice("base in memory", f"{_size(size)}, {str(dtype).removeprefix('torch.')}", how)
    why_not = why_not_quantised(kind, device)
    if why_not:
        raise PlainError(why_not)
    return Choice("base in memory", f"about {_size(size)}", f"{kind}, by bitsandbytes")


def _room(config: RunConfig, device: torch.device, host: Host, free: int | None, held: int) -> list[Choice]:
    """What is free of the device's memory, and what the host's own model takes of it."""
    if free is None:
        return []
    taken = f"; {host.name} holds {_size(held)} of it" if held else ""
    after = "moved aside for the training" if config.model.aside else "model.aside: true moves it aside"
    return [Choice("free memory", f"{_size(free)} on {device}{taken}", after if held else "")]


def _found(records: Records, understood: Understood) -> str:
    files = ", ".join(f"{name}: {count}" for name, count in list(records.files.items())[:5])
    more = f" and {len(records.files) - 5} more files" if len(records.files) > 5 else ""
    return f"{len(understood.samples)} samples ({files}{more})"


def _learnt(config: RunConfig) -> str:
    return "the answers only" if config.text.train_on == "response" else "questions and answers"


def _measured(config: RunConfig, held_out: TextData, every: int) -> Choice:
    patience = config.validation.patience
    ends = f", ends after {patience} looks without a better one" if patience else ""
    return Choice("held out", f"{len(held_out.samples)} samples, looked at every {every} steps{ends}", "not trained on")


def _rows(config: RunConfig, data: TextData) -> str:
    if not config.text.packing:
        return f"{len(data.rows)}, a sample each"
    return f"{len(data.rows)}, filled with {len(data.samples)} samples to {data.fill:.0%}"


def _batch(config: RunConfig, processes: int) -> str:
    size, accumulation = config.data.batch_size, config.train.gradient_accumulation_steps
    whole = size * accumulation * processes
    return f"{size} rows x {accumulation} accumulated x {processes} processes = {whole} in a step"


def _shortened(counted: Counted, limit: int) -> list[str]:
    told: list[str] = []
    if counted.cut:
        told.append(
            f"{counted.cut} samples are longer than {limit} tokens (the longest has {counted.longest}) and lose their "
            "end; raise text.max_length to keep it."
        )
    if counted.lost:
        told.append(
            f"{counted.lost} samples are left out, because their answer would begin after {limit} tokens; raise "
            "text.max_length to keep them."
        )
    return told


def _example(sample: Sample, wording: Wording) -> str:
    text = wording.worded(sample).text
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _count(number: int) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
