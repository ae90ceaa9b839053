"""`python -m lora_trainer check` as a shell sees it, and the line that a run says before it begins."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from lora_trainer.data.doctor.findings import KINDS, REMEDIES
from lora_trainer.interfaces.cli import main
from lora_trainer.jobs.checkup import FIXABLE
from tests.builders.drawn import drawn, drawn_folder, settled

PAGE = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")


def check(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = main(["check", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_healthy_is_0_advice_is_0_and_an_unreadable_image_is_2(tmp_path, capsys) -> None:
    drawn_folder(tmp_path)
    code, out, err = check(capsys, tmp_path, "--resolution", 128)
    assert (code, "Nothing is wrong" in out) == (0, True)
    assert "6 of 6" in err
    code, out, _ = check(capsys, tmp_path, "--resolution", 512, "--trigger", "mycat")
    assert code == 0
    assert re.search(r"Spoils the training\n.*tiny: 6 images.*trigger_missing: 6 captions", out, flags=re.S)
    assert "--fix trigger_missing" in out
    (tmp_path / "bad 🐈.png").write_bytes(b"none")
    code, out, _ = check(capsys, tmp_path)
    assert (code, "bad 🐈.png" in out) == (2, True)


def test_json_is_all_of_it_and_nothing_else_on_stdout(tmp_path, capsys) -> None:
    drawn_folder(tmp_path)
    shutil.copy(tmp_path / "1.png", tmp_path / "2 copy 🐈.png")
    code, out, _ = check(capsys, tmp_path, "--resolution", 128, "--format", "json", "--fix", "not_unicode")
    report = json.loads(out)
    assert code == 0
    assert (report["images"], report["captioned"], report["looked_at"], report["trainable"]) == (7, 6, 7, True)
    (copies,) = [finding for finding in report["findings"] if finding["kind"] == "duplicate"]
    assert copies["groups"] == [["1.png", "2 copy 🐈.png"]]
    assert (copies["severity"], copies["count"], copies["remedy"]) == ("warning", 2, REMEDIES["exclude"])


def test_fixing_reports_what_is_left(tmp_path, capsys) -> None:
    drawn_folder(tmp_path)
    shutil.copy(tmp_path / "1.png", tmp_path / "copy.png")
    (tmp_path / "bad.png").write_bytes(b"none")
    code, out, _ = check(capsys, tmp_path, "--resolution", 128, "--trigger", "cat",
                         "--fix", "unreadable", "duplicate", "trigger_missing")  # fmt: skip
    assert code == 0
    assert "2 more are excluded: bad.png, copy.png" in out
    assert "Nothing is wrong" in out
    assert (tmp_path / "0.txt").read_text(encoding="utf-8") == "cat, a scene, number 0\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--fix", "everything"], "no remedy for everything; it has one for unreadable"),
        (["--fix", "trigger_missing"], "give it with --trigger"),
        (["--metadata", "none.csv"], "none.csv does not exist"),
    ],
)
def test_what_cannot_be_done_is_bad_input(tmp_path, capsys, words: list[str], told: str) -> None:
    drawn_folder(tmp_path, 2)
    code, out, err = check(capsys, tmp_path, *words)
    assert (code, out, told in err) == (2, "", True)
    assert not (tmp_path / ".cache").exists()


@pytest.mark.parametrize("words", [["--resolution", "many"], ["--resolution", "1"], ["--format", "xml"], []])
def test_wrong_words_are_refused_at_once(tmp_path, capsys, words: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["check", *([str(tmp_path)] if words else []), *words])
    assert end.value.code == 2


def test_a_run_says_before_it_begins_what_is_known_without_decoding(tmp_path, capsys) -> None:
    folder = drawn_folder(tmp_path / "set", 4)
    drawn(9).resize((900, 100)).save(folder / "wide.png")
    drawn(10).resize((60, 60)).save(folder / "tiny.png")
    shutil.copy(folder / "1.png", folder / "copy.png")
    words = ["train", "--dry-run", "--base_model", "demo", "--train_data_dir", str(folder), "--output_dir",
             str(tmp_path / "out"), "--resolution", "128", "--data.trigger", "mycat"]  # fmt: skip
    assert main(words) == 0
    out = capsys.readouterr().out
    (note,) = [line for line in out.splitlines() if "Check of the images" in line]
    assert "smaller than their bucket: 1, too long or too wide: 1." in note
    assert f'check "{folder}"' in note
    assert not (folder / ".cache").exists(), "a dry run writes nothing"
    settled(folder)
    check(capsys, folder)
    assert main(words) == 0
    assert "exact copies: 1" in capsys.readouterr().out, "what was looked at is known from then on"


def test_the_page_names_every_kind_its_severity_and_its_remedy() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, flags=re.M))
    assert rows.keys() == KINDS.keys()
    fixed = {kind for kind, row in rows.items() if row.rpartition("|")[2].strip()}
    assert fixed == set(FIXABLE)
