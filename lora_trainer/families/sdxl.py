"""Stable Diffusion XL base: CLIP-L and open_clip's bigG side by side, picture sizes as conditions."""

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

HEAD_CHANNELS = 64  # num_head_channels
_PENULTIMATE = 2  # layers from the end; neither tower's states are normed (sd_xl_base.yaml: layer_idx 11, penultimate)


class Sdxl(DiffusionFamily):
    """Constants: Stability's sd_xl_base.yaml. Names in files: kohya's sdxl_model_util.py and sai_model_spec.py."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    # Text encoders frozen: kohya's and diffusers' guides for SDXL; they are large and the gain is small.
    defaults = FamilyDefaults(resolution=1024, text_encoder_learning_rate=0.0, clip_skip=_PENULTIMATE)
    metadata_version = "sdxl_base_v1-0"
    modelspec_architecture = "stable-diffusion-xl-v1-base"
    latent_scale = 0.13025  # scale_factor
    towers: ClassVar = {
        "text_encoder": TowerPlace("conditioner.embedders.0.transformer.", "clip", "lora_te1"),
        "text_encoder_2": TowerPlace("conditioner.embedders.1.model.", "open_clip", "lora_te2", projection=True),
    }
    text_parts = tuple(towers)
    lora_spellings: ClassVar = {
        "lora_te1": "text_encoder", "text_encoder": "text_encoder",
        "lora_te2": "text_encoder_2", "text_encoder_2": "text_encoder_2",
    }  # fmt: skip
    unet_names = UnetNames(2, (False, True, True))

    def recognise(self, header: Mapping[str, TensorInfo]) -> ModelFacts | None:
        if family_of_names(header) != self.name:
            return None
        marks = [mark for mark in ("v_pred", "ztsnr") if mark in header]
        if not marks:
            return ModelFacts(self.name, "epsilon", False, "the file carries neither of the marks v_pred and ztsnr")
        # A schedule that ends in noise alone leaves nothing for noise prediction to go by.
        return ModelFacts(self.name, "v_prediction", "ztsnr" in marks, f"the file carries {' and '.join(marks)}")

    def heads(self, channels: int) -> int:
        return channels // HEAD_CHANNELS

    def encode(self, text: TextSide, captions: Sequence[str], clip_skip: int) -> TextStates:
        """The penultimate states of both towers side by side, whatever `clip_skip` says, as in the WebUI."""
        first, second = text.tokenizers["text_encoder"], text.tokenizers["text_encoder_2"]
        count = max(len(chunks) for caption in captions for chunks in (first.chunks(caption), second.chunks(caption)))
        narrow, wide = (
            encode_chunks(text.encoders[part], tokenizer.batch(captions, count), skip=_PENULTIMATE, final_norm=False)
            for part, tokenizer in (("text_encoder", first), ("text_encoder_2", second))
        )
        return TextStates(torch.cat([narrow.context, wide.context], dim=-1), wide.pooled)

    def conditions(self, text: TextStates, sizes: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Pooled text (B, P) and the six sizes (B, 6), in diffusers' names; sizes stay exact."""
        if text.pooled is None:
            raise ValueError("SDXL's UNet needs the pooled text states")
        return {"text_embeds": text.pooled.to(sizes.device, dtype), "time_ids": sizes.to(torch.float32)}

    def lora_unet_path(self, names: UnetNames, path: str) -> str:
        """LDM's: A1111 takes some of diffusers' names for other blocks in this family."""
        return names.to_ldm(path)


FAMILY = Sdxl()
