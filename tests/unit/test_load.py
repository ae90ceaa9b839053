"""A configuration comes in by one way, and every fault of it is told at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_trainer.config import load as loading
from lora_trainer.config.applies import without_idle
from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.config.load import ConfigError, dump, dump_yaml, load, load_yaml
from lora_trainer.config.options import VERSION, RunConfig
from lora_trainer.contracts import PlainError

DATA = Path(__file__).parent / "data"


def faults_of(raw: dict[Any, Any], over: dict[str, Any] | None = None) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(raw, over)
    assert all(fault.text in str(caught.value) for fault in caught.value.faults)
    return {fault.path: fault.text for fault in caught.value.faults}


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_a_lora_scripts_file_loads_as_it_stands() -> None:
    run = load(load_yaml(DATA / "image_style.yaml"))
    assert run.data.folder == "./data/style_train"
    assert run.data.metadata == "./data/style_train/metadata.csv"
    assert run.model.base == "./models/Stable-diffusion/v1-5-pruned.safetensors"
    assert (run.task, run.network.rank, run.network.alpha, run.network.dropout) == ("stable-diffusion", 8, 16.0, 0.1)
    assert (run.data.batch_size, run.data.resolution, run.train.epochs) == (4, 512, 10)
    assert run.train.learning_rate == 2e-4  # text to YAML, for want of a point
    assert (run.train.gradient_accumulation_steps, run.train.mixed_precision) == (2, "fp16")
    assert (run.output.directory, run.output.save_steps) == ("./output/watercolour", 100)


def test_other_spellings_of_such_a_file_load_too() -> None:
    run = load(load_yaml(DATA / "image_person.yaml"))
    assert run.task == "stable-diffusion"
    assert run.model.base == r"C:\models\base.safetensors"
    assert run.data.resolution == 768
    assert (run.train.learning_rate, run.train.text_encoder_learning_rate) == (1e-4, 5e-5)
    assert run.train.mixed_precision == "no"  # a bare `no` is False to YAML 1.1
    assert (run.train.seed, run.output.name) == (None, "person_v2")


def test_a_file_for_a_language_model_loads() -> None:
    run = load(load_yaml(DATA / "language_model.yaml"))
    assert (run.task, run.train.epochs, run.train.gradient_accumulation_steps) == ("text-generation", 3, 4)


def test_nested_dotted_and_flat_names_mean_the_same() -> None:
    nested = load({"network": {"rank": 8}, "train": {"epochs": 3}})
    assert nested == load({"network.rank": 8, "train.epochs": 3}) == load({"lora_rank": 8, "epochs": 3})
    assert nested.network.rank == 8
    assert nested == load({"lora_rank": 8, "network": {"rank": 8}, "epochs": 3}), "given twice, but alike"


def test_nothing_given_is_the_defaults() -> None:
    assert load({}) == RunConfig() == load({"network": None, "version": VERSION})


@pytest.mark.parametrize(
    ("raw", "path", "value"),
    [
        ({"lora_rank": "8"}, "network.rank", 8),
        ({"lora_rank": 8.0}, "network.rank", 8),
        ({"lora_alpha": 3}, "network.alpha", 3.0),
        ({"learning_rate": ".5e-3"}, "train.learning_rate", 5e-4),
        ({"data.flip": "true"}, "data.flip", True),
        ({"data.flip": "off"}, "data.flip", False),
        ({"resolution": "640x640"}, "data.resolution", 640),
        ({"resolution": [640, 640]}, "data.resolution", 640),
        ({"task_type": "image-generation"}, "task", "stable-diffusion"),
        ({"model": {"zero_terminal_snr": True}}, "model.zero_terminal_snr", "yes"),
        ({"samples.prompts": "a cat"}, "samples.prompts", ("a cat",)),
        ({"samples.prompts": ["a cat", "a dog"]}, "samples.prompts", ("a cat", "a dog")),
        ({"lora_alpha": None}, "network.alpha", None),
        ({"lora_alpha": ""}, "network.alpha", None),
        ({"metadata_path": ""}, "data.metadata", None),
        ({"data.trigger": ""}, "data.trigger", ""),
        ({"seed": 2**31 - 1}, "train.seed", 2**31 - 1),
    ],
)
def test_other_spellings_of_a_value(raw: dict[str, Any], path: str, value: Any) -> None:
    section, _, name = path.rpartition(".")
    run = load(raw)
    found = getattr(getattr(run, section) if section else run, name)
    assert found == value
    assert type(found) is type(value)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_all_faults_come_at_once() -> None:
    faults = faults_of(
        {"network": {"rnak": 8, "rank": 0, "kind": "lora2"}, "learning_rate": "fast", "resolution": "512,768",
         "epochs": 2.5, "optimizer": "adamw", "data": 7, "train_data_dir": None}
    )  # fmt: skip
    assert set(faults) == {
        "network.rnak", "network.rank", "network.kind", "learning_rate (train.learning_rate)",
        "resolution (data.resolution)", "epochs (train.epochs)", "optimizer", "data", "train_data_dir (data.folder)",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "path", "told"),
    [
        ({"network": {"rank": 0}}, "network.rank", "is 0, outside of 1 to 1024"),
        ({"network": {"rank": 1025}}, "network.rank", "is 1025, outside of 1 to 1024"),
        ({"resolution": 32}, "resolution (data.resolution)", "is 32, outside of 64 to 4096 px"),
        ({"network": {"rank": 8.5}}, "network.rank", "is 8.5, but a whole number is wanted"),
        ({"network": {"rank": True}}, "network.rank", "is True, but a number is wanted"),
        ({"network": {"rank": [8]}}, "network.rank", "is [8], but a number is wanted"),
        ({"network": {"rank": {"a": 1}}}, "network.rank", "is {'a': 1}, but a number is wanted"),
        ({"learning_rate": "1e-4 per step"}, "learning_rate (train.learning_rate)",
         "is '1e-4 per step', but a number is wanted"),
        ({"learning_rate": float("nan")}, "learning_rate (train.learning_rate)",
         "is nan, but a finite number is wanted"),
        ({"learning_rate": 10**400}, "learning_rate (train.learning_rate)", "too large for any setting"),
        ({"data": {"flip": 1}}, "data.flip", "is 1; write true or false"),
        ({"data": {"cache": "ram"}}, "data.cache", "is 'ram', which is none of auto, memory, disk, none"),
        ({"mixed_precision": "fp61"}, "mixed_precision (train.mixed_precision)", "did you mean fp16?"),
        ({"output_name": 12}, "output_name (output.name)", "is 12, but text is wanted; put it in quotes"),
        ({"train_data_dir": "a\0b"}, "train_data_dir (data.folder)", "zero character"),
        ({"samples": {"prompts": 3}}, "samples.prompts", "is 3, but a list is wanted"),
        ({"samples": {"prompts": ["a", 3]}}, "samples.prompts", "is 3, but text is wanted"),
        ({"batch_size": None}, "batch_size (data.batch_size)", "is empty; leave it out to take the default, 2"),
        ({"resolution": "512x768"}, "resolution (data.resolution)", "sorted into buckets"),
        ({"resolution": [512]}, "resolution (data.resolution)", "one side is wanted"),
        ({"data": 7}, "data", "is a group of settings and cannot be 7; write for example data.folder"),
        ({"train": {"epochs": 1, "steps": 5}}, "train.epochs", "is 1 and train.steps is 5"),
        ({"lora_rank": 8, "network.rank": 16}, "network.rank", "is 16, but lora_rank is 8"),
        ({"network": {"rank": 8}, "network.rank": 16}, "network.rank", "both are the same setting; keep one"),
        ({"version": VERSION + 1}, "version", "newer than"),
        ({"version": "new"}, "version", f"a whole number from 1 to {VERSION} is wanted"),
        ({"version": 0}, "version", f"a whole number from 1 to {VERSION} is wanted"),
    ],
)  # fmt: skip
def test_a_fault_says_where_what_and_what_to_do(raw: dict[str, Any], path: str, told: str) -> None:
    faults = faults_of(raw)
    assert list(faults) == [path]
    assert told in faults[path]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("network.rnak", "network.rank"),
        ("lora_rnak", "lora_rank"),
        ("train_data_dirr", "train_data_dir"),
        ("learning_rte", "learning_rate"),
        ("rank", "network.rank"),
        ("train.lora_rank", "lora_rank"),
        ("network_dim", "network.rank"),  # kohya's word
        ("max_train_epochs", "train.epochs"),  # nearer to max_train_steps by its letters
        ("pretrained_model_name_or_path", "model.base"),
    ],
)
def test_an_unknown_name_is_answered_with_the_one_that_was_meant(name: str, meant: str) -> None:
    assert faults_of({name: 8}) == {name: f"(given as 8): there is no such setting; did you mean {meant}?"}


def test_a_name_like_no_other_points_to_the_list() -> None:
    assert "docs/options.md" in faults_of({"xyzzy": 1})["xyzzy"]
    assert "docs/options.md" in faults_of({3: 1})["3"]


# --- flags over a file -----------------------------------------------------------------------------------------------


def test_what_is_laid_over_wins_however_the_file_spells_it() -> None:
    for raw in ({"lora_rank": 8}, {"network": {"rank": 8}}, {"network.rank": "nonsense"}):
        assert load(raw, {"network.rank": "4"}).network.rank == 4


def test_a_length_laid_over_replaces_the_length_in_the_other_measure() -> None:
    run = load({"epochs": 10}, {"train.steps": "20"})
    assert (run.train.steps, run.train.epochs) == (20, None)
    assert load({"max_train_steps": 20}, {"train.epochs": ""}).train.steps == 20
    assert "train.epochs" in faults_of({}, {"train.steps": "20", "train.epochs": "2"})


def test_the_names_of_faults_laid_over_are_told() -> None:
    assert faults_of({"lora_rank": 8}, {"network.rank": "0"}) == {"network.rank": "is '0', outside of 1 to 1024"}


# --- there and back --------------------------------------------------------------------------------------------------


def values_for(leaf: Leaf) -> st.SearchStrategy[Any]:
    text = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1)
    low, high = leaf.option.low, leaf.option.high
    kinds = {
        bool: st.booleans(),
        int: st.integers(int(low or 0), int(high or 0)),
        float: st.floats(low, high, allow_nan=False),
        str: text,
    }
    one = st.sampled_from(leaf.choices) if leaf.choices else kinds[leaf.type]
    patterns = {"network.layers": st.sampled_from(["to_q", "^unet"]), "network.ranks": st.just("to_q = 8/2.5")}
    one = patterns.get(leaf.path, one)
    one = st.lists(one).map(tuple) if leaf.many else one
    return st.none() | one if leaf.optional else one


@given(st.data())
@settings(max_examples=40)
def test_every_configuration_survives_the_way_to_text_and_back(data: st.DataObject) -> None:
    raw = {leaf.path: data.draw(values_for(leaf)) for leaf in leaves() if leaf.path != "train.steps"}
    if raw["network.start_from"]:
        raw["network.init"] = "default"
    run = load(without_idle(raw))
    assert load(dump(run)) == run
    assert load(yaml.safe_load(dump_yaml(run))) == run
    assert load({**dump(run), "version": VERSION}) == run


@pytest.mark.parametrize(
    "text", ["\x85", "a\u2028b", "\ufeff", "a\nb\r", "\t", "no", "1e3", "\x1b[0m", "😀", "'\"", "- a: b #"]
)
def test_odd_texts_survive_the_way_to_yaml_and_back(text: str) -> None:
    run = load({"data.trigger": text, "samples.prompts": [text]})
    assert load(yaml.safe_load(dump_yaml(run))) == run
    assert run.data.trigger == text


@given(
    st.dictionaries(
        st.sampled_from([*(leaf.path for leaf in leaves()), "epochs", "network", "zzz"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    )
)
@settings(max_examples=150)
def test_whatever_comes_in_a_run_or_faults_come_out(raw: dict[str, Any]) -> None:
    try:
        run = load(raw)
    except ConfigError:
        return
    assert load(dump(run)) == run


def test_the_dump_is_nested_and_carries_its_version() -> None:
    out = dump(dataclasses.replace(RunConfig()))
    assert out["version"] == VERSION
    assert out["samples"]["prompts"] == []
    assert out["network"]["rank"] == 16


def test_an_old_version_is_brought_up_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(loading.MIGRATIONS) == VERSION - 1
    renamed = ("width", "network.rank")
    monkeypatch.setattr(loading, "VERSION", VERSION + 1)
    monkeypatch.setattr(
        loading, "MIGRATIONS",
        (*loading.MIGRATIONS, lambda raw: {renamed[1] if key == renamed[0] else key: raw[key] for key in raw}),
    )  # fmt: skip
    assert load({"version": VERSION, "width": 4}).network.rank == 4
    assert "width" in faults_of({"version": VERSION + 1, "width": 4})


# --- YAML ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: !!python/object/apply:os.system ['touch owned']", "line 2: a tag ('!...') asks for an object"),
        ("a: !!timestamp nonsense", "line 1: a tag ('!...') asks for an object"),
        ("a: [1,\nb: 2", "line 2: this is not valid YAML"),
        ("a:\n\t- 1", "line 2: a tab stands where spaces are wanted"),
        ('base_model: "C:\\models"', "line 1: in double quotes a backslash starts an escape"),
        ("lora_rank: 8\nepochs: 1\nlora_rank: 16", "line 3: lora_rank is given twice; keep one"),
        ("a: *nowhere", "line 1: this is not valid YAML"),
        ("- a\n- b", "holds list where settings are wanted"),
        ("just words", "holds str where settings are wanted"),
        ("a: \x07", "characters that no text file has"),
        ("[" * 5000, "nested too deeply"),
        ("a: 0x_", "holds a number that cannot be read"),
    ],
)
def test_what_is_no_settings_file_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(PlainError) as caught:
        load_yaml(file)
    assert str(file) in str(caught.value)
    assert told in str(caught.value)


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    owned = tmp_path / "owned"
    file = tmp_path / "run.yaml"
    file.write_text(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{owned}']]")
    with pytest.raises(PlainError):
        load_yaml(file)
    assert not owned.exists()


def test_files_that_are_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(PlainError, match="there is no such file"):
        load_yaml(tmp_path / "none.yaml")
    with pytest.raises(PlainError, match="it is a folder"):
        load_yaml(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes("learning_rate: ½".encode("latin-1"))
    with pytest.raises(PlainError, match=r"not UTF-8 text \(byte 15\)"):
        load_yaml(binary)
    binary.write_bytes(b"a" * (loading.LARGEST_FILE + 1))
    with pytest.raises(PlainError, match="too many for a configuration"):
        load_yaml(binary)


def test_empty_files_marks_and_dates(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("# only words\n", encoding="utf-8")
    assert load_yaml(file) == {}
    file.write_text("output_name: 2024-13-45\ndata: {trigger: 画風}\n", encoding="utf-8-sig")
    run = load(load_yaml(file))
    assert (run.output.name, run.data.trigger) == ("2024-13-45", "画風")


# --- settings that depend on others ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw", "path", "words"), [
    ({"network.kind": "oft", "network.alpha": 4}, "network.alpha", "only where network.kind is lora or locon or"),
    ({"network.kind": "loha", "network.init": "pissa"}, "network.init", "and that is 'loha'; leave it out, or set"),
    ({"network.factor": 8}, "network.factor", "or set network.kind: lokr"),
    ({"network.kind": "lokr", "network.loraplus_ratio": 16}, "network.loraplus_ratio", "dora, and that is 'lokr'"),
    ({"network.init": "olora", "network.start_from": "a.safetensors"}, "network.init", "leave one of them out"),
    ({"network.layers": ["to_q", "("]}, "network.layers", "'(' is no regular expression"),
    ({"network.ranks": ["mid_block"]}, "network.ranks", "neither 'pattern = rank'"),
    ({"network.ranks": ["mid_block = 2000"]}, "network.ranks", "asks for the rank 2000, and the highest is 1024"),
    ({"network.ranks": ["mid_block = 8/0"]}, "network.ranks", "the alpha 0"),
    ({"network.ranks": {"mid_[": 8}}, "network.ranks", "is no regular expression"),
])  # fmt: skip
def test_what_would_change_nothing_or_cannot_be_read_is_refused(raw: dict[str, Any], path: str, words: str) -> None:
    assert words in faults_of(raw)[path]


def test_a_default_is_never_in_the_way() -> None:
    assert load({"network.kind": "oft", "network.init": "default", "network.alpha": None}).network.kind == "oft"


def test_ranks_are_read_from_a_mapping_too() -> None:
    expected = ("mid_block = 32", "up_blocks.1 = 8/4")
    assert load({"network": {"ranks": {"mid_block": 32, "up_blocks.1": "8/4"}}}).network.ranks == expected
    assert load({"network": {"ranks": list(expected)}}).network.ranks == expected
