"""The form under the gradio at hand: it builds, and what it shows and what it sends are the configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the page needs gradio, which this environment lacks")

from lora_trainer.config.applies import letting  # noqa: E402
from lora_trainer.config.leaves import Leaf, leaves  # noqa: E402
from lora_trainer.config.load import load  # noqa: E402
from lora_trainer.config.options import RunConfig  # noqa: E402
from lora_trainer.config.presets import STRENGTHS, SUBJECTS, steps_of, subject_of  # noqa: E402
from lora_trainer.config.tasks import IMAGES, applies  # noqa: E402
from lora_trainer.contracts import Host, HostPaths, PlainError  # noqa: E402
from lora_trainer.data.scan import scan  # noqa: E402
from lora_trainer.hosts.standalone import Standalone  # noqa: E402
from lora_trainer.interfaces.ui import answers  # noqa: E402
from lora_trainer.interfaces.ui.fields import elem_id, raw_of, shown_of, value_at  # noqa: E402
from lora_trainer.interfaces.ui.form import Form, build, build_advanced, first_config  # noqa: E402
from lora_trainer.interfaces.ui.page import page  # noqa: E402
from lora_trainer.interfaces.ui.sources import brought  # noqa: E402
from lora_trainer.interfaces.ui.uploads import keep  # noqa: E402
from lora_trainer.jobs.registry import Registry  # noqa: E402
from lora_trainer.jobs.uploads import place_of  # noqa: E402

pytestmark = pytest.mark.ui

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted((ROOT / "localizations").glob("*.json"))


class Lender:
    """Only so far a host as the form looks at one: it has a model of its own."""

    name = "a WebUI"

    def paths(self) -> HostPaths:
        return HostPaths(loras=Path("models/Lora"))


@pytest.fixture(params=[Standalone, Lender], ids=["stand-alone", "in a WebUI"])
def host(request: pytest.FixtureRequest) -> Host:
    return request.param()


@pytest.fixture
def form(host: Host) -> Form:
    with gradio.Blocks():
        made = build(host)
        build_advanced(made)
    return made


def components(blocks: Any) -> list[dict[str, Any]]:
    return blocks.get_config_file()["components"]


def other_value(leaf: Leaf) -> Any:
    """A value of the setting that differs from its default, odd where it may be."""
    if leaf.path == "network.ranks":
        return ("mid_block = 32/8", "to_q = 4")
    if leaf.many:
        return ("a cat", "two lines\nin one", "a slash \\n, a tail \\\\")
    if leaf.choices:
        return next((choice for choice in leaf.choices if choice != leaf.default), leaf.default)
    if leaf.type is bool:
        return not leaf.default
    if leaf.type is str:
        return f"some {leaf.path} <b>&amp;"
    low, high = leaf.option.low or 0, leaf.option.high or 1
    between = (value for value in (low + (high - low) * share for share in (0.37, 0.61)))
    return next(value for found in between if (value := leaf.type(found)) != leaf.default)


def every_setting() -> Iterator[Any]:
    for leaf in leaves():
        yield pytest.param(leaf, id=leaf.path)


# --- values there and back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", every_setting())
def test_each_setting_comes_back_from_the_form(leaf: Leaf) -> None:
    value = other_value(leaf)
    config = load({**letting(leaf), leaf.path: list(value) if isinstance(value, tuple) else value})
    again = load(raw_of(shown_of(config)))
    assert again == config
    assert value_at(again, leaf.path) == value


def test_a_form_at_its_defaults_asks_for_nothing() -> None:
    assert raw_of(shown_of(RunConfig())) == {}


def test_an_emptied_field_is_left_out_and_nonsense_is_kept_for_the_judge() -> None:
    values = shown_of(RunConfig()) | {"network.rank": "", "train.learning_rate": "fast", "data.batch_size": "8.5"}
    raw = raw_of(values)
    assert raw == {"train.learning_rate": "fast", "data.batch_size": "8.5"}
    with pytest.raises(PlainError) as caught:
        load(raw)
    found = answers.faults(caught.value)["faults"]
    assert {one["field"] for one in found} == {"lt_train_learning_rate", "lt_data_batch_size"}
    assert any(one["text"].startswith("Learning rate is 'fast'") for one in found)


def test_numbers_are_read_as_people_write_them() -> None:
    assert raw_of({"train.learning_rate": "2e-4", "network.rank": "8", "train.warmup": ".1"}) == {
        "train.learning_rate": 2e-4, "network.rank": 8, "train.warmup": 0.1,
    }  # fmt: skip


def test_a_folder_may_be_pasted_with_quotes_and_blanks() -> None:
    assert answers.asked({"data.folder": ' "C:/my cats" '})["data.folder"] == "C:/my cats"
    assert "data.folder" not in answers.asked({"data.folder": "  "})


# --- the components --------------------------------------------------------------------------------------------------


def test_every_setting_has_one_component_with_its_own_id(form: Form) -> None:
    assert sorted(form.by_path) == sorted(leaf.path for leaf in leaves() if applies(leaf, IMAGES))
    ids = [component.elem_id for component in form.by_path.values()]
    assert ids == [elem_id(path) for path in form.by_path]
    assert all(re.fullmatch(r"lt_[a-z_]+", one) for one in ids)


def test_an_untouched_form_is_the_first_preset(form: Form) -> None:
    values = form.named([component.value for component in form.row])
    assert subject_of(load({**answers.asked(values), "data.folder": "x"})) == values["subject"] == "character"
    assert values["strength"] == "normal"


def test_a_configuration_fills_every_field(form: Form) -> None:
    config = load({"network.rank": 7, "data.folder": "somewhere", "samples.prompts": ["a", "b"]})
    filled = form.named([one["value"] for one in form.filled(config, "strong")])
    assert load(raw_of(filled)) == config
    assert (filled["subject"], filled["strength"]) == (None, "strong")


_PLACES = ("views", "plan", "tools", "run", "workshop", "language_plan", "try")  # drawn by the scripts


def test_the_page_builds_and_keeps_out_of_the_hosts_memory_of_defaults(host: Host) -> None:
    blocks = page(cast(Any, None), host)
    named = {one["props"].get("elem_id") for one in components(blocks)}
    assert {"lt_page", "lt_start", "lt_answer", "lt_do_plan", "lt_do_bring", "lt_drop"} <= named
    ours = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) and hasattr(block, "value")]
    kept = [block.elem_id for block in ours if not getattr(block, "do_not_save_to_config", False)]
    assert set(kept) <= {f"lt_{place}_block" for place in _PLACES}


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda one: one.name)
def test_a_preset_loads_and_says_why(subject: Any) -> None:
    assert subject_of(load(subject.settings)) == subject.name
    assert subject.settings.keys() == SUBJECTS[0].settings.keys(), "another preset must undo this one wholly"
    assert subject.reason.endswith(".")
    assert "{trigger}" in subject.prompt


def test_a_preset_sets_its_fields_in_the_order_they_are_listed(form: Form) -> None:
    for subject in SUBJECTS:
        values = dict(zip(SUBJECTS[0].settings, (one["value"] for one in form.preset(subject.name)), strict=True))
        assert subject_of(load(raw_of(shown_of(RunConfig()) | values))) == subject.name


def test_strength_is_a_multiple_of_the_usual_length() -> None:
    assert [steps_of(one.name, 1500) for one in STRENGTHS] == [750, 1500, 3000]
    assert steps_of("light", 1) == 1


def test_a_prompt_is_proposed_only_where_none_is(form: Form) -> None:
    assert form.prompt("ohwx", "", "object")["value"] == "ohwx on a wooden table"
    assert form.prompt("ohwx", "ohwx on a wooden table", "style")["value"] == "a house by the sea, ohwx"
    assert "value" not in form.prompt("ohwx", "mine", "object")
    assert "value" not in form.prompt(" ", "", "object")


# --- settings brought in, files dropped ------------------------------------------------------------------------------


def test_yaml_and_a_recipe_fill_the_form() -> None:
    nowhere = HostPaths(loras=None)
    values = shown_of(load({"data.folder": "mine", "output.name": "my_name", "model.base": "my_base"}))
    text = brought({"from": "text", "text": "lora_rank: 5\ntrain_data_dir: theirs"}, values, cast(Any, None), nowhere)
    assert (text.config.network.rank, text.config.data.folder, text.config.model.base) == (5, "theirs", "my_base")
    recipe = json.dumps({"version": 1, "network": {"rank": 5}, "data": {"folder": "theirs"}})
    found = brought({"from": "recipe", "text": recipe, "name": "a.safetensors"}, values, cast(Any, None), nowhere)
    assert (found.config.network.rank, found.config.data.folder, found.config.output.name) == (5, "mine", "my_name")
    assert found.left == ()
    with pytest.raises(PlainError, match="no recipe"):
        brought({"from": "recipe", "text": "[]", "name": "a.safetensors"}, values, cast(Any, None), nowhere)


def test_a_recipe_that_a_former_release_let_pass_is_taken_over_without_what_changes_nothing() -> None:
    values = shown_of(RunConfig())
    recipe = {"train": {"schedule": "cosine", "schedule_cycles": 4}, "objective": {"preserve_class": "cat"},
              "network": {"rank": 5}}  # fmt: skip
    order = {"from": "recipe", "text": json.dumps(recipe), "name": "a.safetensors"}
    found = brought(order, values, cast(Any, None), HostPaths(loras=None))
    assert found.left == ("objective.preserve_class", "train.schedule_cycles")
    assert (found.config.network.rank, found.config.train.schedule_cycles) == (5, RunConfig().train.schedule_cycles)
    with pytest.raises(PlainError, match=r"train\.schedule_cycles is 4, but counts only where"):
        load(recipe)  # as a file of the user's own
    wrong = json.dumps({"network": {"rank": "many"}, "train": {"schedule_cycles": 4}})
    with pytest.raises(PlainError, match=r"network\.rank"):
        brought(order | {"text": wrong}, values, cast(Any, None), HostPaths(loras=None))


def test_a_lora_outside_of_the_allowed_folders_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "secret.safetensors").write_bytes(b"no")
    paths = HostPaths(loras=tmp_path / "loras", allowed=(tmp_path / "loras",))
    with pytest.raises(PlainError, match="outside"):
        brought({"from": "text", "text": str(tmp_path / "secret.safetensors")}, shown_of(RunConfig()),
                cast(Any, None), paths)  # fmt: skip


def test_dropped_files_get_a_folder_and_a_second_drop_joins_them(tmp_path: Path) -> None:
    paths = HostPaths(loras=None, runs=tmp_path / "runs")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("first")
    folder = keep([tmp_path / "a.png", tmp_path / "a.txt"], "", paths).folder
    assert folder.parent == place_of(paths)
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no picture")
    again = keep([tmp_path / "a.png", tmp_path / "b.png"], str(folder), paths)
    assert (again.folder, [one.name for one in again.left]) == (folder.resolve(), ["b.png"])
    assert {item.name: item.caption for item in scan(folder).items} == {"a.png": "first", "a_2.png": ""}
    elsewhere = keep([tmp_path / "a.png"], str(tmp_path), paths).folder
    assert elsewhere.parent == place_of(paths), "a folder of the user's own is left alone"


# --- words -----------------------------------------------------------------------------------------------------------


def words_of_the_page(host: Host) -> set[str]:
    found: set[str] = set()
    for one in components(page(cast(Any, None), host)):
        properties = one["props"]
        if str(properties.get("elem_id")).startswith("lt_do_"):
            continue
        found |= {properties[name] for name in ("label", "info", "placeholder") if properties.get(name)}
        if one["type"] == "button":
            found.add(properties["value"])
        if one["type"] == "radio":
            found |= {title for title, _ in properties["choices"]}
    return found


def words_of_the_scripts() -> set[str]:
    found: set[str] = set()
    for file in (ROOT / "javascript").glob("*.js"):
        joined = re.sub(r'"\s*\n\s*\+ "', "", file.read_text(encoding="utf-8"))
        found |= set(re.findall(r'\bt\(\s*"((?:[^"\\]|\\.)*)"', joined))
    return found


@pytest.mark.parametrize("file", LANGUAGES, ids=lambda file: file.stem)
def test_every_string_is_translated(file: Path, host: Host) -> None:
    known = json.loads(file.read_text(encoding="utf-8"))
    assert len(words_of_the_scripts()) > 60
    assert (words_of_the_page(host) | words_of_the_scripts()) - known.keys() == set()
    blanks = re.compile(r"\{\w+\}")
    differing = [text for text, said in known.items() if set(blanks.findall(text)) != set(blanks.findall(said))]
    assert differing == [], "a translation has to keep what is filled in"


def test_both_languages_translate_the_same() -> None:
    first, second = (json.loads(file.read_text(encoding="utf-8")).keys() for file in LANGUAGES)
    assert first == second


def test_the_first_configuration_is_sound() -> None:
    assert load(raw_of(shown_of(first_config()))) == first_config()


def test_several_numbers_in_a_field_are_a_list_of_runs(form: Form):
    values = shown_of(RunConfig()) | {"network.rank": "8,16", "train.learning_rate": "1e-4, 2e-4; 0.001"}
    assert raw_of(values) == {"network.rank": [8, 16], "train.learning_rate": [1e-4, 2e-4, 1e-3]}
    assert raw_of(values | {"train.learning_rate": "0,5"})["train.learning_rate"] == "0,5", "half, in many countries"
    assert raw_of(values | {"data.resolution": "512,512"})["data.resolution"] == 512, "a square's two sides"
    lists = {"network.rank": [8, 16]}
    row = dict(zip(form.by_path, form.filled(load({"network.rank": 8}), lists=lists), strict=False))
    assert row["network.rank"]["value"] == "8, 16"
    found = brought(
        {"from": "text", "text": "lora_rank: [4, 8]\ntrain_data_dir: theirs"}, shown_of(RunConfig()), cast(Any, None),
        HostPaths(loras=None),
    )  # fmt: skip
    assert (found.config.network.rank, found.lists) == (4, {"network.rank": [4, 8]})


def test_a_slider_of_two_prompts_needs_no_folder(tmp_path: Path) -> None:
    registry = Registry(Standalone(loras=tmp_path, runs=tmp_path / "runs"))
    asked = {"model.base": "demo", "slider.positive": "a house at night", "slider.negative": "a house by day"}
    told = answers.planned(registry, asked)
    assert (told["kind"], told.get("drawn"), told.get("captioned")) == ("plan", True, None), told
    counted = answers.memory(registry, asked)
    assert counted["of"] == {"form": told["form"], "strength": told["strength"]}, "the page compares them"
    assert counted["memory"]["step"] > 0
    refused = answers.memory(registry, asked | {"network.rank": 0})
    assert (refused["kind"], refused["memory"]) == ("memory", None), "the plan tells what is wrong"
    assert answers.planned(registry, {"model.base": "demo"})["kind"] == "empty"
    refused = answers.planned(registry, asked | {"slider.negative": ""} | {"data.trigger": "ohwx"})
    assert "only its weight" in refused["faults"][0]["text"]
    registry.close(1)
