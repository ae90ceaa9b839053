"""Asking a language model: answers to questions, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from lora_trainer.families.language.load import LanguageModel, pad_of


class Asking(NamedTuple):
    """How answers are drawn."""

    tokens: int  # at most, of each answer
    temperature: float = 0.0  # 0: always the likeliest token
    seed: int = 0
    ends: tuple[int, ...] = ()  # tokens that end an answer, besides the model's own


def answers(language: LanguageModel, questions: Sequence[Sequence[int]], asking: Asking) -> list[str]:
    """An answer for each question (token numbers); question i draws with seed + i. The model's mode, the layers on it
    and the process's random state stay as they are."""
    model: Any = language.model
    training = model.training
    model.eval()
    try:
        return [
            _answer(language, question, asking._replace(seed=asking.seed + number))
            for number, question in enumerate(questions)
        ]
    finally:
        model.train(training)


def _answer(language: LanguageModel, question: Sequence[int], asking: Asking) -> str:
    model, tokenizer, device = cast(Any, language.model), language.tokenizer, language.device
    ids = torch.tensor([list(question) or [pad_of(tokenizer)]], device=device)
    drawn: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    if asking.temperature > 0:
        drawn = {"do_sample": True, "temperature": asking.temperature, "top_p": 0.95, "top_k": 0}
    with torch.inference_mode(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(asking.seed)
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=asking.tokens,
            eos_token_id=_ends(language, asking), pad_token_id=pad_of(tokenizer), use_cache=True, **drawn,
        )  # fmt: skip
    return cast(str, tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def _ends(language: LanguageModel, asking: Asking) -> list[int] | None:
    said = getattr(getattr(language.model, "generation_config", None), "eos_token_id", None)
    found = [*(said if isinstance(said, list) else [said]), language.tokenizer.eos_token_id, *asking.ends]
    return sorted({int(one) for one in found if one is not None}) or None
