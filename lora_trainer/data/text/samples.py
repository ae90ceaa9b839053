"""What a record means: a conversation with answers to be learnt, or plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from lora_trainer.contracts import PlainError
from lora_trainer.data.text.records import Record

# Names of columns, in lower case, as published data sets have them.
PROMPTS = ("prompt", "question", "query", "user", "human", "q")
RESPONSES = ("response", "completion", "answer", "output", "assistant", "chosen", "a")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue")
PLAIN = ("text", "content")
_ROLES = {
    "user": "user", "human": "user", "prompter": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "model": "assistant", "chatgpt": "assistant", "system": "system", "tool": "tool",
}  # fmt: skip


class Turn(NamedTuple):
    """What one side says."""

    role: str  # "system", "user", "assistant", "tool"
    text: str


@dataclass(frozen=True)
class Sample:
    """One conversation, or, where there are no turns, one plain text."""

    place: str
    turns: tuple[Turn, ...] = ()
    text: str = ""


class Columns(NamedTuple):
    """Names of the columns that the configuration gives; empty: told from the data."""

    prompt: str = ""
    response: str = ""


NO_NAMES = Columns()


@dataclass(frozen=True)
class Understood:
    """The samples of a data set."""

    samples: tuple[Sample, ...]
    forms: dict[str, int]  # samples by how they were read: "prompt, response": 150
    warnings: tuple[str, ...]


def understand(records: Sequence[Record], columns: Columns = NO_NAMES) -> Understood:
    """The samples of all records. Those that say nothing are left out and told.

    Raises PlainError for a record whose columns mean nothing here, and where no sample is left.
    """
    samples: list[Sample] = []
    forms: Counter[str] = Counter()
    empty: list[str] = []
    for record in records:
        sample, form = _sample(record, columns)
        if sample is None:
            empty.append(record.place)
        else:
            samples.append(sample)
            forms[form] += 1
    warnings = [f"{len(empty)} samples without an answer or text are left out ({empty[0]} for one)."] if empty else []
    if not samples:
        found = f"all {len(records)} are without an answer or text" if records else "the files are empty"
        raise PlainError(f"There is nothing to train on: {found}; fill in the responses.")
    return Understood(tuple(samples), dict(forms), tuple(warnings))


def _sample(record: Record, columns: Columns) -> tuple[Sample | None, str]:
    names = {key.strip().lower(): key for key in record.values}
    if columns.prompt or columns.response:
        prompt, response = columns.prompt or _first(PROMPTS, names), columns.response or _first(RESPONSES, names)
        missing = [name for name in (prompt, response) if name not in record.values]
        if missing:
            raise PlainError(f"{record.place} has no column {missing[0]!r}; it has {_listed(record.values)}.")
        return _pair(record, prompt, response), f"{prompt}, {response}"
    talk = _first(CONVERSATIONS, names)
    if talk and isinstance(record.values[talk], list):
        return _conversation(record.place, record.values[talk]), talk
    response = _first(RESPONSES, names)
    if "instruction" in names and response:
        extra = names.get("input") or names.get("context")
        return _pair(record, names["instruction"], response, extra), f"instruction, {response}"
    prompt = _first(PROMPTS, names) or names.get("input", "")
    if prompt and response:
        return _pair(record, prompt, response), f"{prompt}, {response}"
    plain = _first(PLAIN, names)
    if plain and not prompt:
        text = _text(record, plain)
        return (Sample(record.place, text=text) if text.strip() else None), plain
    raise PlainError(
        f"{record.place} has the columns {_listed(record.values)}, which are not understood; name them prompt and "
        "response, instruction and output, messages, or text, or set text.prompt_column and text.response_column."
    )


def _first(wanted: Iterable[str], names: Mapping[str, str]) -> str:
    return next((names[name] for name in wanted if name in names), "")


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(repr(key) for key in list(values)[:8]) or "none"


def _pair(record: Record, prompt: str, response: str, extra: str | None = None) -> Sample | None:
    asked, said = record.values[prompt], record.values[response]
    if isinstance(asked, list) and isinstance(said, list):  # both sides as lists of messages
        return _conversation(record.place, [*cast("list[Any]", asked), *cast("list[Any]", said)])
    question, answer = _text(record, prompt), _text(record, response)
    addition = _text(record, extra) if extra else ""
    if addition.strip():
        question = f"{question}\n\n{addition}"
    if not answer.strip() or not question.strip():
        return None
    system = next((key for key in record.values if key.lower() == "system"), None)
    about = _text(record, system) if system else ""
    turns = [Turn("system", about)] if about.strip() else []
    return Sample(record.place, (*turns, Turn("user", question), Turn("assistant", answer)))


def _text(record: Record, column: str) -> str:
    value = record.values[column]
    if value is None:
        return ""
    if not isinstance(value, str | int | float):
        raise PlainError(f"{record.place} has a {type(value).__name__} in {column!r}, where text is wanted.")
    return str(value)


def _conversation(place: str, messages: Any) -> Sample | None:
    turns: list[Turn] = []
    for message in cast("list[Any]", messages):
        if not isinstance(message, Mapping):
            raise PlainError(f"{place} has a {type(message).__name__} among its messages, where an object is wanted.")
        given = cast("Mapping[str, Any]", message)
        role = str(given.get("role", given.get("from", "")))
        text = given.get("content", given.get("value"))
        if role.lower() not in _ROLES or not isinstance(text, str):
            raise PlainError(
                f'{place} has a message that is not understood ({str(dict(given))[:80]}); write '
                '{"role": "user" or "assistant", "content": "..."}.'
            )
        turns.append(Turn(_ROLES[role.lower()], text))
    while turns and turns[-1].role != "assistant":  # nobody answers these
        turns.pop()
    said = [turn for turn in turns if turn.role == "assistant" and turn.text.strip()]
    return Sample(place, tuple(turns)) if said else None
