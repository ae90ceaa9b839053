"""A data set goes to the doctor: scan, looks, tokenizer and remedies brought together."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import cache
from pathlib import Path

from lora_trainer.contracts import Prepared
from lora_trainer.data.buckets import Buckets
from lora_trainer.data.doctor.examine import Report, examine
from lora_trainer.data.doctor.findings import KINDS, Wanted
from lora_trainer.data.doctor.looks import Looks
from lora_trainer.data.doctor.remedies import remedy
from lora_trainer.data.scan import Scan, scan

RESOLUTION = 512  # pixels, where none is named: what SD 1 was made for
STEP = 64  # pixels, as data.bucket_step has it by default

FIXABLE = tuple(name for name, kind in KINDS.items() if kind.remedy)


class Checkup:
    """The examination of one folder; what it sees of the pictures is remembered in the folder's cache."""

    def __init__(
        self, folder: Path, metadata: Path | None = None, *, trigger: str = "", resolution: int = RESOLUTION
    ) -> None:
        """Reads names, headers and captions. Raises PlainError for a folder that has nothing to train on."""
        self._metadata = metadata
        self._trigger = trigger
        self._wanted = Wanted(Buckets(resolution, min(STEP, resolution)), trigger, tokens=token_counter())
        self._looks = Looks(folder)
        self.scan = scan(folder, metadata, self._looks.size_of)
        self._looks.recall(self.scan.items)

    def look(self) -> Generator[Prepared, None, None]:
        """Look at every picture that is not remembered; whoever stops asking keeps what was seen by then."""
        yield from self._looks.take(self.scan.items)

    def report(self) -> Report:
        """What is wrong, as far as it was looked."""
        return examine(self.scan, self._wanted, self._looks.of(self.scan.items))

    def fix(self, kinds: Sequence[str]) -> list[str]:
        """Apply the remedies of these kinds; a sentence for each. The folder is scanned anew after each of them.

        Raises PlainError where a file cannot be written.
        """
        return [self._fix(kind) for kind in dict.fromkeys(kinds)]

    def _fix(self, kind: str) -> str:
        finding = self.report().of(kind)
        if finding is None:
            return f"{kind}: nothing to do, none was found."
        done = remedy(finding, self.scan, self._metadata, self._trigger)
        self.scan = scan(self.scan.folder, self._metadata, self._looks.size_of)
        return f"{kind}: {done}"


def summary(found: Scan, buckets: Buckets, trigger: str) -> str | None:
    """What is worth saying before a run, from what is known without decoding anything; None where that is nothing."""
    looks = Looks(found.folder)
    looks.recall(found.items)
    wanted = Wanted(buckets, trigger, adds_trigger=True, tokens=token_counter())
    return examine(found, wanted, looks.of(found.items)).summary()


def token_counter() -> Callable[[str], int]:
    """Counts a caption's tokens; the vocabulary, the same for all families, is read when the first one is counted."""

    @cache
    def tokenizer() -> Callable[[str], list[int]]:
        from lora_trainer.families.tokenizer import Tokenizer

        return Tokenizer("clip").ids

    return lambda caption: len(tokenizer()(caption))
