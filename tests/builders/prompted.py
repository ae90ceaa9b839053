"""What a prompt can name in a WebUI, made to the format: a LoRA in kohya's names, a hypernetwork."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

# Layers of tests/builders/hosted.py's SD1, each (out, in); the names are those of kohya's files.
_LAYERS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v": (32, 768),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2": (64, 256),
    "lora_te_text_model_encoder_layers_3_self_attn_q_proj": (768, 768),
    "lora_te_text_model_encoder_layers_5_mlp_fc1": (3072, 768),
}


def write_prompt_lora(path: Path, seed: int, *, strength: float = 0.3, rank: int = 4, more: int = 0) -> Path:
    """A LoRA whose matrices are random; `more` layers have names that no model has. Returns the path."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, (out, width) in {**_LAYERS, **{f"lora_unet_nowhere_{n}": (8, 8) for n in range(more)}}.items():
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, width, generator=generator) * width**-0.5
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=generator) * strength
        tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(tensors, str(path), {"ss_output_name": path.stem, "ss_base_model_version": "sd_v1"})
    return path


def write_hypernetwork(path: Path, width: int) -> Path:
    """A hypernetwork of one layer (A1111 v1.10.1, modules/hypernetworks/hypernetwork.py). Returns the path."""
    generator = torch.Generator().manual_seed(9)

    def layers() -> dict[str, Tensor]:
        return {
            "linear.0.weight": torch.randn(width, width, generator=generator) * width**-0.5,
            "linear.0.bias": torch.randn(width, generator=generator) * 0.1,
        }

    torch.save(
        {
            width: (layers(), layers()), "step": 1, "name": path.stem, "layer_structure": [1, 1],
            "activation_func": "linear", "is_layer_norm": False, "weight_initialization": "Normal",
            "use_dropout": False, "activate_output": False, "last_layer_dropout": False, "dropout_structure": [0, 0],
            "optional_info": "",
        },
        path,
    )  # fmt: skip
    return path
