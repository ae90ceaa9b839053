"""The weights of a checkpoint on disk, found by the names that a LoRA's modules have."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from lora_trainer.contracts import Family, LdmPlace, LentModel, PlainError
from lora_trainer.families.diffusers_folder import open_folder
from lora_trainer.families.registry import identify
from lora_trainer.networks.changes import Change
from lora_trainer.weights.read import open_checkpoint


class BaseWeights:
    """A checkpoint file or diffusers folder, of which one tensor is read at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored = open_folder(path) if path.is_dir() else open_checkpoint(path)
        self.family: Family
        self.family, facts = identify(self.stored.header, path, self.stored.metadata)
        # No part is built: only the names are asked for.
        self._model = self.family.adopt(
            LentModel(self.stored, self.stored.header, facts, path.stem, path, owned=True),
            torch.device("cpu"), torch.float32, parts=(),
        )  # fmt: skip

    def place(self, name: str, change: Change, source: str) -> LdmPlace:
        """Where the module "<part>.<path>" of the LoRA `source` stands.

        Raises PlainError where it has no place, does not fit it, or holds a value that is not a finite number.
        """
        part, _, module = name.partition(".")
        try:
            place = self._model.ldm_place(part, module)
        except KeyError as error:
            raise PlainError(f"{source} does not fit the checkpoint, which has no module {name}.") from error
        header = self.stored.header
        shape = header[place.key].shape if place.key in header else (0,)
        rows = len(range(*place.rows.indices(shape[0]))) if place.rows else shape[0]
        wanted, found = (rows, torch.Size(shape[1:]).numel()), change.shape
        if found[0] != wanted[0] or found[1] not in (None, wanted[1]):
            raise PlainError(
                f"{source} does not fit the checkpoint: {name} is {found} there and {wanted} here; choose a LoRA made "
                "for this kind of base model."
            )
        if not all(bool(torch.isfinite(tensor).all()) for tensor in change.tensors.values()):
            raise PlainError(f"{source} is spoilt: {name} holds values that are not finite numbers; train it anew.")
        return place

    def weight(self, name: str, change: Change, source: str) -> Tensor:
        """The weight that the module stands for, (out, in[, kh, kw])."""
        place = self.place(name, change, source)
        tensor = self.stored[place.key]
        return tensor if place.rows is None else tensor[place.rows]
