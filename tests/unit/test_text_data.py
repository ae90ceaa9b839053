"""Text data: files read, records understood, worded, cut into tokens and packed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.data.text.dataset import TextData
from lora_trainer.data.text.packing import pack
from lora_trainer.data.text.records import read_records
from lora_trainer.data.text.samples import Columns, Sample, Turn, understand
from lora_trainer.data.text.tokens import Encoded, cut_to, encode
from lora_trainer.data.text.wording import wording_for
from tests.builders.language import CHAT, write_tokenizer

PAIR = (Turn("user", "Who?"), Turn("assistant", "Me."))


def put(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


def samples(folder: Path) -> list[Sample]:
    return list(understand(read_records(folder).records).samples)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"prompt": "Who?", "response": "Me."}\n\n'),
        ("a.jsonl", '{"question": "Who?", "answer": "Me."}'),
        ("a.json", '[{"instruction": "Who?", "input": "", "output": "Me."}]'),
        ("a.json", '{"data": [{"Prompt": "Who?", "Completion": "Me."}]}'),
        ("a.json", '{"prompt": "Who?", "response": "Me."}\n{"prompt": "Who?", "response": ""}'),
        ("a.csv", '\ufeffprompt,response\r\nWho?,Me.\r\n'),
        ("a.tsv", "prompt\tresponse\nWho?\tMe.\n"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]}'),
        ("a.jsonl", '{"conversations": [{"from": "human", "value": "Who?"}, {"from": "gpt", "value": "Me."}, '
                    '{"from": "human", "value": "Bye"}]}'),
        ("a.jsonl", '{"prompt": [{"role": "user", "content": "Who?"}], '
                    '"completion": [{"role": "assistant", "content": "Me."}]}'),
    ],
)  # fmt: skip
def test_each_form_of_pair_is_understood(tmp_path, name, text):
    assert [sample.turns for sample in samples(put(tmp_path / "texts", name, text))] == [PAIR]


def test_fields_with_quotes_newlines_and_commas_stay_whole(tmp_path):
    folder = put(tmp_path / "t", "a.csv", 'prompt,response\n"a, ""b""\nc",d\n')
    assert samples(folder)[0].turns[0].text == 'a, "b"\nc'


def test_an_input_follows_its_instruction_and_a_system_text_comes_first(tmp_path):
    row = {"instruction": "Add", "input": "1, 2", "output": "3", "system": "Be brief"}
    (sample,) = samples(put(tmp_path / "t", "a.jsonl", json.dumps(row)))
    assert sample.turns == (Turn("system", "Be brief"), Turn("user", "Add\n\n1, 2"), Turn("assistant", "3"))


def test_plain_text_counts_where_no_table_is(tmp_path):
    folder = put(tmp_path / "t", "one.txt", "Once upon a time.")
    assert [sample.text for sample in samples(folder)] == ["Once upon a time."]
    found = read_records(put(folder, "pairs.jsonl", '{"text": "other"}'))
    assert [record.values["text"] for record in found.records] == ["other"]
    assert "one.txt" in found.warnings[0]


def test_columns_can_be_named(tmp_path):
    folder = put(tmp_path / "t", "a.csv", "frage,antwort\nWho?,Me.\n")
    with pytest.raises(PlainError, match=r"'frage', 'antwort'.*text\.prompt_column"):
        samples(folder)
    found = understand(read_records(folder).records, Columns("frage", "antwort"))
    assert found.samples[0].turns == PAIR
    with pytest.raises(PlainError, match="no column 'question'"):
        understand(read_records(folder).records, Columns("question", "antwort"))


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"prompt": "Who?"', "line 1 is not JSON"),
        ("a.jsonl", "[1]", "line 1 holds a list"),
        ("a.json", "3", "holds a int where a list"),
        ("a.json", "{", "is not JSON"),
        ("a.csv", "prompt,response\na,b,c\n", "more fields than the first line"),
        ("a.jsonl", "", "the files are empty"),
        ("a.jsonl", '{"prompt": "Who?", "response": " "}', "all 1 are without an answer"),
        ("a.jsonl", '{"prompt": "Who?", "response": {"a": 1}}', "has a dict in 'response'"),
        ("a.jsonl", '{"messages": [{"role": "narrator", "content": "x"}]}', "a message that is not understood"),
        ("a.jsonl", '{"messages": ["x"]}', "has a str among its messages"),
        ("metadata.csv", "filename,prompt\na.png,a cat\n", "'filename', 'prompt', which are not understood"),
        ("a.parquet", "PAR1", "pyarrow|no Parquet file"),
        ("a.png", "", r"No texts are in .*found: a\.png"),
    ],
)
def test_what_is_no_data_is_refused_in_words(tmp_path, name, text, told):
    with pytest.raises(PlainError, match=told):
        samples(put(tmp_path / "t", name, text))


def test_a_row_without_an_answer_is_left_out_and_told(tmp_path):
    text = '{"prompt": "Who?", "response": "Me."}\n{"prompt": "Why?", "response": null}'
    found = understand(read_records(put(tmp_path / "t", "a.jsonl", text)).records)
    assert len(found.samples) == 1
    assert "1 samples without an answer" in found.warnings[0]
    assert "line 2" in found.warnings[0]


def learnt_text(tokenizer, encoded: Encoded) -> str:
    return tokenizer.decode([token for token, mark in zip(encoded.ids, encoded.learnt, strict=True) if mark])


TALK = Sample("here", (*PAIR, Turn("user", "Why?"), Turn("assistant", "Because of rain.")))


def test_only_answers_and_their_ends_are_learnt(tmp_path):
    plain = write_tokenizer(tmp_path / "plain")
    wording = wording_for("auto", plain)
    assert wording.form == "instruction"
    encoded = encode(Sample("here", PAIR), wording, "response")
    assert learnt_text(plain, encoded) == "Me.<|end|>"
    assert plain.decode(encoded.ids) == "### Instruction:\nWho?\n\n### Response:\nMe.<|end|>"
    everything = encode(Sample("here", PAIR), wording, "all")
    assert everything.targets == len(encoded.ids) - 1


def test_every_answer_of_a_chat_is_learnt_as_the_template_words_it(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "chat")
    tokenizer.chat_template = CHAT
    wording = wording_for("auto", tokenizer)
    assert wording.form == "chat"
    encoded = encode(TALK, wording, "response")
    assert learnt_text(tokenizer, encoded) == "Me.<|im_end|>\nBecause of rain.<|im_end|>\n"
    assert wording.question([Turn("user", "Who?")]) == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def test_a_template_that_words_earlier_turns_otherwise_still_gives_their_answers(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "chat")
    # As Qwen3's: the last answer gets an empty thought in front, earlier ones do not.
    tokenizer.chat_template = CHAT.replace(
        "{{ message['content'] }}",
        "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
    )
    encoded = encode(TALK, wording_for("chat", tokenizer), "response")
    assert learnt_text(tokenizer, encoded) == "Me.<think></think>Because of rain.<|im_end|>\n"


def test_a_template_that_refuses_a_role_is_told(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "chat")
    tokenizer.chat_template = "{{ raise_exception('no system text') }}"
    with pytest.raises(PlainError, match=r"no system text.*text\.template: instruction"):
        encode(TALK, wording_for("auto", tokenizer), "response")
    tokenizer.chat_template = None
    with pytest.raises(PlainError, match="has no chat template"):
        wording_for("chat", tokenizer)


def test_a_tokenizer_without_offsets_marks_the_same_answer(tmp_path):
    tokenizer = write_tokenizer(tmp_path / "plain")

    class Slow:
        is_fast = False
        bos_token_id, eos_token_id = None, tokenizer.eos_token_id

        def __call__(self, text, **options):
            return tokenizer(text, **options)

    encoded = encode(Sample("here", PAIR), wording_for("instruction", Slow()), "response")
    assert learnt_text(tokenizer, encoded) == "Me.<|end|>"


def coded(length: int, learnt_from: int = 0) -> Encoded:
    return Encoded(tuple(range(length)), tuple(n >= learnt_from for n in range(length)))


def test_conversations_lose_their_end_and_plain_text_goes_on_in_a_next_piece():
    counted = cut_to([(coded(10, 4), False), (coded(10, 8), False), (coded(10), True)], 6)
    assert [len(sample.ids) for sample in counted.encoded] == [6, 6, 4]
    assert (counted.cut, counted.lost, counted.longest) == (1, 1, 10)


def test_packing_fills_rows_and_loses_nothing():
    lengths = [7, 3, 5, 2, 2, 9, 1]
    rows = pack(lengths, 10)
    assert sorted(number for row in rows for number in row) == list(range(7))
    assert all(sum(lengths[number] for number in row) <= 10 for row in rows)
    assert len(rows) == 3  # 29 tokens: no fewer rows would do


def test_batches_divide_by_all_that_their_step_learns():
    data = TextData([coded(5, 3), coded(8, 2), coded(6, 5), coded(7, 1)], batch_size=1, seed=3, pad=0, micro_batches=2)
    targets = {5: 2, 8: 6, 6: 1, 7: 6}
    first, second = data(0), data(1)
    whole = sum(targets[batch.ids.shape[1]] for batch in (first, second))
    assert first.divisor == second.divisor == whole / 2
    together = TextData(data.samples, batch_size=2, seed=3, pad=0)
    assert together(0).divisor == whole
    assert together(0).positions == (0, 1)
