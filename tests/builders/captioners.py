"""Captioning models of the real architectures in the real file layouts, so small that a test trains them: each learns
to tell red, green and blue pictures apart."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.builders import onnx_file

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 230)}
SIDE = 32  # pixels, of the torch models
_MEAN, _DEVIATION = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def picture(colour: str, size: tuple[int, int] = (SIDE, SIDE), seed: int = 0) -> Image.Image:
    """A noisy picture of one colour."""
    noise = np.random.default_rng(seed).integers(-25, 26, (size[1], size[0], 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def _seen() -> torch.Tensor:
    """(3, 3, SIDE, SIDE): a picture of each colour as the models see it."""
    stacked = np.stack([np.asarray(picture(colour), dtype=np.float32) / 255 for colour in COLOURS])
    normal = (stacked - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
    return torch.from_numpy(normal.transpose(0, 3, 1, 2).copy()).float()


def _learn(model: torch.nn.Module, loss: Any, steps: int, rate: float = 1e-2) -> None:
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()


def write_blip(folder: Path, *, steps: int = 60) -> Path:
    """A BLIP folder as transformers writes it, that says "a red picture" and so on."""
    from transformers import BertTokenizerFast, BlipConfig, BlipForConditionalGeneration

    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", *COLOURS, "picture"]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast.from_pretrained(str(folder))
    start = len(words)  # as in the published models the decoder's start token is one that the tokenizer lacks
    narrow = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {
        "vocab_size": start + 2, "encoder_hidden_size": 32, "max_position_embeddings": 64, "bos_token_id": start,
        "sep_token_id": 3, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    vision = {"image_size": SIDE, "patch_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config={**narrow, **text}, vision_config={**narrow, **vision}, projection_dim=16)
    )
    sentences = torch.tensor([[start, *tokenizer.convert_tokens_to_ids(["a", colour, "picture", "[SEP]"])]
                              for colour in COLOURS])  # fmt: skip
    seen = _seen()
    _learn(model, lambda: model(pixel_values=seen, input_ids=sentences, labels=sentences).loss, steps)
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))
    settings = {
        "image_processor_type": "BlipImageProcessor", "do_resize": True, "size": {"height": SIDE, "width": SIDE},
        "resample": 3, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": _MEAN,
        "image_std": _DEVIATION, "do_convert_rgb": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


_TOWERS = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def write_clip(folder: Path, *, steps: int = 40) -> Path:
    """An open_clip CLIP folder as it lies on the hub, that finds the colour's word nearest to a picture."""
    import open_clip

    settings = {**_TOWERS, "text_cfg": {**_TOWERS["text_cfg"], "context_length": 77}}
    torch.manual_seed(0)
    model = open_clip.CLIP(**settings)
    tokens, seen, own = open_clip.tokenize(list(COLOURS)), _seen(), torch.arange(len(COLOURS))

    def loss() -> torch.Tensor:
        shown = torch.nn.functional.normalize(model.encode_image(seen), dim=-1)
        told = torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)
        return torch.nn.functional.cross_entropy(model.logit_scale.exp() * shown @ told.T, own)

    _learn(model, loss, steps)
    return _open_clip_folder(folder, settings, model)


def write_coca(folder: Path, *, steps: int = 100) -> Path:
    """An open_clip CoCa folder as it lies on the hub, that says "a red picture" and so on."""
    import open_clip
    from open_clip.coca_model import CoCa

    settings: dict[str, Any] = {
        **_TOWERS,
        "multimodal_cfg": {"context_length": 76, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
                           "attn_pooler_heads": 2},
        "custom_text": True,
    }  # fmt: skip
    settings["vision_cfg"] = {**settings["vision_cfg"], "attentional_pool": True, "attn_pooler_heads": 2,
                              "output_tokens": True}  # fmt: skip
    settings["text_cfg"] = {**settings["text_cfg"], "embed_cls": True, "output_tokens": True, "width": 16}
    settings["multimodal_cfg"]["width"] = settings["embed_dim"] = 16
    torch.manual_seed(0)
    model = CoCa(**{name: value for name, value in settings.items() if name != "custom_text"})
    # open_clip leaves this one as the memory was, for whoever loads weights does not see it.
    torch.nn.init.normal_(model.text_decoder.text_projection, std=0.25)
    tokens = open_clip.tokenize([f"a fine {colour} picture" for colour in COLOURS], 76)[:, :8]
    seen = _seen()

    def loss() -> torch.Tensor:
        out = model(seen, tokens)
        return torch.nn.functional.cross_entropy(out["logits"].flatten(0, 1), out["labels"].flatten())

    _learn(model, loss, steps)
    return _open_clip_folder(folder, settings, model)


def _open_clip_folder(folder: Path, settings: dict[str, Any], model: torch.nn.Module) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": _MEAN, "std": _DEVIATION, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content), encoding="utf-8")
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"))
    return folder


# name, category, and how the score of the tag depends on the channels B G R (mean over the picture, 0..255): a sigmoid
# of weights times channels plus a bias. Category 9 is a rating, 0 general, 4 a character.
WD14_TAGS = (
    ("general", 9, (0.0, 0.0, 0.0), 9.0),
    ("red_theme", 0, (-0.05, -0.05, 0.1), -4.0),
    ("blue_theme", 0, (0.1, -0.05, -0.05), -4.0),
    ("^_^", 0, (0.0, 0.0, 0.0), 0.0),  # always 0.5
    ("white_background", 0, (0.02, 0.02, 0.02), -12.5),
    ("miku_(cosplay)", 4, (-0.05, 0.1, -0.05), -4.0),
)


def write_wd14(folder: Path, *, side: int = 8, batch: int | str = "batch") -> Path:
    """A tagger as SmilingWolf's lie on the hub: images (batch, side, side, 3) B G R of 0..255 in, scores out."""
    weights = np.array([weight for _, _, weight, _ in WD14_TAGS], np.float32).T
    bias = np.array([bias for *_, bias in WD14_TAGS], np.float32)
    content = onnx_file.model(
        [
            onnx_file.node("ReduceMean", ["input"], "mean", axes=[1, 2], keepdims=0),
            onnx_file.node("MatMul", ["mean", "weights"], "product"),
            onnx_file.node("Add", ["product", "bias"], "sum"),
            onnx_file.node("Sigmoid", ["sum"], "predictions_sigmoid"),
        ],
        [onnx_file.value("input", [batch, side, side, 3])],
        [onnx_file.value("predictions_sigmoid", [batch, len(WD14_TAGS)])],
        [onnx_file.tensor("weights", weights), onnx_file.tensor("bias", bias)],
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    with (folder / "selected_tags.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tag_id", "name", "category", "count"])
        table.writerows([[number, name, category, 1000] for number, (name, category, *_) in enumerate(WD14_TAGS)])
    return folder
