"""Images that are there more than once: the same file, or the same picture saved anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from lora_trainer.data.doctor.findings import Finding, Severity, count
from lora_trainer.data.doctor.look import Look
from lora_trainer.data.doctor.neighbours import Neighbours
from lora_trainer.data.doctor.pictures import BLURRED
from lora_trainer.data.scan import Item

# Mean difference of the 4 x 4 colours, of 255: a brighter, cut or recompressed picture stays below, while the same
# drawing in other colours, whose likeness is the same, does not.
SAME_TONES = 10.0
SAME_SHAPE = 1.15  # most that the aspect ratios differ: what is stretched is no copy, what is cut at the rim is one

Groups = list[tuple[str, ...]]


def about_copies(items: Sequence[Item], looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Findings about copies, exact ones first; `looks` holds, by name, the images that were looked at."""
    seen = [item for item in items if item.name in looks and not looks[item.name].fault]
    same, single = exact_copies(seen, looks)
    if same:
        yield _finding(
            "duplicate", "warning", same,
            f"{_spare(same)} of another one, byte for byte (such as {same[0][1]} of {same[0][0]}), which counts as "
            "so many repeats of it: leave copies out; to show an image more often on purpose, use repeats.",
        )  # fmt: skip
    alike = near_copies(single, looks)
    if alike:
        yield _finding(
            "near_duplicate", "advice", alike,
            f"{_spare(alike)} of another one but for size, compression or little more (such as {alike[0][1]} of "
            f"{alike[0][0]}), and the LoRA learns by heart what it sees often: keep the best of each group.",
        )  # fmt: skip


def _spare(groups: Groups) -> str:
    spare = sum(len(group) - 1 for group in groups)
    return count(spare, "image", "is a copy", "are copies")


def _finding(kind: str, severity: Severity, groups: Groups, sentence: str) -> Finding:
    images = tuple(name for group in groups for name in group)
    spare = tuple(name for group in groups for name in group[1:])
    return Finding(kind, severity, images, sentence, spare, tuple(groups))


def exact_copies(items: Sequence[Item], looks: Mapping[str, Look]) -> tuple[Groups, list[Item]]:
    """Groups of names with the same content, the one to keep first, and one item of each content.

    Kept is the one with the longest caption, of such the first.
    """
    by_digest: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_digest[looks[item.name].digest].append(item)
    ordered = [sorted(group, key=lambda item: -len(item.caption)) for group in by_digest.values()]
    groups = [tuple(item.name for item in group) for group in ordered if len(group) > 1]
    return groups, [group[0] for group in ordered]


def near_copies(items: Sequence[Item], looks: Mapping[str, Look]) -> Groups:
    """Groups of names whose pictures look alike, the one to keep first: sharp, captioned, large, in this order.

    An image belongs to a group only by its likeness to the one that is kept: with chains of likenesses a series of
    pictures, each a little different from the last, would all become one. What is in a group is not asked about
    again, so that thousands of frames of one scene cost no more than as many different pictures.
    """
    by_code: dict[int, list[Item]] = defaultdict(list)
    ordered = sorted(
        items, key=lambda item: (looks[item.name].blur >= BLURRED, not item.caption, -item.width * item.height)
    )
    for item in ordered:
        if looks[item.name].likeness:
            by_code[looks[item.name].likeness].append(item)
    index = Neighbours(by_code)
    taken: set[str] = set()
    groups: Groups = []
    for item in ordered:
        if item.name in taken or not looks[item.name].likeness:
            continue
        codes = index.of(looks[item.name].likeness)
        near = [other for code in codes for other in by_code[code] if other is not item and other.name not in taken]
        alike = sorted(other.name for other in near if _same_picture(item, other, looks))
        if alike:
            groups.append((item.name, *alike))
            taken.update(groups[-1])
    return groups


def _same_picture(one: Item, other: Item, looks: Mapping[str, Look]) -> bool:
    ratio = one.width / one.height / (other.width / other.height)
    return 1 / SAME_SHAPE <= ratio <= SAME_SHAPE and same_tones(looks[one.name], looks[other.name])


def same_tones(one: Look, other: Look) -> bool:
    """Whether the two have nearly the same colours in the same places."""
    pairs = zip(bytes.fromhex(one.tones), bytes.fromhex(other.tones), strict=True)
    return sum(abs(first - second) for first, second in pairs) <= SAME_TONES * len(one.tones) / 2
