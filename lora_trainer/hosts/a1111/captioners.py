"""The WebUI's own interrogators, as `contracts.Captioner`: loaded, moved and freed as the WebUI does it.

Facts from A1111 v1.10.1, modules/interrogate.py and modules/deepbooru.py. Of its "Interrogate CLIP" only BLIP is asked,
as by its former data set preparation: the artists and styles that CLIP adds describe prompts, not training images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_trainer.contracts import Lack, PlainError
from lora_trainer.hosts.a1111.turn import Turn

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGES = 4  # described in one turn: a generation that waits does not wait long


class HostBlip:
    """BLIP as the WebUI's "Interrogate CLIP" has it: sentences."""

    name = "host"
    makes: Literal["sentences", "tags"] = "sentences"
    batch_size = _IMAGES

    def __init__(self, turn: Turn, *, download: bool) -> None:
        self._turn = turn
        self._download = download

    def caption(self, images: Sequence[Image]) -> list[str]:
        """A sentence for each image, with the WebUI's settings for beams and length."""
        from modules import devices, lowvram, shared

        interrogator = shared.interrogator
        with self._turn:
            lowvram.send_everything_to_cpu()  # room for it, as Interrogate makes it
            devices.torch_gc()
            try:
                self._bring(interrogator)
                return [interrogator.generate_caption(image) for image in images]
            finally:
                interrogator.send_blip_to_ram()
                devices.torch_gc()

    def lacks(self) -> Lack | None:
        """Its weights, or the vocabulary of its text decoder."""
        from modules import shared

        return None if shared.interrogator.blip_model is not None else _lacks_blip()

    def close(self) -> None:
        """The WebUI keeps its model in memory, or on the device, as its settings say."""

    def _bring(self, interrogator: Any) -> None:
        """`InterrogateModels.load` without its CLIP half."""
        from modules import devices, shared, torch_utils

        if interrogator.blip_model is None:
            _check(None if self._download else self.lacks())
            with _plainly("its BLIP"):
                model = interrogator.load_blip_model()
            half = not shared.cmd_opts.no_half and not interrogator.running_on_cpu
            interrogator.blip_model = model.half() if half else model
        interrogator.blip_model = interrogator.blip_model.to(devices.device_interrogate)
        interrogator.dtype = torch_utils.get_param(interrogator.blip_model).dtype


class DeepBooru:
    """The WebUI's DeepBooru: booru tags."""

    name = "deepbooru"
    makes: Literal["sentences", "tags"] = "tags"
    batch_size = _IMAGES

    def __init__(self, turn: Turn, *, threshold: float | None, download: bool) -> None:
        self._turn = turn
        self._threshold = threshold
        self._download = download

    def caption(self, images: Sequence[Image]) -> list[str]:
        """Tags, the surest first, but for those that the WebUI's settings leave out."""
        from modules import deepbooru

        tagger = deepbooru.model
        with self._turn, _settings(self._wanted()):
            self._bring(tagger)
            try:
                return [tagger.tag_multi(image, force_disable_ranks=True) for image in images]
            finally:
                tagger.stop()

    def lacks(self) -> Lack | None:
        """Its weights."""
        from modules import deepbooru

        if deepbooru.model.model is not None:
            return None
        return _lacks("torch_deepdanbooru", ".pt", "model-resnet_custom_v3.pt", "0.6 GB", "Interrogate DeepBooru")

    def close(self) -> None:
        """The WebUI keeps its model in memory, or on the device, as its settings say."""

    def _bring(self, tagger: Any) -> None:
        was_there = tagger.model is not None
        _check(None if self._download else self.lacks())
        try:
            with _plainly("its DeepBooru"):
                tagger.start()
        except PlainError:
            if not was_there:
                tagger.model = None  # it is there before its weights are, and would be taken for whole next time
            raise

    def _wanted(self) -> dict[str, Any]:
        """Settings under which it gives tags as they are; spelling them is the same for all captioners."""
        wanted: dict[str, Any] = dict.fromkeys(
            ("deepbooru_use_spaces", "deepbooru_escape", "deepbooru_sort_alpha"), False
        )
        if self._threshold is not None:
            wanted["interrogate_deepbooru_score_threshold"] = self._threshold
        return wanted


@contextmanager
def _settings(wanted: Mapping[str, Any]) -> Iterator[None]:
    """Settings of the WebUI that hold meanwhile; written where they stand, so that none is saved."""
    from modules import shared

    data = shared.opts.data
    before = {name: data[name] for name in wanted if name in data}
    try:
        data.update(wanted)
        yield
    finally:
        for name in wanted:
            data.pop(name, None)
        data.update(before)


@contextmanager
def _plainly(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, TypeError, AttributeError) as error:
        # No network; a repository that was never cloned; a file that the WebUI found unsafe or damaged, for which it
        # tells its console why and gives out None.
        told = " ".join(str(error).split())[:200]
        raise PlainError(f"The WebUI could not load {what} ({told}); see its console.") from error


def _lacks_blip() -> Lack | None:
    """What loading BLIP would fetch: its weights, or the words of its text decoder."""
    weights = _lacks("BLIP", ".pth", "model_base_caption_capfilt_large.pth", "0.9 GB", "Interrogate CLIP")
    if weights:
        return weights
    from huggingface_hub import try_to_load_from_cache

    if any(isinstance(try_to_load_from_cache(name, "vocab.txt"), str)
           for name in ("bert-base-uncased", "google-bert/bert-base-uncased")):  # fmt: skip
        return None
    return Lack(
        "0.2 MB", "the cache of the Hugging Face hub: vocab.txt of bert-base-uncased",
        "The WebUI's BLIP needs the vocabulary of bert-base-uncased from the Hugging Face hub (0.2 MB), which is "
        "not on this machine: use Interrogate CLIP in img2img once, or let it be fetched with download.",
    )  # fmt: skip


def _lacks(folder: str, ending: str, file: str, size: str, button: str) -> Lack | None:
    from modules import paths_internal

    place = Path(paths_internal.models_path) / folder
    if any(place.rglob(f"*{ending}")):
        return None
    return Lack(
        size, str(place / file),
        f"The WebUI has no {file} in {place} ({size}): put it there, use {button} in img2img once, or let it be "
        "fetched with download.",
    )  # fmt: skip


def _check(lack: Lack | None) -> None:
    if lack:
        raise PlainError(lack.sentence)
