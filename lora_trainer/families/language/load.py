"""A causal language model and its tokenizer, loaded through transformers without running or fetching anything."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn

from lora_trainer.contracts import PlainError
from lora_trainer.families.language.quantise import quantised
from lora_trainer.families.language.recognise import LanguageFacts

Quantisation = Literal["none", "8bit", "4bit"]


@dataclass(frozen=True)
class LanguageModel:
    """A frozen causal language model with its tokenizer."""

    facts: LanguageFacts
    model: nn.Module
    tokenizer: Any
    device: torch.device

    @property
    def context(self) -> int | None:
        """Tokens it was made for."""
        return self.facts.context


def load_tokenizer(facts: LanguageFacts) -> Any:
    """The model's tokenizer. Raises PlainError where it cannot be read here."""
    from transformers import AutoTokenizer

    where, more = _place(facts)
    try:
        return AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False, **more)
    except (OSError, ValueError, KeyError, ImportError, AttributeError, RuntimeError) as error:
        raise PlainError(f"The tokenizer of {facts.name} cannot be read here ({_short(error)}).") from error
    except Exception as error:
        # The Rust library raises bare Exceptions for files that are newer than it knows.
        raise PlainError(
            f"The tokenizer of {facts.name} cannot be read here ({_short(error)}); it may be made for a newer release "
            "of transformers than this environment has."
        ) from error


def load(
    facts: LanguageFacts, device: torch.device, dtype: torch.dtype, quantisation: Quantisation = "none"
) -> LanguageModel:
    """The model in `dtype` on `device`, every weight frozen and its own dropout at rest. Raises PlainError.

    Weights come memory-mapped from their files; the process's random state is as it was before.
    """
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(facts)
    where, more = _place(facts)
    if _release() < (5, 0):
        more["low_cpu_mem_usage"] = True
    if quantisation != "none":
        more |= quantised(quantisation, device, dtype)
    if not facts.gguf:
        more["use_safetensors"] = True
    precision = "dtype" if _release() >= (4, 56) else "torch_dtype"
    try:
        with torch.random.fork_rng(devices=[]), quiet():
            model, said = cast(Any, AutoModelForCausalLM).from_pretrained(
                where, local_files_only=True, trust_remote_code=False, output_loading_info=True,
                **{precision: dtype}, **more,
            )  # fmt: skip
    except (OSError, ValueError, KeyError, ImportError, AttributeError) as error:
        raise PlainError(f"{facts.name} cannot be loaded here ({_short(error)}).") from error
    except RuntimeError as error:
        if not any(words in str(error) for words in ("size mismatch", "mismatched")):
            raise
        raise PlainError(
            f"The weights of {facts.name} have other shapes than its config.json promises; download the model's folder "
            "again."
        ) from error
    empty = {name for name, parameter in model.named_parameters() if parameter.is_meta}  # of which some say nothing
    missing = [] if facts.gguf else sorted(empty | set(said.get("missing_keys", ())))
    wrong = sorted(str(key) for key in said.get("mismatched_keys", ()))
    if quantisation == "none":  # in fewer bits a weight is packed
        wrong += _misshapen(model)
    if missing or wrong:
        what = f"lacks {len(missing)} weights ({missing[0]} for one)" if missing else f"has other shapes ({wrong[0]})"
        raise PlainError(f"{facts.name} {what} than its config.json promises; download the model's folder again.")
    model.requires_grad_(False)
    if quantisation == "none":
        model.to(device)
    _rest(model)
    return LanguageModel(facts, model, tokenizer, device)


def _misshapen(model: nn.Module) -> list[str]:
    """Layers whose weight is not of the size that they were made with: some releases put in what comes."""
    made = [
        (name, module.weight.shape, (module.out_features, module.in_features))
        if isinstance(module, nn.Linear)
        else (name, module.weight.shape, (module.num_embeddings, module.embedding_dim))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
    ]
    return [f"{name}.weight" for name, found, promised in made if tuple(found) != promised]


def pad_of(tokenizer: Any) -> int:
    """A number to fill rows with; what it stands for is never looked at."""
    return next((one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None), 0)


def _place(facts: LanguageFacts) -> tuple[str, dict[str, Any]]:
    if facts.gguf:
        return str(facts.path.parent), {"gguf_file": facts.path.name}
    return str(facts.path), {}


def _rest(model: nn.Module) -> None:
    """Let no dropout of the base's own act, also where recomputing activations needs the training mode."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "activation_dropout"):  # read by functional calls
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _release() -> tuple[int, int]:
    import transformers

    first, second = transformers.__version__.split(".")[:2]
    return int(first), int(second)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Within it transformers shows no bar and makes no remarks on weights: what matters is checked and told by us."""
    from transformers.utils import logging as theirs

    before, bars = theirs.get_verbosity(), getattr(theirs, "is_progress_bar_enabled", lambda: True)()
    theirs.set_verbosity(logging.ERROR)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(before)
        if bars:
            theirs.enable_progress_bar()
