"""Which folders and files are taken for a language model, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_trainer.contracts import PlainError
from lora_trainer.families.language.load import load
from lora_trainer.families.language.recognise import recognise
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.plan import plan_run
from tests.builders.language import text_run, write_model
from tests.builders.runs import small_run
from tests.builders.slim import write_slim


def change(folder: Path, **settings) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")


@pytest.fixture
def llama(tmp_path):
    return write_model(tmp_path / "llama")


def test_facts_are_read_from_configuration_and_headers(llama):
    facts = recognise(llama)
    assert (facts.architecture, facts.kind, facts.context, facts.stored) == ("LlamaForCausalLM", "llama", 256, "F32")
    model = load(facts, torch.device("cpu"), torch.float32).model
    # Some releases keep the rotary frequencies beside the weights.
    assert facts.parameters == pytest.approx(sum(parameter.numel() for parameter in model.parameters()), rel=1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def encoder_decoder(folder):
    change(folder, model_type="t5", architectures=["T5ForConditionalGeneration"], is_encoder_decoder=True)


def masked(folder):
    change(folder, model_type="bert", architectures=["BertForMaskedLM"])


def too_new(folder):
    change(folder, model_type="llama99", architectures=["Llama99ForCausalLM"])


def own_code(folder):
    change(folder, model_type="mine", architectures=["MineForCausalLM"], auto_map={"AutoModelForCausalLM": "mine.M"})


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def ggml_inside(folder):
    (folder / "model.safetensors").unlink()
    (folder / "ggml-model-q4_0.bin").write_bytes(b"tjgg" + bytes(60))


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def cut_off(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def a_shard_missing(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def diffusers(folder):
    (folder / "model_index.json").write_text("{}")


def other_vocabulary(folder):
    write_model(folder.parent / "small", vocab_size=40)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    for name in ("config.json", "model.safetensors"):
        (folder.parent / "small" / name).replace(folder / name)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (encoder_decoder, "encoder-decoder model"),
        (masked, "does not write text from left to right"),
        (too_new, r"the transformers \S+ of this environment does not know"),
        (own_code, "brings code of its own"),
        (pickled, "as a pickle"),
        (ggml_inside, "GGML file of the time before GGUF.*convert"),
        (no_weights, "holds no weights"),
        (cut_off, "is cut off"),
        (a_shard_missing, "lacks its weight file model-00001-of-00002"),
        (no_tokenizer, "has no tokenizer"),
        (diffusers, "set task_type: stable-diffusion"),
    ],
)
def test_other_folders_are_refused_in_words(tmp_path, llama, spoil, told):
    spoil(llama)
    with pytest.raises(PlainError, match=told):
        plan_run(text_run(tmp_path), Standalone())


def test_a_tokenizer_of_another_model_is_noticed(tmp_path):
    other = write_model(tmp_path / "llama", seed=2)
    tokenizer = {path.name: path.read_bytes() for path in other.glob("tokenizer*")}
    write_model(other, num_hidden_layers=1)
    change(other, vocab_size=60)
    for name, content in tokenizer.items():
        (other / name).write_bytes(content)
    with pytest.raises(PlainError, match="do not belong together"):
        plan_run(text_run(tmp_path), Standalone())


def test_weights_that_are_missing_or_of_other_shapes_are_not_drawn_at_random(llama):
    change(llama, num_hidden_layers=3)
    with pytest.raises(PlainError, match=r"lacks \d+ weights"):
        load(recognise(llama), torch.device("cpu"), torch.float32)
    change(llama, num_hidden_layers=2, vocab_size=500)
    with pytest.raises(PlainError, match=r"other shapes|set a tensor of shape"):
        load(recognise(llama), torch.device("cpu"), torch.float32)


def test_settings_that_this_release_would_pass_over_are_told(llama):
    from transformers import AutoConfig

    known = AutoConfig.for_model("llama").to_dict()
    change(llama, num_key_value_heads=2)
    if "num_key_value_heads" in known:
        assert recognise(llama).kind == "llama"
    else:
        with pytest.raises(PlainError, match=r"of this environment does not know num_key_value_heads"):
            recognise(llama)


@pytest.mark.parametrize(
    ("name", "start", "told"),
    [
        ("llama.bin", b"tjgg", "GGML file of the time before GGUF"),
        ("llama.bin", b"\x80\x02", "could run code when opened"),
        ("llama.gguf", b"GGUF", "gguf"),
        ("notes.txt", b"note", "is no language model"),
    ],
)
def test_files_are_told_apart_by_their_first_bytes(tmp_path, name, start, told):
    path = tmp_path / name
    path.write_bytes(start + bytes(60))
    with pytest.raises(PlainError, match=told):
        plan_run(text_run(tmp_path, model__base=str(path)), Standalone())


def test_an_image_model_and_a_language_model_are_not_mistaken_for_each_other(tmp_path, llama):
    image = tmp_path / "sd1.safetensors"
    write_slim(image, "sd1", seed=1)
    with pytest.raises(PlainError, match="set task_type: stable-diffusion"):
        plan_run(text_run(tmp_path, model__base=str(image)), Standalone())
    with pytest.raises(PlainError, match=r"language model.*set task_type: text-generation"):
        plan_run(small_run(tmp_path, model__base=str(llama)), Standalone())


def test_a_model_of_the_hubs_cache_has_the_name_of_its_repository(tmp_path):
    folder = tmp_path / "models--some-body--small--llama" / "snapshots" / "0123abc"
    write_model(folder)
    facts = recognise(folder)
    assert (facts.name, facts.known_as) == ("some-body/small--llama", "some-body/small--llama")
