"""CLIP (Radford et al. 2021) through open_clip: which tags of a list fit an image best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lora_trainer.captioners.open_clip_models import OpenClip, load_open_clip
from lora_trainer.captioners.pixels import pixels
from lora_trainer.contracts import PlainError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

THRESHOLD = 0.02  # of the softmax over all tags: what few tags share is sure, what thousands share is not
MOST = 10  # tags
_TEXTS = 256  # encoded at once


class _Ready(NamedTuple):
    clip: OpenClip
    tags: Tensor  # (T, D) unit length


class ClipTags:
    """Implements `contracts.Captioner` for a folder as open_clip lays it on the hub, and a list of tags."""

    makes: Literal["sentences", "tags"] = "tags"
    batch_size = 16

    def __init__(
        self, name: str, folder: Path, device: torch.device, tags: Sequence[str], *, threshold: float | None,
        most: int | None, architecture: str = "",
    ) -> None:  # fmt: skip
        """Raises PlainError where there are no tags to choose from."""
        if not tags:
            raise PlainError(
                "clip-tags chooses from a list of tags, and none is given; name a text file with one a line (--tags "
                "my_tags.txt), or the tags themselves (--tags red blue)."
            )
        self.name = name
        self._folder = folder
        self._device = device
        self._tags = tuple(tags)
        self._threshold = THRESHOLD if threshold is None else threshold
        self._most = MOST if most is None else most
        self._architecture = architecture
        self._ready: _Ready | None = None

    def caption(self, images: Sequence[Image]) -> list[str]:
        """The tags that share the most of the softmax over all of them, the surest first."""
        import torch

        with torch.inference_mode(), torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
            ready = self._ready = self._ready or self._prepared()
            model = ready.clip.model
            seen = model.encode_image(pixels(images, ready.clip.look).to(self._device))
            seen = torch.nn.functional.normalize(seen.float(), dim=-1)
            shares = (model.logit_scale.exp().float() * seen @ ready.tags.T).softmax(dim=-1).cpu()
        return [self._chosen(row) for row in shares]

    def close(self) -> None:
        """Forget the model and the encoded tags."""
        self._ready = None

    def _prepared(self) -> _Ready:
        import torch

        clip = load_open_clip(self._folder, self._architecture, self._device)
        tokens = clip.library.tokenize([tag.replace("_", " ") for tag in self._tags], clip.tokens).to(self._device)
        encoded = torch.cat([clip.model.encode_text(some) for some in tokens.split(_TEXTS)])
        return _Ready(clip, torch.nn.functional.normalize(encoded.float(), dim=-1))

    def _chosen(self, shares: Tensor) -> str:
        order = shares.argsort(descending=True, stable=True).tolist()[: self._most]
        return ", ".join(self._tags[index] for index in order if float(shares[index]) >= self._threshold)


def tags_of(given: Sequence[str]) -> list[str]:
    """The tags themselves, or those in the text file that the only word names; each once, in their order.

    Raises PlainError for a file that cannot be read.
    """
    words = list(given)
    if len(words) == 1 and (Path(words[0]).expanduser().is_file() or words[0].endswith(".txt")):
        path = Path(words[0]).expanduser()
        try:
            words = path.read_bytes().decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PlainError(f"The list of tags {path} cannot be read as UTF-8 text ({error}).") from error
    else:
        words = [part for word in words for part in word.split(",")]
    return list(dict.fromkeys(word.strip() for word in words if word.strip()))
