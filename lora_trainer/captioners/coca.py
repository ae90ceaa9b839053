"""CoCa (Yu et al. 2022) through open_clip: sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_trainer.captioners.open_clip_models import OpenClip, accepts, load_open_clip
from lora_trainer.captioners.pixels import pixels

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

_START, _END = 49406, 49407  # of CLIP's vocabulary
_SHORTEST, _LONGEST = 5, 30  # tokens; open_clip's own bounds (CoCa.generate: min_seq_len, seq_len)


class Coca:
    """Implements `contracts.Captioner` for a folder as open_clip lays it on the hub."""

    makes: Literal["sentences", "tags"] = "sentences"
    batch_size = 8

    def __init__(self, name: str, folder: Path, device: torch.device, architecture: str = "") -> None:
        self.name = name
        self._folder = folder
        self._device = device
        self._architecture = architecture
        self._loaded: OpenClip | None = None

    def caption(self, images: Sequence[Image]) -> list[str]:
        """A sentence for each image, the likeliest token at each place."""
        import torch

        loaded = self._loaded = self._loaded or load_open_clip(self._folder, self._architecture, self._device)
        seen = pixels(images, loaded.look).to(self._device)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=self._device.type == "cuda"):
            texts = likeliest(loaded.model, seen, min(_LONGEST, loaded.tokens))
        return [_plain(loaded.library.decode(text)) for text in texts]

    def close(self) -> None:
        """Forget the model."""
        self._loaded = None


def likeliest(model: Any, seen: Tensor, longest: int) -> Tensor:
    """Tokens (B, n <= longest) by the likeliest next one each time, from the start token on.

    Not by the model's own `generate`, which leans on parts of transformers that its newer releases lack. A text that
    has ended is filled up with the end token.
    """
    import torch

    latent, embedded = model._encode_image(seen)
    text = torch.full((len(seen), 1), _START, dtype=torch.long, device=seen.device)
    # Until open_clip 2.24 the class token's place was cut off the text, unless told not to; later the labels' shift.
    whole = {name: False for name in ("embed_cls", "output_labels") if accepts(model.forward, name)}
    for length in range(1, longest):
        logits = model(seen, text, image_latent=latent, image_embs=embedded, **whole)["logits"][:, -1].float()
        if length < _SHORTEST:
            logits[:, _END] = -torch.inf
        ended = text[:, -1] == _END
        following = torch.where(ended, _END, logits.argmax(dim=-1))
        text = torch.cat([text, following[:, None]], dim=1)
        if (following == _END).all():
            break
    return text


def _plain(decoded: str) -> str:
    return decoded.partition("<end_of_text>")[0].replace("<start_of_text>", "").strip()
