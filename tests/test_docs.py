"""Pages that are made from the code say what the code says."""

from __future__ import annotations

from pathlib import Path

from lora_trainer.config.surfaces import options_page

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_of_options_is_the_generated_one() -> None:
    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == options_page(), "docs/options.md is out of date; renew: python -m lora_trainer.config.surfaces"
