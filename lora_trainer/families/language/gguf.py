"""GGUF files: what they hold, told by the package gguf; transformers reads them, turned back into plain weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lora_trainer.contracts import PlainError
from lora_trainer.families.language.recognise import LanguageFacts

WHOLE = ("F32", "F16", "BF16")  # formats that nothing was rounded away for


def recognise_gguf(path: Path) -> LanguageFacts:
    """The facts of a GGUF file. Raises PlainError where it cannot be read here."""
    import transformers
    from transformers import PreTrainedModel

    try:
        from gguf import GGUFReader  # pyright: ignore - optional, and of the same name as this file
    except ImportError as error:
        raise PlainError(
            f"{path} is a GGUF file, which the package gguf reads; install gguf, or name the model's folder with "
            "safetensors."
        ) from error
    if not hasattr(transformers, "modeling_gguf_pytorch_utils") and not _reads_gguf(PreTrainedModel):
        raise PlainError(
            f"{path} is a GGUF file, which the transformers {transformers.__version__} of this environment does not "
            "read; name the model's folder with safetensors."
        )
    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError, UnicodeDecodeError) as error:
        raise PlainError(f"{path} is damaged and cannot be read ({error}); download it again.") from error
    kind = str(_field(reader, "general.architecture") or "unknown")
    stored: Counter[str] = Counter()
    for tensor in reader.tensors:
        stored[tensor.tensor_type.name] += int(tensor.n_elements)
    context = _field(reader, f"{kind}.context_length")
    return LanguageFacts(
        path=path, name=path.stem, architecture=f"{kind} (GGUF)", kind=kind, parameters=sum(stored.values()),
        stored=stored.most_common(1)[0][0], context=int(context) if context else None,
        vocabulary=None, known_as=path.stem, gguf=True,
    )  # fmt: skip


def _reads_gguf(cls: Any) -> bool:
    import inspect

    return "gguf_file" in inspect.getsource(cls.from_pretrained)


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    if field is None:
        return None
    value = field.parts[field.data[0]]
    return bytes(value).decode("utf-8") if value.dtype.kind == "u" and value.dtype.itemsize == 1 else value[0]
