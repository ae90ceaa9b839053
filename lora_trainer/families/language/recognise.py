"""What lies at a path that is to be a language model: facts from its configuration and headers, or a plain refusal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from lora_trainer.contracts import PlainError
from lora_trainer.weights.json_file import read_json
from lora_trainer.weights.read import read_header

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_GGML = {b"lmgg", b"fmgg", b"tjgg", b"algg"}  # magics of GGUF's forerunners, reversed on disk (ggml, docs/gguf.md)
_USUAL_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class LanguageFacts:
    """What a language model tells of itself before it is loaded."""

    path: Path  # its folder, or its GGUF file
    name: str
    architecture: str  # "LlamaForCausalLM"
    kind: str  # transformers' model_type: "llama"
    parameters: int
    stored: str  # dtype of most weights, as safetensors spells it; of a GGUF file the quantisation
    context: int | None  # tokens that it was made for, where it has a limit
    vocabulary: int | None  # tokens that it has weights for
    known_as: str  # name on the hub, where it knows that; else `name`
    gguf: bool = False

    def bytes_at(self, bytes_a_weight: float) -> int:
        """Memory of the weights."""
        return round(self.parameters * bytes_a_weight)


def recognise(path: Path) -> LanguageFacts:
    """The facts of the causal language model at `path`; milliseconds. Raises PlainError saying what it is instead."""
    if not path.exists():
        raise PlainError(f"There is no folder {path}; give base_model the folder of a language model.")
    if path.is_file():
        return _file(path)
    settings = _settings(path)
    _refuse_other_kinds(path, settings)
    header = {name: info for file in weight_files(path) for name, info in read_header(file).items()}
    stored: Counter[str] = Counter()
    for info in header.values():
        stored[info.dtype] += prod(info.shape)
    text = _text_settings(settings)
    context = next((int(text[name]) for name in _CONTEXT if isinstance(text.get(name), int)), None)
    said = str(settings.get("_name_or_path") or "")
    return LanguageFacts(
        path=path, name=_name_of(path), architecture=str(settings["architectures"][0]),
        kind=str(settings["model_type"]), parameters=sum(stored.values()), stored=stored.most_common(1)[0][0],
        context=context, vocabulary=text.get("vocab_size"),
        known_as=said if _names_a_repository(said) else _name_of(path),
    )  # fmt: skip


def is_language_folder(path: Path) -> bool:
    """Whether a folder looks like one of transformers' language models, for those who wanted an image model."""
    file = path / "config.json"
    if (path / "model_index.json").exists() or not file.is_file():
        return False
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    names = found.get("architectures") if isinstance(found, dict) else None
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in names or ())


def is_language_model(path: Path) -> bool:
    """Whether it is such a folder, or a GGUF file."""
    return is_language_folder(path) or (path.suffix == ".gguf" and path.is_file())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights. Raises PlainError where one is missing, or there are none."""
    index = folder / INDEX
    if index.is_file():
        names = sorted(set(cast("dict[str, str]", read_json(index).get("weight_map", {})).values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise PlainError(
                f"{folder} lacks {missing[0]} and {len(missing) - 1} more of its {len(names)} weight files; download "
                "the folder again."
                if len(missing) > 1
                else f"{folder} lacks its weight file {missing[0]}; download it again."
            )
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt"))
    for file in pickles:
        _refuse_ggml(file)
    if pickles:
        raise PlainError(
            f"{folder} holds its weights as a pickle ({pickles[0].name}), which could run code when opened; get the "
            "safetensors version of this model, or convert it where you trust it."
        )
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs:
        raise PlainError(f"{folder} holds GGUF files; name one of them as base_model, such as {ggufs[0]}.")
    raise PlainError(f"{folder} holds no weights ({WEIGHTS}); download the model's folder as a whole.")


def _file(path: Path) -> LanguageFacts:
    _refuse_ggml(path)
    with path.open("rb") as file:
        start = file.read(8)
    if start[:4] == b"GGUF":
        from lora_trainer.families.language.gguf import recognise_gguf

        return recognise_gguf(path)
    if path.suffix == ".safetensors":
        if (path.parent / "config.json").is_file():
            raise PlainError(f"{path} is a file of a model; name the folder it lies in: base_model: {path.parent}.")
        raise PlainError(
            f"{path} is a single file, as image models are; a language model is a folder with config.json, tokenizer "
            "and safetensors. Name that folder, or set task_type: stable-diffusion."
        )
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt"):
        raise PlainError(
            f"{path} is a pickle, which could run code when opened; name the folder of the model with its weights as "
            "safetensors."
        )
    raise PlainError(f"{path} is no language model; name a folder with config.json, tokenizer and safetensors.")


def _refuse_ggml(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) in _GGML:
            raise PlainError(
                f"{path} is a GGML file of the time before GGUF, whose rounded weights cannot be trained upon; convert "
                "it to GGUF (llama.cpp's convert_llama_ggml_to_gguf.py), or better get the original model's folder "
                "with safetensors."
            )


def _settings(folder: Path) -> dict[str, Any]:
    if (folder / "model_index.json").is_file():
        raise PlainError(
            f"{folder} is a diffusers folder, an image model; set task_type: stable-diffusion, or name the folder of a "
            "language model."
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise PlainError(
            f"{folder} is an adapter, not a model; name its base model as base_model, and the adapter as "
            "network.start_from."
        )
    if not (folder / "config.json").is_file():
        raise PlainError(
            f"{folder} has no config.json, so it is no transformers folder; name the folder that holds config.json, "
            "tokenizer and safetensors."
        )
    settings = read_json(folder / "config.json")
    if not settings.get("model_type") or not settings.get("architectures"):
        raise PlainError(f"{folder}/config.json names no architecture; download the model's folder again.")
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        raise PlainError(f"{folder} has no tokenizer (tokenizer.json or tokenizer.model); download it as well.")
    return settings


def _refuse_other_kinds(folder: Path, settings: Mapping[str, Any]) -> None:
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    architecture, kind = str(settings["architectures"][0]), str(settings["model_type"])
    if settings.get("is_encoder_decoder"):
        raise PlainError(
            f"{folder.name} is an encoder-decoder model ({architecture}), which answers in another way than it is "
            "trained here; choose a causal language model such as LLaMA, Mistral, Qwen, GPT-2 or Phi."
        )
    classes = set(_names(CAUSAL.values()))
    if kind not in CAUSAL:
        if settings.get("auto_map"):
            raise PlainError(
                f"{folder.name} ({architecture}) brings code of its own that would have to be run, which is not done; "
                "choose a model that transformers knows itself."
            )
        if architecture.endswith(("ForCausalLM", "LMHeadModel")):
            raise PlainError(
                f"{folder.name} is a {architecture}, which the transformers {transformers.__version__} of this "
                "environment does not know; train it from the command line in an environment with a newer one, or "
                "choose another model."
            )
    if kind not in CAUSAL or architecture not in classes:
        raise PlainError(
            f"{folder.name} is a {architecture}, which does not write text from left to right; choose a causal "
            "language model such as LLaMA, Mistral, Qwen, GPT-2 or Phi."
        )
    unknown = _unknown_settings(kind, settings)
    if unknown:
        raise PlainError(
            f"{folder.name} was made for a newer transformers: the {transformers.__version__} of this environment does "
            f"not know {', '.join(unknown)} of a {architecture} and would compute something else; train it from the "
            "command line in an environment with a newer one."
        )


def _unknown_settings(kind: str, settings: Mapping[str, Any]) -> list[str]:
    """Settings that change what a model computes and that this release would pass over in silence."""
    from transformers import AutoConfig

    known = cast("dict[str, Any]", AutoConfig.for_model(kind).to_dict())
    given = _text_settings(settings)
    heads, wide = given.get("num_attention_heads"), given.get("hidden_size")
    usual: dict[str, Any] = {
        "num_key_value_heads": heads, "rope_theta": 10000.0, "rope_scaling": None, "attention_bias": False,
        "mlp_bias": False, "rope_parameters": _USUAL_ROPE,
        "head_dim": wide // heads if isinstance(wide, int) and isinstance(heads, int) and heads else None,
    }  # fmt: skip
    if "rope_theta" in known:  # transformers 5 writes it below rope_parameters; 4 has it beside
        usual.pop("rope_parameters")
        inner = given.get("rope_parameters")
        if isinstance(inner, Mapping) and dict(cast("Mapping[str, Any]", inner)) != _USUAL_ROPE:
            return ["rope_parameters"]
    return [
        name for name, value in usual.items()
        if name in given and name not in known and given[name] is not None and given[name] != value
    ]  # fmt: skip


def _names(values: Any) -> Iterator[str]:
    """Class names of a mapping whose values may be tuples of them."""
    for value in values:
        if isinstance(value, str):
            yield value
        else:
            yield from value


def _text_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models that also see pictures keep what concerns text below."""
    inner = settings.get("text_config")
    return cast("Mapping[str, Any]", inner) if isinstance(inner, Mapping) else settings


def _name_of(path: Path) -> str:
    """The folder's own name; in the hub's cache, models--owner--name/snapshots/<commit>, the repository's."""
    path = path.resolve()
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return path.name


def _names_a_repository(said: str) -> bool:
    return said.count("/") == 1 and not said.startswith(("/", ".", "~"))
