"""The notes inside a LoRA file: what kohya's scripts write and the hosts read, the modelspec, and our whole recipe.

All values are strings. No clock and no absolute folder goes in: the same run gives the same bytes anywhere.
Names and meaning: kohya-ss/sd-scripts, train_network.py (`ss_*`) and Stability-AI/ModelSpec 1.0.0. What the WebUI
shows on its Lora page are ss_output_name, ss_sd_model_name, ss_base_model_version, ss_v2, ss_resolution,
ss_clip_skip, ss_num_train_images, ss_tag_frequency, ss_bucket_info, ss_dataset_dirs and ss_network_module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_trainer.contracts import PredictionType

RECIPE = "lora_trainer.config"


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a LoRA tells of the run that made it."""

    name: str  # of the file, without its ending: two files of one name shadow each other in the WebUI
    base_name: str
    base_version: str  # Family.metadata_version
    architecture: str  # Family.modelspec_architecture
    prediction: PredictionType
    zero_terminal_snr: bool
    resolution: int  # pixels, side of the square
    clip_skip: int  # layers
    kind: str = "lora"
    rank: int  # as the file has it
    alpha: float  # likewise
    convolutions: bool  # whether they are among what is adapted
    factor: int | None = None  # of a LoKr
    dropout: float
    rank_dropout: float = 0.0
    module_dropout: float = 0.0
    learning_rate: float
    text_encoder_learning_rate: float
    schedule: str
    warmup_steps: int
    optimizer: str
    step: int  # steps done when the file was written
    steps: int  # of the whole run
    epochs: int
    batch_size: int
    gradient_accumulation_steps: int
    gradient_checkpointing: bool
    max_gradient_norm: float
    min_snr_gamma: float
    noise_offset: float
    mixed_precision: str
    seed: int
    images: int
    repeats: int
    data_name: str  # name of the data set's folder, not its place
    caption_dropout: float
    shuffle_captions: bool
    keep_tokens: int
    flip: bool
    class_images: int = 0  # regularisation images
    prior_weight: float = 1.0  # of their loss
    tag_frequency: Mapping[str, int] = field(default_factory=dict[str, int])  # tag: number of images
    buckets: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])  # (W, H): images
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the resolved configuration, without folders


def build(facts: RunFacts) -> dict[str, str]:
    """The notes of one file; `write_lora` adds the hashes of its tensors (`sshs_*`)."""
    kohya = _kohya_base(facts) | _kohya_training(facts) | _kohya_data(facts)
    return {**kohya, **_modelspec(facts), RECIPE: _json(facts.recipe)}


def _kohya_base(facts: RunFacts) -> dict[str, str]:
    return {
        "ss_output_name": facts.name,
        "ss_sd_model_name": facts.base_name,
        "ss_base_model_version": facts.base_version,
        "ss_v2": str(facts.base_version.startswith("sd_v2")),
        "ss_zero_terminal_snr": str(facts.zero_terminal_snr),
        "ss_resolution": f"({facts.resolution}, {facts.resolution})",
        "ss_clip_skip": str(facts.clip_skip),
        "ss_network_dropout": f"{facts.dropout:g}",
        **described_as(
            facts.kind, facts.rank, facts.alpha, convolutions=facts.convolutions, factor=facts.factor,
            rank_dropout=facts.rank_dropout, module_dropout=facts.module_dropout,
        ),
    }


def described_as(
    kind: str, rank: int, alpha: float, *, convolutions: bool, factor: int | None = None,
    rank_dropout: float = 0.0, module_dropout: float = 0.0,
) -> dict[str, str]:  # fmt: skip
    """The notes on what kind of network a file holds, as kohya's scripts and LyCORIS spell them.

    Tools and the Lora page go by the module that makes files of this form, and its arguments.
    """
    lycoris = {
        "dora": {"algo": "lora", "dora_wd": "True", "wd_on_output": "False"},
        "loha": {"algo": "loha"},
        "lokr": {"algo": "lokr", "factor": str(factor or -1)},
        "oft": {"algo": "diag-oft"},
    }
    arguments = dict(lycoris.get(kind, {}))
    if convolutions:
        arguments |= {"conv_dim": str(rank), "conv_alpha": f"{alpha:g}"}
    drops = {"rank_dropout": rank_dropout, "module_dropout": module_dropout}
    arguments |= {name: f"{chance:g}" for name, chance in drops.items() if chance}
    return {
        "ss_network_module": "lycoris.kohya" if kind in lycoris else "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_network_args": _json(arguments),
    }


def _kohya_training(facts: RunFacts) -> dict[str, str]:
    return {
        "ss_learning_rate": str(facts.learning_rate),
        "ss_unet_lr": str(facts.learning_rate),
        "ss_text_encoder_lr": str(facts.text_encoder_learning_rate),
        "ss_lr_scheduler": facts.schedule,
        "ss_lr_warmup_steps": str(facts.warmup_steps),
        "ss_optimizer": facts.optimizer,
        "ss_steps": str(facts.step),
        "ss_max_train_steps": str(facts.steps),
        "ss_num_epochs": str(facts.epochs),
        "ss_total_batch_size": str(facts.batch_size * facts.gradient_accumulation_steps),
        "ss_batch_size_per_device": str(facts.batch_size),
        "ss_gradient_accumulation_steps": str(facts.gradient_accumulation_steps),
        "ss_gradient_checkpointing": str(facts.gradient_checkpointing),
        "ss_max_grad_norm": str(facts.max_gradient_norm),
        "ss_min_snr_gamma": str(facts.min_snr_gamma or None),
        "ss_noise_offset": str(facts.noise_offset or None),
        "ss_mixed_precision": facts.mixed_precision,
        "ss_seed": str(facts.seed),
    }


def _kohya_data(facts: RunFacts) -> dict[str, str]:
    buckets = {
        str(index): {"resolution": list(size), "count": count}
        for index, (size, count) in enumerate(sorted(facts.buckets.items()))
    }
    return {
        "ss_num_train_images": str(facts.images * facts.repeats),
        "ss_num_reg_images": str(facts.class_images),
        "ss_prior_loss_weight": str(facts.prior_weight),
        "ss_dataset_dirs": _json({facts.data_name: {"n_repeats": facts.repeats, "img_count": facts.images}}),
        "ss_tag_frequency": _json({facts.data_name: dict(sorted(facts.tag_frequency.items()))}),
        "ss_enable_bucket": str(bool(buckets)),
        "ss_bucket_info": _json({"buckets": buckets}),
        "ss_caption_dropout_rate": str(facts.caption_dropout),
        "ss_shuffle_caption": str(facts.shuffle_captions),
        "ss_keep_tokens": str(facts.keep_tokens),
        "ss_flip_aug": str(facts.flip),
    }


def _modelspec(facts: RunFacts) -> dict[str, str]:
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{facts.architecture.removesuffix('/lora')}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": facts.name,
        "modelspec.resolution": f"{facts.resolution}x{facts.resolution}",
        "modelspec.prediction_type": "v" if facts.prediction == "v_prediction" else "epsilon",
        "modelspec.encoder_layer": str(facts.clip_skip),
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
