"""Text towers give what diffusers' conversion and transformers give, over the very tensors that were lent."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lora_trainer.contracts import LdmPlace, PlainError, TensorInfo
from lora_trainer.families.lending import Loan
from lora_trainer.families.text import (
    TextTower,
    build_text_encoder,
    canonical_path,
    encode_chunks,
    module_path,
    read_tower,
)
from lora_trainer.families.tokenizer import Tokenizer
from lora_trainer.weights.read import dtype_name

CPU = torch.device("cpu")
WIDTH, LAYERS, MLP, PROJECTED = 128, 3, 320, 192  # two heads of 64
CAPTIONS = ["a red ball", "a blue cube on the moon, at night, " * 12, ""]
PREFIX = {"clip": "cond_stage_model.transformer.", "open_clip": "conditioner.embedders.1.model."}


def random_tower(layout: str, seed: int = 7, level: str = "text_model.") -> dict[str, Tensor]:
    """A tower in its LDM names, with weights large enough for every layer to matter."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int, scale: float = 0.08, around: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=rng) * scale + around

    def pair(name: str, rows: int, columns: int) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(rows, columns), f"{name}.bias": draw(rows)}

    def norm(name: str) -> dict[str, Tensor]:
        return {f"{name}.weight": draw(WIDTH, scale=0.2, around=1.0), f"{name}.bias": draw(WIDTH)}

    tokens, positions = draw(49408, WIDTH, scale=0.5), draw(77, WIDTH, scale=0.5)
    tensors: dict[str, Tensor] = {}
    if layout == "clip":
        tensors |= {"embeddings.token_embedding.weight": tokens, "embeddings.position_embedding.weight": positions}
        tensors["embeddings.position_ids"] = torch.arange(77)[None]
        for n in range(LAYERS):
            stem = f"encoder.layers.{n}."
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                tensors |= pair(f"{stem}self_attn.{name}", WIDTH, WIDTH)
            tensors |= pair(f"{stem}mlp.fc1", MLP, WIDTH) | pair(f"{stem}mlp.fc2", WIDTH, MLP)
            tensors |= norm(f"{stem}layer_norm1") | norm(f"{stem}layer_norm2")
        tensors |= norm("final_layer_norm")
        return {f"{PREFIX[layout]}{level}{name}": tensor for name, tensor in tensors.items()}
    tensors |= {"token_embedding.weight": tokens, "positional_embedding": positions}
    tensors |= {"text_projection": draw(WIDTH, PROJECTED), "logit_scale": torch.tensor(4.6)}
    for n in range(LAYERS):
        stem = f"transformer.resblocks.{n}."
        tensors |= {f"{stem}attn.in_proj_weight": draw(3 * WIDTH, WIDTH), f"{stem}attn.in_proj_bias": draw(3 * WIDTH)}
        tensors |= pair(f"{stem}attn.out_proj", WIDTH, WIDTH)
        tensors |= pair(f"{stem}mlp.c_fc", MLP, WIDTH) | pair(f"{stem}mlp.c_proj", WIDTH, MLP)
        tensors |= norm(f"{stem}ln_1") | norm(f"{stem}ln_2")
    tensors |= norm("ln_final")
    return {PREFIX[layout] + name: tensor for name, tensor in tensors.items()}


def header_of(tensors: dict[str, Tensor]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}


def tower_of(tensors: dict[str, Tensor], layout: Any, **more: Any) -> TextTower:
    return read_tower(header_of(tensors), PREFIX[layout], layout, **more)


def reference(layout: str, tensors: dict[str, Tensor], layers: int) -> Any:
    """The tower as diffusers converts and transformers loads it; copies, by other code than ours."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=layers, num_attention_heads=WIDTH // 64,
        projection_dim=PROJECTED, hidden_act="quick_gelu" if layout == "clip" else "gelu", eos_token_id=2,
    )  # fmt: skip
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    if layout == "clip":
        model = CLIPTextModel(config)
        converted = convert_ldm_clip_checkpoint(copies)
    else:
        model = CLIPTextModelWithProjection(config)
        converted = convert_open_clip_checkpoint(model, copies, prefix=PREFIX[layout])
    own = set(model.state_dict())
    converted = {n if n in own else n.removeprefix("text_model."): tensor for n, tensor in converted.items()}
    missing, extra = model.load_state_dict(converted, strict=False)
    assert not [name for name in missing if "position_ids" not in name]
    beyond = f"encoder.layers.{layers}."  # diffusers passes on the layer that SD2's configuration leaves out
    assert not [name for name in extra if "position_ids" not in name and beyond not in name]
    return model.eval()


def by_transformers(model: Any, batch: list[list[list[int]]], skip: int, final_norm: bool) -> Tensor:
    """Chunk after chunk, as the WebUI runs them."""
    states = []
    for place in range(len(batch[0])):
        output = model(input_ids=torch.tensor([chunks[place] for chunks in batch]), output_hidden_states=True)
        hidden = output.last_hidden_state if skip == 1 else output.hidden_states[-skip]
        if final_norm and skip > 1:
            hidden = getattr(model, "text_model", model).final_layer_norm(hidden)
        states.append(hidden)
    return torch.cat(states, dim=1)


def close(ours: Tensor, theirs: Tensor) -> bool:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1  # else nothing would be compared
    return float((ours - theirs).abs().max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("level", ["text_model.", ""])
@pytest.mark.parametrize("skip", [1, 2, 3])
def test_sd1_states_for_every_clip_skip(skip: int, level: str):
    tensors = random_tower("clip", level=level)
    tower = tower_of(tensors, "clip")
    assert (tower.width, tower.layers, tower.mlp_width, tower.positions) == (WIDTH, LAYERS, MLP, 77)
    batch = Tokenizer("clip").batch(CAPTIONS)
    states = encode_chunks(build_text_encoder(Loan(tensors, CPU, torch.float32), tower), batch, skip=skip)
    full_names = {f"{PREFIX['clip']}text_model.{n.removeprefix(PREFIX['clip'] + level)}": t for n, t in tensors.items()}
    assert states.context.shape == (3, 77 * 2, WIDTH)
    assert states.pooled is None
    assert close(states.context, by_transformers(reference("clip", full_names, LAYERS), batch, skip, True))


@torch.no_grad()
def test_sd2_states_are_the_penultimate_normed():
    tensors = random_tower("open_clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower_of(tensors, "open_clip", drop_last=1))
    batch = Tokenizer("open_clip").batch(CAPTIONS)
    states = encode_chunks(encoder, batch)
    # diffusers builds SD2's tower without the last layer; and by ldm's definition it is the normed penultimate
    assert close(states.context, by_transformers(reference("open_clip", tensors, LAYERS - 1), batch, 1, True))
    assert close(states.context, by_transformers(reference("open_clip", tensors, LAYERS), batch, 2, True))
    assert states.pooled is None


@torch.no_grad()
@pytest.mark.parametrize("layout", ["clip", "open_clip"])
def test_sdxl_states_are_the_penultimate_unnormed_and_pooled_of_the_first_chunk(layout: Any):
    tensors = random_tower(layout)
    tower = tower_of(tensors, layout, projection=layout == "open_clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower)
    batch = Tokenizer(layout).batch(CAPTIONS)
    states = encode_chunks(encoder, batch, skip=2, final_norm=False)
    model = reference(layout, tensors, LAYERS)
    assert close(states.context, by_transformers(model, batch, 2, False))
    if layout == "clip":
        assert states.pooled is None
    else:
        assert states.pooled is not None
        first = torch.tensor([chunks[0] for chunks in batch])
        assert close(states.pooled, model(input_ids=first).text_embeds)


@torch.no_grad()
def test_attention_and_activation_by_open_clips_own_formula():
    """One residual block written out: torch's MultiheadAttention takes in_proj as open_clip does; exact GELU."""
    tensors = random_tower("open_clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower_of(tensors, "open_clip", drop_last=2))
    batch = Tokenizer("open_clip").batch(["a red ball"])
    t = {name.removeprefix(PREFIX["open_clip"]): tensor for name, tensor in tensors.items()}
    b = {name.removeprefix("transformer.resblocks.0."): tensor for name, tensor in t.items()}

    def norm(x: Tensor, name: str, of: dict[str, Tensor]) -> Tensor:
        return torch.nn.functional.layer_norm(x, (WIDTH,), of[f"{name}.weight"], of[f"{name}.bias"])

    x = t["token_embedding.weight"][batch[0][0]] + t["positional_embedding"]
    attention = torch.nn.MultiheadAttention(WIDTH, WIDTH // 64)
    attention.load_state_dict({n.removeprefix("attn."): v for n, v in b.items() if n.startswith("attn.")})
    ahead = torch.full((77, 77), float("-inf")).triu(1)
    y = norm(x, "ln_1", b)
    x = x + attention(y, y, y, attn_mask=ahead, need_weights=False)[0]
    hidden = torch.nn.functional.gelu(norm(x, "ln_2", b) @ b["mlp.c_fc.weight"].T + b["mlp.c_fc.bias"])
    x = x + hidden @ b["mlp.c_proj.weight"].T + b["mlp.c_proj.bias"]
    assert close(encode_chunks(encoder, batch).context[0], norm(x, "ln_final", t))


@pytest.mark.parametrize("layout", ["clip", "open_clip"])
def test_nothing_is_copied(layout: Any):
    tensors = random_tower(layout)
    encoder = build_text_encoder(
        Loan(tensors, CPU, torch.float32), tower_of(tensors, layout, projection=layout == "open_clip")
    )
    lent = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    held = {name: p.untyped_storage().data_ptr() for name, p in encoder.named_parameters()}
    assert [name for name, storage in held.items() if storage not in lent] == []
    used = [tensor for name, tensor in tensors.items() if not name.endswith(("position_ids", "logit_scale"))]
    assert {tensor.untyped_storage().data_ptr() for tensor in used} == set(held.values())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not any(t.is_meta for t in [*encoder.parameters(), *encoder.buffers()])
    assert not encoder.training


@torch.no_grad()
@pytest.mark.parametrize("layout", ["clip", "open_clip"])
def test_another_dtype_is_converted_without_keeping_the_lent(layout: Any):
    tensors = {n: t.half() if t.is_floating_point() else t for n, t in random_tower(layout).items()}
    tower = tower_of(tensors, layout, projection=layout == "open_clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in encoder.parameters()}
    assert sum(storages.values()) == sum(4 * p.numel() for p in encoder.parameters())  # one copy, no slack
    batch = Tokenizer(layout).batch(CAPTIONS)
    floats = {n: t.float() for n, t in tensors.items()}
    same = build_text_encoder(Loan(floats, CPU, torch.float32), tower)
    assert torch.equal(encode_chunks(encoder, batch).context, encode_chunks(same, batch).context)


@pytest.mark.parametrize("layout", ["clip", "open_clip"])
def test_every_module_is_found_by_its_canonical_path_and_in_the_checkpoint(layout: Any):
    tensors = random_tower(layout)
    tower = tower_of(tensors, layout, projection=layout == "open_clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower)
    real = {name for name, _ in encoder.named_parameters()}
    assert {module_path(encoder, path) for path in tower.places} == real
    assert {canonical_path(name) for name in real} == set(tower.places)
    assert module_path(encoder, "encoder.layers.0.mlp.fc1").endswith("encoder.layers.0.mlp.fc1")
    place = tower.places["encoder.layers.1.self_attn.k_proj.weight"]
    if layout == "open_clip":
        assert place == LdmPlace(
            "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight", slice(WIDTH, 2 * WIDTH)
        )
    else:
        assert place.key == "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.k_proj.weight"
        assert place.rows is None


@pytest.mark.parametrize(("layout", "skip", "final_norm"), [("clip", 2, True), ("open_clip", 2, False)])
def test_gradients_flow_to_a_trained_layer(layout: Any, skip: int, final_norm: bool):
    tensors = random_tower(layout)
    encoder = build_text_encoder(
        Loan(tensors, CPU, torch.float32), tower_of(tensors, layout, projection=layout == "open_clip")
    )
    layer = encoder.get_submodule(module_path(encoder, "encoder.layers.0.self_attn.q_proj"))
    delta = torch.zeros(WIDTH, requires_grad=True)
    layer.register_forward_hook(lambda module, inputs, output: output + delta)
    states = encode_chunks(encoder, Tokenizer(layout).batch(CAPTIONS), skip=skip, final_norm=final_norm)
    total = states.context.square().sum() + (0 if states.pooled is None else states.pooled.square().sum())
    total.backward()
    assert delta.grad is not None
    assert float(delta.grad.abs().max()) > 1e-3


def test_faults_of_a_tower_are_told():
    tensors = random_tower("clip")
    tower = tower_of(tensors, "clip")
    encoder = build_text_encoder(Loan(tensors, CPU, torch.float32), tower)
    with pytest.raises(PlainError, match="Clip skip 4 was asked for, but the text encoder has 3 layers"):
        encode_chunks(encoder, Tokenizer("clip").batch(["x"]), skip=4)

    fc1 = PREFIX["clip"] + "text_model.encoder.layers.1.mlp.fc1.weight"
    with pytest.raises(PlainError, match=r"lacks .*layers.1.mlp.fc1.weight"):
        tower_of({name: tensor for name, tensor in tensors.items() if name != fc1}, "clip")
    with pytest.raises(PlainError, match=r"layers.1.mlp.fc1.weight gives the shape \(5, 5\)"):
        build_text_encoder(Loan({**tensors, fc1: torch.ones(5, 5)}, CPU, torch.float32), tower)
    narrow = PREFIX["clip"] + "text_model.embeddings.token_embedding.weight"
    with pytest.raises(PlainError, match="is 100 wide, which is no multiple of 64"):
        tower_of({**tensors, narrow: torch.ones(3, 100)}, "clip")
    with pytest.raises(PlainError, match=r"lacks cond_stage_model.transformer.embeddings"):
        tower_of({}, "clip")
