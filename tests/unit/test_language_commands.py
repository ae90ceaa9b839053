"""What is done with a finished adapter from the command line: asked, looked into, merged, and not exported."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_trainer.config.asking import AskConfig
from lora_trainer.contracts import Finished, PlainError, Sampled, Stepped
from lora_trainer.families.language.load import load
from lora_trainer.families.language.recognise import recognise
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.interfaces.api.forms import event_form
from lora_trainer.interfaces.cli import main
from lora_trainer.jobs.asking import Controls, answers_chore, ask, plan_asking
from lora_trainer.jobs.merge import merge
from lora_trainer.jobs.plan import plan_run
from lora_trainer.jobs.registry import Registry
from lora_trainer.jobs.run import run
from lora_trainer.networks.peft_folder import worn
from tests.builders.language import CHAT, text_run, write_model
from tests.builders.runs import run_all

CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 17, 33, 64, 12]])


def adapter(folder: Path, kind: str = "llama", **options) -> Path:
    """An adapter that changes what the model says."""
    events = run_all(text_run(folder, kind, train__learning_rate=5e-2, train__warmup=0.0, **options))
    assert isinstance(events[-1], Finished)
    assert events[-1].outcome == "done", events[-1]
    return folder / "out" / "adapter"


def logits(folder: Path, put_on: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder))
    if put_on:
        model = PeftModel.from_pretrained(model, str(put_on))
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("llama", {"network__kind": "dora"}), ("gpt2", {"network__rslora": True})],
)  # fmt: skip
def test_a_merged_model_says_what_peft_says_of_model_and_adapter(tmp_path, capsys, kind, options):
    folder = adapter(tmp_path, kind, **options)
    code = main(["merge", "--base", str(tmp_path / kind), "--lora", str(folder), "--output", str(tmp_path / "merged")])
    assert code == 0
    assert "layers" in capsys.readouterr().out
    wanted = logits(tmp_path / kind, folder)
    assert torch.allclose(logits(tmp_path / "merged"), wanted, atol=1e-4)
    assert (wanted - logits(tmp_path / kind)).abs().max() > 0.05
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (tmp_path / kind / "tokenizer.json").read_bytes()


def test_a_weight_scales_and_nothing_else_changes(tmp_path):
    folder = adapter(tmp_path)
    merge(tmp_path / "llama", [(folder, 0.5), (folder, 0.5)], tmp_path / "merged")
    assert torch.allclose(logits(tmp_path / "merged"), logits(tmp_path / "llama", folder), atol=1e-4)
    old, new = (load_file(tmp_path / name / "model.safetensors") for name in ("llama", "merged"))
    assert old.keys() == new.keys()
    changed = {name.split(".")[-2] for name in old if not torch.equal(old[name], new[name])}
    assert changed == {"k_proj", "o_proj", "q_proj", "v_proj"}
    merge(tmp_path / "llama", [(folder, 1.0)], tmp_path / "half", "bf16")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for name, tensor in half.items() if name.endswith(".weight")} == {torch.bfloat16}


def test_what_cannot_be_merged_leaves_nothing(tmp_path):
    folder = adapter(tmp_path)
    other = write_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(PlainError, match="is for another model"):
        merge(other, [(folder, 1.0)], tmp_path / "merged")
    with pytest.raises(PlainError, match="can hold; take a lower weight"):
        merge(tmp_path / "llama", [(folder, 1e30)], tmp_path / "merged", "fp16")
    with pytest.raises(PlainError, match="exists already"):
        merge(tmp_path / "llama", [(folder, 1.0)], folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "llama", "out", "texts"]


def test_the_model_is_asked_without_and_with_the_adapter(tmp_path, capsys):
    write_model(tmp_path / "llama", chat=CHAT)
    folder = adapter(tmp_path, text__template="instruction", prompts=["Who?", "What is number 1?"], train__steps=2)
    trained = sorted((folder / "samples").glob("*-000002-0?.txt"))
    told = [path.read_text(encoding="utf-8").split("\n\n", 1)[1].strip() for path in trained]
    code = main(["generate", "--base", str(tmp_path / "llama"), "--adapter", str(folder),
                 "--prompt", "Who?", "What is number 1?", "--tokens", "8"])  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0
    blocks = dict(block.split("\n", 1) for block in said.split("--- ") if block)
    after = [blocks[f"{prompt} (with the adapter)"].strip() for prompt in ("Who?", "What is number 1?")]
    before = [blocks[f"{prompt} (without the adapter)"].strip() for prompt in ("Who?", "What is number 1?")]
    assert after == told
    assert after != before


def test_the_adapter_comes_off_again_bit_for_bit(tmp_path):
    folder = adapter(tmp_path)
    model = load(recognise(tmp_path / "llama"), CPU, torch.float32).model
    before, names = model(IDS).logits, [name for name, _ in model.named_modules()]
    with worn(model, folder):
        assert not torch.equal(model(IDS).logits, before)
    assert torch.equal(model(IDS).logits, before)
    assert [name for name, _ in model.named_modules()] == names


def test_a_stop_is_heard_between_two_answers(tmp_path):
    folder = adapter(tmp_path)
    config = AskConfig(base=str(tmp_path / "llama"), adapter=str(folder), prompt=("Who?",), tokens=4)
    control, events = Controls(), []
    for event in ask(plan_asking(config, Standalone()), Standalone(), control):
        events.append(event)
        if isinstance(event, Sampled):
            control.stop()
    assert [event.step for event in events if isinstance(event, Sampled)] == [0]
    assert events[-1].outcome == "stopped"


def test_an_adapter_is_looked_into(tmp_path, capsys):
    folder = adapter(tmp_path)
    assert main(["inspect", str(folder)]) == 0
    told = capsys.readouterr().out
    for words in ("LoRA for llama", "8 in layers", "rank       4", "language_model 0", "text.template"):
        assert words in told, words
    for words in ("resolution", "slider", "objective", "text_encoder"):
        assert words not in told, f"{words} says nothing of a language model"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["export", "--input", "ADAPTER", "--output", "x.safetensors", "--format", "peft"], "use merge"),
        (["generate", "--base", "MODEL"], "Nothing is asked"),
        (["generate", "--base", "MODEL", "--prompt", "a", "--adapter", "MODEL"], "has no adapter_config.json"),
        (["generate", "--base", "ADAPTER", "--prompt", "a"], "is an adapter, not a model"),
    ],
)
def test_orders_that_make_no_sense_are_refused_in_words(tmp_path, capsys, given, told):
    write_model(tmp_path / "llama")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}), encoding="utf-8")
    places = {"ADAPTER": str(tmp_path / "adapter"), "MODEL": str(tmp_path / "llama")}
    assert main([places.get(word, word) for word in given]) == 2
    assert told in capsys.readouterr().err


def test_questions_are_a_job_of_the_queue_whose_answers_are_among_its_events(tmp_path):
    folder = adapter(tmp_path)
    registry = Registry(Standalone(runs=tmp_path / "runs"))
    job = registry.answers({"base": str(tmp_path / "llama"), "adapter": str(folder), "prompt": ["Who?"], "tokens": 4})
    for _ in range(300):
        if job.ended:
            break
        time.sleep(0.1)
    said = [item for item in job.events(0, 100) if isinstance(item.event, Sampled)]
    registry.close(5)
    assert (job.task.kind, job.state, job.step) == ("answers", "done", 2)
    forms = [event_form(item, "images/") for item in said]
    assert [(form["step"], form["images"], form["prompts"]) for form in forms] == [(0, [], ["Who?"]), (1, [], ["Who?"])]
    again = Registry(Standalone(runs=tmp_path / "runs")).job(job.id)
    assert (again.task.kind, again.state) == ("answers", "done")


def test_folders_that_a_server_does_not_allow_are_not_asked_from_afar(tmp_path):
    write_model(tmp_path / "llama")
    host = Standalone(allowed=[tmp_path / "elsewhere"])
    for given in ({"base": str(tmp_path / "llama")}, {"base": "somebody/model", "adapter": str(tmp_path)}):
        with pytest.raises(PlainError, match="outside of the folders that this server allows"):
            answers_chore({**given, "prompt": ["Who?"]}, host)


class Lending(Standalone):
    """A host that holds a model of its own, and notes when it is moved aside."""

    name = "a WebUI"

    def __init__(self) -> None:
        super().__init__()
        self.course: list[str] = []

    def held(self) -> int:
        return 3 * 2**30

    @contextmanager
    def aside(self) -> Iterator[None]:
        self.course.append("aside")
        try:
            yield
        finally:
            self.course.append("back")


@pytest.mark.parametrize(("asked", "course"), [(False, []), (True, ["aside", "back"])])
def test_the_hosts_model_is_moved_aside_only_where_that_is_asked_and_comes_back(tmp_path, asked, course):
    host = Lending()
    plan = plan_run(text_run(tmp_path, model__aside=asked), host)
    assert "a WebUI holds 3.00 GiB of it" in plan.text()
    assert plan.summary()["held"] == 3 * 2**30
    events = run(text_run(tmp_path, model__aside=asked), host=host, control=Controls())
    for event in events:
        if isinstance(event, Stepped):
            assert host.course == course[:1]
            break
    events.close()  # as when a run breaks off
    assert host.course == course
