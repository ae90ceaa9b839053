"""A base whose frozen weights are held in 8 or 4 bits (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch

from lora_trainer.contracts import PlainError

BYTES_A_WEIGHT = {"8bit": 1.0, "4bit": 0.5625}  # 4 bits, and a float8 scale for each 64 weights with its own scale


def quantised(kind: Literal["8bit", "4bit"], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of `from_pretrained` for a quantised base. Raises PlainError where that cannot be had."""
    why_not = why_not_quantised(kind, device)
    if why_not:
        raise PlainError(why_not)
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        _tell_once(logging.getLogger("bitsandbytes.autograd._functions"))
    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "8bit"
        else BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    )
    return {"quantization_config": config, "device_map": {"": device}}


class _Once(logging.Filter):
    """Lets each sentence of a logger through once."""

    def __init__(self) -> None:
        super().__init__()
        self._told = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        new = record.getMessage() not in self._told
        self._told.add(record.getMessage())
        return new


def _tell_once(logger: logging.Logger) -> None:
    """bitsandbytes tells of each product of each layer that it computes it in float16."""
    if not any(isinstance(each, _Once) for each in logger.filters):
        logger.addFilter(_Once())


def why_not_quantised(kind: str, device: torch.device) -> str:
    """A sentence that says why a base cannot be held in so few bits here; empty if it can."""
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports] - optional
    except ImportError:
        return f"text.quantize: {kind} needs the package bitsandbytes; install it, or set text.quantize: none."
    except (OSError, RuntimeError) as error:  # built for another CUDA
        return f"text.quantize: {kind} was asked, but bitsandbytes does not load here ({error}); set it to none."
    version = tuple(int(part) for part in bitsandbytes.__version__.split(".")[:2] if part.isdigit())
    if device.type == "cpu" and version < (0, 49):
        return (
            f"text.quantize: {kind} on a CPU needs bitsandbytes 0.49 or newer, and {bitsandbytes.__version__} is "
            "here; set text.quantize: none."
        )
    return ""
