"""Perceptual hashes that differ in few bits, found without comparing each with each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

# Bits of 64. A picture saved again as JPEG of quality 40, halved, or made a little brighter moves by 4 at most, while
# of 80,000 pairs of different drawings of one small world 20 are as near (and tell themselves apart by colour).
WITHIN = 7

# Norouzi, Punjani and Fleet, "Fast search in Hamming space with multi-index hashing" (CVPR 2012), proposition 1: of
# two codes that differ in at most 7 bits, at least one of four pieces differs in at most 7 // 4 = 1 bit. Looking up
# each piece and its 16 neighbours therefore finds them all. 7 is the most for which one flipped bit is enough.
_PIECES = 4
_PIECE_BITS = 16
_FLIPS = (0, *(1 << bit for bit in range(_PIECE_BITS)))


class Neighbours:
    """An index of 64-bit codes; a question costs 68 look-ups and a comparison for each code that shares a piece.

    For codes as different as those of different pictures that is a handful even among tens of thousands, so the cost
    of asking for all of them grows about as their number does.
    """

    def __init__(self, codes: Iterable[int]) -> None:
        self._tables: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(_PIECES)]
        for code in set(codes):
            for table, piece in zip(self._tables, _pieces(code), strict=True):
                table[piece].append(code)

    def of(self, code: int) -> set[int]:
        """All codes that differ from this one in at most WITHIN bits; its own too if it is in the index."""
        found: set[int] = set()
        for table, piece in zip(self._tables, _pieces(code), strict=True):
            for flip in _FLIPS:
                near = table.get(piece ^ flip)
                if near:
                    found.update(other for other in near if (other ^ code).bit_count() <= WITHIN)
        return found


def _pieces(code: int) -> list[int]:
    return [code >> shift & 0xFFFF for shift in range(0, _PIECES * _PIECE_BITS, _PIECE_BITS)]
