"""Stable Diffusion 1.x: one CLIP-L text encoder, 8 heads everywhere, predicts noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_trainer.contracts import FamilyDefaults, ModelFacts, TensorInfo, TextStates
from lora_trainer.families.diffusion import DiffusionFamily, TextSide, TowerPlace
from lora_trainer.families.ldm_names import UnetNames
from lora_trainer.families.recognise import family_of_names
from lora_trainer.families.text import encode_chunks


class Sd1(DiffusionFamily):
    """Constants: CompVis v1-inference.yaml. Names in files: kohya's train_network.py and sai_model_spec.py."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    defaults = FamilyDefaults(resolution=512, text_encoder_learning_rate=5e-5, clip_skip=1)
    metadata_version = "sd_v1"
    modelspec_architecture = "stable-diffusion-v1"
    latent_scale = 0.18215  # scale_factor
    towers: ClassVar = {"text_encoder": TowerPlace("cond_stage_model.transformer.", "clip", "lora_te")}
    text_parts = tuple(towers)
    lora_spellings: ClassVar = {"lora_te": "text_encoder", "lora_te1": "text_encoder", "text_encoder": "text_encoder"}
    unet_names = UnetNames(2, (True, True, True, False))

    def recognise(self, header: Mapping[str, TensorInfo]) -> ModelFacts | None:
        if family_of_names(header) != self.name:
            return None
        if "v_pred" in header:
            return ModelFacts(self.name, "v_prediction", "ztsnr" in header, "the file carries the mark v_pred")
        return ModelFacts(self.name, "epsilon", False, "as all Stable Diffusion 1 models do unless they are marked")

    def heads(self, channels: int) -> int:
        return 8  # num_heads

    def encode(self, text: TextSide, captions: Sequence[str], clip_skip: int) -> TextStates:
        """States `clip_skip` layers from the end, normed by the tower's last norm."""
        chunks = text.tokenizers["text_encoder"].batch(captions)
        return encode_chunks(text.encoders["text_encoder"], chunks, skip=clip_skip)

    def conditions(self, text: TextStates, sizes: Tensor, dtype: torch.dtype) -> None:
        return None

    def lora_unet_path(self, names: UnetNames, path: str) -> str:
        return path


FAMILY = Sd1()
