"""The fields that the page hides in a real browser are those that would change nothing, and they come back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

import yaml

from lora_trainer.config.applies import counts, letting, needs
from lora_trainer.config.leaves import Leaf, leaves
from lora_trainer.interfaces.ui.fields import elem_id
from tests.builders.browsed import MARKS, browsing, goto, serving
from tests.builders.runs import write_pictures
from tests.builders.slim import write_slim

pytestmark = MARKS

# By id, whether each element that is there is in sight.
SHOWN = """ids => Object.fromEntries(ids.map(id => [id, document.getElementById(id)]).filter(([, place]) => place)
    .map(([id, place]) => [id, getComputedStyle(place).display !== "none"]))"""
EQUAL = f"([ids, wanted]) => Object.entries(({SHOWN})(ids)).every(([id, shown]) => shown === wanted[id])"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as (_, address):
        yield address


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    with browsing() as tab:
        goto(tab, address)
        yield tab.context.browser


def opened(browser: Any, address: str, *folds: str) -> Any:
    """The page, with the folds opened that the selectors name, from without; newer gradio draws these only then."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(address)
    tab.wait_for_selector("#lt_plan .lt-hint")
    for level in ("#lt_advanced", *folds):
        tab.evaluate("level => document.querySelectorAll(level + ' > button').forEach(one => one.click())", level)
        tab.wait_for_timeout(500)
    return tab


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Any:
    """One page for all, with everything unfolded; each test brings a whole form."""
    return opened(browser, address, "[id^=lt_fold_]", "[id^=lt_more_]")


def conditional() -> list[Leaf]:
    return [leaf for leaf in leaves() if needs(leaf.option)]


def told_apart() -> list[dict[str, Any]]:
    """The settings with which one or more others count: each once, and the empty form."""
    found: list[dict[str, Any]] = [{}]
    for leaf in conditional():
        if letting(leaf) not in found:
            found.append(letting(leaf))
    return found


def bring(page: Any, settings: Mapping[str, Any]) -> None:
    """Fill the form by "Paste settings"."""
    page.wait_for_function("!document.querySelector('dialog[open]')")
    page.click("text=Paste settings")
    page.fill("dialog textarea", yaml.safe_dump(dict(settings)) if settings else "train.seed: 1")
    page.click("dialog >> text=Use")
    page.wait_for_function("!document.querySelector('dialog[open]')")


def expected(settings: Mapping[str, Any]) -> dict[str, bool]:
    """By element whether the field is to be in sight."""
    known = {leaf.path: leaf for leaf in leaves()}

    def value_at(path: str) -> Any:
        return settings.get(path, known[path].default)

    return {elem_id(path): counts(leaf, value_at) for path, leaf in known.items() if needs(leaf.option)}


def settles(page: Any, wanted: Mapping[str, bool]) -> None:
    """Wait until the page is so, and look whether it stays so; a fold is in sight where one of its fields is."""
    folds = page.evaluate("JSON.parse(document.getElementById('lt_plan').dataset.rules).folds")
    within = {fold: any(wanted.get(field, True) for field in fields) for fold, fields in folds.items()}
    wanted = {**wanted, **within}
    kept = 0
    for _ in range(100):
        found = page.evaluate(SHOWN, list(wanted))
        kept = kept + 1 if found and all(wanted[id] == shown for id, shown in found.items()) else 0
        if kept == 3:
            return
        page.wait_for_timeout(100)
    assert found == {id: wanted[id] for id in found}


@pytest.mark.parametrize("settings", told_apart(), ids=lambda settings: ",".join(settings) or "empty")
def test_what_counts_is_offered_and_nothing_else(page: Any, settings: dict[str, Any]) -> None:
    bring(page, settings)
    settles(page, expected(settings))


def test_all_of_them_were_looked_at(page: Any) -> None:
    known = page.evaluate(SHOWN, list(expected({})))
    languages = {elem_id(leaf.path) for leaf in leaves() if leaf.section == "text"}
    assert expected({}).keys() - known.keys() <= languages


def test_it_follows_what_is_typed_and_ticked(page: Any) -> None:
    bring(page, {})
    settles(page, expected({}))
    page.evaluate("([id, value]) => loraTrainer.type(id, value)", [elem_id("slider.positive"), "an old barn"])
    settles(page, expected({"slider.positive": "an old barn"}))
    page.evaluate("id => document.querySelector(`#${id} input`).click()", elem_id("data.masked_loss"))
    settles(page, expected({"slider.positive": "an old barn", "data.masked_loss": True}))
    page.evaluate("([id, value]) => loraTrainer.type(id, value)", [elem_id("slider.positive"), ""])
    page.evaluate("id => document.querySelector(`#${id} input`).click()", elem_id("data.masked_loss"))
    settles(page, expected({}))


def test_what_the_base_does_not_know_is_hidden_with_it(page: Any, tmp_path: Path) -> None:
    settings = {"data.folder": str(write_pictures(tmp_path / "pictures")), "data.resolution": 64}
    clip_skip = elem_id("model.clip_skip")
    for family, shown in (("sdxl", False), ("sd1", True)):
        bring(page, {**settings, "model.base": str(write_slim(tmp_path / f"{family}.safetensors", family, seed=1))})
        page.wait_for_function(EQUAL, arg=[[clip_skip], {clip_skip: shown}], timeout=60_000)


def test_a_fold_that_was_never_opened_counts_too(browser: Any, address: str) -> None:
    """train.min_snr_gamma hangs on objective.weighting, which stands in another fold."""
    gamma = elem_id("train.min_snr_gamma")
    tab = opened(browser, address, "#lt_fold_train", "#lt_more_train")
    for weighting, shown in (("min_snr", True), ("debiased", False), ("min_snr", True)):
        bring(tab, {"objective.weighting": weighting})
        settles(tab, expected({"objective.weighting": weighting}))
        assert tab.evaluate(SHOWN, [gamma]) == {gamma: shown}
