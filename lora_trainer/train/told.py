"""An error in a few words, for a sentence that a user reads."""

from __future__ import annotations

from lora_trainer.contracts import PlainError
from lora_trainer.train.memory import is_out_of_memory

_LONGEST = 300  # characters of an error that nobody foresaw; a log has all of it


def in_words(error: BaseException) -> str:
    """A PlainError's sentence as it is; of others what they are and say, in one line with a full stop."""
    if isinstance(error, PlainError):
        return str(error)
    if is_out_of_memory(error):
        return "the memory does not suffice."
    kind, text = type(error).__name__, " ".join(str(error).split())[:_LONGEST].rstrip(".")
    if isinstance(error, OSError) and text:  # which says itself what it is, and where
        return f"{text}."
    return f"{kind}: {text}." if text else f"{kind}."
