"""Token ids equal those of open_clip's own tokenizer and of transformers' CLIPTokenizer; chunks wrap as the WebUI's."""

# ruff: noqa: RUF001  (letters that look like others are the point)

from __future__ import annotations

import gzip
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest

from lora_trainer.contracts import PlainError
from lora_trainer.families import tokenizer as module
from lora_trainer.families.tokenizer import BOS, CHUNK, EOS, VOCABULARY, Tokenizer, chunk, vocabulary_file

NASTY = [
    "",
    "   ",
    "a photo of a cat",
    "A Photo  of\ta\n\nCAT ",
    "masterpiece, best quality, 1girl, solo, (blue eyes:1.2), \\(series\\), <lora:cat:0.8>",
    "it's we'll they've I'M SHE'D don't rock'n'roll 'tis y'ſ",
    "12 345 6.78 ½ ² ٣ ௧ Ⅷ",
    "😀👍🏽👨‍👩‍👧 ☃️",
    "一只坐在月亮上的猫，水墨画。 日本語のテキスト 한국어",
    "“curly” ‘quotes’ — dash… ﬁligree ﬀ ½",
    "&amp; &lt;b&gt; &amp;amp;lt; &#39; &copy; &nosuch;",
    "schÃ¶n cafÃ© â€œmojibakeâ€\x9d",
    "naïve façade Ångström İstanbul ΣΊΣΥΦΟΣ ς K Ǆ ß ẞ",
    "e\u0301 a\u030a Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳",
    "עברית العربية हिन्दी ไทย ქართული",
    "!!!???;;::__--==++**//\\\\||~~``^^%%$$##@@",
    "snake_case camelCase kebab-case http://example.com/a?b=c&d=e#f user@example.org",
    "\u00a0\u2003\u3000wide\u200b\u200cspaces\u2028lines\x1c\x1d",
    "a" * 300,
    "supercalifragilisticexpialidocious " * 40,
    "x\x00y\x07z \ud83d lone",
    "<html><body>&nbsp;text</body></html>",
    "a <b> &amp;lt; c &amp;amp;quot; d",
]  # fmt: skip


@pytest.fixture(scope="module")
def open_clip_tokenizer() -> Any:
    """open_clip's own class from its file alone: importing the package draws in torchvision."""
    spec = importlib.util.spec_from_file_location("lone_tokenizer", vocabulary_file().with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    lone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lone)
    return lone.SimpleTokenizer()


def random_texts(count: int) -> list[str]:
    """Strings over old Unicode blocks, whose classes the regex engines agree upon."""
    blocks = [(32, 127), (32, 127), (160, 600), (0x370, 0x500), (0x5D0, 0x5EB), (0x2010, 0x2050), (0x3041, 0x3100),
              (0x4E00, 0x4F00), (0x1F600, 0x1F640), (0x2190, 0x2200)]  # fmt: skip
    dice = random.Random(11)
    return ["".join(chr(dice.randrange(*dice.choice(blocks))) for _ in range(dice.randrange(1, 60)))
            for _ in range(count)]  # fmt: skip


def test_ids_are_those_of_open_clip(open_clip_tokenizer: Any):
    ours = Tokenizer("open_clip")
    for text in NASTY + random_texts(300):
        assert ours.ids(text) == open_clip_tokenizer.encode(text), repr(text)


def test_ids_are_those_of_the_slow_clip_tokenizer_that_the_webui_uses(tmp_path: Path, open_clip_tokenizer: Any):
    try:
        from transformers.models.clip.tokenization_clip import CLIPTokenizer, bytes_to_unicode  # noqa: F401
    except ImportError:
        pytest.skip("transformers 5 has no slow CLIPTokenizer; the run under the WebUI's pins compares")
    encoder = {w: i for w, i in open_clip_tokenizer.encoder.items() if i < BOS}
    (tmp_path / "vocab.json").write_text(json.dumps({**encoder, "<|startoftext|>": BOS, "<|endoftext|>": EOS}))
    with gzip.open(vocabulary_file(), "rt", encoding="utf-8") as file:
        (tmp_path / "merges.txt").write_text("\n".join(file.read().split("\n")[: 48894 + 1]) + "\n", encoding="utf-8")
    theirs = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    assert theirs.fix_text is not None  # with ftfy, as in the WebUI
    ours = Tokenizer("clip")
    for text in NASTY + random_texts(300):
        assert ours.ids(text) == theirs(text, add_special_tokens=False)["input_ids"], repr(text)


def test_only_open_clip_resolves_html_beside_tags():  # ftfy itself resolves entities where no "<" is
    assert Tokenizer("clip").ids("a &amp; b <c>") != Tokenizer("clip").ids("a & b <c>")
    assert Tokenizer("open_clip").ids("a &amp; b <c>") == Tokenizer("clip").ids("a & b <c>")


@pytest.mark.parametrize("layout", ["clip", "open_clip"])
def test_no_caption_can_end_itself(layout: Any):
    for name in ("<|endoftext|>", "<end_of_text>", "<|startoftext|>", "<start_of_text>"):
        ids = Tokenizer(layout).ids(f"a {name} b")
        assert ids
        assert max(ids) < BOS


def test_the_vocabulary_is_whole():
    encoder = module._byte_pair_encoder(vocabulary_file())
    assert encoder.get_vocab_size() == BOS
    assert VOCABULARY == EOS + 1 == 49408  # rows of every CLIP text tower's token embedding
    assert encoder.token_to_id(",</w>") == module._COMMA


def test_an_absent_vocabulary_names_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_VOCABULARY_FILE", "no_such_file.gz")
    with pytest.raises(PlainError, match="install the package open_clip_torch"):
        Tokenizer("clip")


# --- chunks; expected values worked out by hand from tokenize_line in the WebUI's modules/sd_hijack_clip.py ---------

C = module._COMMA


@pytest.mark.parametrize("pad", [EOS, 0])
def test_short_captions_make_one_padded_chunk(pad: int):
    assert chunk([], pad) == [[BOS, EOS] + [pad] * 75]
    assert chunk([5, 6], pad) == [[BOS, 5, 6, EOS] + [pad] * 73]
    full = list(range(1000, 1075))
    assert chunk(full, pad) == [[BOS, *full, EOS]]


def test_padding_is_the_layouts():
    """id_pad in the WebUI: the end token for CLIP-L, 0 for open_clip."""
    ids = Tokenizer("clip").ids("cat")
    assert Tokenizer("clip").chunks("cat") == [[BOS, *ids, EOS] + [EOS] * 74]
    assert Tokenizer("open_clip").chunks("cat") == [[BOS, *ids, EOS] + [0] * 74]


def test_without_a_near_comma_chunks_are_full():
    ids = list(range(1000, 1160))
    assert chunk(ids, 0) == [
        [BOS, *ids[:75], EOS], [BOS, *ids[75:150], EOS], [BOS, *ids[150:], EOS] + [0] * 65,
    ]  # fmt: skip
    far = [*range(1000, 1054), C, *range(2000, 2030)]  # comma at 54: 21 tokens before the end
    assert chunk(far, 0)[0] == [BOS, *far[:75], EOS]


def test_what_follows_a_near_comma_moves_on():
    near = [*range(1000, 1055), C, *range(2000, 2030)]  # comma at 55: 20 tokens before the end
    first, second = chunk(near, 0)
    assert first == [BOS, *near[:56], EOS] + [0] * 19
    assert second == [BOS, *near[56:], EOS] + [0] * 45


def test_a_comma_at_the_brink_does_not_wrap():
    ids = [*range(1000, 1075), C, *range(2000, 2075)]
    chunks = chunk(ids, 0)
    assert chunks[0] == [BOS, *range(1000, 1075), EOS]
    assert chunks[1] == [BOS, C, *range(2000, 2074), EOS]
    assert chunks[2] == [BOS, 2074, EOS] + [0] * 74


def test_every_token_survives_chunking_in_order():
    dice = random.Random(4)
    for _ in range(200):
        ids = [C if dice.random() < 0.08 else dice.randrange(300, 40000) for _ in range(dice.randrange(0, 400))]
        chunks = chunk(ids, 0)
        assert all(len(part) == CHUNK + 2 and part[0] == BOS and part.count(EOS) == 1 for part in chunks)
        assert [token for part in chunks for token in part[1 : part.index(EOS)]] == ids


def test_a_batch_is_filled_with_empty_chunks():
    ours = Tokenizer("open_clip")
    long, short = "red ball " * 60, "cat"
    batch = ours.batch([long, short])
    assert [len(chunks) for chunks in batch] == [2, 2]
    assert batch[0] == ours.chunks(long)
    assert batch[1] == [*ours.chunks(short), *chunk([], 0)]
    assert [len(chunks) for chunks in ours.batch([short], at_least=3)] == [3]
