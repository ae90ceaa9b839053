"""Lists of values become runs, and the runs a table."""

import csv

import pytest

from lora_trainer.config.load import ConfigError, dump, load
from lora_trainer.config.sweep import variants
from lora_trainer.contracts import Finished, Stepped, Told, Validated
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.cli import main
from lora_trainer.jobs.run import Controls
from lora_trainer.jobs.sweep import sweep
from tests.builders.runs import small_run

BASE = {"train_data_dir": "pictures/cats", "output_dir": "out/cat"}


def test_settings_without_a_list_are_no_sweep():
    assert variants(BASE | {"lora_rank": 8, "samples.prompts": ["a", "b"], "resolution": [512, 512]}) == ()


def test_lists_are_crossed_in_the_order_they_are_given():
    found = variants(BASE | {"network": {"rank": [8, 16]}, "train.learning_rate": ["1e-4", 2e-4]})
    assert [variant.label for variant in found] == [
        "rank8-learning_rate1e-4", "rank8-learning_rate0.0002",
        "rank16-learning_rate1e-4", "rank16-learning_rate0.0002",
    ]  # fmt: skip
    configs = [load(variant.raw) for variant in found]
    assert [(c.network.rank, c.train.learning_rate) for c in configs] == [(8, 1e-4), (8, 2e-4), (16, 1e-4), (16, 2e-4)]
    assert [c.output.directory for c in configs] == [f"out/cat/{variant.label}" for variant in found]
    assert [c.output.name for c in configs] == [f"cat-{variant.label}" for variant in found]
    assert {c.data.folder for c in configs} == {"pictures/cats"}


def test_without_a_folder_the_runs_are_named_by_the_data_and_share_the_hosts_folder():
    (first, _) = variants({"data.folder": "pictures/cats", "lora_rank": [4, 8]})
    config = load(first.raw)
    assert (config.output.name, config.output.directory) == ("cats-rank4", None)


def test_a_flag_takes_the_list_of_a_file_away():
    assert variants(BASE | {"lora_rank": [4, 8]}, {"network.rank": "8"}) == ()


def test_two_settings_of_one_name_are_told_apart_by_their_section():
    (first, *_) = variants(BASE | {"train.seed": [1, 2], "samples.seed": [3, 4], "samples.prompts": ["a cat"]})
    assert first.label == "train_seed1-samples_seed3"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"network.rank": [8, "many"]}, "network.rank"),
        ({"network.rank": []}, "empty list"),
        ({"output_name": ["a", "b"]}, "cannot vary"),
        ({"network.rank": [8, "8"]}, "the same name"),
        ({"network.rank": list(range(1, 20)), "train.seed": list(range(20))}, "380 runs"),
        ({"network": {"rank": [8, 16]}, "network.rank": 4}, "keep one"),
        ({"network.rnak": [8, 16]}, "did you mean"),
    ],
)
def test_what_cannot_be_swept_is_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        load(BASE | settings) if variants(BASE | settings) == () else None


def swept(tmp_path, **options):
    raw = dump(small_run(tmp_path, train__steps=3, output__save_steps=0))
    raw["output"] |= {"directory": str(tmp_path / "out")}
    raw["network"] |= {"rank": [2, 4]}
    return variants(raw, options)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_run_is_trained_into_its_own_folder_and_the_table_tells_of_each(tmp_path):
    *events, end = sweep(swept(tmp_path), host=Standalone(), control=Controls())
    assert isinstance(end, Finished)
    assert end.outcome == "done"
    rows = rows_of(tmp_path / "out" / "out-sweep.csv")
    assert [(row["run"], row["network.rank"], row["outcome"], row["steps"]) for row in rows] == [
        ("rank2", "2", "done", "3"), ("rank4", "4", "done", "3"),
    ]  # fmt: skip
    losses = [[event.loss for event in events if isinstance(event, Stepped)][at] for at in (2, 5)]
    assert [float(row["loss"]) for row in rows] == pytest.approx(losses, abs=1e-5)
    for row in rows:
        assert row["file"] == str(tmp_path / "out" / row["run"] / f"out-{row['run']}.safetensors")
    assert "2 of 2 runs are done" in end.text


def test_runs_without_a_seed_share_one_and_a_seed_that_is_given_stays():
    without = variants(BASE | {"lora_rank": [2, 4]})
    assert len({load(variant.raw).train.seed for variant in without} - {None}) == 1
    given = variants(BASE | {"lora_rank": [2, 4], "train.seed": 7})
    assert {load(variant.raw).train.seed for variant in given} == {7}


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path):
    control = Controls()
    events = sweep(swept(tmp_path), host=Standalone(), control=control)
    for event in events:
        if isinstance(event, Stepped) and event.step == 3:
            break
    *_, end = (control.stop(), *events)
    assert end.outcome == "stopped"
    table = tmp_path / "out" / "out-sweep.csv"
    assert [row["outcome"] for row in rows_of(table)] == ["done", "waiting"]
    first = (tmp_path / "out" / "rank2" / "out-rank2.safetensors").stat().st_mtime_ns
    *told, end = sweep(swept(tmp_path), host=Standalone(), control=Controls(), resume=True)
    assert end.outcome == "done"
    assert [row["outcome"] for row in rows_of(table)] == ["done", "done"]
    assert (tmp_path / "out" / "rank2" / "out-rank2.safetensors").stat().st_mtime_ns == first
    assert any(isinstance(event, Told) and "left alone" in event.text for event in told)


def test_a_second_sweep_leaves_the_table_and_the_files_of_the_first(tmp_path):
    list(sweep(swept(tmp_path)[:1], host=Standalone(), control=Controls()))
    table = tmp_path / "out" / "out-sweep.csv"
    before = table.read_bytes()
    *_, end = sweep(swept(tmp_path)[:1], host=Standalone(), control=Controls())
    assert table.read_bytes() == before
    (row,) = rows_of(tmp_path / "out" / "out-sweep-2.csv")
    assert row["file"].endswith("out-rank2-2.safetensors")
    assert end.outcome == "done"


def test_a_run_that_fails_does_not_keep_the_next_from_beginning(tmp_path):
    several = swept(tmp_path)
    events = sweep(several, host=Standalone(), control=Controls())
    first = next(event for event in events if isinstance(event, Told))
    assert "Run 1 of 2: network.rank 2" in first.text
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "rank2").write_text("a file where the folder of the first run should be")
    *_, end = events
    assert end.outcome == "failed"
    assert [row["outcome"] for row in rows_of(tmp_path / "out" / "out-sweep.csv")] == ["failed", "done"]


def test_the_command_line_shows_and_trains_a_sweep(tmp_path, capsys):
    config = small_run(tmp_path, train__steps=2, output__save_steps=0)
    file = tmp_path / "sweep.yaml"
    file.write_text(
        f"base_model: {config.model.base}\ntrain_data_dir: {config.data.folder}\nresolution: 64\n"
        f"max_train_steps: 2\noutput_dir: {tmp_path / 'cli'}\nlora_rank: [2, 4]\n"
    )
    assert main(["train", "--config", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "--- lora_rank2" not in shown
    assert "--- rank2" in shown
    assert "--- rank4" in shown
    assert not (tmp_path / "cli").exists()
    assert main(["train", "--config", str(file)]) == 0
    assert "2 of 2 runs are done" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "cli").glob("*/cli-rank?.safetensors")) == [
        "cli-rank2.safetensors", "cli-rank4.safetensors",
    ]  # fmt: skip


def test_the_table_tells_the_best_on_held_out_images_and_puts_the_best_run_first(tmp_path):
    settings = dump(small_run(tmp_path, train__steps=4, validation__share=0.2, validation__every=2))
    settings["train"]["learning_rate"] = [0.3, 1e-4]  # the first of them spoils what it is measured on
    seen = {}
    number = 0
    for event in sweep(variants(settings), host=Standalone(), control=Controls()):
        if isinstance(event, Told) and event.text.startswith("Run "):
            number += 1
        elif isinstance(event, Validated):
            seen.setdefault(number, []).append((event.loss, event.step))
    assert isinstance(event, Finished)
    with next((tmp_path / "out").rglob("*-sweep.csv")).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, looks in zip(rows, seen.values(), strict=True):
        assert (row["best_validation"], row["best_step"]) == (f"{min(looks)[0]:.5f}", str(min(looks)[1]))
    lines = event.text.splitlines()
    assert "best_validation" in lines[1]
    firsts = [float(line.split()[lines[1].split().index("best_validation")]) for line in lines[2:]]
    assert firsts == sorted(firsts)


def test_a_sweep_without_held_out_images_shows_no_column_for_them(tmp_path):
    settings = dump(small_run(tmp_path, train__steps=1))
    settings["network"]["rank"] = [2, 4]
    *_, end = sweep(variants(settings), host=Standalone(), control=Controls())
    assert "best_validation" not in end.text


def test_a_sweep_of_a_slider_without_a_folder_is_not_named_by_the_place_it_began_in():
    (first, _) = variants({"slider.positive": "old", "slider.negative": "new", "lora_rank": [4, 8]})
    assert load(first.raw).output.name == "my_lora-rank4"
