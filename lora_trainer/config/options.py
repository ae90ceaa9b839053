"""Every option of a run, once: type, default, sentence, unit and bounds.

Standard library only, because the hosts disagree about pydantic (1.10 and 2.x). `load.py` is the one way in;
`surfaces.py` derives flags, schema and docs. A default of None means "resolved later from the base model and the
data, and told with its reason" (`jobs/plan.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

VERSION = 1  # of the configuration; a change of names or meaning raises it and adds a migration in load.py

# In `Option.applies`: several paths with OR between them want one of these settings to have such a value.
OR = " or "
GIVEN: tuple[Any, ...] = ()  # in the place of values: any but none, zero, off and empty


class Option(NamedTuple):
    """What a reader, a slider and a checker need to know of one setting besides its type and default."""

    help: str  # one sentence: what it does, and when to change it
    unit: str = ""
    low: float | None = None  # inclusive
    high: float | None = None  # inclusive
    advanced: bool = False  # folded away in the form
    alias: str = ""  # the flat name that lora-scripts files use; it loads like the dotted one
    elsewhere: tuple[str, ...] = ()  # names in other trainers' files; refused, with this option as the way out
    synonyms: Mapping[str, str] | None = None  # other words for a choice, as found in published files
    applies: Mapping[str, tuple[Any, ...]] | None = None  # path of another setting: values with which this one counts
    unless: Mapping[str, tuple[Any, ...]] | None = None  # path of another setting: values with which it does not
    families: tuple[str, ...] = ()  # of base models with which it counts; all, where none is named
    own_base: bool = False  # counts only where the run reads the base, and not with one that a WebUI lends
    pairs: bool = False  # of a list of text: a mapping is read too, each entry as "name = value"


def option(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that carries its Option."""
    return field(default=default, metadata={"option": Option(help, **more)})


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    base: str = option(
        "",
        "Checkpoint to train on: a .safetensors or .ckpt file, a diffusers folder, or 'demo' (the built-in); "
        "empty, inside a WebUI, is the checkpoint it has loaded.",
        alias="base_model",
        elsewhere=("pretrained_model_name_or_path",),
    )
    download: bool = option(
        False,
        "Fetch a language model that base_model names as on the Hugging Face hub (owner/name), where it is not here.",
        advanced=True,
    )
    aside: bool = option(
        False,
        "While a language model trains in a WebUI, keep the WebUI's own model in the CPU's memory: that frees the "
        "device, and images wait until the training has ended.",
        advanced=True,
    )
    prediction: Literal["auto", "epsilon", "v_prediction"] = option(
        "auto",
        "What the UNet predicts; leave it to 'auto' unless the file cannot tell and you know better.",
        advanced=True,
    )
    zero_terminal_snr: Literal["auto", "yes", "no"] = option(
        "auto", "Whether the noise schedule ends in pure noise; 'auto' reads it from the checkpoint.", advanced=True
    )
    quantize: Literal["none", "8bit", "4bit"] = option(
        "none",
        "Hold the frozen UNet in 8 or 4 bits a weight: less memory, slower, and what is learned fits the full model a "
        "little less well; only of a file, never of the checkpoint that a WebUI lends.",
        advanced=True,
        own_base=True,
    )
    clip_skip: int | None = option(
        None,
        "Take the text states this many layers from the end (1 = last), as 'Clip skip' in the WebUI does.",
        unit="layers",
        low=1,
        high=12,
        advanced=True,
        families=("sd1",),
    )


_MASKED = {"data.masked_loss": (True,)}
_OF_CLASS = {"data.regularization": GIVEN}
_SHUFFLED = {"data.shuffle_captions": (True,)}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    folder: str = option(
        "",
        "Folder with the training images; sub-folders count too.",
        alias="train_data_dir",
        elsewhere=("image_dir", "instance_data_dir"),
    )
    metadata: str | None = option(
        None,
        "CSV file with the columns filename,prompt; without it captions come from files beside the images.",
        alias="metadata_path",
    )
    resolution: int | None = option(
        None,
        "Side of the square whose area every bucket keeps; empty takes the base model's own.",
        unit="px",
        low=64,
        high=4096,
        alias="resolution",
    )
    batch_size: int = option(
        2,
        "Images trained on at once; more is steadier and needs more memory.",
        unit="images",
        low=1,
        high=256,
        alias="batch_size",
        elsewhere=("train_batch_size",),
    )
    repeats: int = option(1, "How often each image is seen in an epoch.", unit="times", low=1, high=1000)
    buckets: bool = option(
        True, "Keep each image's shape by sorting into aspect buckets; off crops all to squares.", advanced=True
    )
    bucket_step: int = option(64, "Sides of buckets are multiples of this.", unit="px", low=8, high=256, advanced=True)
    upscale: bool = option(False, "Enlarge images smaller than their bucket.", advanced=True)
    crop: Literal["center", "focal", "none"] = option(
        "center",
        "What is kept of an image whose shape is not its bucket's: the middle, the subject as it is found, or all of "
        "it, with padding that is not learned; a focal point set by hand comes before middle and subject.",
        advanced=True,
        elsewhere=("center_crop", "random_crop", "crop_focus"),
    )
    masked_loss: bool = option(
        False,
        "Learn what masks show white: X-masklabel.png or mask/X.png for an image X, or else its transparency.",
        advanced=True,
        alias="masked_loss",
        elsewhere=("alpha_mask", "masked_training", "conditioning_data_dir"),
    )
    mask_floor: float = option(
        0.0,
        "How much of the learning is left where a mask is black: 0 nothing, 1 all.",
        low=0.0,
        high=1.0,
        advanced=True,
        elsewhere=("unmasked_weight",),
        applies=_MASKED,
    )
    regularization: str | None = option(
        None,
        "Folder with pictures of the class (other cats, for a LoRA of your cat): shown as often as yours, they keep "
        "the class as it was.",
        advanced=True,
        alias="reg_data_dir",
        elsewhere=("class_data_dir", "reg_images_dir"),
    )
    class_prompt: str = option(
        "",
        "Caption of those of these pictures that have none of their own, such as 'a photo of a cat'.",
        advanced=True,
        alias="class_prompt",
        applies=_OF_CLASS,
    )
    prior_weight: float = option(
        1.0,
        "How much these pictures count beside yours.",
        low=0.0,
        high=100.0,
        advanced=True,
        alias="prior_loss_weight",
        applies=_OF_CLASS,
    )
    trigger: str = option("", "Word put in front of every caption, to call the LoRA by.")
    shuffle_captions: bool = option(False, "Shuffle the comma-separated tags of a caption each time.", advanced=True)
    keep_tokens: int = option(
        0, "This many tags at the start stay in place when shuffling.", unit="tags", low=0, high=100, advanced=True,
        applies=_SHUFFLED,
    )
    caption_dropout: float = option(
        0.05,
        "Share of times an image is shown without its caption, so that guidance keeps working.",
        low=0.0,
        high=1.0,
        advanced=True,
    )
    flip: bool = option(False, "Show each image mirrored half of the times; not for text or asymmetric faces.")
    cache: Literal["auto", "memory", "disk", "none"] = option(
        "auto",
        "Where encoded images are kept: memory, disk (survives the run), or encode anew at each step; 'auto' takes the "
        "disk where they would need more than a quarter of the memory that is free.",
        advanced=True,
        elsewhere=("cache_latents", "cache_latents_to_disk", "latent_caching"),
    )


# Kinds that a setting of the network counts with; with the others it is refused, and the form hides it.
_SCALED = {"network.kind": ("lora", "locon", "dora", "loha", "lokr")}
_LOW_RANK = {"network.kind": ("lora", "locon", "dora")}
_PLAIN = {"network.kind": ("lora", "locon")}
_BY_NAME = {"network.layers": ((),)}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    kind: Literal["lora", "locon", "dora", "loha", "lokr", "oft"] = option(
        "lora",
        "Form of the update: lora, locon (lora that reaches convolutions), dora (direction and length apart), loha, "
        "lokr (smaller files), oft (turns weights); docs/kinds.md tells which to choose.",
        synonyms={"lycoris": "locon", "diag-oft": "oft"},
    )
    rank: int = option(
        16,
        "Inner width r of the update; the file grows with it. With oft the largest block that is turned as one.",
        low=1,
        high=1024,
        alias="lora_rank",
        elsewhere=("network_dim",),
    )
    alpha: float | None = option(
        None,
        "The update is scaled by alpha / rank; empty takes half of the rank.",
        low=0.001,
        high=4096,
        alias="lora_alpha",
        elsewhere=("network_alpha",),
        applies=_SCALED,
    )
    targets: Literal["attention", "linear", "all"] = option(
        "attention",
        "Layers to adapt: attention only, every linear layer, or convolutions too; locon adds the convolutions to any.",
        alias="lora_target",
        applies=_BY_NAME,
    )
    layers: tuple[str, ...] = option(
        (),
        "Regular expressions; where given, every linear layer and convolution whose name one of them is found in is "
        "adapted, in place of `targets`. A name: unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.",
        advanced=True,
        elsewhere=("target_modules",),
    )
    ranks: tuple[str, ...] = option(
        (),
        "Rank of single layers, as 'pattern = rank' or 'pattern = rank/alpha', such as 'mid_block = 32'; the first "
        "pattern that is found in a layer's name counts, rank 0 leaves the layer out.",
        advanced=True,
        pairs=True,
        elsewhere=("block_dims", "rank_pattern"),
    )
    init: Literal["default", "pissa", "olora"] = option(
        "default",
        "First weights: default changes nothing by itself; pissa takes the base's largest singular directions and "
        "olora the first of its QR, which often learn faster; the file is then plain LoRA of twice the rank.",
        advanced=True,
        applies=_PLAIN,
    )
    rslora: bool = option(
        False,
        "Scale by alpha / sqrt(rank) (Kalajdzievski 2023), so that high ranks learn as fast as low ones.",
        advanced=True,
        applies=_SCALED,
    )
    loraplus_ratio: float = option(
        1.0,
        "LoRA+ (Hayou et al. 2024): the up weights learn at this multiple of the learning rate; 4 to 16 is usual.",
        low=0.1,
        high=256,
        advanced=True,
        applies=_LOW_RANK,
        unless={"optimizer.kind": ("prodigy",)},
        elsewhere=("loraplus_lr_ratio",),
    )
    factor: int | None = option(
        None,
        "A weight is split into two Kronecker factors, the smaller one up to this many rows and columns; empty splits "
        "as evenly as can be.",
        low=1,
        high=1024,
        advanced=True,
        applies={"network.kind": ("lokr",)},
    )
    dropout: float = option(
        0.0,
        "Chance that an input of the update is zeroed in a step.",
        low=0.0,
        high=0.95,
        advanced=True,
        alias="lora_dropout",
        elsewhere=("network_dropout",),
    )
    rank_dropout: float = option(
        0.0,
        "Chance that one of the update's inner directions is left out in a step: of the rank with lora, locon and "
        "dora, an output channel with loha and lokr, a block with oft.",
        low=0.0,
        high=0.95,
        advanced=True,
    )
    module_dropout: float = option(
        0.0,
        "Chance that a layer's whole update is left out in a step.",
        low=0.0,
        high=0.95,
        advanced=True,
    )
    start_from: str | None = option(
        None,
        "LoRA file to go on from, of the same kind (dora takes a plain LoRA too); another rank is fitted to this one.",
        alias="lora_path",
        elsewhere=("network_weights",),
    )


# Values of another setting with which a finer one counts.
_RESTARTS = {"train.schedule": ("cosine_with_restarts",)}
_POLYNOMIAL = {"train.schedule": ("polynomial",)}
_AVERAGING = {"optimizer.kind": ("schedule_free",)}
_PRODIGY = {"optimizer.kind": ("prodigy",)}
_MIN_SNR = {"objective.weighting": ("min_snr",)}
_BENT = {"objective.loss": ("huber", "smooth_l1")}
_LEANING = {"objective.timesteps": ("low_noise", "high_noise")}
_LOGIT = {"objective.timesteps": ("logit_normal",)}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    epochs: int | None = option(
        None,
        "How often the whole data set is seen; empty chooses by the number of images.",
        low=1,
        high=100000,
        alias="epochs",
        elsewhere=("max_train_epochs", "num_train_epochs"),
    )
    steps: int | None = option(
        None, "Optimizer steps, instead of epochs.", unit="steps", low=1, high=10_000_000, alias="max_train_steps"
    )
    learning_rate: float = option(
        1e-4,
        "Peak learning rate of the UNet's LoRA.",
        low=0.0,
        high=10.0,
        alias="learning_rate",
        elsewhere=("unet_lr",),
    )
    text_encoder_learning_rate: float | None = option(
        None,
        "Peak learning rate of the text encoders' LoRA; 0 leaves them alone; empty takes the family's.",
        low=0.0,
        high=10.0,
        alias="text_encoder_lr",
    )
    schedule: Literal["cosine", "constant", "linear", "cosine_with_restarts", "polynomial", "rex"] = option(
        "cosine",
        "Course of the learning rate after warm-up.",
        alias="lr_scheduler",
        synonyms={"constant_with_warmup": "constant"},
        unless=_AVERAGING,
    )
    schedule_cycles: int = option(
        3,
        "How often cosine_with_restarts begins anew.",
        unit="times",
        low=1,
        high=1000,
        advanced=True,
        elsewhere=("lr_scheduler_num_cycles",),
        applies=_RESTARTS,
    )
    schedule_power: float = option(
        2.0,
        "Exponent of the polynomial schedule; 1 is linear, more falls sooner.",
        low=0.1,
        high=10.0,
        advanced=True,
        elsewhere=("lr_scheduler_power",),
        applies=_POLYNOMIAL,
    )
    warmup: float = option(
        0.05, "Share of the steps over which the rate rises from 0.", low=0.0, high=1.0, advanced=True
    )
    weight_decay: float = option(0.01, "AdamW's decay of the LoRA weights.", low=0.0, high=10.0, advanced=True)
    gradient_accumulation_steps: int = option(
        1,
        "Micro-batches added up before each optimizer step; imitates a larger batch.",
        unit="micro-batches",
        low=1,
        high=1024,
        alias="gradient_accumulation_steps",
    )
    max_gradient_norm: float = option(
        1.0, "Gradients are scaled down to this norm; 0 lets them pass.", low=0.0, high=1000.0, advanced=True
    )
    min_snr_gamma: float = option(
        5.0,
        "Weight of the timesteps after Hang et al. 2023; 0 weighs all alike.",
        low=0.0,
        high=100.0,
        advanced=True,
        applies=_MIN_SNR,
    )
    noise_offset: float = option(
        0.0,
        "Shift of the noise's mean per channel, for darker darks and brighter brights.",
        low=0.0,
        high=1.0,
        advanced=True,
    )
    ema: float = option(
        0.0,
        "Decay of a moving average of the weights, which is then what is saved and shown: 0.99 to 0.9999 steadies the "
        "result of long runs, 0 keeps none.",
        low=0.0,
        high=0.99999,
        advanced=True,
        elsewhere=("ema_decay", "use_ema"),
        unless=_AVERAGING,
    )
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = option(
        "auto",
        "Arithmetic of the frozen base; LoRA weights are always float32. 'auto' asks the device.",
        alias="mixed_precision",
        own_base=True,
    )
    gradient_checkpointing: Literal["auto", "yes", "no"] = option(
        "auto",
        "Recompute activations in the backward pass: less memory, about a third slower. 'auto' does so where the "
        "memory asks for it, 'no' never.",
        advanced=True,
        alias="gradient_checkpointing",
    )
    attention_slicing: Literal["auto", "yes", "no"] = option(
        "auto",
        "Compute the attention in slices, for devices whose attention keeps all its scores; 'auto' does so where the "
        "memory asks for it and it helps.",
        advanced=True,
    )
    compile: bool = option(
        False,
        "Try torch.compile on the model's blocks, and keep it where the steps are faster with it; compiling takes a "
        "minute or more, and a run that is resumed may decide otherwise.",
        advanced=True,
        elsewhere=("torch_compile",),
    )
    seed: int | None = option(
        None, "Seed of noise, order and dropout; empty draws one and records it.", low=0, high=2**31 - 1, alias="seed"
    )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What turns gradients into steps; docs/training.md says when to choose what."""

    kind: Literal["adamw", "adamw8bit", "adafactor", "lion", "prodigy", "schedule_free", "came"] = option(
        "adamw",
        "What turns gradients into steps; all but adamw and adafactor need a package of their own, and each wants its "
        "own learning rate.",
        elsewhere=("optimizer_type", "optimizer", "optim"),
        synonyms={
            "AdamW": "adamw", "AdamW8bit": "adamw8bit", "AdaFactor": "adafactor", "Adafactor": "adafactor",
            "Lion": "lion", "Prodigy": "prodigy", "AdamWScheduleFree": "schedule_free", "CAME": "came",
        },
    )  # fmt: skip
    prodigy_coefficient: float = option(
        1.0,
        "Multiplies the learning rate that prodigy finds: 0.5 is gentler, 2 bolder.",
        low=0.01,
        high=100.0,
        advanced=True,
        elsewhere=("d_coef",),
        applies=_PRODIGY,
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What a step of an image model minimises; docs/training.md says when to choose what."""

    loss: Literal["l2", "huber", "smooth_l1"] = option(
        "l2",
        "How an error counts: squared, or more mildly where it is large, so that odd pictures spoil less.",
        advanced=True,
        elsewhere=("loss_type",),
    )
    huber_delta: float = option(
        0.1,
        "Error from which huber and smooth_l1 grow like a straight line.",
        low=0.0001,
        high=10.0,
        advanced=True,
        elsewhere=("huber_c",),
        applies=_BENT,
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = option(
        "snr",
        "Course of huber_delta from 1 at no noise to itself at full noise, or the same everywhere.",
        advanced=True,
        applies=_BENT,
    )
    weighting: Literal["min_snr", "debiased", "none"] = option(
        "min_snr",
        "How much each timestep counts: after train.min_snr_gamma, debiased estimation (Yu et al. 2023), or all alike.",
        advanced=True,
        elsewhere=("debiased_estimation_loss",),
    )
    timesteps: Literal["uniform", "logit_normal", "low_noise", "high_noise"] = option(
        "uniform",
        "Which timesteps are drawn more often: none, the middle, little noise (detail) or much noise (layout).",
        advanced=True,
        elsewhere=("timestep_sampling", "timestep_bias_strategy"),
    )
    min_timestep: int = option(
        0, "Lowest timestep that is trained.", low=0, high=999, advanced=True, elsewhere=("min_timestep",)
    )
    max_timestep: int = option(
        1000,
        "Timesteps from this one on are not trained.",
        low=1,
        high=1000,
        advanced=True,
        elsewhere=("max_timestep",),
    )
    timestep_power: float = option(
        3.0,
        "How strongly low_noise and high_noise lean to their side; 1 is uniform.",
        low=1.0,
        high=10.0,
        advanced=True,
        applies=_LEANING,
    )
    logit_mean: float = option(
        0.0,
        "Centre of logit_normal; above 0 leans to much noise.",
        low=-5.0,
        high=5.0,
        advanced=True,
        elsewhere=("logit_mean",),
        applies=_LOGIT,
    )
    logit_std: float = option(
        1.0,
        "Width of logit_normal; less is narrower.",
        low=0.01,
        high=10.0,
        advanced=True,
        elsewhere=("logit_std",),
        applies=_LOGIT,
    )
    pyramid_noise: int = option(
        0,
        "Coarser layers added to the noise, 6 to 10, for bolder light and shadow; 0 adds none.",
        unit="layers",
        low=0,
        high=20,
        advanced=True,
        elsewhere=("multires_noise_iterations",),
    )
    pyramid_discount: float = option(
        0.3,
        "Strength of each coarser layer, as a share of the one before.",
        low=0.01,
        high=1.0,
        advanced=True,
        elsewhere=("multires_noise_discount",),
        applies={"objective.pyramid_noise": GIVEN},
    )
    input_perturbation: float = option(
        0.0,
        "Noise added to what the UNet sees but not to what it is asked for, 0.1 as published; steadier samples.",
        low=0.0,
        high=1.0,
        advanced=True,
        elsewhere=("ip_noise_gamma", "input_perturbation"),
    )
    preserve: float = option(
        0.0,
        "Weight of keeping the base model's own pictures of objective.preserve_class, 1 as usual; costs a second pass.",
        low=0.0,
        high=100.0,
        advanced=True,
        elsewhere=("diff_output_preservation", "diff_output_preservation_multiplier"),
    )
    preserve_class: str = option(
        "",
        "What the trigger word is a kind of, 'cat' or 'woman'; stands in its place where the base is kept.",
        advanced=True,
        elsewhere=("diff_output_preservation_class",),
        applies={"objective.preserve": GIVEN},
    )


_HELD_OUT = {"validation.share or validation.folder": GIVEN}


_BY_PROMPTS = {"slider.positive or slider.negative": GIVEN}


@dataclass(frozen=True, kw_only=True)
class SliderConfig:
    """A LoRA whose weight is a slider: +1 shows more of something, -1 less. docs/sliders.md has examples."""

    positive: str = option(
        "",
        "What the slider shows more of, such as 'old person': with slider.negative a run learns the difference of two "
        "prompts, from pictures that the base model draws by itself, or from those of data.folder.",
        elsewhere=("positive_prompt",),
    )
    negative: str = option(
        "",
        "What it shows more of at a negative weight, such as 'young person'.",
    )
    target: str = option(
        "",
        "What the slider is to change, such as 'person'; empty changes everything.",
        elsewhere=("target_class",),
        applies=_BY_PROMPTS,
    )
    strength: float = option(
        3.0,
        "How far weight 1 goes: this many times the difference of the prompts.",
        low=0.1,
        high=20.0,
        advanced=True,
        elsewhere=("guidance_strength",),
        applies=_BY_PROMPTS,
    )
    keep: tuple[str, ...] = option(
        (),
        "Words that are put in front of the prompts in turn, such as 'male' and 'female', so that the slider does not "
        "go from one to the other.",
        advanced=True,
        elsewhere=("attributes",),
        applies=_BY_PROMPTS,
    )
    pictures: int = option(
        12,
        "How many pictures the base model draws to learn on, where data.folder is empty.",
        unit="pictures",
        low=1,
        high=1000,
        advanced=True,
        applies={**_BY_PROMPTS, "data.folder": ("",)},
    )
    opposite: str | None = option(
        None,
        "Folder with the pictures of data.folder before the change, under the same file names: weight 1 then shows "
        "what data.folder shows, weight -1 what this one does; in place of the prompts.",
    )


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Images that are not trained on, to tell learning from remembering."""

    share: float = option(
        0.0,
        "Share of the images or texts that is held out of the training and measured on instead; 0.1 with 30 or more.",
        low=0.0,
        high=0.5,
        elsewhere=("validation_split", "validation_split_ratio", "val_set_size"),
    )
    folder: str | None = option(
        None,
        "Folder with images of the same thing to measure on, with captions; in place of a share of the others.",
        elsewhere=("validation_data_dir",),
    )
    every: int = option(
        0,
        "Measure every so many steps; 0 measures twenty times in the run.",
        unit="steps",
        low=0,
        high=10_000_000,
        advanced=True,
        elsewhere=("validate_every_n_steps",),
        applies=_HELD_OUT,
    )
    timesteps: int = option(
        4,
        "Ranges of timesteps in which each image is looked at; more is steadier and slower.",
        unit="ranges",
        low=1,
        high=32,
        advanced=True,
        applies=_HELD_OUT,
    )
    patience: int = option(
        0,
        "End the training after so many measurements in a row without a better one; 0 goes on to the last step.",
        unit="measurements",
        low=0,
        high=1000,
        applies=_HELD_OUT,
    )


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    directory: str | None = option(
        None,
        "Folder for the LoRA, its checkpoints and its log; empty is the WebUI's own for LoRA, or output/my_lora.",
        alias="output_dir",
    )
    name: str | None = option(
        None,
        "Name of the LoRA; empty takes the last part of the folder, or of the images' where no folder is given.",
        alias="output_name",
    )
    save_steps: int | None = option(
        None,
        "Write a checkpoint every so many steps; empty writes ten over the run; 0 only the last.",
        unit="steps",
        low=0,
        high=10_000_000,
        alias="save_steps",
    )
    keep_last: int = option(
        3,
        "Checkpoints kept; older ones are removed; 0 keeps all.",
        unit="checkpoints",
        low=0,
        high=10000,
        advanced=True,
        unless={"output.save_steps": (0,)},
    )
    precision: Literal["fp16", "bf16", "fp32"] = option("fp16", "Number format of the LoRA file.", advanced=True)
    tensorboard: bool = option(True, "Write scalars and samples for TensorBoard into the folder 'logs'.")


_DRAWN = {"samples.prompts": GIVEN}


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    prompts: tuple[str, ...] = option((), "Prompts drawn at step 0 and as the training goes on; none draws nothing.")
    negative: str = option(
        "", "Negative prompt of the samples.", advanced=True,
        applies=_DRAWN,
    )
    every: int = option(
        0,
        "Draw samples every so many steps; 0 draws at the start, at each checkpoint and at the end.",
        unit="steps",
        low=0,
        high=10_000_000,
        applies=_DRAWN,
    )
    size: int | None = option(
        None, "Side of the samples; empty takes the training resolution.", unit="px", low=64, high=4096, advanced=True,
        applies=_DRAWN,
    )
    sampling_steps: int = option(
        20, "Denoising steps of a sample.", unit="steps", low=1, high=200, advanced=True,
        applies=_DRAWN,
    )
    guidance: float = option(
        7.0, "Classifier-free guidance of a sample.", low=0.0, high=50.0, advanced=True,
        applies=_DRAWN,
    )
    seed: int = option(
        42, "Seed of the first sample; each next prompt adds one.", low=0, high=2**31 - 1, advanced=True,
        applies=_DRAWN,
    )


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    max_length: int | None = option(
        None,
        "Longest sample; a longer one loses its end. Empty takes the longest of the data, up to 2048 or what the model "
        "was made for.",
        unit="tokens",
        low=8,
        high=1_000_000,
        elsewhere=("max_seq_length", "model_max_length", "cutoff_len"),
    )
    train_on: Literal["response", "all"] = option(
        "response", "Learn the answers only, or the questions too."
    )
    template: Literal["auto", "chat", "instruction", "plain"] = option(
        "auto",
        "How questions and answers are put into words: the tokenizer's chat template, '### Instruction' headings, or "
        "one after the other; 'auto' takes the chat template where there is one.",
        elsewhere=("chat_template",),
    )
    prompt_column: str = option("", "Column that holds the questions; empty finds it by its name.", advanced=True)
    response_column: str = option("", "Column that holds the answers; empty finds it by its name.", advanced=True)
    packing: bool = option(
        False, "Put several short samples into one row, without letting them see each other: faster for short texts."
    )
    quantize: Literal["none", "8bit", "4bit"] = option(
        "none",
        "Hold the frozen base in 8 or 4 bits a weight (QLoRA): less memory, a little slower; needs bitsandbytes.",
        elsewhere=("load_in_4bit", "load_in_8bit"),
    )
    answer_tokens: int = option(
        128, "Longest answer of a sample while training.", unit="tokens", low=1, high=8192, advanced=True,
        applies=_DRAWN,
    )
    temperature: float = option(
        0.0,
        "How freely sample answers are drawn; 0 always takes the likeliest token.",
        low=0.0,
        high=5.0,
        advanced=True,
        applies=_DRAWN,
    )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. `task` decides which families may be trained upon."""

    task: Literal["stable-diffusion", "text-generation"] = option(
        "stable-diffusion",
        "What is trained: an image model, or a language model.",
        alias="task_type",
        synonyms={"text-to-image": "stable-diffusion", "image-generation": "stable-diffusion"},
    )
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    slider: SliderConfig = field(default_factory=SliderConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    samples: SampleConfig = field(default_factory=SampleConfig)
    text: TextConfig = field(default_factory=TextConfig)
