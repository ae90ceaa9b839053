"""Small pictures: made once, those that somebody looks at first, and never at a training's expense."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.data.workshop import thumbs as thumbs_module
from lora_trainer.data.workshop.thumbs import Thumbs, Wanted, forget_thumbs, small_jpeg, thumb_file
from tests.builders.pictures import picture_folder


def wanted(folder: Path, count: int) -> list[Wanted]:
    picture_folder(folder, [(16, 16)] * count, captions=False)
    paths = [folder / f"{number}.png" for number in range(count)]
    return [Wanted(path, thumb_file(folder / "cache", path.name, (1, 1))) for path in paths]


def until_there(those: list[Wanted], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not all(one.target.is_file() for one in those):
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of pictures in the order they are begun; each takes 20 ms more."""
    names = list[str]()

    def slow(source: Path) -> bytes:
        names.append(source.stem)
        time.sleep(0.02)
        return small_jpeg(source)

    monkeypatch.setattr(thumbs_module, "small_jpeg", slow)
    return names


def test_who_waits_comes_first_then_the_next_page_then_the_rest(tmp_path: Path, made: list[str]) -> None:
    all_of_them = wanted(tmp_path, 40)
    thumbs = Thumbs()
    thumbs.later("set", all_of_them)
    thumbs.soon(all_of_them[30:33])
    assert thumbs.get(all_of_them[39]).is_file()
    assert len(made) < 10, "it did not wait for the thirty-nine before it"
    until_there(all_of_them)
    assert sorted(made, key=int) == [str(number) for number in range(40)], "each once"
    assert max(made.index(str(number)) for number in (30, 31, 32, 39)) < 10
    thumbs.get(all_of_them[0])
    assert len(made) == 40
    thumbs.close()


def test_work_ahead_rests_while_a_training_runs_and_who_waits_does_not(tmp_path: Path, made: list[str]) -> None:
    all_of_them = wanted(tmp_path, 30)
    thumbs = Thumbs(lambda: True)
    thumbs.later("set", all_of_them[:20])
    time.sleep(1)
    # of a second a quarter is worked (rests are three times as long), in one thread: some 12 pictures, 45 without rests
    assert 2 <= len(made) <= 16
    begun = time.monotonic()
    for one in all_of_them[20:]:
        thumbs.get(one)
    assert time.monotonic() - begun < 1.5
    thumbs.forget("set")
    thumbs.close()


def test_several_that_ask_for_one_picture_wait_for_the_same(tmp_path: Path, made: list[str]) -> None:
    (one,) = wanted(tmp_path, 1)
    thumbs = Thumbs()
    asking = [threading.Thread(target=thumbs.get, args=(one,)) for _ in range(8)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert made.count("0") == 1
    thumbs.close()


def test_a_damaged_picture_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    both = wanted(tmp_path, 2)
    both[0].source.write_bytes(b"no image")
    thumbs = Thumbs()
    for _ in range(2):
        with pytest.raises(PlainError, match=r"0\.png is not an image"):
            thumbs.get(both[0])
    assert thumbs.get(both[1]).is_file()
    thumbs.close()


def test_small_pictures_of_images_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    kept, gone = wanted(tmp_path, 2)
    thumbs = Thumbs()
    thumbs.get(kept)
    thumbs.get(gone)
    thumbs.close()
    forget_thumbs(tmp_path / "cache", [kept.target])
    assert (kept.target.is_file(), gone.target.is_file()) == (True, False)
    assert gone.source.is_file(), "the picture itself stays"


def test_a_picture_that_both_threads_come_to_is_made_once_and_costs_neither(tmp_path: Path, made: list[str]) -> None:
    before = set(threading.enumerate())
    all_of_them = wanted(tmp_path, 12)
    thumbs = Thumbs()
    thumbs.later("set", all_of_them)
    for one in all_of_them:  # the very one that is made ahead, each time
        thumbs.get(one)
    assert sorted(made, key=int) == [str(number) for number in range(12)]
    alive = [one for one in threading.enumerate() if one.name == "thumbs" and one not in before]
    assert len(alive) == 2
    thumbs.close()
