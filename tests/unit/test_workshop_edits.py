"""What edits of many captions make of each."""

from __future__ import annotations

import threading
import time

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.data.scan import Item
from lora_trainer.data.workshop import edits
from lora_trainer.data.workshop.edits import LONGEST, Edit, edited
from lora_trainer.data.workshop.query import Facts, are_sentences, tag_counts


def one(edit: Edit, caption: str) -> str:
    return edited(edit, {"a.png": caption}).get("a.png", caption)


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (Edit(action="replace", find="cat", replacement="dog"), "a cat, cats", "a dog, dogs"),
        (Edit(action="replace", find="cat", replacement="dog", whole_tag=True), "cat, a cat", "dog, a cat"),
        (Edit(action="replace", find="CAT", replacement="dog"), "cat", "cat"),
        (Edit(action="replace", find="cat", replacement=""), "a, cat, b", "a, b"),
        (Edit(action="replace", find="(cat)", replacement="dog"), "cat (cat)", "cat dog"),
        (Edit(action="replace", find=r"(\w+) hat", replacement=r"\1 cap", regex=True), "red hat", "red cap"),
        (Edit(action="replace", find=r"c.t", replacement="dog", regex=True, whole_tag=True), "cut, cuts", "dog, cuts"),
        (Edit(action="replace", find="a", replacement="x\ny\t", regex=False), "a b", "x y b"),
        (Edit(action="remove", find="red"), "red, blue", "blue"),
        (Edit(action="remove", find=r"\d+", regex=True), "number 7, x", "number, x"),
        (Edit(action="remove", find="hat", whole_tag=True), "hat, a hat,b", "a hat, b"),
        (Edit(action="remove", find="nothing"), "odd,,spacing ,", "odd,,spacing ,"),
        (Edit(action="prepend", text="mycat"), "on a chair", "mycat, on a chair"),
        (Edit(action="prepend", text="mycat"), "mycat, on a chair", "mycat, on a chair"),
        (Edit(action="prepend", text="mycat, "), "", "mycat"),
        (Edit(action="append", text="outdoors"), "cat,", "cat, outdoors"),
        (Edit(action="append", text="outdoors"), "cat, outdoors", "cat, outdoors"),
        (Edit(action="set", text="a  b"), "c", "a b"),
        (Edit(action="set", text=""), "c", ""),
        (Edit(action="trim_doubles"), "a, b, a,  b , c", "a, b, c"),
        (Edit(action="trim_doubles"), "A, a", "A, a"),
    ],
)  # fmt: skip
def test_an_edit(edit: Edit, before: str, after: str) -> None:
    assert one(edit, before) == after


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (Edit(action="replace", find="(", regex=True), "no regular expression"),
        (Edit(action="replace", find="", replacement="x"), "give find"),
        (Edit(action="remove"), "give find"),
        (Edit(action="append", text=" "), "give text"),
        (Edit(action="replace", find="a", replacement=r"\2", regex=True), "does not fit"),
        (Edit(action="replace", find="", replacement="x", regex=True), "give find"),
        (Edit(action="set", text="x" * (LONGEST + 1)), "letters"),
        (Edit(action="replace", find="a", replacement="x" * LONGEST), "letters"),
    ],
)
def test_an_edit_that_cannot_be_made_is_told(edit: Edit, part: str) -> None:
    with pytest.raises(PlainError, match=part):
        edited(edit, {"a.png": "a, b a"})


def test_an_expression_that_runs_away_is_stopped_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edits, "PATIENCE", 0.6)
    ticks = list[float]()
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.01):
            ticks.append(time.monotonic())

    other = threading.Thread(target=tick)
    other.start()
    begun = time.monotonic()
    with pytest.raises(PlainError, match="was not through"):
        edited(Edit(action="replace", find=r"(a|aa)+$", regex=True), {f"{n}.png": "a" * 60 + "b" for n in range(9)})
    took = time.monotonic() - begun
    over.set()
    other.join()
    assert 0.5 < took < 10, "for all captions together"
    assert len(ticks) > 15, "other threads ran meanwhile"


def test_tags_are_counted_and_sentences_told_apart() -> None:
    def facts(captions: list[str]) -> Facts:
        return Facts(len, "", lambda item: 0, {}, are_sentences(captions))

    def items(captions: list[str]) -> list[Item]:
        return [Item(None, f"{n}", 8, 8, caption, "", 1) for n, caption in enumerate(captions)]  # type: ignore[arg-type]

    tags = ["1girl, red hat, red hat", "red hat, smile", "1girl, Smile"]
    assert tag_counts(items(tags), facts(tags)) == [("1girl", 2), ("red hat", 2), ("Smile", 1), ("smile", 1)]
    told = ["A cat sits on a red chair.", "a dog runs, and a cat looks on quietly"]
    assert facts(told).sentences
    assert tag_counts(items(told), facts(told))[:2] == [("a", 2), ("cat", 2)]
    assert tag_counts(items(told), facts(told), "CHAI") == [("chair", 1)]
