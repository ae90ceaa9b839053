"""Pages that are made from the code say what the code says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from lora_trainer.config.load import load, load_yaml
from lora_trainer.config.surfaces import options_page
from lora_trainer.families.registry import families_table
from lora_trainer.interfaces.cli import main

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_of_options_is_the_generated_one() -> None:
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == options_page(), "docs/options.md is out of date; renew: python -m lora_trainer.config.surfaces"


README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Fenced blocks of the README, indented ones too, without their indentation."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```", README, flags=re.S | re.M)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def test_the_table_of_families_is_the_generated_one() -> None:
    table = README.split("registry` -->\n")[1].split("\n<!-- /families")[0]
    assert table == families_table(), "renew it: python -m lora_trainer.families.registry"


def test_the_recipe_in_the_readme_loads_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    config = load(load_yaml(tmp_path / "my.yaml"))
    assert (config.network.rank, config.train.epochs, config.train.learning_rate) == (8, 10, 2e-4)


def test_every_command_in_the_readme_is_one_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0] for block in blocks("sh") for line in block.splitlines()]
    ours = [shlex.split(line)[3:] for line in lines if "-m lora_trainer " in line]
    assert len(ours) >= 5
    for words in ours:
        with pytest.raises(SystemExit) as end:
            main([*words, "--help"])  # the words before it are read first, so an unknown one is refused
        assert end.value.code == 0, words
    capsys.readouterr()
    assert [shlex.split(line)[1:] for line in lines if line.startswith("python install.py")] == [
        ["install.py", "demo"],
        ["install.py", "test"],
    ]


def test_every_picture_and_page_in_the_readme_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
