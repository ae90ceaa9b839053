"""A scanned folder as the endless stream of batches that the loop trains on."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lora_trainer.config.options import DataConfig
from lora_trainer.config.seeds import sample_seed
from lora_trainer.contracts import Batch, Event, PlainError, Told
from lora_trainer.data.buckets import Buckets, Crop
from lora_trainer.data.captions import shape_caption, with_trigger
from lora_trainer.data.framing import Framing
from lora_trainer.data.hashes import CACHE_FOLDER
from lora_trainer.data.latents import EncodeImages, LatentCache, Picture
from lora_trainer.data.masks import Masked, Masks, masked_images
from lora_trainer.data.order import Order, Sample
from lora_trainer.data.scan import Item, Scan
from lora_trainer.data.texts import EncodeText, TextCache


class _Member(NamedTuple):
    """One image of the stream."""

    item: Item
    framing: Framing
    of_class: bool  # a regularisation image


class DataSet:
    """Implements `contracts.Batches`: batch `index` is a function of the scan, the options, the seed and the index.

    Everything but the batches themselves is known at once; they need `prepare` to have run to its end.
    """

    def __init__(
        self, scan: Scan, config: DataConfig, *, resolution: int, seed: int, class_word: str = "",
        class_scan: Scan | None = None,
    ) -> None:  # fmt: skip
        """`resolution` in pixels; `class_word` asks for captions with it in the trigger word's place too; `class_scan`
        holds the regularisation images.

        Raises PlainError if no bucket fits the resolution, and for options that ask for what is not there: focal points
        without what finds them, masks where there are none, regularisation images without a caption.
        """
        self._class_word = class_word
        self._folder = scan.folder
        self._config = config
        self._seed = seed
        self.buckets = Buckets(resolution, config.bucket_step, config.buckets, config.upscale, config.crop)
        self._latents: LatentCache | None = None
        self._texts: TextCache | None = None
        self._masks: Masks | None = None
        self._last_index = -1
        members: list[_Member] = []
        for found in (scan, class_scan):
            if found:
                framing = Framing(found.folder, found.items, self.buckets)
                framing.check(found.items)
                members += [_Member(item, framing, found is class_scan) for item in found.items]
        self.masks = masked_images([member.item for member in members], look_inside=config.masked_loss)
        if config.masked_loss:
            self.masks.check(scan.folder)
        if class_scan:
            _check_captions(class_scan, config.class_prompt)
        self._arrange(members)

    def _arrange(self, members: Sequence[_Member]) -> None:
        self._members = tuple(members)
        self.items = tuple(member.item for member in members if not member.of_class)
        self.class_items = tuple(member.item for member in members if member.of_class)
        self._frame()
        shapes = sorted({picture.crop.size for picture in self._pictures})
        numbers = {shape: number for number, shape in enumerate(shapes)}
        self._order = Order(
            self._seed,
            [numbers[picture.crop.size] for picture in self._pictures],
            [member.item.repeats * self._config.repeats for member in members],
            self._config.batch_size,
            len(self.class_items),
        )

    def _frame(self) -> None:
        self._pictures = [Picture(member.item.path, member.framing.crop_of(member.item)) for member in self._members]

    @property
    def samples_per_epoch(self) -> int:
        """Images times their repeats; with regularisation images twice as many."""
        return self._order.samples_per_epoch

    @property
    def own_samples_per_epoch(self) -> int:
        """The same without the regularisation images."""
        return self.samples_per_epoch // (2 if self.class_items else 1)

    @property
    def encodes_while_training(self) -> bool:
        """Whether captions change from time to time, so that a frozen text encoder is needed at every step."""
        return self._config.shuffle_captions

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about images and options that do not go well together."""
        framings = {id(member.framing): member.framing for member in self._members}.values()
        return (*self._warnings(), *chain.from_iterable(framing.warnings() for framing in framings))

    @property
    def crops(self) -> dict[str, Crop]:
        """How each image is scaled and cut as far as it is known by now, by its name."""
        return {
            member.item.name: picture.crop for member, picture in zip(self._members, self._pictures, strict=True)
        }

    def focal_points_known(self) -> int:
        """How many images have a focal point before `prepare` looks for the others."""
        return sum(member.framing.focus_of(member.item) is not None for member in self._members)

    def digest(self) -> str:
        """Changes with the names, sizes, repeats and captions of the images, and with focal points and masks; SHA-256.

        Contents are not in it: reading them all would cost minutes.
        """
        listed: list[Any] = [_row(item) for item in self.items]
        listed += [("class", *_row(item)) for item in self.class_items]
        for member in self._members:
            focus, mask = member.framing.focus_of(member.item), self.masks.of(member.item)
            listed += [("focus", member.item.name, *focus)] if focus else []
            listed += [("mask", member.item.name, mask.name)] if mask and self._config.masked_loss else []
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

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
        yield from self._find_focal_points()
        mode = "memory" if self._config.cache == "auto" else self._config.cache  # whoever plans a run settles it
        cache = LatentCache(
            mode, folder or self._folder / CACHE_FOLDER, fingerprint, encode_images, flip=self._config.flip
        )
        yield from cache.fill(self._pictures)
        if cache.damaged:
            yield from self.leave_out(cache.damaged, "damaged")
        yield from self._read_masks()
        texts = TextCache(encode_text) if encode_text else None
        if texts:
            foreseen = set() if self.encodes_while_training else {self._whole_caption(one) for one in self._members}
            foreseen |= set(self._of_class(sorted(foreseen)))
            yield from texts.fill(foreseen)
        self._latents, self._texts = cache, texts

    def _find_focal_points(self) -> Iterator[Event]:
        for framing in {id(member.framing): member.framing for member in self._members}.values():
            yield from framing.find([member.item for member in self._members if member.framing is framing])
        self._frame()

    def _read_masks(self) -> Iterator[Event]:
        """Masks of all pictures, if any has one: within a run each loss is taken in the same way."""
        if not self._config.masked_loss and not any(picture.crop.padded for picture in self._pictures):
            return
        masks = Masks(self._config.mask_floor, wanted=self._config.masked_loss)
        yield from masks.fill([
            Masked(member.item.path, self.masks.of(member.item), picture.crop, member.item.size)
            for member, picture in zip(self._members, self._pictures, strict=True)
        ])  # fmt: skip
        for text in (*masks.warnings, *(f"Left out: {fault}" for fault in masks.unusable.values())):
            yield Told(text, "warning")
        if masks.unusable:
            yield from self.leave_out(masks.unusable, "without anything to learn")
        self._masks = masks

    def __call__(self, index: int) -> Batch:
        """Micro-batch `index`, from 0; all tensors on the CPU."""
        samples = self._order.micro_batch(index)
        batch = self._batch(samples, tuple(self._caption(sample) for sample in samples))
        self._read_ahead(index)
        return batch

    def heaviest(self) -> Batch:
        """What takes most memory: pictures of the largest bucket with the longest captions. The stream goes on as if
        nobody had asked."""
        areas = [picture.crop.width * picture.crop.height for picture in self._pictures]
        chosen = [number for number, area in enumerate(areas) if area == max(areas)]
        chosen.sort(key=lambda number: len(self._whole_caption(self._members[number])), reverse=True)
        samples = [
            Sample(position, chosen[position % len(chosen)], 0) for position in range(self._config.batch_size)
        ]
        return self._batch(samples, tuple(self._whole_caption(self._members[sample.item]) for sample in samples))

    def _batch(self, samples: Sequence[Sample], captions: tuple[str, ...]) -> Batch:
        if self._latents is None:
            raise RuntimeError("DataSet.prepare has to run to its end before the first batch")
        mirrored = [self._mirrored(sample) for sample in samples]
        pictures = self._pictures_of(samples)
        latents = self._latents.batch(pictures, mirrored)
        members = [self._members[sample.item] for sample in samples]
        sizes = [
            picture.crop.sizes(*member.item.size, mirrored=mirror)
            for picture, member, mirror in zip(pictures, members, mirrored, strict=True)
        ]
        weights = [self._config.prior_weight if member.of_class else 1.0 for member in members]
        class_captions = self._of_class(captions)
        return Batch(
            positions=tuple(sample.position for sample in samples),
            latents=latents,
            captions=captions,
            text=self._texts.batch(captions) if self._texts else None,
            sizes=torch.tensor(sizes, dtype=torch.float32),
            weights=torch.tensor(weights, dtype=torch.float32),
            class_captions=class_captions,
            class_text=self._texts.batch(class_captions) if self._texts and class_captions else None,
            mask=self._masks.batch(pictures, mirrored) if self._masks else None,
        )

    def to_disk(self) -> str:
        """Move encoded images from memory to files; what was done, or nothing where there is nothing to move."""
        freed = self._latents.to_disk() if self._latents else 0
        return f"encoded images are kept on disk ({freed >> 20} MiB)" if freed else ""

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

    def _whole_caption(self, member: _Member) -> str:
        return with_trigger(*self._caption_and_trigger(member))

    def _caption_and_trigger(self, member: _Member) -> tuple[str, str]:
        """Regularisation images are not to learn the trigger word."""
        caption = member.item.caption
        return (caption or self._config.class_prompt, "") if member.of_class else (caption, self._config.trigger)

    def _of_class(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The captions with the class in the trigger word's place; none where no class is asked."""
        if not self._class_word:
            return ()
        return tuple(caption.replace(self._config.trigger, self._class_word) for caption in captions)

    def _caption(self, sample: Sample) -> str:
        caption, trigger = self._caption_and_trigger(self._members[sample.item])
        return shape_caption(
            caption,
            trigger=trigger,
            shuffle=self._config.shuffle_captions,
            keep_tokens=self._config.keep_tokens,
            dropout=self._config.caption_dropout,
            rng=random.Random(sample_seed(self._seed, sample.position, "caption")),
        )

    def leave_out(self, unusable: Mapping[Path, str], what: str) -> Iterator[Event]:
        """Go on without these images, each with its reason as a sentence; raises PlainError if none is left."""
        left = [member for member in self._members if member.item.path not in unusable]
        if {member.of_class for member in self._members} != {member.of_class for member in left}:
            first = next(iter(unusable.values()))
            gone = self._folder if all(member.of_class for member in left) else self._config.regularization
            raise PlainError(f"Not one image of {gone} can be trained on; the first: {first}")
        yield Told(f"{len(unusable)} of {len(self._members)} images are {what} and left out.", "warning")
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


def _row(item: Item) -> tuple[Any, ...]:
    return item.name, item.size, item.repeats, item.caption


def _check_captions(found: Scan, class_prompt: str) -> None:
    """Without a caption a regularisation image would only teach what the model draws for an empty prompt."""
    if found.missing_captions and not class_prompt:
        raise PlainError(
            f"{len(found.missing_captions)} of the {len(found.items)} regularisation images in {found.folder} have no "
            "caption: give data.class_prompt what they show, such as 'a photo of a cat', or put captions beside them."
        )
