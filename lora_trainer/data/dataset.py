"""A scanned folder as the endless stream of batches that the loop trains on."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lora_trainer.config.options import DataConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import Batch, Event, PlainError, Told
from lora_trainer.data.buckets import Buckets
from lora_trainer.data.captions import shape_caption, with_trigger
from lora_trainer.data.hashes import CACHE_FOLDER
from lora_trainer.data.latents import EncodeImages, LatentCache, Picture
from lora_trainer.data.order import Order, Sample
from lora_trainer.data.scan import Item, Scan
from lora_trainer.data.texts import EncodeText, TextCache


class DataSet:
    """Implements `contracts.Batches`: batch `index` is a function of the scan, the options, the seed and the index.

    Everything but the batches themselves is known at once; they need `prepare` to have run to its end.
    """

    def __init__(
        self, scan: Scan, config: DataConfig, *, resolution: int, seed: int, class_word: str = ""
    ) -> None:
        """`resolution` in pixels; `class_word` asks for captions with it in the trigger word's place too. Raises
        PlainError if no bucket fits the resolution."""
        self._class_word = class_word
        self._folder = scan.folder
        self._config = config
        self._seed = seed
        self.buckets = Buckets(resolution, config.bucket_step, config.buckets, config.upscale)
        self._latents: LatentCache | None = None
        self._texts: TextCache | None = None
        self._last_index = -1
        self._arrange(scan.items)

    def _arrange(self, items: Sequence[Item]) -> None:
        self.items = tuple(items)
        self._pictures = [Picture(item.path, self.buckets.fit(*item.size)) for item in items]
        shapes = sorted({picture.crop.size for picture in self._pictures})
        numbers = {shape: number for number, shape in enumerate(shapes)}
        self._order = Order(
            self._seed,
            [numbers[picture.crop.size] for picture in self._pictures],
            [item.repeats * self._config.repeats for item in items],
            self._config.batch_size,
        )

    @property
    def samples_per_epoch(self) -> int:
        """Images times their repeats."""
        return self._order.samples_per_epoch

    @property
    def encodes_while_training(self) -> bool:
        """Whether captions change from time to time, so that a frozen text encoder is needed at every step."""
        return self._config.shuffle_captions

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about images and options that do not go well together."""
        return tuple(self._warnings())

    def bucket_counts(self) -> dict[tuple[int, int], int]:
        """Images by the (width, height) they are trained at, in pixels."""
        return dict(sorted(Counter(picture.crop.size for picture in self._pictures).items()))

    def bucket_table(self) -> str:
        """The same for people: "448 x 576: 10, 512 x 512: 20"."""
        return ", ".join(f"{width} x {height}: {count}" for (width, height), count in self.bucket_counts().items())

    def steps_for(self, epochs: int, accumulation: int = 1, processes: int = 1) -> int:
        """Optimizer steps after which the data set has been seen `epochs` times; the last one may reach beyond."""
        effective = self._config.batch_size * accumulation * processes
        return math.ceil(self.samples_per_epoch * epochs / effective)

    def prepare(
        self,
        encode_images: EncodeImages,
        encode_text: EncodeText | None = None,
        *,
        fingerprint: str = "",
        folder: Path | None = None,
    ) -> Iterator[Event]:
        """Read every image and fill the caches; images that turn out damaged are told and left out.

        `encode_text` is None where the text encoders are trained, and batches then carry captions only. It is kept
        if `encodes_while_training`, as `encode_images` is with the cache "none"; otherwise both may be released
        afterwards. `fingerprint` names the image encoder's weights, `folder` the place of a cache on disk (default:
        hidden in the data set's own folder). Raises PlainError if no image is left.
        """
        cache = LatentCache(
            self._config.cache, folder or self._folder / CACHE_FOLDER, fingerprint, encode_images,
            flip=self._config.flip,
        )  # fmt: skip
        yield from cache.fill(self._pictures)
        if cache.damaged:
            yield from self._leave_out(cache.damaged)
        texts = TextCache(encode_text) if encode_text else None
        if texts:
            foreseen = set() if self.encodes_while_training else {self._with_trigger(item) for item in self.items}
            foreseen |= set(self._of_class(sorted(foreseen)))
            yield from texts.fill(foreseen)
        self._latents, self._texts = cache, texts

    def __call__(self, index: int) -> Batch:
        """Micro-batch `index`, from 0; all tensors on the CPU."""
        if self._latents is None:
            raise RuntimeError("DataSet.prepare has to run to its end before the first batch")
        samples = self._order.micro_batch(index)
        mirrored = [self._mirrored(sample) for sample in samples]
        captions = tuple(self._caption(sample) for sample in samples)
        latents = self._latents.batch(self._pictures_of(samples), mirrored)
        self._read_ahead(index)
        sizes = [
            self._pictures[sample.item].crop.sizes(*self.items[sample.item].size, mirrored=mirror)
            for sample, mirror in zip(samples, mirrored, strict=True)
        ]
        class_captions = self._of_class(captions)
        return Batch(
            positions=tuple(sample.position for sample in samples),
            latents=latents,
            captions=captions,
            text=self._texts.batch(captions) if self._texts else None,
            sizes=torch.tensor(sizes, dtype=torch.float32),
            weights=torch.ones(len(samples)),
            class_captions=class_captions,
            class_text=self._texts.batch(class_captions) if self._texts and class_captions else None,
        )

    def _read_ahead(self, index: int) -> None:
        if self._latents is None or self._config.cache != "none":
            return
        # Several processes take every so many-th batch each: the stride of the last two calls is that of the next.
        stride = max(1, index - self._last_index) if self._last_index >= 0 else 1
        self._last_index = index
        self._latents.expect(self._pictures_of(self._order.micro_batch(index + stride)))

    def _pictures_of(self, samples: Sequence[Sample]) -> list[Picture]:
        return [self._pictures[sample.item] for sample in samples]

    def _mirrored(self, sample: Sample) -> bool:
        """Every other look at an image is mirrored; chance decides only with which one it begins."""
        if not self._config.flip:
            return False
        return (sample.visit + sample_seed(self._seed, sample.item, "flip")) % 2 == 1

    def _with_trigger(self, item: Item) -> str:
        return with_trigger(item.caption, self._config.trigger)

    def _of_class(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The captions with the class in the trigger word's place; none where no class is asked."""
        if not self._class_word:
            return ()
        return tuple(caption.replace(self._config.trigger, self._class_word) for caption in captions)

    def _caption(self, sample: Sample) -> str:
        return shape_caption(
            self.items[sample.item].caption,
            trigger=self._config.trigger,
            shuffle=self._config.shuffle_captions,
            keep_tokens=self._config.keep_tokens,
            dropout=self._config.caption_dropout,
            rng=random.Random(sample_seed(self._seed, sample.position, "caption")),
        )

    def _leave_out(self, damaged: dict[Path, str]) -> Iterator[Event]:
        left = [item for item in self.items if item.path not in damaged]
        if not left:
            first = next(iter(damaged.values()))
            raise PlainError(f"Not one image of {self._folder} could be decoded; the first: {first}")
        yield Told(f"{len(damaged)} of {len(self.items)} images are damaged and left out.", "warning")
        self._arrange(left)

    def _warnings(self) -> Iterator[str]:
        small = [item.name for item in self.items if self.buckets.enlarges(*item.size)]
        if small:
            yield (
                f"{len(small)} of {len(self.items)} images have a side below {self._config.bucket_step} px and are "
                f"enlarged to it ({small[0]}{', ...' if len(small) > 1 else ''}): larger ones train better."
            )
        side = self.buckets.resolution
        if not self._config.buckets and side % self._config.bucket_step:
            trained = side // self._config.bucket_step * self._config.bucket_step
            yield f"Squares of {side} px are trained at {trained} px, the next multiple of {self._config.bucket_step}."
