"""Encoded images, kept in memory or on disk, or encoded anew each time."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lora_trainer.contracts import Event, PlainError, Prepared, Told
from lora_trainer.data.buckets import Crop
from lora_trainer.data.hashes import FileDigests, write_whole
from lora_trainer.data.images import load_rgb

EncodeImages = Callable[[Tensor], Tensor]
CacheMode = Literal["memory", "disk", "none"]

# Pixels that the encoder is given at once while caching, or one image if that has more: an SD VAE in float32 holds
# some 0.5 GiB of activations for a 512 x 512 image, and gains nothing from more of them.
_PIXELS_AT_ONCE = 512 * 512
_READERS = 2  # threads that decode ahead of the encoder
_GROUPS_AHEAD = 2 * _READERS
_LAYOUT = "1"  # of what is stored; part of each file's name, so that a change of it leaves no wrong hits


class Picture(NamedTuple):
    """An image file and the part of it that is trained on."""

    path: Path
    crop: Crop


def pixels_of(picture: Picture) -> Tensor:
    """(3, H, W) float32 in -1..1. Raises PlainError for a damaged file."""
    values = np.asarray(picture.crop.apply(load_rgb(picture.path)), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1).div(127.5).sub(1).contiguous()


class LatentCache:
    """Latents (4, h, w) float32 on the CPU of pictures and of their mirror images.

    On disk each lies in a file of its own, named by what it was made from: the image's bytes, the crop, the mirror
    and `fingerprint`, the encoder's. An edited image or another encoder thus finds nothing and is encoded.
    """

    def __init__(
        self, mode: CacheMode, folder: Path, fingerprint: str, encode_images: EncodeImages, *, flip: bool
    ) -> None:
        """`encode_images` turns (B, 3, H, W) in -1..1 into (B, 4, h, w); `flip` asks for mirror images too."""
        self.mode = mode
        self.damaged: dict[Path, str] = {}  # images that could not be decoded, with the reason as a sentence
        self._folder = folder
        self._fingerprint = fingerprint
        self._encode_images = encode_images
        self._mirrors = (False, True) if flip else (False,)
        self._memory: dict[tuple[Picture, bool], Tensor] = {}
        self._files: dict[tuple[Picture, bool], Path] = {}
        self._digests = FileDigests(folder / "digests.json")
        self._expected: tuple[Sequence[Picture], Future[list[Tensor]]] | None = None

    def fill(self, pictures: Sequence[Picture]) -> Iterator[Event]:
        """Decode every picture, and encode those that are not kept yet; damaged ones are told and left out."""
        groups = list(_groups(pictures))
        done = 0
        pool = ThreadPoolExecutor(_READERS, thread_name_prefix="images")
        try:
            read: deque[Future[list[Tensor | str] | None]] = deque()
            for number, group in enumerate(groups):
                while len(read) < _GROUPS_AHEAD and number + len(read) < len(groups):
                    read.append(pool.submit(self._read, groups[number + len(read)]))
                found = read.popleft().result()
                if found is not None:
                    yield from self._keep_group(group, found)
                done += len(group)
                yield Prepared("latents", done, len(pictures))
        finally:
            pool.shutdown(cancel_futures=True)
            if self.mode == "disk":
                with suppress(OSError):  # costs the next run a second reading of the images, and nothing else
                    self._digests.save()

    def batch(self, pictures: Sequence[Picture], mirrored: Sequence[bool]) -> Tensor:
        """(B, 4, h, w) of pictures of one bucket."""
        if self.mode != "none":
            return torch.stack([self._kept(*key) for key in zip(pictures, mirrored, strict=True)])
        if self._expected and self._expected[0] == pictures:
            decoded = self._expected[1].result()
        else:
            decoded = [pixels_of(picture) for picture in pictures]
        pixels = [one.flip(-1) if mirror else one for one, mirror in zip(decoded, mirrored, strict=True)]
        return self._encode(pictures, torch.stack(pixels))

    def expect(self, pictures: Sequence[Picture]) -> None:
        """Begin to decode in the background what the next call of `batch` will ask for; of use in mode "none"."""
        pool = ThreadPoolExecutor(1, thread_name_prefix="images")
        self._expected = pictures, pool.submit(lambda: [pixels_of(picture) for picture in pictures])
        pool.shutdown(wait=False)  # the thread ends with its work, so nothing is left behind by a run

    def to_disk(self) -> int:
        """Move what is kept in memory into files; the bytes that this freed, fewer where the disk refuses."""
        freed = 0
        self.mode = "disk" if self.mode == "memory" else self.mode
        for picture, mirror in list(self._memory):
            self._on_disk(picture)  # names its files
            if (picture, mirror) in self._files:
                latents = self._memory[picture, mirror]
                try:
                    write_whole(self._files[picture, mirror], save({"latents": latents.contiguous()}))
                except OSError:
                    break
                freed += self._memory.pop((picture, mirror)).nbytes
        return freed

    def _read(self, group: Sequence[Picture]) -> list[Tensor | str] | None:
        """Pixels or the fault of each picture; None if all are kept. Runs in a reader's thread.

        A group is encoded whole if any of it is missing: the last bits of an encoder's result hang on what is
        encoded together, and a run that was stopped here and resumed shall see what an unbroken one sees.
        """
        if self.mode == "disk":
            there = [self._on_disk(picture) for picture in group]  # of every one, since this also names their files
            if all(there):
                return None
        found: list[Tensor | str] = []
        for picture in group:
            try:
                found.append(pixels_of(picture))
            except PlainError as error:
                found.append(str(error))
        return found

    def _keep_group(self, group: Sequence[Picture], found: Sequence[Tensor | str]) -> Iterator[Event]:
        whole: list[tuple[Picture, Tensor]] = []
        for picture, one in zip(group, found, strict=True):
            if isinstance(one, Tensor):
                whole.append((picture, one))
            else:
                self.damaged[picture.path] = one
                yield Told(f"Left out: {one}", "warning")
        if not whole or self.mode == "none":
            return
        pictures = [picture for picture, _ in whole]
        pixels = torch.stack([one for _, one in whole])
        for mirror in self._mirrors:
            latents = self._encode(pictures, pixels.flip(-1) if mirror else pixels)
            for picture, one in zip(pictures, latents, strict=True):
                yield from self._keep(picture, mirror, one.clone())  # a view would hold the whole group's memory

    def _keep(self, picture: Picture, mirror: bool, latents: Tensor) -> Iterator[Event]:
        if self.mode == "disk" and (picture, mirror) in self._files:
            try:
                write_whole(self._files[picture, mirror], save({"latents": latents.contiguous()}))
                return
            except OSError as error:
                yield Told(
                    f"Encoded images cannot be written to {self._folder} ({error.strerror}); they are kept in memory.",
                    "warning",
                )
                self.mode = "memory"
        self._memory[picture, mirror] = latents

    def _on_disk(self, picture: Picture) -> bool:
        """Whether whole files of the picture are there; remembers their names."""
        try:
            digest = self._digests.of(picture.path)
        except OSError:
            return False  # decoding will meet the same fault and tell it
        for mirror in self._mirrors:
            made_from = repr((_LAYOUT, digest, picture.crop, mirror, self._fingerprint))
            key = hashlib.sha256(made_from.encode()).hexdigest()
            self._files[picture, mirror] = self._folder / "latents" / key[:2] / f"{key}.safetensors"
        return all(_stored(self._files[picture, mirror]) is not None for mirror in self._mirrors)

    def _kept(self, picture: Picture, mirror: bool) -> Tensor:
        latents = self._memory.get((picture, mirror))
        if latents is None and (picture, mirror) in self._files:
            latents = _stored(self._files[picture, mirror])
        if latents is None:  # the file was removed or damaged since: make it again
            pixels = pixels_of(picture)
            latents = self._encode([picture], (pixels.flip(-1) if mirror else pixels)[None])[0]
        return latents

    def _encode(self, pictures: Sequence[Picture], pixels: Tensor) -> Tensor:
        with torch.no_grad():  # and not inference_mode: its tensors may not take part in a backward pass
            latents = self._encode_images(pixels).float().cpu()
        for picture, one in zip(pictures, latents, strict=True):
            if not torch.isfinite(one).all():
                raise PlainError(
                    f"The base model's VAE turned {picture.path.name} into NaN: its weights are damaged or overflow in "
                    "half precision; use another VAE or a checkpoint with a fixed one."
                )
        return latents


def _groups(pictures: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Pictures of one size, a few at a time, in a fixed order."""
    group: list[Picture] = []
    for picture in sorted(pictures, key=lambda picture: picture.crop.size):
        width, height = picture.crop.size
        full = (len(group) + 1) * width * height > _PIXELS_AT_ONCE
        if group and (full or group[0].crop.size != picture.crop.size):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def _stored(path: Path) -> Tensor | None:
    """Latents from a file; None if it is not there or not whole."""
    try:
        return load(path.read_bytes())["latents"]
    except (OSError, SafetensorError, KeyError):
        return None
