"""Text towers: transformers modules over the lent tensors, and captions to the states the UNet wants.

Two layouts occur in LDM checkpoints. "clip" (SD1, SDXL's first) has transformers' own names; "open_clip" (SD2, SDXL's
second) keeps q, k and v as rows of one tensor and the projection turned. Both become transformers' CLIPTextModel
without a copy: rows and turned tensors are views.

A path here is canonical: without the "text_model." level, which transformers 5 dropped from CLIPTextModel but kept in
CLIPTextModelWithProjection. `module_path` gives the real one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from lora_trainer.contracts import LdmPlace, PlainError, TensorInfo, TextStates
from lora_trainer.families.lending import Loan, View
from lora_trainer.families.tokenizer import Layout

HEAD_WIDTH = 64  # of every CLIP text tower in use: L (768/12), H (1024/16), bigG (1280/20)
_LEVEL = "text_model."
_PROJECTION = "text_projection.weight"
# CLIP-L was trained with the sigmoid approximation of GELU, open_clip's H and bigG with GELU itself (their configs).
_ACTIVATION = {"clip": "quick_gelu", "open_clip": "gelu"}
# transformers' names and open_clip's: once in a tower, and in each of its layers.
OPEN_CLIP_TOP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


class TextTower(NamedTuple):
    """What a checkpoint's header tells of one text encoder."""

    layout: Layout
    vocabulary: int  # tokens
    positions: int  # tokens of a chunk
    width: int
    mlp_width: int
    layers: int  # that are used
    projection: int | None  # width P of the pooled output
    places: Mapping[str, LdmPlace]  # where each parameter stands; canonical names


def read_tower(
    header: Mapping[str, TensorInfo], prefix: str, layout: Layout, *, projection: bool = False, drop_last: int = 0
) -> TextTower:
    """The tower below `prefix` ("cond_stage_model.model."). Raises PlainError if parts of it are missing.

    `drop_last` layers at the end are left out, for families that never run them; `projection` asks for the pooled
    output, which only open_clip's layout has.
    """
    if layout == "clip":
        if any(key.startswith(prefix + _LEVEL) for key in header):  # early SD1 files lack the level
            prefix += _LEVEL
        stem, positional, fc1 = "encoder.layers", "embeddings.position_embedding.weight", "mlp.fc1.weight"
        embedding = "embeddings.token_embedding.weight"
    else:
        stem, positional, fc1 = "transformer.resblocks", "positional_embedding", "mlp.c_fc.weight"
        embedding = "token_embedding.weight"
    vocabulary, width = _shape(header, prefix + embedding, 2)
    if width % HEAD_WIDTH:
        raise PlainError(
            f"The text encoder at {prefix} is {width} wide, which is no multiple of {HEAD_WIDTH} as in every CLIP; "
            "choose a Stable Diffusion checkpoint."
        )
    layers = _count(header, f"{prefix}{stem}.") - drop_last
    if layers < 1:
        raise PlainError(f"The checkpoint's text encoder at {prefix} has too few layers; choose a whole checkpoint.")
    places = dict(_clip_places(prefix, layers) if layout == "clip" else _open_clip_places(prefix, layers, width))
    if projection:
        if layout == "clip":
            raise ValueError("only towers in open_clip's layout have a projection")
        places[_PROJECTION] = LdmPlace(prefix + "text_projection")
    for place in places.values():
        _shape(header, place.key, None)
    return TextTower(
        layout=layout,
        vocabulary=vocabulary,
        positions=_shape(header, prefix + positional, 2)[0],
        width=width,
        mlp_width=_shape(header, f"{prefix}{stem}.0.{fc1}", 2)[0],
        layers=layers,
        projection=_shape(header, places[_PROJECTION].key, 2)[1] if projection else None,
        places=places,
    )


def build_text_encoder(loan: Loan, tower: TextTower) -> nn.Module:
    """A frozen CLIPTextModel (CLIPTextModelWithProjection where the tower has one) over the lent tensors.

    Raises PlainError where a tensor has another shape than its neighbours ask for.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=tower.vocabulary,
        hidden_size=tower.width,
        intermediate_size=tower.mlp_width,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.width // HEAD_WIDTH,
        max_position_embeddings=tower.positions,
        hidden_act=_ACTIVATION[tower.layout],
        projection_dim=tower.projection or tower.width,
        # 2 is CLIP's own old value, by which transformers pools at the highest id, as CLIP does; the true id (49407)
        # makes it look for the first occurrence, at the cost of another code path per version.
        eos_token_id=2,
    )
    with torch.device("meta"):
        encoder: nn.Module = (CLIPTextModel if tower.projection is None else CLIPTextModelWithProjection)(config)
    for path, place in tower.places.items():
        loan.place(encoder, module_path(encoder, path), place.key, _view(path, place))
    _place_positions(encoder, loan.device)
    return encoder.eval()


def _view(path: str, place: LdmPlace) -> View | None:
    """How the lent tensor is seen: open_clip has q, k, v as rows of one, and multiplies by its projection."""
    rows = place.rows
    if rows is not None:
        return lambda tensor: tensor[rows]
    return torch.t if path == _PROJECTION else None


def encode_chunks(
    encoder: nn.Module, batch: Sequence[Sequence[Sequence[int]]], *, skip: int = 1, final_norm: bool = True
) -> TextStates:
    """Chunks of token ids (B, n, 77), from `Tokenizer.batch`, to states (B, 77 n, D); differentiable.

    States are taken `skip` layers from the end (1 = the last). SD1: the WebUI's clip skip, normed. SD2: 1 on a tower
    without its last layer, which is the WebUI's (and ldm's) "penultimate" whatever clip skip says. SDXL: 2, not
    normed, in both towers; the pooled output (B, P) is the first chunk's.
    """
    if skip == 1 and not final_norm:
        raise ValueError("the last layer's states are only given normed: transformers' versions disagree on the rest")
    tower: Any = getattr(encoder, "text_model", encoder)
    layers = len(tower.encoder.layers)
    if skip > layers:
        raise PlainError(f"Clip skip {skip} was asked for, but the text encoder has {layers} layers; choose fewer.")
    device = tower.final_layer_norm.weight.device
    on_gpu = device.type == "cuda"  # from pinned memory the process need not wait for it
    ids = torch.tensor(batch, dtype=torch.long, pin_memory=on_gpu).to(device, non_blocking=on_gpu)
    count, chunks, length = ids.shape
    output = encoder(input_ids=ids.reshape(count * chunks, length), output_hidden_states=skip > 1)
    states = output.last_hidden_state if skip == 1 else output.hidden_states[-skip]
    if skip > 1 and final_norm:
        states = tower.final_layer_norm(states)
    pooled = None
    if hasattr(encoder, "text_projection"):
        pooled = output.text_embeds.reshape(count, chunks, -1)[:, 0]
    return TextStates(states.reshape(count, chunks * length, -1), pooled)


def module_path(encoder: nn.Module, path: str) -> str:
    """The real path in this encoder, under the installed transformers, of a canonical path (module or parameter)."""
    return _LEVEL + path if hasattr(encoder, "text_model") and not path.startswith("text_projection") else path


def canonical_path(path: str) -> str:
    """A path in a text encoder without the "text_model." level that some versions have."""
    return path.removeprefix(_LEVEL)


# --- names -----------------------------------------------------------------------------------------------------------


def _clip_places(prefix: str, layers: int) -> Iterable[tuple[str, LdmPlace]]:
    modules = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", *OPEN_CLIP_LAYER)
    names = list(OPEN_CLIP_TOP)
    names += [f"encoder.layers.{n}.{module}.{leaf}" for n in range(layers) for module in modules for leaf in _LEAVES]
    return ((name, LdmPlace(prefix + name)) for name in names)


def _open_clip_places(prefix: str, layers: int, width: int) -> Iterable[tuple[str, LdmPlace]]:
    for name, key in OPEN_CLIP_TOP.items():
        yield name, LdmPlace(prefix + key)
    for n in range(layers):
        ours, theirs = f"encoder.layers.{n}.", f"{prefix}transformer.resblocks.{n}."
        for leaf in _LEAVES:
            for place, letter in enumerate("qkv"):
                rows = slice(place * width, (place + 1) * width)
                yield f"{ours}self_attn.{letter}_proj.{leaf}", LdmPlace(f"{theirs}attn.in_proj_{leaf}", rows)
            for module, other in OPEN_CLIP_LAYER.items():
                yield f"{ours}{module}.{leaf}", LdmPlace(f"{theirs}{other}.{leaf}")


_LEAVES = ("weight", "bias")


def _count(header: Mapping[str, TensorInfo], stem: str) -> int:
    """How many numbered layers there are, by the highest number; gaps show when their weights are looked for."""
    found = [re.match(r"\d+", key[len(stem) :]) for key in header if key.startswith(stem)]
    return max((int(match.group()) + 1 for match in found if match), default=0)


def _shape(header: Mapping[str, TensorInfo], key: str, dimensions: int | None) -> tuple[int, ...]:
    info = header.get(key)
    if info is None:
        raise PlainError(f"The checkpoint lacks {key}, a weight of its text encoder; choose a whole checkpoint.")
    if dimensions is not None and len(info.shape) != dimensions:
        raise PlainError(
            f"The checkpoint's {key} has the shape {info.shape}, not {dimensions} dimensions; choose another file."
        )
    return info.shape


# --- modules ---------------------------------------------------------------------------------------------------------


def _place_positions(encoder: nn.Module, device: torch.device) -> None:
    """Fill the one buffer, 0 ... 76, which is not in every file and was made on `meta`."""
    embeddings: Any = getattr(encoder, "text_model", encoder).embeddings  # type: ignore[union-attr]
    embeddings._buffers["position_ids"] = torch.arange(embeddings.position_ids.shape[-1], device=device)[None]
