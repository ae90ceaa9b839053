"""The view of language models in a real browser: a model is fetched, trained upon, and asked with and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the package gradio is not installed: the page is made with it")
pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed: no browser")

from lora_trainer.jobs.inspect import inspect
from tests.builders.browsed import MARKS, field, goto, serving
from tests.builders.hub import served
from tests.builders.language import write_model, write_pairs

pytestmark = MARKS

HOSTILE = "<img src=x onerror=window.hacked=1>"
NAME = "somebody/small-llama"
SHORT = """() => {
    const told = loraTrainer.languageAnswered;
    loraTrainer.languageAnswered = (answer) => told(
        answer.kind === "plan" ? { ...answer, free: 1e4, held: 3e9, host: "a WebUI" } : answer);
}"""  # as on a device that is full of a WebUI's own model


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a server that reaches a hub of ours."""
    with served(write_model(tmp_path / "published"), NAME) as hub:
        surroundings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0",
                        "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}  # fmt: skip
        for name, value in surroundings.items():
            monkeypatch.setenv(name, value)
        with serving(tmp_path) as (_, address):
            yield address


def test_a_model_is_fetched_trained_upon_and_asked(address: str, tab: Any, tmp_path: Path) -> None:
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    goto(tab, address)
    tab.click("#lt_views >> text=Language model")
    tab.wait_for_selector("#lt_language_plan .lt-hint")
    tab.evaluate(SHORT)

    tab.fill(field("language_model_base"), NAME)
    tab.click("#lt_language_plan >> text=Fetch it from the hub")
    tab.wait_for_selector("#lt_language_plan .lt-hint", timeout=60_000)  # it is here, and the texts are asked for
    assert list((tmp_path / "hub").rglob("model.safetensors"))

    tab.fill(field("language_data_folder"), str(tmp_path / "nowhere"))
    tab.wait_for_selector("#lt_language_plan .lt-fault")
    assert "nowhere" in tab.inner_text("#lt_language_plan")
    tab.fill(field("language_data_folder"), str(write_pairs(tmp_path / "texts")))
    tab.fill(field("language_output_name"), "trade")
    tab.fill(field("language_samples_prompts"), f"What is {HOSTILE}?")
    tab.fill(field("language_train_epochs"), "2")
    tab.click("#lt_language_advanced > button")
    tab.click("#lt_language_fold_train > button")
    tab.fill(field("language_train_learning_rate"), "0.01")
    tab.fill(field("language_train_seed"), "11")
    tab.wait_for_selector("#lt_language_plan .lt-told:has-text('12 samples')")
    tab.wait_for_selector("#lt_language_plan .lt-told:has-text('12 steps')")
    assert tab.inner_text("#lt_language_plan .lt-base strong") == NAME

    tab.click("#lt_language_start")
    dialog = tab.locator("dialog[open]")
    assert "a WebUI holds 3.0 GB for its own model" in dialog.inner_text()
    dialog.locator("text=Cancel").click()
    assert tab.locator(".lt-job [data-state]").count() == 0, "nothing is begun before the answer"
    tab.click("#lt_language_start")
    tab.click("dialog >> text=Move it aside and start")
    tab.wait_for_selector(".lt-job [data-state=done]", timeout=120_000)
    (adapter,) = tmp_path.glob("output/**/trade/adapter_config.json")
    assert inspect(adapter.parent).recipe["model"]["aside"] is True

    assert "null" not in tab.inner_text(".lt-result")
    tab.click(".lt-result >> text=Try it")
    assert Path(tab.input_value(".lt-try input[type=text]")).name == "trade"
    tab.fill(".lt-try textarea", f"What is {HOSTILE}?")
    tab.click("text=Ask without and with the adapter")
    tab.wait_for_selector(".lt-answer[data-with=yes]", timeout=60_000)
    without, within = (tab.inner_text(f".lt-answer[data-with={one}] blockquote") for one in ("no", "yes"))
    assert without != within
    trained = next(adapter.parent.glob("samples/*-000012-*.txt")).read_text(encoding="utf-8")
    assert " ".join(within.split()) in " ".join(trained.split()), "as the training's own last sample"

    tab.set_viewport_size({"width": 400, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 400
    assert tab.evaluate("window.hacked") is None
    assert errors == []
