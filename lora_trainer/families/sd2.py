"""Stable Diffusion 2.x: open_clip's ViT-H text tower, 64 channels a head, predicts noise (512 px) or v (768 px)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lora_trainer.contracts import FamilyDefaults, ModelFacts, TensorInfo, TextStates
from lora_trainer.families.diffusion import DiffusionFamily, TextSide, TowerPlace
from lora_trainer.families.ldm_names import UnetNames
from lora_trainer.families.prediction import untold
from lora_trainer.families.recognise import family_of_names
from lora_trainer.families.text import encode_chunks

HEAD_CHANNELS = 64  # num_head_channels


class Sd2(DiffusionFamily):
    """Constants: Stability's v2-inference.yaml. Names in files: kohya's train_network.py and sai_model_spec.py."""

    name = "sd2"
    title = "Stable Diffusion 2.x"
    defaults = FamilyDefaults(resolution=768, text_encoder_learning_rate=5e-5, clip_skip=1)
    metadata_version = "sd_v2"
    modelspec_architecture = "stable-diffusion-v2-768-v"
    latent_scale = 0.18215  # scale_factor
    # The last layer is never run: FrozenOpenCLIPEmbedder with layer: penultimate.
    towers: ClassVar = {"text_encoder": TowerPlace("cond_stage_model.model.", "open_clip", "lora_te", drop_last=1)}
    text_parts = tuple(towers)
    lora_spellings: ClassVar = {"lora_te": "text_encoder", "lora_te1": "text_encoder", "text_encoder": "text_encoder"}
    unet_names = UnetNames(2, (True, True, True, False))

    def recognise(self, header: Mapping[str, TensorInfo]) -> ModelFacts | None:
        """What it predicts no name tells, unless the file is marked; `prediction.resolve` finds out."""
        if family_of_names(header) != self.name:
            return None
        if "v_pred" in header:
            return ModelFacts(self.name, "v_prediction", "ztsnr" in header, "the file carries the mark v_pred")
        return untold(self.name)

    def heads(self, channels: int) -> int:
        return channels // HEAD_CHANNELS

    def encode(self, text: TextSide, captions: Sequence[str], clip_skip: int) -> TextStates:
        """The penultimate layer's states, normed, whatever `clip_skip` says, as in the WebUI."""
        chunks = text.tokenizers["text_encoder"].batch(captions)
        return encode_chunks(text.encoders["text_encoder"], chunks)

    def conditions(self, text: TextStates, sizes: Tensor, dtype: torch.dtype) -> None:
        return None

    def lora_unet_path(self, names: UnetNames, path: str) -> str:
        return path


FAMILY = Sd2()
