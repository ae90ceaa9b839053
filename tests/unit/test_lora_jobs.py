"""Export, merge and inspect: files in, files out, and what the user is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_trainer.contracts import BaseModel, PlainError
from lora_trainer.families.registry import families, family_named, lend_file
from lora_trainer.jobs.export import export
from lora_trainer.jobs.inspect import inspect
from lora_trainer.jobs.lora_files import kohya_namer, read
from lora_trainer.jobs.merge import MERGED, merge
from lora_trainer.networks.file import write_lora, write_tensors
from lora_trainer.networks.metadata import RECIPE
from lora_trainer.networks.state import ModuleWeights, as_state, modules_of
from tests.builders.networks import KINDS, base_model, outputs, put_on, randomise
from tests.builders.slim import Kind, slim_checkpoint, write_slim

VERSIONS = {family.name: family.metadata_version for family in families()}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


class Trained:
    """A checkpoint on disk, a LoRA for it, and what both together answer at weights 1 and 0.6."""

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.base = write_slim(folder / "base.safetensors", kind, metadata={"modelspec.title": "slim"})
        self.lora = folder / "lora.safetensors"
        model = base_model(kind)
        network = put_on(model, "all", rank=4, alpha=3.0)
        randomise(network)
        self.state = network.state()
        self.full = outputs(model)
        with network.scaled(0.6):
            self.partly = outputs(model)
        notes = {"ss_base_model_version": VERSIONS[kind], "ss_output_name": "lora", RECIPE: '{"network": {"rank": 4}}'}
        write_lora(self.lora, self.state, kohya_name=model.kohya_name, metadata=notes, precision="fp32")
        network.eject()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, kind: Kind) -> Trained:
    return Trained(tmp_path_factory.mktemp(kind), kind)


def adopted(path: Path) -> BaseModel:
    lent = lend_file(path)
    family = family_named(lent.facts.family)
    return family.adopt(lent, torch.device("cpu"), torch.float32, parts=("unet", *family.text_parts))


# --- merge -----------------------------------------------------------------------------------------------------------


def test_a_merged_checkpoint_answers_as_base_and_lora_do(trained: Trained, tmp_path: Path) -> None:
    before = trained.base.read_bytes()
    output = tmp_path / "merged.safetensors"
    told = merge(trained.base, [(trained.lora, 0.6)], output)
    assert "at 0.6" in told
    assert trained.base.read_bytes() == before
    answers = outputs(adopted(output))
    for name, expected in trained.partly.items():
        error, effect = (answers[name] - expected).norm(), (expected - trained.full[name]).norm()
        assert error < 1e-3 * effect, (name, float(error), float(effect))


def test_what_no_lora_touches_is_taken_over_byte_by_byte(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "merged.safetensors"
    merge(trained.base, [(trained.lora, 1.0)], output)
    base, merged = load_file(trained.base), load_file(output)
    assert base.keys() == merged.keys()
    changed = {key for key in base if not torch.equal(base[key], merged[key])}
    model = family_named(lend_file(trained.base).facts.family).adopt(
        lend_file(trained.base), torch.device("cpu"), torch.float32, parts=()
    )
    places = [model.ldm_place(*_split(name)).key for name in modules_of(trained.state)]
    assert changed == set(places)
    with safe_open(output, "pt") as file:
        notes = file.metadata()
    assert notes["modelspec.title"] == "slim"
    (entry,) = json.loads(notes[MERGED])
    assert (entry["lora"], entry["weight"]) == ("lora", 1.0)


def test_two_loras_add_up_and_the_second_merge_remembers_the_first(trained: Trained, tmp_path: Path) -> None:
    at_once, one, two = (tmp_path / f"{name}.safetensors" for name in ("at_once", "one", "two"))
    merge(trained.base, [(trained.lora, 0.4), (trained.lora, 0.6)], at_once)
    merge(trained.base, [(trained.lora, 0.4)], one)
    merge(one, [(trained.lora, 0.6)], two)
    together, in_turn = load_file(at_once), load_file(two)
    for name, tensor in together.items():
        torch.testing.assert_close(tensor, in_turn[name], rtol=1e-5, atol=1e-6)
    with safe_open(two, "pt") as file:
        assert [entry["weight"] for entry in json.loads(file.metadata()[MERGED])] == [0.4, 0.6]


def test_precision_recasts_floats_alone_and_half_precision_bases_stay_so(tmp_path: Path) -> None:
    half = write_slim(tmp_path / "half.safetensors", "sd1", dtype=torch.float16)
    lora = _small_lora(tmp_path / "small.safetensors")
    merge(half, [(lora, 1.0)], tmp_path / "kept.safetensors")
    merge(half, [(lora, 1.0)], tmp_path / "cast.safetensors", "fp32")
    base, kept, cast = (load_file(tmp_path / f"{name}.safetensors") for name in ("half", "kept", "cast"))
    assert {name: t.dtype for name, t in kept.items()} == {name: t.dtype for name, t in base.items()}
    assert {t.dtype for t in cast.values()} == {torch.float32, torch.int64}  # position_ids
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    expected = base[key].float() + modules_of(read(lora).state)[_TO_Q].delta()
    assert torch.equal(cast[key], expected)
    assert torch.equal(kept[key], expected.half()), "rounded once, from float32"


def test_merge_refuses_in_words_and_writes_nothing(tmp_path: Path) -> None:
    base = write_slim(tmp_path / "base.safetensors", "sd1")
    lora = _small_lora(tmp_path / "small.safetensors")
    wide = _small_lora(tmp_path / "wide.safetensors", width=320)
    spoilt = tmp_path / "spoilt.safetensors"
    tensors = load_file(lora)
    save_file({**tensors, **{k: torch.full_like(t, torch.nan) for k, t in tensors.items() if "up" in k}}, spoilt)
    huge = tmp_path / "huge.safetensors"
    save_file({k: t * 1e15 if "up" in k else t for k, t in tensors.items()}, huge)
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    half = write_slim(tmp_path / "half.safetensors", "sd1", dtype=torch.float16)
    new = tmp_path / "new.safetensors"
    cases: list[tuple[Path, Path, Path, bool, str]] = [
        (base, lora, taken, False, "exists already"),
        (base, lora, base, True, "one of the files"),
        (base, lora, lora, True, "one of the files"),
        (base, lora, tmp_path / "new.ckpt", False, r"\.safetensors"),
        (base, wide, new, False, r"\(320, 320\) there and \(32, 32\) here"),
        (base, spoilt, new, False, "not finite"),
        (half, huge, new, False, "exceeds what F16 can hold"),
        (base, base, new, False, "not a LoRA"),
        (lora, lora, new, False, "LoRA"),
    ]
    for model, network, output, overwrite, words in cases:
        with pytest.raises(PlainError, match=words):
            merge(model, [(network, 1.0)], output, overwrite=overwrite)
    half.unlink()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    merge(base, [(lora, 1.0)], taken, overwrite=True)
    assert load_file(taken).keys() == slim_checkpoint("sd1").keys()


# --- export ----------------------------------------------------------------------------------------------------------


def test_export_there_and_back_gives_the_same_tensors(trained: Trained, tmp_path: Path, kind: Kind) -> None:
    peft, kohya, again = (tmp_path / f"{name}.safetensors" for name in ("peft", "kohya", "again"))
    assert "lora_B" in export(trained.lora, peft, "peft")
    export(peft, kohya, "kohya")
    export(kohya, again, "peft")
    assert all(key.startswith(("unet.", "text_encoder")) for key in load_file(peft))
    assert _same(load_file(peft), load_file(again))
    assert load_file(kohya).keys() == load_file(trained.lora).keys()
    back = read(kohya)
    assert back.family.name == kind
    for name, weights in modules_of(back.state).items():
        torch.testing.assert_close(weights.delta(), modules_of(trained.state)[name].delta(), rtol=1e-5, atol=1e-7)
    assert back.metadata["ss_output_name"] == "kohya", "two files of one name hide each other in the WebUI"
    assert back.metadata[RECIPE] == '{"network": {"rank": 4}}'


def test_export_recasts_and_keeps_precision(trained: Trained, tmp_path: Path) -> None:
    export(trained.lora, tmp_path / "half.safetensors", "kohya", "fp16")
    export(tmp_path / "half.safetensors", tmp_path / "copy.safetensors", "kohya")
    half, copy = load_file(tmp_path / "half.safetensors"), load_file(tmp_path / "copy.safetensors")
    assert {t.dtype for key, t in half.items() if not key.endswith("alpha")} == {torch.float16}
    assert _same(half, copy)
    full = load_file(trained.lora)
    assert all(torch.equal(half[key], value if key.endswith("alpha") else value.half()) for key, value in full.items())


# --- which family ----------------------------------------------------------------------------------------------------

_TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
_REAL = {"sd1": (768, 768), "sd2": (1024, 1024), "sdxl": (2048, 768)}  # cross attention, first text encoder


@pytest.mark.parametrize("dialect", ["kohya", "peft", "unet only"])
def test_without_notes_the_widths_of_real_models_tell_the_family(kind: Kind, dialect: str, tmp_path: Path) -> None:
    from lora_trainer.networks.dialects import to_kohya, to_peft

    context, text = _REAL[kind]
    shapes = {
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (640, context),
        "text_encoder.encoder.layers.0.self_attn.q_proj": (text, text),
    }
    if dialect == "unet only":
        del shapes["text_encoder.encoder.layers.0.self_attn.q_proj"]
    modules = {name: ModuleWeights(torch.randn(2, n), torch.randn(m, 2), 1.0) for name, (m, n) in shapes.items()}
    state = as_state(modules)
    tensors = to_peft(state) if dialect != "kohya" else to_kohya(state, kohya_namer(family_named(kind)))
    path = tmp_path / "unknown.safetensors"
    write_tensors(path, tensors, metadata={}, precision="fp16")
    assert read(path).family.name == kind


def test_where_nothing_tells_the_family_it_is_said(tmp_path: Path) -> None:
    path = _small_lora(tmp_path / "vague.safetensors", notes={})
    with pytest.raises(PlainError, match=r"Stable Diffusion 2\.x or Stable Diffusion 1\.x"):
        read(path)
    flux = {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 8),
            "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(8, 2)}  # fmt: skip
    save_file(flux, tmp_path / "flux.safetensors")
    with pytest.raises(PlainError, match="for no family that is known"):
        read(tmp_path / "flux.safetensors")


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_tells_what_a_lora_holds(trained: Trained, kind: Kind) -> None:
    report = inspect(trained.lora)
    assert (report.kind, report.family) == ("LoCon", family_named(kind).title), "with convolutions it is one"
    assert (report.ranks, report.alphas, report.precision) == ((4,), (3.0,), "F32")
    modules = modules_of(trained.state)
    assert sum(report.modules.values()) == len(modules)
    assert report.recipe == {"network": {"rank": 4}}
    middle = [w.delta().double().norm() ** 2 for name, w in modules.items() if name.startswith("unet.mid_block")]
    assert report.norms["unet mid_block"] == pytest.approx(float(sum(middle) ** 0.5), rel=1e-5)
    text = str(report)
    for shown in (family_named(kind).title, "unet mid_block", "network.rank: 4", "ss_output_name: lora"):
        assert shown in text


def test_inspect_tells_what_a_base_is(trained: Trained, kind: Kind) -> None:
    report = inspect(trained.base)
    assert (report.kind, report.family) == ("base model", family_named(kind).title)
    assert "predicts epsilon" in str(report)


def test_inspect_names_other_kinds_and_refuses_the_rest(tmp_path: Path) -> None:
    save_file({"lora_unet_conv_in.a1.weight": torch.ones(2, 2)}, tmp_path / "glora.safetensors")
    assert inspect(tmp_path / "glora.safetensors").kind == "a GLoRA"
    save_file({"nothing": torch.ones(2)}, tmp_path / "odd.safetensors")
    with pytest.raises(PlainError, match="unknown kind"):
        inspect(tmp_path / "odd.safetensors")


# --- builders --------------------------------------------------------------------------------------------------------


def _small_lora(path: Path, width: int = 32, notes: dict[str, str] | None = None) -> Path:
    """One module of SD1's narrowest level, as slim models have it."""
    generator = torch.Generator().manual_seed(1)
    down, up = (torch.randn(2, width, generator=generator), torch.randn(width, 2, generator=generator))
    state = as_state({_TO_Q: ModuleWeights(down, up * 0.1, 2.0)})
    metadata: Any = {"ss_base_model_version": "sd_v1"} if notes is None else notes
    write_lora(path, state, kohya_name=kohya_namer(family_named("sd1")), metadata=metadata, precision="fp32")
    return path


def _split(name: str) -> tuple[str, str]:
    part, _, path = name.partition(".")
    return part, path


def _same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
