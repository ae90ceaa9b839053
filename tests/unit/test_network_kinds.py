"""Files of every kind: written, read, worked into a checkpoint, drawn with, made plain, told of and gone on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, PlainError
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.jobs.export import export
from lora_trainer.jobs.inspect import inspect
from lora_trainer.jobs.lora_files import read
from lora_trainer.jobs.merge import merge
from lora_trainer.jobs.start import put_on as put_file_on
from lora_trainer.networks.changes import changes_of
from lora_trainer.networks.file import write_lora
from lora_trainer.networks.network import AdaptedNetwork, inject
from lora_trainer.networks.start import start_from
from tests.builders.networks import FORMS, base_model, outputs, put_on, randomise, rarely
from tests.builders.slim import write_slim

TITLES = {"lora": "LoCon", "locon": "LoCon", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "lokr whole": "LoKr",
          "oft": "OFT", "pissa": "LoCon", "olora": "LoCon", "rslora": "LoCon", "by layer": "LoCon"}  # fmt: skip
NOTES = {"ss_base_model_version": "sd_v1", "ss_output_name": "lora"}


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return base_model("sd1")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slim(tmp_path_factory.mktemp("base") / "base.safetensors", "sd1")


class Trained:
    """A file of one form, and what base and network answer at weights 0, 0.6 and 1."""

    def __init__(self, base: BaseModel, folder: Path, form: str) -> None:
        self.form, self.path = form, folder / "lora.safetensors"
        network = put_on(base, "few", form=form)
        randomise(network)
        self.state = network.state()
        self.full = outputs(base)
        with network.scaled(0.6):
            self.partly = outputs(base)
        network.eject()
        self.bare = outputs(base)
        write_lora(self.path, self.state, kohya_name=base.kohya_name, metadata=NOTES, precision="fp32")

    def agree(self, answers: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
        """Sums in another order, carried through forty random layers: far below the effect itself."""
        for name, wanted in expected.items():
            error, effect = (answers[name] - wanted).norm(), (wanted - self.bare[name]).norm()
            assert error < 1e-3 * effect, (self.form, name, float(error), float(effect))


@pytest.fixture(scope="module", params=[pytest.param(form, marks=rarely(form)) for form in FORMS])
def trained(request: pytest.FixtureRequest, base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(base, tmp_path_factory.mktemp("trained"), request.param)


def test_what_is_written_is_read_back_bit_for_bit(trained: Trained) -> None:
    found = read(trained.path)
    assert found.family.name == "sd1"
    assert found.state.keys() == trained.state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in trained.state.items())


def test_merged_into_the_checkpoint_it_answers_the_same(trained: Trained, checkpoint: Path, tmp_path: Path) -> None:
    merge(checkpoint, [(trained.path, 0.6)], tmp_path / "merged.safetensors")
    lent = lend_file(tmp_path / "merged.safetensors")
    adopted = family_named("sd1").adopt(lent, torch.device("cpu"), torch.float32, parts=("unet", "text_encoder"))
    trained.agree(outputs(adopted), trained.partly)


def test_put_on_from_the_file_it_answers_the_same(trained: Trained, base: BaseModel) -> None:
    network = put_file_on(base, family_named("sd1"), trained.path)
    answers = outputs(base)
    network.eject()
    trained.agree(answers, trained.full)


def test_inspect_tells_the_kind(trained: Trained) -> None:
    report = inspect(trained.path)
    assert report.kind == TITLES[trained.form]
    assert sum(report.modules.values()) == len(changes_of(trained.state))
    assert bool(report.norms) == (trained.form not in ("dora", "oft"))
    assert TITLES[trained.form] in str(report)


def test_made_plain_at_a_wide_rank_it_answers_the_same(
    trained: Trained, base: BaseModel, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "plain.safetensors"
    told = export(trained.path, output, "lora", "fp32", rank=300, base=checkpoint)
    assert "nothing of its change is lost" in told, told
    assert {change.kind for change in changes_of(read(output).state).values()} == {"lora"}
    network = put_file_on(base, family_named("sd1"), output)
    answers = outputs(base)
    network.eject()
    trained.agree(answers, trained.full)


@pytest.mark.parametrize("form", ["dora", "loha", "lokr", "oft"])
def test_made_plain_at_a_narrow_rank_the_loss_is_told(
    form: str, base: BaseModel, checkpoint: Path, tmp_path: Path
) -> None:
    """The nearest of rank r loses the singular values behind the r-th: Eckart and Young 1936."""
    trained = Trained(base, tmp_path, form)
    told = export(trained.path, tmp_path / "plain.safetensors", "lora", "fp32", rank=2, base=checkpoint)
    plain, changes = changes_of(read(tmp_path / "plain.safetensors").state), changes_of(trained.state)
    weights = {f"{part}.{name.removeprefix('text_model.')}": getattr(layer, "weight", None)
               for part, module in base.parts.items() for name, layer in module.named_modules()}  # fmt: skip
    lost = total = 0.0
    for name, change in changes.items():
        delta = change.delta(weights[name]).detach().double().flatten(1)
        tail = torch.linalg.svdvals(delta)[2:].square().sum()
        torch.testing.assert_close((plain[name].delta().double() - delta).square().sum(), tail, rtol=1e-3, atol=1e-8)
        lost, total = lost + float(tail), total + float(delta.square().sum())
    assert f"{(lost / total) ** 0.5:.1%} is lost" in told


def test_making_plain_asks_for_the_base_where_the_change_depends_on_it(
    base: BaseModel, checkpoint: Path, tmp_path: Path
) -> None:
    oft = Trained(base, tmp_path, "oft").path
    for more, words in (
        ({"format": "lora", "rank": 4}, "of the kind oft.*--base"),
        ({"format": "peft"}, "kind oft, for which diffusers has no names.*--format lora"),
        ({"format": "lora"}, "A rank goes with the format lora"),
        ({"format": "kohya", "rank": 4}, "A rank goes with the format lora"),
    ):
        settings: dict[str, Any] = more
        with pytest.raises(PlainError, match=words):
            export(oft, tmp_path / "new.safetensors", **settings)
    other = write_slim(tmp_path / "sdxl.safetensors", "sdxl")
    with pytest.raises(PlainError, match="does not fit the checkpoint"):
        export(oft, tmp_path / "new.safetensors", "lora", rank=4, base=other)
    assert not (tmp_path / "new.safetensors").exists()


# --- going on from a file --------------------------------------------------------------------------------------------


def fresh(base: BaseModel, form: str, **more: Any) -> AdaptedNetwork:
    return put_on(base, "few", form=form, **more)


def going_on(base: BaseModel, trained: Trained, form: str, **more: Any) -> tuple[list[str], dict[str, Tensor]]:
    network = fresh(base, form, **more)
    try:
        told = start_from(network, trained.state, seed=1, source="lora.safetensors")
        return told, outputs(base)
    finally:
        network.eject()


@pytest.mark.parametrize("form", ["lora", "dora", "loha", "lokr", "oft"])
def test_a_wider_network_starts_with_the_whole_effect(form: str, base: BaseModel, tmp_path: Path) -> None:
    trained = Trained(base, tmp_path, form)
    told, answers = going_on(base, trained, form, rank=8, alpha=2.0)
    trained.agree(answers, trained.full)
    assert "without any change" in told[1]


@pytest.mark.parametrize("form", ["lora", "dora", "loha", "lokr"])
def test_a_narrower_network_starts_with_the_nearest_and_says_how_near(
    form: str, base: BaseModel, tmp_path: Path
) -> None:
    trained = Trained(base, tmp_path, form)
    told, answers = going_on(base, trained, form, rank=3, alpha=3.0)
    assert "the nearest that fits" in told[1]
    error = (answers["unet"] - trained.full["unet"]).norm() / (trained.full["unet"] - trained.bare["unet"]).norm()
    assert 1e-3 < error < 1


def test_a_dora_starts_from_a_plain_lora_with_its_effect(base: BaseModel, tmp_path: Path) -> None:
    trained = Trained(base, tmp_path, "lora")
    _, answers = going_on(base, trained, "dora")
    trained.agree(answers, trained.full)


def test_what_does_not_fit_is_told_with_the_way_out(base: BaseModel, tmp_path: Path) -> None:
    for form, into, more, words in (
        ("loha", "lora", {}, r"of the kind loha; set network.kind: loha, or make it a plain LoRA"),
        ("lora", "loha", {}, "it holds a LoRA, and the run trains a LoHa; set network.kind: lora"),
        ("oft", "oft", {"rank": 3}, "of 4 there and of 2 here, and blocks can only be joined; set network.rank: 4"),
        ("lokr", "lokr", {"factor": 2}, "as network.factor decides"),
    ):
        with pytest.raises(PlainError, match=words):
            going_on(base, Trained(base, tmp_path, form), into, **more)


# --- what other programs write ---------------------------------------------------------------------------------------


def test_a_length_for_each_output_is_refused(base: BaseModel, tmp_path: Path) -> None:
    """As LyCORIS writes it by default since 3.0 (`wd_on_output`), and as peft has it."""
    trained = Trained(base, tmp_path, "dora")
    tensors = load_file(trained.path)
    key = next(key for key in tensors if key.endswith("dora_scale") and tensors[key].dim() == 2)
    tensors[key] = torch.ones(tensors[key.replace("dora_scale", "lora_up.weight")].shape[0], 1)
    save_file(tensors, tmp_path / "other.safetensors", NOTES)
    with pytest.raises(PlainError, match="a length for each output"):
        read(tmp_path / "other.safetensors")


def test_an_alpha_that_is_missing_is_the_rank_and_a_constraint_is_refused(base: BaseModel, tmp_path: Path) -> None:
    trained = Trained(base, tmp_path, "loha")
    tensors = {key: value for key, value in load_file(trained.path).items() if not key.endswith("alpha")}
    save_file(tensors, tmp_path / "bare.safetensors", NOTES)
    assert {change.scale for change in changes_of(read(tmp_path / "bare.safetensors").state).values()} == {1.0}
    turned = Trained(base, tmp_path, "oft")
    tensors = load_file(turned.path)
    tensors[next(key for key in tensors if key.endswith("alpha"))].fill_(0.1)
    save_file(tensors, tmp_path / "tied.safetensors", NOTES)
    with pytest.raises(PlainError, match="an OFT with a constraint"):
        read(tmp_path / "tied.safetensors")


# --- LoRA+ -----------------------------------------------------------------------------------------------------------


def test_loraplus_gives_the_up_weights_a_rate_of_their_own(base: BaseModel) -> None:
    network = inject(base.parts, NetworkConfig(rank=4, loraplus_ratio=16.0), train_parts=("unet",), seed=0)
    slow, fast = network.groups()
    network.eject()
    assert (slow.part, slow.rate, fast.part, fast.rate) == ("unet", 1.0, "unet", 16.0)
    assert all(p.shape[0] == 4 for p in slow.parameters)
    assert all(p.shape[1] == 4 and not p.any() for p in fast.parameters), "these are the ups, which start at zero"
