"""The command line as other people's scripts see it: words, exit codes, and what is printed where."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lora_trainer.interfaces import cli
from lora_trainer.interfaces.cli import _stopped_by_hand, main, weighted_lora
from lora_trainer.train.control import Controls

ROOT = Path(__file__).resolve().parents[2]


def call(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as a shell would run it, in a folder of the caller's."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
               "from lora_trainer.interfaces.cli import main; sys.exit(main())", *words]  # fmt: skip
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_reader_who_has_seen_enough_ends_it_quietly(tmp_path: Path) -> None:
    from tests.builders.slim import write_slim

    write_slim(tmp_path / "base.safetensors", "sd1", seed=1)
    command = [sys.executable, "-m", "lora_trainer", "inspect", str(tmp_path / "base.safetensors")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # as `head` does, before anything was written
        told = process.stderr.read()
    assert (process.returncode, told) == (cli.UNREAD, "")


def test_help_names_the_verbs_and_is_quick_because_nothing_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "lora_trainer", "--help"], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0
    for verb in ("train", "export", "merge", "inspect", "example:"):
        assert verb in done.stdout
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "yaml" in imported, "the report is read rightly"
    assert not imported & {"torch", "numpy", "PIL", "diffusers", "transformers", "peft", "tqdm", "gradio"}


def test_help_of_train_shows_each_option_with_its_default_and_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", "--help"])
    assert caught.value.code == 0
    page = capsys.readouterr().out
    assert "--network.rank N, --lora_rank N" in page
    assert page.index("\nnetwork:") < page.index("--network.rank") < page.index("\nadvanced:")
    assert page.index("\nadvanced:") < page.index("--train.min_snr_gamma")


def test_wrong_words_are_bad_input() -> None:
    assert call("trian").returncode == 2
    assert call().returncode == 2
    assert call("train", "--network.rnk", "8").returncode == 2


def test_a_bad_configuration_is_told_at_once_without_a_trace_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("lora_rnak: 8\nbatch_size: 0\noutput_dir: made\n", encoding="utf-8")
    done = call("train", "--config", "run.yaml", "--network.rank", "many", folder=tmp_path)
    assert done.returncode == 2
    assert "Error: 3 settings cannot be used:" in done.stderr
    for told in ("did you mean lora_rank?", "batch_size (data.batch_size) is 0", "network.rank is 'many'"):
        assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_configuration_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    done = call("train", "--config", "none.yaml", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: No configuration could be read from none.yaml")


def test_what_the_jobs_refuse_is_bad_input(tmp_path: Path) -> None:
    done = call("inspect", "none.safetensors", folder=tmp_path)
    assert done.returncode == 2
    assert "none.safetensors" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unforeseen_error_is_one_line_unless_the_trace_is_asked_for(tmp_path: Path) -> None:
    command = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import lora_trainer.interfaces.cli as cli;"
        "cli.load_yaml = lambda path: {}[path]; sys.exit(cli.main())"
    )
    words = [sys.executable, "-c", command, "train", "--config", "run.yaml"]
    short = subprocess.run(words, capture_output=True, text=True, check=False)
    assert short.returncode == 1
    assert short.stderr.count("\n") == 1
    assert "--debug shows" in short.stderr
    long = subprocess.run([*words, "--debug"], capture_output=True, text=True, check=False)
    assert long.returncode == 1
    assert "Traceback" in long.stderr


def test_letters_that_a_console_lacks_do_not_end_the_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lora_trainer", "train", "--config", "画風.yaml"],
        cwd=ROOT, capture_output=True, check=False, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )  # fmt: skip
    assert done.returncode == 2
    assert b"Error: No configuration could be read from ??.yaml" in done.stderr


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a.safetensors:-1", "a.safetensors", -1.0),
        (r"C:\x.safetensors:0.8", r"C:\x.safetensors", 0.8),
        (r"C:\x.safetensors", r"C:\x.safetensors", 1.0),
        ("C:/x.safetensors", "C:/x.safetensors", 1.0),
        ("odd:name/a.safetensors:.5", "odd:name/a.safetensors", 0.5),
    ],
)
def test_a_lora_with_its_weight(text: str, path: str, weight: float) -> None:
    assert weighted_lora(text) == (Path(path), weight)


@pytest.mark.parametrize("text", ["a.safetensors:0,8", "a.safetensors:", "a.safetensors:nan", "a.safetensors:inf"])
def test_a_weight_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"a\.safetensors:0\.8"):
        weighted_lora(text)


def test_the_first_interrupt_asks_for_an_orderly_end_and_the_second_ends_at_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    control = Controls()
    before = signal.getsignal(signal.SIGINT)

    def pressed_twice() -> None:
        with _stopped_by_hand(control):
            signal.raise_signal(signal.SIGINT)
            assert control.take().stop
            assert "Finishing the step and saving" in capfd.readouterr().err
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pressed_twice()
    assert signal.getsignal(signal.SIGINT) is before


def test_stopped_at_once_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(path: Path) -> dict[str, object]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load_yaml", interrupted)
    assert main(["train", "--config", "run.yaml", "--debug"]) == 130
    assert "--resume" in capsys.readouterr().err
