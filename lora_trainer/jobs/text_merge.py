"""Adapters worked into a language model, which then is a folder of its own that needs them no more."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_trainer.contracts import PlainError
from lora_trainer.families.language.load import load, quiet
from lora_trainer.families.language.place import place_of
from lora_trainer.families.language.recognise import LanguageFacts, recognise
from lora_trainer.networks.adapter import TURNED
from lora_trainer.networks.changes import changes_of
from lora_trainer.networks.file import DTYPES, Precision
from lora_trainer.networks.peft_folder import merged, read_adapter
from lora_trainer.weights.write import why_not_written

_CPU = torch.device("cpu")
_STORED = {"F16": torch.float16, "BF16": torch.bfloat16}  # other formats are computed with in float32
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")
_LEAST = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def merge_text(
    base: Path, adapters: Sequence[tuple[Path, float]], output: Path, precision: Precision | None = None
) -> str:  # fmt: skip
    """Write the model at `base` with each adapter added at its weight to the folder `output`. Sentences, one a line.

    Sums are made in float32 and rounded once to the model's own format, or to `precision`. The folder appears when it
    is whole. Raises PlainError, leaving nothing, where an adapter does not fit or `output` is taken.
    """
    if output.exists():
        raise PlainError(f"{output} exists already and is not overwritten; choose another name, or remove it first.")
    facts = recognise(place_of(str(base), ()))
    dtype = DTYPES[precision] if precision else _STORED.get(facts.stored, torch.float32)
    language = load(facts, _CPU, dtype)
    told = [_add(language.model, folder, weight) for folder, weight in adapters]
    unfinished = output.with_name(f".{output.name}.{secrets.token_hex(4)}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        _write(language.model, language.tokenizer, facts, unfinished)
        unfinished.rename(output)
    except OSError as error:
        raise PlainError(why_not_written(output, error)) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return "\n".join([*told, f"Wrote {output}: {facts.name} with them worked in, {_LEAST[dtype]}."])


@torch.no_grad()
def _add(model: nn.Module, folder: Path, weight: float) -> str:
    state, _ = read_adapter(folder)
    changes = changes_of(state)
    layers = dict(model.named_modules())
    for name, change in changes.items():
        path = name.partition(".")[2]
        if path not in layers:
            raise PlainError(f"{folder} is for another model: it changes {path}, which this one has not.")
        own = cast(Tensor, layers[path].weight)
        if own is cast(Any, model).get_input_embeddings().weight and not isinstance(layers[path], nn.Embedding):
            told = f"{folder} changes {path}, whose weight this model shares with its embeddings"
            raise PlainError(f"{told}, so that it cannot be worked in; use the adapter beside the model.")
        turned = type(layers[path]).__name__ == TURNED
        before = (own.T if turned else own).float()
        if tuple(before.shape) != change.shape:
            sizes = f"{change.shape}, the weight {tuple(before.shape)}"
            raise PlainError(f"{folder} is for another model: its change of {path} is {sizes}.")
        summed = before + (merged(before, change) - before) * weight
        if not bool(torch.isfinite(summed.to(own.dtype)).all()):
            what = f"With {folder.name} {path} exceeds what {own.dtype} can hold"
            raise PlainError(f"{what}; take a lower weight or a wider precision.")
        own.copy_((summed.T if turned else summed).to(own.dtype))
    return f"{folder.name} at {weight:g}: {len(changes)} layers."


def _write(model: Any, tokenizer: Any, facts: LanguageFacts, folder: Path) -> None:
    """Weights and configuration as transformers has them; what else lies beside the base's is taken over as it is."""
    with quiet():
        model.save_pretrained(str(folder), safe_serialization=True)
    if facts.gguf:
        tokenizer.save_pretrained(str(folder))
        return
    for file in facts.path.iterdir():
        if file.is_file() and not file.name.endswith(_WEIGHTS) and not (folder / file.name).exists():
            shutil.copyfile(file, folder / file.name)
