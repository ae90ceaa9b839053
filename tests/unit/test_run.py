"""Whole runs on slim checkpoints of the real layouts: what is written, resumed, refused and left as it was."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from lora_trainer.contracts import Finished, PlainError, Sampled, Saved, Started, Stepped, Told
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.run import Controls, run
from tests.builders.runs import run_all, small_run, write_pictures


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_run_writes_a_lora_with_effect_and_its_recipe(tmp_path, family):
    events = run_all(small_run(tmp_path, family))
    end = events[-1]
    assert isinstance(end, Finished)
    assert end.outcome == "done", end
    assert [e.step for e in only(events, Stepped)] == [1, 2, 3, 4, 5, 6]
    path = tmp_path / "out/lora/lora.safetensors"
    ups = [tensor for key, tensor in load_file(path).items() if key.endswith("lora_up.weight")]
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert ups
    assert all(up.abs().max() > 0 for up in ups)
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_output_name"] == "lora"
    assert (tmp_path / "out/lora/lora.yaml").exists()


def test_checkpoints_have_the_promised_names_and_the_last_ones_are_kept(tmp_path):
    run_all(small_run(tmp_path, train__steps=9, output__keep_last=2))
    names = sorted(p.name for p in (tmp_path / "out/lora").glob("*.safetensors"))
    assert names == ["lora-000006.safetensors", "lora-000008.safetensors", "lora.safetensors"]


def test_the_same_seed_gives_the_same_file_wherever_it_is_written(tmp_path):
    run_all(small_run(tmp_path))
    torch.manual_seed(999)
    run_all(small_run(tmp_path, output__directory=str(tmp_path / "elsewhere" / "lora")))
    first, second = tmp_path / "out/lora/lora.safetensors", tmp_path / "elsewhere/lora/lora.safetensors"
    assert first.read_bytes() == second.read_bytes()


def test_another_seed_gives_another_file(tmp_path):
    run_all(small_run(tmp_path))
    run_all(small_run(tmp_path, train__seed=12, output__directory=str(tmp_path / "elsewhere" / "lora")))
    first, second = tmp_path / "out/lora/lora.safetensors", tmp_path / "elsewhere/lora/lora.safetensors"
    assert first.read_bytes() != second.read_bytes()


def test_the_process_random_state_is_left_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    run_all(small_run(tmp_path, network__dropout=0.3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "options",
    [{}, {"train__text_encoder_learning_rate": 0.0}, {"network__dropout": 0.2},
     pytest.param({"train__ema": 0.9, "train__schedule": "rex"}, marks=pytest.mark.slow),
     pytest.param({"optimizer__kind": "schedule_free"}, marks=[pytest.mark.slow, pytest.mark.newest_only])],
)  # fmt: skip
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, options):
    run_all(small_run(tmp_path, output__directory=str(tmp_path / "straight" / "lora"), **options))
    config, control = small_run(tmp_path, **options), Controls()
    events = []
    for event in run(config, host=Standalone(), control=control):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 3:
            control.stop()
    assert events[-1].outcome == "stopped"
    assert "--resume" in events[-1].text
    resumed = run_all(config, resume=True)
    assert only(resumed, Started)[0].step == 3
    one, other = tmp_path / "straight/lora/lora.safetensors", tmp_path / "out/lora/lora.safetensors"
    assert one.read_bytes() == other.read_bytes()


def test_resume_with_nothing_there_starts_at_the_beginning_and_says_so(tmp_path):
    events = run_all(small_run(tmp_path), resume=True)
    assert any("Nothing to resume" in e.text for e in only(events, Told))
    assert events[-1].outcome == "done"


def test_a_folder_with_a_run_is_left_alone(tmp_path):
    run_all(small_run(tmp_path))
    before = {p.name: p.read_bytes() for p in (tmp_path / "out/lora").glob("*.safetensors")}
    events = run_all(small_run(tmp_path))
    assert events[-1].path == tmp_path / "out/lora-2/lora-2.safetensors"
    assert any("left alone" in e.text for e in only(events, Told))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out/lora").glob("*.safetensors")} == before


def test_resume_with_another_rank_is_refused_and_nothing_is_lost(tmp_path):
    run_all(small_run(tmp_path))
    before = (tmp_path / "out/lora/lora.safetensors").read_bytes()
    with pytest.raises(PlainError, match=r"network\.rank was 4 and is 8"):
        run_all(small_run(tmp_path, network__rank=8), resume=True)
    assert (tmp_path / "out/lora/lora.safetensors").read_bytes() == before


def test_accumulation_equals_the_larger_batch(tmp_path):
    write_pictures(tmp_path / "pictures", sides=((128, 128),))  # the UNet's norms refuse one picture of one latent cell
    whole = small_run(tmp_path, data__resolution=128, output__precision="fp32")
    halves = small_run(
        tmp_path, data__resolution=128, data__batch_size=1, train__gradient_accumulation_steps=2,
        output__precision="fp32", output__directory=str(tmp_path / "halves" / "lora"),
    )  # fmt: skip
    run_all(whole)
    run_all(halves)
    two = load_file(tmp_path / "halves/lora/lora.safetensors")
    for key, tensor in load_file(tmp_path / "out/lora/lora.safetensors").items():
        # As wholes: where a gradient is all but zero, AdamW's first steps turn its rounding into a full step.
        assert (two[key] - tensor).norm() <= 2e-3 * tensor.norm(), key


def test_samples_are_drawn_at_the_start_and_on_the_way(tmp_path):
    events = run_all(small_run(
        tmp_path, samples__prompts=["blocks"], samples__every=3, samples__sampling_steps=2, samples__size=64,
    ))
    drawn = only(events, Sampled)
    assert [event.step for event in drawn] == [0, 3, 6]
    assert all(path.exists() for event in drawn for path in event.paths)
    first, last = drawn[0].paths[0].read_bytes(), drawn[-1].paths[0].read_bytes()
    assert first != last


def test_a_dry_run_tells_what_will_happen_and_writes_nothing(tmp_path):
    config = small_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    text = plan_run(config, Standalone()).text()
    for word in ("Stable Diffusion 1", "epsilon", "6 found", "0 missing", "64", "float32", "lora.safetensors"):
        assert word in text, text
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path):
    events = []
    for event in run(small_run(tmp_path), host=Standalone(), control=Controls()):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 1:
            (tmp_path / "out/lora/lora-000002.safetensors").mkdir()  # nothing can be moved to where a folder is
    assert any("was not saved, the training goes on" in e.text for e in only(events, Told))
    assert [e.step for e in only(events, Saved)] == [4, 6]
    assert events[-1].outcome == "done"


def test_training_on_from_a_lora_starts_with_its_effect(tmp_path):
    run_all(small_run(tmp_path))
    first = tmp_path / "out/lora/lora.safetensors"
    events = run_all(small_run(
        tmp_path, network__start_from=str(first), train__learning_rate=0.0, train__text_encoder_learning_rate=0.0,
        train__steps=1, output__directory=str(tmp_path / "on" / "lora"),
    ))
    assert events[-1].outcome == "done"
    one, two = load_file(first), load_file(tmp_path / "on/lora/lora.safetensors")
    assert any(key.startswith("lora_unet") for key in two)
    for key, tensor in two.items():
        torch.testing.assert_close(tensor.float(), one[key].float(), rtol=1e-3, atol=1e-5)


def test_finished_saves_are_reported_with_their_step(tmp_path):
    saved = only(run_all(small_run(tmp_path)), Saved)
    assert [(e.step, e.final) for e in saved] == [(2, False), (4, False), (6, True)]


@pytest.mark.parametrize("place", ["afile", "afile/below"])
def test_a_file_where_the_folder_should_be_is_told_before_anything_is_done(tmp_path, place):
    (tmp_path / "afile").write_text("not a folder")
    with pytest.raises(PlainError, match="afile is a file"):
        run_all(small_run(tmp_path, output__directory=str(tmp_path / place)))


def test_a_lora_of_another_family_to_start_from_is_refused_and_nothing_is_written(tmp_path):
    run_all(small_run(tmp_path, train__steps=1))
    config = small_run(
        tmp_path, "sdxl", network__start_from=str(tmp_path / "out/lora/lora.safetensors"),
        output__directory=str(tmp_path / "on" / "lora"),
    )  # fmt: skip
    with pytest.raises(PlainError, match="Stable Diffusion XL"):
        run_all(config)
    assert not (tmp_path / "on").exists()


@pytest.mark.parametrize(("trigger", "word"), [("", "cat"), ("ohwx", "")])
def test_to_keep_the_base_needs_a_trigger_and_its_class(tmp_path, trigger, word):
    config = small_run(tmp_path, objective__preserve=1.0, data__trigger=trigger, objective__preserve_class=word)
    with pytest.raises(PlainError, match=r"data\.trigger" if not trigger else r"objective\.preserve_class"):
        plan_run(config, Standalone())


@pytest.mark.slow
def test_a_run_that_keeps_the_base_strays_less_from_it(tmp_path):
    def size(name, **preserve):
        config = small_run(
            tmp_path, data__trigger="ohwx", train__text_encoder_learning_rate=0.0, train__steps=8,
            output__directory=str(tmp_path / name / "lora"), **preserve,
        )  # fmt: skip
        assert run_all(config)[-1].outcome == "done"
        weights = load_file(tmp_path / name / "lora/lora.safetensors")
        return sum(tensor.float().square().sum() for key, tensor in weights.items() if "lora_up" in key).item()

    kept = size("kept", objective__preserve=50.0, objective__preserve_class="cat")
    assert kept < 0.9 * size("free")


def test_a_range_without_a_timestep_is_refused(tmp_path):
    config = small_run(tmp_path, objective__min_timestep=600, objective__max_timestep=600)
    with pytest.raises(PlainError, match="leaves no timestep"):
        plan_run(config, Standalone())


def test_the_plan_tells_the_objective(tmp_path):
    assert "squared error, min-SNR 5, timesteps 0 to 999" in plan_run(small_run(tmp_path), Standalone()).text()
    text = plan_run(small_run(
        tmp_path, objective__loss="huber", objective__weighting="debiased", objective__timesteps="high_noise",
        objective__pyramid_noise=6, objective__input_perturbation=0.1, train__noise_offset=0.05,
    ), Standalone()).text()  # fmt: skip
    for words in ("huber with delta 0.1 (snr)", "debiased", "much noise more often", "6 layers", "0.05", "perturbed"):
        assert words in text


def test_the_average_is_what_is_written_and_drawn(tmp_path):
    def lora(name, **options):
        config = small_run(
            tmp_path, output__directory=str(tmp_path / name / "lora"), output__precision="fp32", train__steps=4,
            samples__prompts=["blocks"], samples__sampling_steps=1, samples__size=64, samples__every=4, **options,
        )  # fmt: skip
        events = run_all(config)
        picture = only(events, Sampled)[-1].paths[0].read_bytes()
        return events, load_file(tmp_path / name / "lora/lora.safetensors"), picture

    plain, steady = lora("plain"), lora("steady", train__ema=0.99)
    assert any("MiB more" in event.text for event in only(steady[0], Told))
    assert [e.loss for e in only(plain[0], Stepped)] == [e.loss for e in only(steady[0], Stepped)]
    assert steady[2] != plain[2]
    ups = [key for key in plain[1] if "lora_up" in key]
    assert sum(steady[1][key].norm() for key in ups) < sum(plain[1][key].norm() for key in ups), "it lags behind"


@pytest.mark.parametrize(
    ("options", "told"),
    [({"optimizer__kind": "schedule_free", "train__ema": 0.9}, "ema is 0.9, but counts only where"),
     ({"optimizer__kind": "schedule_free", "train__schedule": "linear"}, "schedule is .linear., but counts only"),
     ({"optimizer__kind": "prodigy", "network__loraplus_ratio": 4.0, "train__text_encoder_learning_rate": 0.0},
      "network.loraplus_ratio is 4.0, but counts only where optimizer.kind is not prodigy"),
     ({"optimizer__kind": "prodigy", "train__text_encoder_learning_rate": 0.5}, "one learning rate for all parts")],
)  # fmt: skip
def test_an_optimizer_with_what_it_cannot_use_is_refused(tmp_path, options, told):
    with pytest.raises(PlainError, match=told):
        plan_run(small_run(tmp_path, **options), Standalone())


@pytest.mark.parametrize(
    ("kind", "rate", "told"),
    [("adamw", 1.0, "is high for AdamW"), ("adafactor", 1e-8, "is low for Adafactor"),
     pytest.param("prodigy", 1e-4, "set it to 1", marks=pytest.mark.newest_only),
     pytest.param("lion", 1e-3, "a third to a tenth", marks=pytest.mark.newest_only)],
)  # fmt: skip
def test_a_rate_that_does_not_suit_the_optimizer_is_told(tmp_path, kind, rate, told):
    notes = plan_run(small_run(tmp_path, optimizer__kind=kind, train__learning_rate=rate), Standalone()).notes
    assert any(told in note for note in notes), notes


@pytest.mark.newest_only
def test_prodigy_gives_the_text_encoders_its_own_rate(tmp_path):
    plan = plan_run(small_run(tmp_path, optimizer__kind="prodigy", train__learning_rate=1.0), Standalone())
    assert set(plan.rates.values()) == {1.0}
    assert "one rate for all" in plan.text()


def test_the_plan_tells_optimizer_and_course(tmp_path):
    text = plan_run(small_run(tmp_path, train__ema=0.99, train__schedule="cosine_with_restarts"), Standalone()).text()
    assert "AdamW, moving average 0.99" in text
    assert "cosine_with_restarts x 3" in text
