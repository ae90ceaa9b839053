"""A GGUF file as llama.cpp's converter makes one of a LLaMA-type transformers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
_ROTARY = ("attn_q", "attn_k")


def write_gguf(folder: Path, path: Path, stored: str = "F32") -> Path:
    """Write the model of `folder` with its tokenizer; matrices as `stored` ("F32", "F16", "Q8_0"), the rest as F32."""
    from gguf import GGMLQuantizationType, GGUFWriter, quants

    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    heads = config["num_attention_heads"]
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, config["vocab_size"])
    kind = GGMLQuantizationType[stored]
    for name, tensor in load_file(folder / "model.safetensors").items():
        short = _short(name)
        rows = _interleaved(tensor, heads) if short.endswith(tuple(f"{one}.weight" for one in _ROTARY)) else tensor
        if rows.ndim < 2 or kind == GGMLQuantizationType.F32:
            writer.add_tensor(short, np.ascontiguousarray(rows, dtype=np.float32))
        else:
            writer.add_tensor(short, quants.quantize(np.ascontiguousarray(rows), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _short(name: str) -> str:
    """The name llama.cpp gives it: "model.layers.0.mlp.up_proj.weight" to "blk.0.ffn_up.weight"."""
    whole = name.removesuffix(".weight")
    if whole.startswith("model.layers."):
        number, _, inner = whole.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{_NAMES[inner]}.weight"
    return f"{_NAMES[whole]}.weight"


def _interleaved(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rotary pairs side by side, where transformers keeps the halves of a head apart."""
    whole = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return whole.swapaxes(1, 2).reshape(rows.shape)


def _add_tokenizer(writer: Any, folder: Path, size: int) -> None:
    inner = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = {number: word for word, number in inner["model"]["vocab"].items()}
    special = {one["id"] for one in inner["added_tokens"]}
    words |= {one["id"]: one["content"] for one in inner["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([words.get(number, f"[unused{number}]") for number in range(size)])
    writer.add_token_types([3 if number in special else 1 if number in words else 5 for number in range(size)])
    merges = inner["model"]["merges"]
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
