"""Every option of asking a language model, once; flags, YAML and the body of POST /answers derive from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lora_trainer.config.options import option


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Questions to a language model, answered without and with an adapter."""

    base: str = option("", "The language model: a transformers folder or a GGUF file.", alias="base_model")
    adapter: str = option("", "Folder of an adapter; it is asked without and with it. Empty asks the model alone.")
    prompt: tuple[str, ...] = option((), "What is asked; several are answered one after the other.")
    system: str = option("", "What is said before the question, where the form has a place for it.")
    template: Literal["auto", "chat", "instruction", "plain"] = option(
        "auto",
        "How questions are put into words; 'auto' takes what the adapter was trained with, else the tokenizer's chat "
        "template, else '### Instruction' headings.",
    )
    tokens: int = option(128, "Longest answer.", unit="tokens", low=1, high=8192)
    temperature: float = option(
        0.0, "How freely the answer is drawn; 0 always takes the likeliest token.", low=0.0, high=5.0
    )
    seed: int = option(42, "Seed of the first answer; each next question adds one.", low=0, high=2**31 - 1)
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option(
        "auto", "Arithmetic of the model; 'auto' asks the device."
    )
    download: bool = option(False, "Fetch a model that is named as on the Hugging Face hub, where it is not here.")
