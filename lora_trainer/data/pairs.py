"""Pictures in pairs: each of a data set beside the one of the same name in another folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import Batch, Event, PlainError
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.latents import EncodeImages, Picture
from lora_trainer.data.scan import Item, Scan
from lora_trainer.data.texts import EncodeText

_NAMED = 3  # pictures named in a refusal


def opposites(found: Scan, other: Scan) -> Scan:
    """The scan of `other` with just the pictures that stand opposite to those of `found`, in their order.

    Names are compared without their endings. Raises PlainError where pictures of either folder have no partner, where
    a name is there twice, or where the two of a pair differ in size.
    """
    for one in (found, other):
        twice = [name for name, count in Counter(_name(item) for item in one.items).items() if count > 1]
        if twice:
            raise PlainError(
                f"{one.folder} has several pictures called {_listed(twice)}, so it is not told which belongs to the "
                "pair; keep one of each."
            )
    there = {_name(item): item for item in other.items}
    for lacking, folder, present in (
        ([item.name for item in found.items if _name(item) not in there], other.folder, found.folder),
        (sorted(there.keys() - {_name(item) for item in found.items}), found.folder, other.folder),
    ):
        if lacking:
            raise PlainError(
                f"{len(lacking)} of the pictures in {present} have none of the same name in {folder}: "
                f"{_listed(lacking)}; put their opposites there, or take them out."
            )
    matched = [(item, there[_name(item)]) for item in found.items]
    for item, one in matched:
        if item.size != one.size:
            raise PlainError(
                f"{item.name} is {item.width} x {item.height} px in {found.folder} and {one.width} x {one.height} in "
                f"{other.folder}; the two of a pair must show the same place, so give them one size."
            )
    items = tuple(replace(one, name=item.name, repeats=item.repeats, mask=None) for item, one in matched)
    return replace(other, items=items)


class Pairs:
    """Batches of a data set, each with the pictures opposite to its own; implements `contracts.Batches`."""

    def __init__(self, data: DataSet, others: Scan, config: DataConfig, *, resolution: int, seed: int) -> None:
        """`others` as `opposites` gives it for the images of `data`; the rest as `data` was made with."""
        self._data = data
        plain = replace(
            config, masked_loss=False, mask_floor=0.0, regularization=None, class_prompt="", shuffle_captions=False,
            crop="none" if config.crop == "none" else "center",
        )  # fmt: skip
        self._others = _Others(data, others, plain, resolution=resolution, seed=seed)

    @property
    def digest(self) -> str:
        """Changes with the names and sizes of the pictures opposite."""
        return self._others.digest()

    def prepare(
        self, encode_images: EncodeImages, encode_text: EncodeText | None = None, *, fingerprint: str = ""
    ) -> Iterator[Event]:
        """As `DataSet.prepare`; a picture whose partner is damaged is left out with it."""
        yield from self._data.prepare(encode_images, encode_text, fingerprint=fingerprint)
        yield from self._follow(self._others, self._data.items)
        yield from self._others.prepare(encode_images, None, fingerprint=fingerprint)
        yield from self._follow(self._data, self._others.items)

    def _follow(self, follower: DataSet, kept: Sequence[Item]) -> Iterator[Event]:
        names = {item.name for item in kept}
        alone = {item.path: f"{item.path} has lost its partner." for item in follower.items if item.name not in names}
        if alone:
            yield from follower.leave_out(alone, "without their partners")

    def __call__(self, index: int) -> Batch:
        """Micro-batch `index`, from 0, with the pictures opposite; all tensors on the CPU."""
        return replace(self._data(index), opposite=self._others(index).latents)

    def heaviest(self) -> Batch:
        """As `DataSet.heaviest`; its own pictures stand for those opposite, which have the same sizes."""
        batch = self._data.heaviest()
        return replace(batch, opposite=batch.latents.clone())


class _Others(DataSet):
    """The pictures opposite, in the order of the data set and cut as it cuts its own."""

    def __init__(self, data: DataSet, scan: Scan, config: DataConfig, *, resolution: int, seed: int) -> None:
        self._leads = data
        super().__init__(scan, config, resolution=resolution, seed=seed)

    def _frame(self) -> None:
        crops = self._leads.crops
        self._pictures = [Picture(member.item.path, crops[member.item.name]) for member in self._members]


def _name(item: Item) -> str:
    return str(PurePosixPath(item.name).with_suffix(""))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(Path(name).as_posix() for name in names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
