"""Flags, schema and page hold every option, with its bounds."""

from __future__ import annotations

import argparse

import pytest

from lora_trainer.config.leaves import leaves
from lora_trainer.config.load import load
from lora_trainer.config.options import RunConfig
from lora_trainer.config.surfaces import add_flags, flags_of, json_schema, options_page


def typed(*words: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_flags(parser)
    return load({}, flags_of(parser.parse_args(words)))


def test_every_option_has_a_sentence_a_name_of_its_own_and_a_default_that_fits() -> None:
    found = list(leaves())
    names = [name for leaf in found for name in {leaf.path, leaf.option.alias} if name]
    names += [name for leaf in found for name in leaf.option.elsewhere]
    assert len(names) == len(set(names))
    for leaf in found:
        assert leaf.option.help.endswith("."), leaf.path
        assert load({leaf.path: leaf.default}) == RunConfig() if leaf.default is not None else leaf.optional, leaf.path
        assert set((leaf.option.synonyms or {}).values()) <= set(leaf.choices), leaf.path


def test_flags_by_both_names() -> None:
    assert typed("--network.rank", "8") == typed("--lora_rank", "8") == load({"lora_rank": 8})
    assert typed() == RunConfig(), "what was not typed is not set"


def test_flags_for_switches_lists_and_emptying() -> None:
    run = typed("--data.flip", "true", "--data.buckets", "false", "--samples.prompts", "a cat", "a dog", "--seed", "")
    assert (run.data.flip, run.data.buckets, run.train.seed) == (True, False, None)
    assert run.samples.prompts == ("a cat", "a dog")


def test_the_schema_agrees_with_the_loader() -> None:
    jsonschema_types = {"integer": int, "number": float, "boolean": bool, "string": str, "array": tuple}
    schema = json_schema()
    seen = 0
    for leaf in leaves():
        node = schema
        for name in leaf.path.split("."):
            assert node["additionalProperties"] is False
            node = node["properties"][name]
        kinds = node["type"] if isinstance(node["type"], list) else [node["type"]]
        assert ("null" in kinds) == leaf.optional
        assert jsonschema_types[kinds[0]] is (tuple if leaf.many else leaf.type)
        assert (node.get("minimum"), node.get("maximum")) == (leaf.option.low, leaf.option.high)
        assert tuple(node.get("enum", ())) == leaf.choices
        seen += 1
    assert seen == len(list(leaves()))


def test_the_page_has_a_row_for_each_option() -> None:
    rows = [line for line in options_page().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == sorted(
        (leaf.path for leaf in leaves()), key=[row.split("`")[1] for row in rows].index
    )
    assert len(rows) == len(list(leaves()))
    (rank,) = (row for row in rows if row.startswith("| `network.rank`"))
    assert "`lora_rank`" in rank
    assert "whole number, 1 to 1024" in rank
    assert "`16`" in rank


@pytest.mark.parametrize("word", ["--network.rnk", "--lora_ran"])
def test_flags_are_not_guessed(word: str) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    with pytest.raises(SystemExit) as caught:
        parser.parse_args([word, "8"])
    assert caught.value.code == 2
