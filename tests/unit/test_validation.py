"""Held-out images: which they are, the same numbers each time, the best kept, and the run ended or resumed by them."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.contracts import Batch, Finished, PlainError, Saved, Stepped, Told, Validated
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.checkpoints import newest_state
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.run import Controls, run
from lora_trainer.train.held_out import HeldOut
from lora_trainer.train.objective import add_noise
from lora_trainer.train.watch import Watch
from tests.builders.networks import base_model, put_on, randomise
from tests.builders.runs import run_all, small_run, write_pictures


def only(events, kind):
    return [event for event in events if isinstance(event, kind)]


def held(tmp_path, name="lora", **options):
    more = {"validation__share": 0.34, "validation__every": 2, "validation__timesteps": 2} | options
    return small_run(tmp_path, output__directory=str(tmp_path / name / "lora"), **more)


# --- which images ----------------------------------------------------------------------------------------------------


def names(data):
    return {item.name for item in data.items}


def test_a_share_is_held_out_by_name_and_not_trained_on(tmp_path):
    plan = plan_run(held(tmp_path), Standalone())
    other = plan_run(held(tmp_path, train__seed=99), Standalone())
    assert len(plan.held_out.items) == 2
    assert names(plan.data) | names(plan.held_out) == {f"{n}.png" for n in range(6)}
    assert names(plan.data).isdisjoint(names(plan.held_out))
    assert names(other.held_out) == names(plan.held_out), "whatever the seed"
    assert "2 images, looked at every 2 steps in 2 ranges" in plan.text()


def test_a_folder_is_held_out_and_a_part_of_the_data_set_is_taken_from_it(tmp_path):
    apart = write_pictures(tmp_path / "apart", 3)
    plan = plan_run(held(tmp_path, validation__share=0.0, validation__folder=str(apart)), Standalone())
    assert (len(plan.data.items), len(plan.held_out.items)) == (6, 3)
    write_pictures(tmp_path / "pictures" / "held", 2)
    inside = held(tmp_path, validation__share=0.0, validation__folder=str(tmp_path / "pictures" / "held"))
    plan = plan_run(inside, Standalone())
    assert (len(plan.data.items), len(plan.held_out.items)) == (6, 2)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"validation__folder": "somewhere"}, "one way or the other"),
     ({"validation__share": 0.0, "validation__patience": 2}, "only where validation.share or"),
     ({"validation__share": 0.0, "validation__folder": "PICTURES"}, "leaves none to train on")],
)  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, options, told):
    small_run(tmp_path)
    options = {name: str(tmp_path / "pictures") if value == "PICTURES" else value for name, value in options.items()}
    with pytest.raises(PlainError, match=told):
        plan_run(held(tmp_path, **options), Standalone())


def test_one_image_cannot_be_shared(tmp_path):
    write_pictures(tmp_path / "pictures", 1)
    with pytest.raises(PlainError, match="only 1 images"):
        plan_run(held(tmp_path), Standalone())


# --- what is measured ------------------------------------------------------------------------------------------------


class Pictures:
    """Batches of one random picture each."""

    def __call__(self, index):
        latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(index))
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        return Batch((index,), latents, (f"number {index}",), None, sizes, torch.ones(1))


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_numbers_are_the_same_each_time_and_those_of_the_closed_form(kind, monkeypatch):
    base = base_model(kind)
    network = put_on(base, dropout=0.5)
    randomise(network)
    held_out = HeldOut(base, network, Pictures(), lambda: 2, 1, 4)
    first = held_out.measure(1)
    torch.manual_seed(77)
    assert held_out.measure(1) == first, "dropout rests, and nothing is drawn from the process's state"
    assert held_out.measure(0) != first
    seen = []
    predict = base.predict

    def watched(noisy, timesteps, text, sizes):
        seen.append((noisy, timesteps))
        return predict(noisy, timesteps, text, sizes)

    monkeypatch.setattr(base, "predict", watched)
    assert held_out.measure(1) == first
    noisy, timesteps = seen[0]
    assert [int(t) // 250 for t in timesteps] == [0, 1, 2, 3], "one in each range"
    abar = base.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    latents = Pictures()(1).latents
    noise = (noisy - abar.sqrt() * latents) / (1 - abar).sqrt()  # Ho et al. 2020, equation 4, solved for eps
    torch.testing.assert_close(add_noise(latents, noise, abar.flatten()), noisy)
    with network.scaled(1), torch.no_grad():
        text = base.encode_text(["number 1"] * 4)
        answer = predict(noisy, timesteps, text, Pictures()(1).sizes.repeat(4, 1))
    expected = (answer - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(torch.tensor(first), expected, rtol=1e-3, atol=1e-4)


# --- the course of a run ---------------------------------------------------------------------------------------------


def judged(pairs, patience=0):
    """A watch after looks of (training loss before it, held-out loss), 100 steps apart, with what it said."""
    watch, said = Watch(patience), []
    for index, (trained, loss) in enumerate(pairs):
        if index:
            watch.stepped(trained)
        said.append(watch.measured(index * 100, loss))
    return watch, said


RISING = [(0, 0.9), (0.8, 0.7), (0.6, 0.5), (0.5, 0.52), (0.4, 0.55)]


def test_falling_training_and_rising_held_out_loss_is_overfitting_told_once():
    watch, said = judged([*RISING, (0.3, 0.58)])
    assert said[4] == (
        "Overfitting since step 300: the training loss falls while the loss on the held-out data rises; the best is "
        "step 200."
    )
    assert [bool(text) for text in said] == [False, False, False, False, True, False]
    assert watch.best.step == 200


@pytest.mark.parametrize(
    "pairs",
    [[*RISING[:4], (0.4, 0.51)],  # one bump
     [*RISING[:3], (0.7, 0.52), (0.8, 0.55)],  # the training loss rises too
     [(0, 0.9), (0.8, 0.8), (0.6, 0.7), (0.5, 0.6)]],  # all is well
)  # fmt: skip
def test_nothing_is_said_of_what_is_no_overfitting(pairs):
    assert judged(pairs)[1] == [""] * len(pairs)


def test_a_new_best_lets_it_warn_again():
    _, said = judged([*RISING, (0.4, 0.4), (0.3, 0.45), (0.2, 0.5)])
    assert [index for index, text in enumerate(said) if text] == [4, 7]


def test_patience_counts_looks_since_the_best():
    assert not judged(RISING, patience=3)[0].exhausted
    assert judged(RISING, patience=2)[0].exhausted
    assert not judged(RISING, patience=0)[0].exhausted


def test_a_watch_goes_on_where_it_was():
    watch, _ = judged(RISING)
    watch.stepped(0.3)
    other = Watch(0)
    other.load(watch.state())
    assert other == watch
    other.load({})  # an older state has none
    assert other == watch


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_looks_at_its_start_on_the_way_and_at_its_end(tmp_path):
    events = run_all(held(tmp_path, train__steps=5))
    looks = only(events, Validated)
    assert [look.step for look in looks] == [0, 2, 4, 5]
    assert all(len(look.by_timestep) == 2 for look in looks)
    assert all(look.loss == pytest.approx(sum(look.by_timestep) / 2) for look in looks)
    assert len({look.loss for look in looks}) == 4, "the weights changed, so did the loss"
    log = (tmp_path / "lora/lora/logs/lora.log").read_text(encoding="utf-8")
    assert f"held-out loss {looks[-1].loss:.5f} at step 5" in log


@pytest.mark.slow
def test_looking_does_not_change_the_training(tmp_path):
    looked = run_all(held(tmp_path, "looked", network__dropout=0.2))
    apart = run_all(held(tmp_path, "apart", network__dropout=0.2, validation__every=6))
    assert [e.loss for e in only(looked, Stepped)] == [e.loss for e in only(apart, Stepped)]
    first, second = (load_file(tmp_path / name / "lora/lora.safetensors") for name in ("looked", "apart"))
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def spoiled(tmp_path, name="lora", **options):
    """A run that gets worse from its first step on: a rate at which nothing can be learned."""
    return held(tmp_path, name, train__learning_rate=3.0, train__warmup=0.5, train__schedule="constant",
                train__steps=12, validation__every=1, **options)  # fmt: skip


@pytest.mark.slow
def test_the_best_is_kept_named_and_never_pruned(tmp_path):
    events = run_all(spoiled(tmp_path, output__keep_last=1, output__save_steps=1, output__precision="fp32"))
    looks = only(events, Validated)
    best = min(looks, key=lambda look: look.loss)
    assert 0 < best.step < 12, "else this run shows nothing"
    assert looks[-1].best == best.step
    kept = tmp_path / "lora/lora/lora-best.safetensors"
    assert kept in [event.path for event in only(events, Saved)]
    end = events[-1]
    assert end.path == kept
    assert f"step {best.step} is better" in end.text
    assert str(kept) in end.text
    straight = run_all(spoiled(tmp_path, "short", output__keep_last=0, output__save_steps=1, output__precision="fp32"))
    assert straight[-1].outcome == "done"
    of_step = load_file(tmp_path / "short/lora" / f"lora-{best.step:06d}.safetensors")
    assert all(torch.equal(tensor, of_step[key]) for key, tensor in load_file(kept).items())


def test_patience_ends_the_run(tmp_path):
    events = run_all(spoiled(tmp_path, validation__patience=2))
    best = min(only(events, Validated), key=lambda look: look.loss).step
    end = events[-1]
    assert isinstance(end, Finished)
    assert (end.outcome, end.step) == ("done", best + 2)
    assert f"Ended after step {best + 2} of 12, since 2 looks at the held-out data were no better" in end.text
    assert (tmp_path / "lora/lora/lora.safetensors").exists()


@pytest.mark.slow
def test_a_resumed_run_goes_on_with_its_looks(tmp_path):
    straight = run_all(spoiled(tmp_path, "straight", output__save_steps=0))
    config, control, events = spoiled(tmp_path, "broken", output__save_steps=0), Controls(), []
    for event in run(config, host=Standalone(), control=control):
        events.append(event)
        if isinstance(event, Stepped) and event.step == 5:
            control.stop()
    resumed = run_all(config, resume=True)
    looks = {look.step: look for look in only([*events, *resumed], Validated)}
    assert looks == {look.step: look for look in only(straight, Validated)}
    assert len(only(resumed, Validated)) == 12 - 5
    told = [event.text for event in only([*events, *resumed], Told) if "Overfitting" in event.text]
    assert told == [event.text for event in only(straight, Told) if "Overfitting" in event.text]
    saved, _ = newest_state(plan_run(config, Standalone(), resume=True).files)
    assert [look[0] for look in saved.state.course["looks"]] == list(range(13))


def test_averaged_weights_are_what_is_measured(tmp_path):
    plain, steady = (
        only(run_all(held(tmp_path, name, train__ema=ema)), Validated) for name, ema in (("plain", 0.0), ("ema", 0.99))
    )
    assert plain[0].loss == steady[0].loss
    assert abs(steady[-1].loss - steady[0].loss) < abs(plain[-1].loss - plain[0].loss), "the average lags behind"


def test_a_look_that_fails_is_told_and_the_run_goes_on(tmp_path, monkeypatch):
    def broken(self, index):
        raise RuntimeError("no such picture")

    monkeypatch.setattr(HeldOut, "measure", broken)
    events = run_all(held(tmp_path))
    assert events[-1].outcome == "done"
    assert sum("were not looked at" in event.text for event in only(events, Told)) == 4


def test_a_best_that_cannot_be_written_is_told_and_the_run_goes_on(tmp_path):
    config = held(tmp_path)
    (tmp_path / "lora/lora/lora-best.safetensors").mkdir(parents=True)
    (tmp_path / "lora/lora/lora-best.safetensors/in the way").touch()
    events = run_all(replace(config))
    assert any("was not kept" in event.text for event in only(events, Told))
    assert events[-1].outcome == "done"


def test_tensorboard_holds_the_looks(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    looks = only(run_all(held(tmp_path, output__tensorboard=True)), Validated)
    board = EventAccumulator(str(tmp_path / "lora/lora/logs/lora"))
    board.Reload()
    assert [s.value for s in board.Scalars("validation/loss")] == pytest.approx([look.loss for look in looks])
    assert [s.value for s in board.Scalars("validation/range_2")] == pytest.approx(
        [look.by_timestep[1] for look in looks]
    )
