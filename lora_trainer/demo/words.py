"""Captions to the token ids the embedded base is trained with: those of Stable Diffusion 1's text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lora_trainer.families.tokenizer import Tokenizer


def clip_tokenizer() -> Callable[[Sequence[str]], Tensor]:
    """A function from N captions to ids (N, 77); a caption longer than that loses its end."""
    tokenizer = Tokenizer("clip")
    return lambda captions: torch.tensor([tokenizer.chunks(caption)[0] for caption in captions])
