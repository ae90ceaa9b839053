"""A data set without files: pictures that the base model draws by itself before the first step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.config.options import DataConfig
from lora_trainer.contracts import Event, Prepared
from lora_trainer.data.dataset import DataSet
from lora_trainer.data.latents import EncodeImages, LatentCache, Picture
from lora_trainer.data.scan import Item, Scan
from lora_trainer.data.texts import EncodeText

NOWHERE = Path("drawn by the base model")  # in the place of a folder
DrawLatents = Callable[[int, int], Tensor]  # number of the picture, side in pixels: latents (1, 4, h, w)


def drawn_scan(count: int, resolution: int) -> Scan:
    """`count` square pictures that are in no folder."""
    items = tuple(Item(NOWHERE / str(n), f"drawn {n}", resolution, resolution, "", "", 1) for n in range(count))
    return Scan(NOWHERE, items, (), (), (), {}, ())


class DrawnSet(DataSet):
    """Batches of pictures that are drawn as latents and never decoded. `draw` has to run between `prepare` and the
    first batch, when the whole base is there."""

    def __init__(self, scan: Scan, config: DataConfig, *, resolution: int, seed: int) -> None:
        # Nothing of a square is cut away by any mode; this one looks for no focal points.
        plain = replace(config, crop="none", cache="memory", buckets=False)
        super().__init__(scan, plain, resolution=resolution, seed=seed)

    def prepare(
        self, encode_images: EncodeImages, encode_text: EncodeText | None = None, *, fingerprint: str = "",
        folder: Path | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """There is nothing to read."""
        yield from ()

    def draw(self, latents: DrawLatents) -> Iterator[Event]:
        """Have every picture drawn."""
        kept = _Drawn()
        for number, picture in enumerate(self._pictures):
            kept.put(picture, latents(number, picture.crop.size[0]))
            yield Prepared("pictures", number + 1, len(self._pictures))
        self._latents = kept


class _Drawn(LatentCache):
    """Latents in memory, that cannot be made again from a file."""

    def __init__(self) -> None:
        super().__init__("memory", NOWHERE, "", _no_encoder, flip=True)

    def put(self, picture: Picture, latents: Tensor) -> None:
        for mirrored in (False, True):
            one = latents[0].float().cpu()
            self._memory[picture, mirrored] = (one.flip(-1) if mirrored else one).clone()

    def to_disk(self) -> int:
        return 0

    def batch(self, pictures: Sequence[Picture], mirrored: Sequence[bool]) -> Tensor:
        return torch.stack([self._memory[key] for key in zip(pictures, mirrored, strict=True)])


def _no_encoder(pixels: Tensor) -> Tensor:
    raise RuntimeError("what was drawn is encoded already")
