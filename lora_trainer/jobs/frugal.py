"""Images and captions encoded with what memory there is: where it does not suffice, in smaller pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_trainer.contracts import BaseModel, PlainError, TextStates, Told
from lora_trainer.families.thrift import work_in_tiles
from lora_trainer.train.memory import is_out_of_memory, let_go


@dataclass
class FrugalEncoder:
    """`encode_images` and `encode_text` of a base, which go on where memory runs out; `said` holds what was done.

    One image at a time and then in tiles, one caption at a time. Each is kept to once it was needed.
    """

    base: BaseModel
    room: Callable[[], str]  # frees what others can spare, and says what
    smaller: str  # what to lower where nothing helps, as the end of "set ..."
    said: list[Told] = field(default_factory=list[Told])
    _one_image: bool = False
    _one_caption: bool = False
    _made_room: bool = False

    def images(self, pixels: Tensor) -> Tensor:
        """As `BaseModel.encode_images`. Raises PlainError where not even a tile of one image can be encoded."""
        while True:
            try:
                if not self._one_image or len(pixels) == 1:
                    return self.base.encode_images(pixels)
                return torch.cat([self.base.encode_images(one[None]) for one in pixels])
            except (RuntimeError, MemoryError) as error:
                self._check(error)
            self._note(self._smaller_images(len(pixels)), "images")

    def text(self, captions: Sequence[str], clip_skip: int) -> TextStates:
        """As `BaseModel.encode_text`, for encoders that are not trained."""
        while True:
            try:
                if not self._one_caption or len(captions) == 1:
                    return self.base.encode_text(captions, clip_skip)
                return self._one_by_one(captions, clip_skip)
            except (RuntimeError, MemoryError) as error:
                self._check(error)
            self._note(self._fewer_captions(len(captions)), "captions")

    def _one_by_one(self, captions: Sequence[str], clip_skip: int) -> TextStates:
        """Shorter captions end in the chunks of an empty one, as they do where captions are encoded together."""
        states = [self.base.encode_text([one], clip_skip) for one in captions]
        longest = max(one.context.shape[1] for one in states)
        rows = [one.context for one in states]
        if any(row.shape[1] != longest for row in rows):
            empty = self.base.encode_text([""], clip_skip).context
            rows = [torch.cat([row, *[empty] * ((longest - row.shape[1]) // empty.shape[1])], dim=1) for row in rows]
        pooled = [one.pooled for one in states if one.pooled is not None]
        return TextStates(torch.cat(rows), torch.cat(pooled) if pooled else None)

    def _check(self, error: BaseException) -> None:
        if not is_out_of_memory(error):
            raise error
        let_go(self.base.device, error)

    def _smaller_images(self, count: int) -> str:
        if freed := self._freed():
            return freed
        if count > 1 and not self._one_image:
            self._one_image = True
            return "they are encoded one at a time"
        side = work_in_tiles(self.base.parts["vae"])
        return f"they are encoded in tiles of {side} px, whose seams hardly show" if side else ""

    def _fewer_captions(self, count: int) -> str:
        if freed := self._freed():
            return freed
        if count == 1 or self._one_caption:
            return ""
        self._one_caption = True
        return "they are encoded one at a time"

    def _freed(self) -> str:
        made, self._made_room = self._made_room, True
        return "" if made else self.room()

    def _note(self, done: str, what: str) -> None:
        if not done:
            raise PlainError(
                f"Out of memory on {self.base.device} while {what} were encoded, and no smaller pieces are left; set "
                f"{self.smaller}, or close what else uses the device."
            )
        self.said.append(Told(f"Out of memory while {what} were encoded: {done}.", "warning"))
