"""Jobs in a registry: small real runs, queued, paused, stopped, failed, remembered."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.config.load import ConfigError, dump
from lora_trainer.contracts import Finished, PlainError, Prepared, Sampled, Saved, Started, Stepped, Told, Validated
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs import registry as registry_module
from lora_trainer.jobs.job import Job, WrongMoment
from lora_trainer.jobs.registry import Registry, registry_of
from tests.builders.runs import run_all, small_run


def home(folder: Path) -> Standalone:
    """No WebUI, with a folder for the records."""
    return Standalone(runs=folder / "runs")


@pytest.fixture
def registry(tmp_path: Path):
    made = Registry(home(tmp_path))
    yield made
    made.close(60)


QUICK = {"train__text_encoder_learning_rate": 0.0, "data__batch_size": 1}  # a step in a twentieth of a second


def raw(folder: Path, **options: Any) -> dict[str, Any]:
    return dump(small_run(folder, **(QUICK | options)))


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.005)


def steps_of(job: Job) -> list[int]:
    return [item.event.step for item in job.events() if isinstance(item.event, Stepped)]


def test_a_job_is_trained_and_tells_its_course(tmp_path, registry):
    job = registry.submit(raw(tmp_path))
    assert job.total_steps == 6
    until(lambda: job.ended)
    assert (job.state, job.step, job.name) == ("done", 6, "lora")
    assert job.files == [tmp_path / "out/lora" / f"lora{end}.safetensors" for end in ("-000002", "-000004", "")]
    events = job.events()
    numbers = [item.n for item in events]
    assert numbers == sorted(set(numbers))
    assert numbers[0] >= 1
    assert isinstance(events[-1].event, Finished)
    assert events[-1].event.text == job.message
    assert steps_of(job) == [1, 2, 3, 4, 5, 6]
    assert job.loss == [item.event.loss for item in events if isinstance(item.event, Stepped)][-1]
    started = next(item for item in events if isinstance(item.event, Started))
    assert job.events(after=started.n)[0].n > started.n
    assert len(job.events(after=started.n, limit=2)) == 2
    alone = run_all(small_run(tmp_path, **QUICK, output__directory=str(tmp_path / "alone" / "lora")))
    assert alone[-1].path.read_bytes() == job.files[-1].read_bytes(), "the same file as without a registry"


def long_raw(folder: Path, **options: Any) -> dict[str, Any]:
    return raw(folder, **({"train__steps": 5000, "output__save_steps": 0} | options))


def test_every_fault_comes_at_once_and_nothing_is_queued(tmp_path, registry):
    bad = {"train_data_dir": str(tmp_path), "network": {"rank": "ten"}, "trian": 1, "output_name": "../out"}
    with pytest.raises(ConfigError) as caught:
        registry.submit(bad)
    assert len(caught.value.faults) == 3, caught.value
    with pytest.raises(PlainError, match="does not exist"):
        registry.submit(raw(tmp_path) | {"data": {"folder": str(tmp_path / "gone")}})
    assert registry.jobs() == []


def test_orders_act_within_one_step(tmp_path, registry):
    job = registry.submit(long_raw(tmp_path, samples__prompts=["blocks"], samples__sampling_steps=1,
                                   samples__size=64, samples__every=4999))  # fmt: skip
    until(lambda: job.step >= 2)
    job.pause()
    assert job.state == "paused"
    time.sleep(0.5)  # the step under way ends
    held = job.step
    time.sleep(0.3)
    assert job.step == held
    job.go_on()
    assert job.state == "running"
    until(lambda: job.step > held)
    for order, wanted in ((job.save_now, Saved), (job.sample_now, Sampled)):
        ordered, before = job.step, job.log.last
        order()
        until(lambda b=before, w=wanted: any(isinstance(item.event, w) for item in job.events(after=b)))
        event = next(item.event for item in job.events(after=before) if isinstance(item.event, wanted))
        assert ordered < event.step <= ordered + 2, "the step that was under way, or the next"
    ordered = job.step
    job.stop()
    until(lambda: job.ended)
    assert job.state == "stopped"
    assert job.step <= ordered + 1
    assert job.resumable
    for order in (job.pause, job.go_on, job.save_now, job.sample_now):
        with pytest.raises(WrongMoment, match="it is stopped"):
            order()
    job.stop()
    assert job.state == "stopped"


def test_samples_without_a_prompt_are_refused_in_words(tmp_path, registry):
    job = registry.submit(long_raw(tmp_path))
    until(lambda: job.step >= 1)
    with pytest.raises(PlainError, match=r"samples\.prompts"):
        job.sample_now()


def test_two_starts_at_once_are_trained_one_after_the_other_under_two_names(tmp_path, registry):
    first, second = registry.submit(raw(tmp_path)), registry.submit(raw(tmp_path))
    third = registry.submit(raw(tmp_path))
    assert (second.state, second.name, third.name) == ("queued", "lora-2", "lora-3")
    assert "the name lora is taken" in second.message
    third.stop()
    assert third.state == "stopped"
    until(lambda: second.ended)
    assert (first.state, second.state, third.step) == ("done", "done", 0)
    end = next(item.at for item in first.events() if isinstance(item.event, Finished))
    begin = next(item.at for item in second.events() if isinstance(item.event, Started))
    assert end <= begin
    assert first.files[-1].name == "lora.safetensors"
    assert second.files[-1].name == "lora-2.safetensors"
    assert [job.id for job in registry.jobs()] == [third.id, second.id, first.id]


def test_a_paused_job_can_be_stopped_and_its_successor_begins(tmp_path, registry):
    job, waiting = registry.submit(long_raw(tmp_path)), registry.submit(raw(tmp_path))
    until(lambda: job.step >= 1)
    job.pause()
    time.sleep(0.2)
    assert waiting.state == "queued"
    job.stop()
    until(lambda: waiting.ended)
    assert (job.state, waiting.state) == ("stopped", "done")


def test_a_stop_while_images_are_encoded_leaves_no_folder(tmp_path, registry):
    job = registry.submit(long_raw(tmp_path))
    until(lambda: any(isinstance(item.event, Prepared) for item in job.events()) or job.step)
    job.stop()
    until(lambda: job.ended)
    assert job.state == "stopped"
    if not any(isinstance(item.event, Started) for item in job.events()):
        assert not (tmp_path / "out").exists()


def test_stopped_and_resumed_the_file_is_that_of_an_uninterrupted_run(tmp_path, registry):
    job = registry.submit(raw(tmp_path, train__steps=12))
    until(lambda: job.step >= 3)
    job.stop()
    until(lambda: job.ended)
    stopped_at = job.step
    assert 3 <= stopped_at < 12
    assert registry.resume(job.id) is job
    until(lambda: job.ended)
    assert (job.state, job.step) == ("done", 12)
    assert [step for step in range(1, 13) if step not in steps_of(job)] == []
    with pytest.raises(WrongMoment, match="done"):
        registry.resume(job.id)
    whole = run_all(small_run(tmp_path, **QUICK, train__steps=12, output__directory=str(tmp_path / "whole" / "lora")))
    assert whole[-1].path.read_bytes() == job.files[-1].read_bytes()


def test_a_run_under_a_number_is_resumed_under_that_number(tmp_path, registry):
    """`lora` is there already, so the run writes lora-2, and goes on as lora-2."""
    run_all(small_run(tmp_path))
    job = registry.submit(raw(tmp_path, train__steps=12))
    assert job.name == "lora-2"
    until(lambda: job.step >= 3)
    job.stop()
    until(lambda: job.ended)
    assert job.resumable
    registry.resume(job.id)
    until(lambda: job.ended)
    assert (job.state, job.step, job.files[-1].name) == ("done", 12, "lora-2.safetensors")


def test_what_a_submission_resumes_is_the_job_that_wrote_there(tmp_path, registry):
    job = registry.submit(raw(tmp_path, train__steps=12))
    until(lambda: job.step >= 3)
    with pytest.raises(PlainError, match="under way"):
        registry.submit(raw(tmp_path, train__steps=12), resume=True)
    job.stop()
    until(lambda: job.ended)
    assert registry.submit(raw(tmp_path, train__steps=12), resume=True) is job
    until(lambda: job.ended)
    assert job.state == "done"


def test_a_folder_that_vanishes_while_the_job_waits_ends_it_in_a_sentence(tmp_path, registry):
    first, second = registry.submit(long_raw(tmp_path)), registry.submit(raw(tmp_path))
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    first.stop()
    until(lambda: second.ended)
    assert second.state == "failed"
    assert "does not exist" in second.message
    assert isinstance(second.events()[-1].event, Finished)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ZeroDivisionError("division by zero"), "ZeroDivisionError: division by zero"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (MemoryError(), "Out of memory"),
        (SystemExit(3), "SystemExit"),
    ],
)
def test_an_unforeseen_error_fails_the_job_and_its_trace_stays_off_the_page(
    tmp_path, monkeypatch, caplog, registry, error, told
):
    """Also after `Finished`: what failed on the way out is not done."""

    def broken(*args, **kwargs):
        yield Told("Going well.")
        yield Finished("done", 1, None, "Done.")
        raise error

    import lora_trainer.jobs.run

    monkeypatch.setattr(lora_trainer.jobs.run, "run", broken)
    job = registry.submit(raw(tmp_path))
    until(lambda: job.ended)
    assert job.state == "failed"
    assert told in job.message
    assert "\n" not in job.message
    assert "Traceback" not in job.message
    assert [item.event.outcome for item in job.events() if isinstance(item.event, Finished)] == ["failed"]
    assert "in broken" in caplog.text
    monkeypatch.undo()
    after = registry.submit(raw(tmp_path))
    until(lambda: after.ended)
    assert after.state == "done", "the worker outlives a job that fails"


def test_the_trace_of_a_failed_step_is_in_the_log_of_the_run(tmp_path, monkeypatch, registry):
    import lora_trainer.jobs.run

    real = lora_trainer.jobs.run.run

    def broken(*args, **kwargs):
        for event in real(*args, **kwargs):
            yield event
            if isinstance(event, Saved):
                raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(lora_trainer.jobs.run, "run", broken)
    job = registry.submit(raw(tmp_path))
    until(lambda: job.ended)
    assert "up to step 2 is saved" in job.message
    assert job.resumable
    assert "ZeroDivisionError: on purpose" in job.training.files.log.read_text(encoding="utf-8")
    monkeypatch.undo()
    registry.resume(job.id)
    until(lambda: job.ended)
    assert (job.state, steps_of(job)) == ("done", [1, 2, 3, 4, 5, 6])


# --- memory ----------------------------------------------------------------------------------------------------------


def test_a_later_server_knows_what_was_done_and_what_was_cut_off(tmp_path, registry):
    done = registry.submit(raw(tmp_path))
    cut = registry.submit(raw(tmp_path, train__steps=5000, output__save_steps=2))
    waiting = registry.submit(raw(tmp_path))
    until(lambda: cut.step >= 5)  # and so what came before it is written down
    assert [job.id for job in Registry(home(tmp_path)).jobs()] == [done.id], "the others are under way in a server"
    shutil.copytree(tmp_path / "runs", tmp_path / "crash" / "runs")  # what a crash leaves at this moment
    later = Registry(home(tmp_path / "crash"))
    assert [job.id for job in later.jobs()] == [waiting.id, cut.id, done.id]
    known = later.job(done.id)
    assert (known.state, known.step, known.loss, known.files) == ("done", 6, done.loss, done.files)
    assert known.events() == done.events()
    former = later.job(cut.id)
    assert former.state == "stopped"
    assert former.resumable
    assert "The server ended while this was running" in former.message
    assert f"step {former.resumable_from} of 5000" in former.message
    assert steps_of(former)[:2] == [1, 2]
    assert "waiting" in later.job(waiting.id).message
    last = former.log.last
    assert last > cut.log.last, "a page that saw more than the record does not miss what comes"
    cut.stop()
    until(lambda: cut.ended)


def test_records_that_are_no_records_are_passed_over(tmp_path, registry, caplog):
    job = registry.submit(raw(tmp_path))
    folder = tmp_path / "runs" / "jobs"
    until(lambda: '"finished"' in (folder / f"{job.id}.events.json").read_text())
    good = (folder / f"{job.id}.json").read_text()
    (folder / "20200101-000000-000001.json").write_text("{")
    (folder / "20200101-000000-000002.json").write_text(json.dumps({"version": 1}))
    (folder / "20200101-000000-000003.json").write_text(json.dumps({"version": 99}))
    (folder / "20200101-000000-000004.json").write_text(good.replace('"rank": 4', '"rank": "x"'))
    (folder / "notes.json").write_text("[]")
    (folder / f"{job.id}.events.json").write_text('[{"n": 1, "at": 2, "kind": "odd"}]')
    later = Registry(home(tmp_path))
    assert [known.id for known in later.jobs()] == [job.id]
    assert later.jobs()[0].events() == []
    assert "passed over" in caplog.text


def test_only_the_newest_of_those_that_are_over_are_remembered(tmp_path, monkeypatch, registry):
    monkeypatch.setattr(registry_module, "REMEMBERED", 2)
    ids = []
    for _ in range(4):
        job = registry.submit(raw(tmp_path, train__steps=1))
        ids.append(job.id)
        until(lambda job=job: job.ended)
    until(lambda: len(registry.jobs()) == 2)
    assert [job.id for job in registry.jobs()] == [ids[3], ids[2]]
    until(lambda: {path.name.split(".")[0] for path in (tmp_path / "runs/jobs").glob("2*")} == set(ids[2:]))


def test_the_next_run_of_the_same_kind_is_estimated_by_this_one(tmp_path, registry):
    config = raw(tmp_path)
    assert registry.seconds(registry.plan(config)) is None
    job = registry.submit(config)
    until(lambda: job.ended)
    seconds = registry.seconds(registry.plan(raw(tmp_path, train__steps=600)))
    assert seconds == pytest.approx(600 * job.status.seconds_per_step)
    assert registry.seconds(registry.plan(raw(tmp_path, network__rank=8))) is None
    later = Registry(home(tmp_path))
    assert later.seconds(later.plan(raw(tmp_path, train__steps=600))) == seconds


def test_a_plan_is_told_in_a_sentence(tmp_path, registry):
    from lora_trainer.jobs.estimate import sentence

    plan = registry.plan(raw(tmp_path))
    assert sentence(plan, None) == "6 images, all with captions: 6 steps (1 epochs) at 64 px."
    assert sentence(plan, 700.0).endswith("at 64 px, about 12 minutes.")
    assert not (tmp_path / "out").exists()


def test_closing_stops_and_saves_what_is_under_way(tmp_path):
    registry = Registry(home(tmp_path))
    job, waiting = registry.submit(long_raw(tmp_path)), registry.submit(raw(tmp_path))
    until(lambda: job.step >= 1)
    registry.close(60)
    assert job.state == "stopped"
    assert job.resumable
    assert waiting.step == 0
    assert [known.state for known in Registry(home(tmp_path)).jobs()] == ["stopped", "stopped"]


def test_one_registry_a_process(tmp_path):
    class Other(Standalone):
        name = f"a host of {Path(__file__).name}"

    assert registry_of(Other(runs=tmp_path)) is registry_of(Other(runs=tmp_path))


def test_hammered_by_many_threads_nothing_is_lost_and_no_state_is_impossible(tmp_path, registry):
    """Eight threads give orders and read, while four jobs are queued; each must come to a whole end."""
    import random
    import threading

    config = raw(tmp_path, train__steps=10, output__save_steps=0)
    faults: list[BaseException] = []
    over = threading.Event()

    def hammer(seed: int) -> None:
        chance = random.Random(seed)
        try:
            while not over.is_set():
                for job in registry.jobs():
                    order = chance.choice([job.pause, job.go_on, job.go_on, job.go_on, job.save_now, job.events])
                    with suppress(WrongMoment):
                        order()
                    numbers = [item.n for item in job.events()]
                    assert numbers == sorted(set(numbers))
                    assert job.state in ("queued", "running", "paused", "done")
                time.sleep(0.02)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    jobs: list[Job] = []
    submitters = [threading.Thread(target=lambda: jobs.append(registry.submit(config))) for _ in range(4)]
    for thread in submitters:
        thread.start()
    for thread in submitters:
        thread.join()
    until(lambda: all(job.ended for job in jobs) or faults, 120)
    over.set()
    for thread in threads:
        thread.join()
    assert not faults, faults
    assert {job.name for job in jobs} == {"lora", *(f"lora-{number}" for number in range(2, 5))}
    assert {job.state for job in jobs} == {"done"}
    contents = {job.files[-1].read_bytes()[-1000:] for job in jobs}
    assert len(contents) == 1, "the same seed, so the same weights, whatever was ordered meanwhile"
    assert all(steps_of(job) == list(range(1, 11)) for job in jobs)


def test_a_registry_that_was_only_looked_at_leaves_nothing(tmp_path):
    registry = Registry(home(tmp_path))
    with pytest.raises(PlainError):
        registry.submit({})
    assert registry.jobs() == []
    registry.close(1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_for_records_that_cannot_be_written_costs_the_memory_and_not_the_training(tmp_path, caplog):
    (tmp_path / "runs").write_text("a file where the folder should be")
    registry = Registry(home(tmp_path))
    job = registry.submit(raw(tmp_path, train__steps=2))
    until(lambda: job.ended)
    assert job.state == "done"
    assert "could not be written" in caplog.text
    registry.close(1)


def test_lists_of_values_are_queued_as_runs_that_know_each_other(tmp_path, registry):
    asked = raw(tmp_path, train__steps=4, output__save_steps=0, validation__share=0.2, validation__every=2)
    asked["output"]["directory"] = str(tmp_path / "swept")
    asked["network"]["rank"] = [2, 4]
    first, second = registry.sweep(asked)
    until(lambda: first.ended and second.ended)
    assert first.state == second.state == "done"
    assert [job.task.place.values for job in (first, second)] == [{"network.rank": 2}, {"network.rank": 4}]
    assert first.task.place.sweep == second.task.place.sweep
    assert [job.files[-1].parent.name for job in (first, second)] == ["rank2", "rank4"]
    assert first.status.mean_loss == first.status.loss, "a tenth of four steps is one step"
    looks = [one.event for one in first.log.after(0, 1000) if isinstance(one.event, Validated)]
    best = min(looks, key=lambda look: look.loss)
    assert (first.status.best_validation, first.status.best_step) == (best.loss, best.step)
    registry.close(60)  # the last record is written when a job has ended, not before
    later = Registry(home(tmp_path))
    assert later.job(first.id).status.best_validation == best.loss
    assert [later.job(job.id).task.place.values["network.rank"] for job in (first, second)] == [2, 4]


def test_a_sweep_with_a_fault_in_one_run_queues_none(tmp_path, registry):
    asked = raw(tmp_path)
    asked["model"]["base"] = [asked["model"]["base"], str(tmp_path / "nowhere.safetensors")]
    with pytest.raises(PlainError, match="nowhere"):
        registry.sweep(asked)
    assert registry.jobs() == []


def test_the_file_to_use_is_the_one_that_the_run_names_at_its_end(tmp_path, registry):
    job = registry.submit(raw(tmp_path, train__steps=2))
    until(lambda: job.ended)
    best, last = job.files[-1].with_name("lora-best.safetensors"), job.files[-1]
    best.write_bytes(last.read_bytes())
    for path in (best, last):
        job.take(Saved(2, path, final=path == last))
    job.end(Finished("done", 2, best, "use the best"))
    assert job.files[-1] == best
    assert len(job.files) == len(set(job.files))
