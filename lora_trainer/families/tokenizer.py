"""CLIP's tokens, and captions of any length in chunks of 77, as the WebUI makes them.

Vocabulary and merges are those that open_clip ships; nothing is fetched. The WebUI reads SD1's prompts and those of
SDXL's first encoder with transformers' slow CLIPTokenizer and all others with open_clip's (sd_hijack_clip.py and
sd_hijack_open_clip.py, v1.10.1): same merges, but only the latter resolves HTML entities, and padding differs.
We depart from both in one thing: the names of the special tokens in a caption are plain text, so that no caption can
end itself.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_trainer.contracts import PlainError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Encoder

Layout = Literal["clip", "open_clip"]  # how a text tower is kept in the checkpoint: OpenAI's CLIP-L, or open_clip's

BOS = 49406
EOS = 49407
VOCABULARY = 49408
CHUNK = 75  # caption tokens between BOS and EOS; the towers have 77 positions
_BACKTRACK = 20  # tokens: the WebUI's default "Prompt word wrap length limit" (comma_padding_backtrack)
_COMMA = 267  # the token of ",", by which the WebUI wraps

_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # of the many more in the file; OpenAI's CLIP, clip/simple_tokenizer.py
# Words, single digits and runs of signs (same source). Case is ignored for the long s, which lower() keeps.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Captions to token ids for one layout of text tower."""

    def __init__(self, layout: Layout) -> None:
        """Read the vocabulary (about a quarter of a second). Raises PlainError where a package is missing."""
        self.layout: Layout = layout
        self.pad = EOS if layout == "clip" else 0
        self._encoder = _byte_pair_encoder(vocabulary_file())

    def ids(self, text: str) -> list[int]:
        """Tokens of a caption, however many; without BOS and EOS."""
        return self._encoder.encode(self._clean(text), add_special_tokens=False).ids

    def chunks(self, text: str) -> list[list[int]]:
        """The caption as one or more chunks of 77 ids."""
        return chunk(self.ids(text), self.pad)

    def batch(self, texts: Sequence[str], at_least: int = 1) -> list[list[list[int]]]:
        """Chunks of several captions, (B, n, 77) ids: n is the most that one needs; others get empty chunks.

        `at_least` serves the second tower of SDXL, whose states must be as long as those of the first.
        """
        all_chunks = [self.chunks(text) for text in texts]
        count = max([at_least, *map(len, all_chunks)])
        return [chunks + chunk([], self.pad) * (count - len(chunks)) for chunks in all_chunks]

    def _clean(self, text: str) -> str:
        import ftfy

        text = ftfy.fix_text(text)
        if self.layout == "open_clip":
            text = html.unescape(html.unescape(text))
        return " ".join(text.split()).lower()


def chunk(ids: Sequence[int], pad: int) -> list[list[int]]:
    """Token ids in chunks of 77: BOS, up to 75 ids, EOS, and `pad` up to the end. Without ids, one empty chunk.

    Where a chunk is full and a comma stands among its last 20 tokens, what follows the comma moves on to the next
    chunk, so that phrases stay whole (`tokenize_line` in the WebUI's modules/sd_hijack_clip.py).
    """
    chunks: list[list[int]] = []
    current: list[int] = []
    comma: int | None = None  # its place in the current chunk
    for token in ids:
        if token == _COMMA:
            comma = len(current)
        elif len(current) == CHUNK and comma is not None and CHUNK - comma <= _BACKTRACK:
            chunks.append(current[: comma + 1])
            current, comma = current[comma + 1 :], None
        if len(current) == CHUNK:
            # A comma that opens a chunk is forgotten here too: the WebUI does not wrap at it.
            chunks.append(current)
            current, comma = [], None
        current.append(token)
    if current or not chunks:
        chunks.append(current)
    return [[BOS, *part, EOS, *[pad] * (CHUNK - len(part))] for part in chunks]


def vocabulary_file() -> Path:
    """Where open_clip's vocabulary lies. Raises PlainError naming the package if it is not installed."""
    # open_clip itself is not imported: it draws in torchvision, which not every installation can load.
    found = importlib.util.find_spec("open_clip")
    for folder in (found.submodule_search_locations or []) if found else []:
        if (path := Path(folder) / _VOCABULARY_FILE).is_file():
            return path
    raise PlainError(
        f"The tokenizer's vocabulary ({_VOCABULARY_FILE}) was not found; install the package open_clip_torch."
    )


def _byte_pair_encoder(path: Path) -> Encoder:
    if importlib.util.find_spec("ftfy") is None:
        raise PlainError("Captions cannot be cleaned as the WebUI does; install the package ftfy.")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = _byte_letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    encoder = Tokenizer(
        models.BPE(
            vocab={word: place for place, word in enumerate(words)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    encoder.pre_tokenizer = pre_tokenizers.Sequence([  # type: ignore[assignment]  # its stubs know no setter
        pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    return encoder


def _byte_letters() -> list[str]:
    """A visible letter for each byte in the order of the vocabulary: printable ones as they are, then the others.

    The order of `bytes_to_unicode` in OpenAI's GPT-2 and CLIP.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + place) for place in range(hidden))]
