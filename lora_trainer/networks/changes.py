"""What the stored weights of one layer do to the base's weight, for every kind; for files, which have no layers.

| kind | tensors of a layer, below its name | change of W |
|---|---|---|
| lora | lora_down.weight, lora_up.weight, alpha | up @ down alpha / r |
| dora | the same and dora_scale (1, in[, 1, 1]) | m V / norm of V's columns - W, where V = W + up @ down alpha / r |
| loha | hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b, alpha | (w1_a @ w1_b) * (w2_a @ w2_b) alpha / r |
| lokr | lokr_w1 or lokr_w1_a, lokr_w1_b; lokr_w2 or lokr_w2_a, lokr_w2_b; alpha | w1 (x) w2 alpha / r, or w1 (x) w2 |
| oft | oft_blocks (k, n, n), alpha (0) | R^T W - W |

The formulas' sources stand where the layers are: low_rank.py, hadamard.py, kronecker.py, orthogonal.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lora_trainer.networks.hadamard import W1_A, W1_B, W2_A, W2_B, hadamard
from lora_trainer.networks.kronecker import kronecker
from lora_trainer.networks.low_rank import column_norm, directed
from lora_trainer.networks.orthogonal import BLOCKS, turned
from lora_trainer.networks.state import ALPHA, DORA, DOWN, UP, ModuleWeights

TITLES: Mapping[str, str] = {"lora": "a LoRA", "dora": "a DoRA", "loha": "a LoHa", "lokr": "a LoKr", "oft": "an OFT"}
_ENDING = re.compile(
    r"\.(lora_(?:down|up)\.weight|alpha|dora_scale|hada_w[12]_[ab]|lokr_w[12](?:_[ab])?|oft_blocks)$"
)  # fmt: skip


class Change(NamedTuple):
    """The stored weights of one layer, in whatever precision."""

    kind: str  # key of TITLES
    tensors: Mapping[str, Tensor]  # by ending, with alpha

    @property
    def rank(self) -> int:
        """Inner width; of an OFT its block's, of a LoKr without a low-rank factor 0."""
        if self.kind == "oft":
            return self.tensors[BLOCKS].shape[1]
        inner = next((name for name in (DOWN, W1_B, "lokr_w2_b", "lokr_w1_b") if name in self.tensors), None)
        return self.tensors[inner].shape[0] if inner else 0

    @property
    def alpha(self) -> float:
        return float(self.tensors[ALPHA])

    @property
    def scale(self) -> float:
        """Factor of the update; 1 where there is no rank to divide by."""
        return 1.0 if self.kind == "oft" or not self.rank else self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int | None]:
        """(out, in kh kw) of the weight that it is for; an OFT does not know the second."""
        if self.kind in ("lora", "dora"):
            return self.tensors[UP].shape[0], self.tensors[DOWN][0].numel()
        if self.kind == "loha":
            return self.tensors[W1_A].shape[0], self.tensors[W1_B].flatten(1).shape[1]
        if self.kind == "oft":
            return self.tensors[BLOCKS].shape[0] * self.tensors[BLOCKS].shape[1], None
        sides = zip(*(_sides(self.tensors, which) for which in ("lokr_w1", "lokr_w2")), strict=True)
        (out, columns) = (first * second for first, second in sides)
        return out, columns

    @property
    def needs_base(self) -> bool:
        """Whether the change depends on the weight that is changed."""
        return self.kind in ("dora", "oft")

    def plain(self) -> ModuleWeights:
        """The low-rank factors of a LoRA, or of a DoRA's direction."""
        return ModuleWeights(self.tensors[DOWN], self.tensors[UP], self.alpha)

    def delta(self, weight: Tensor | None = None) -> Tensor:
        """The change of `weight`, float32, (out, in kh kw) or in the weight's shape; some kinds need it."""
        found = {name: tensor.float() for name, tensor in self.tensors.items()}
        if self.kind in ("dora", "oft"):
            assert weight is not None
            return self._depending(found, weight.float())
        if self.kind == "lora":
            change = self.plain().delta().flatten(1)
        elif self.kind == "loha":
            change = hadamard(*(found[name].flatten(1) for name in (W1_A, W1_B, W2_A, W2_B))) * self.scale
        else:
            change = kronecker(*(_whole(found, which) for which in ("lokr_w1", "lokr_w2"))).flatten(1) * self.scale
        return change if weight is None else change.view(weight.shape)

    def _depending(self, found: Mapping[str, Tensor], weight: Tensor) -> Tensor:
        if self.kind == "dora":
            summed = directed(weight, found[DOWN], found[UP], self.scale)
            norm = column_norm(summed).clamp_min(torch.finfo(summed.dtype).tiny)
            return summed * (found[DORA].view(norm.shape) / norm) - weight
        turn = turned(found[BLOCKS])
        blocks = weight.reshape(*turn.shape[:2], -1)
        return torch.einsum("k n m, k n c -> k m c", turn, blocks).view(weight.shape)

    def norm(self) -> float | None:
        """Frobenius norm of the change; None where that depends on the base."""
        if self.needs_base:
            return None
        return self.plain().norm() if self.kind == "lora" else float(self.delta().double().square().sum().sqrt())


def changes_of(state: Mapping[str, Tensor]) -> dict[str, Change]:
    """The layers of a state by "<part>.<path>", in its order; KeyError for a key that is no layer's of any kind."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, ending = split(key)
        if not ending:
            raise KeyError(key)
        found.setdefault(name, {})[ending] = tensor
    return {name: Change(kind_of(tensors), tensors) for name, tensors in found.items()}


def split(key: str) -> tuple[str, str]:
    """(name of the layer, ending) of a key; the ending is empty where it is none that we know."""
    match = _ENDING.search(key)
    return (key[: match.start()], match[1]) if match else (key, "")


def kind_of(endings: Mapping[str, object]) -> str:
    """The kind that a layer's endings are of."""
    if any(name.startswith("hada_") for name in endings):
        return "loha"
    if any(name.startswith("lokr_") for name in endings):
        return "lokr"
    if BLOCKS in endings:
        return "oft"
    return "dora" if DORA in endings else "lora"


def why_incomplete(kind: str, tensors: Mapping[str, Tensor]) -> str:
    """What a layer of the kind lacks, or what in it does not go together; empty if it is whole."""
    wanted = {"lora": (DOWN, UP), "dora": (DOWN, UP, DORA), "loha": (W1_A, W1_B, W2_A, W2_B), "oft": (BLOCKS,)}
    missing = [name for name in wanted.get(kind, ()) if name not in tensors]
    for which in ("lokr_w1", "lokr_w2") if kind == "lokr" else ():
        if which not in tensors and not (f"{which}_a" in tensors and f"{which}_b" in tensors):
            missing.append(which)
    if missing:
        return f"has no {missing[0]}"
    pairs = {"lora": ((UP, DOWN),), "dora": ((UP, DOWN),), "loha": ((W1_A, W1_B), (W2_A, W2_B))}
    for left, right in pairs.get(kind, ()):
        first, second = tensors[left], tensors[right]
        if first.dim() not in (2, 4) or second.dim() not in (2, 4) or first.flatten(1).shape[1] != second.shape[0]:
            return f"has {left} of {tuple(first.shape)} and {right} of {tuple(second.shape)}, which do not multiply"
    if kind == "dora" and (tensors[DORA].shape[0] != 1 or tensors[DORA].dim() < 2):
        return f"has a dora_scale of {tuple(tensors[DORA].shape)}, a length for each output, and the WebUIs want inputs"
    if kind == "oft" and tensors[BLOCKS].dim() != 3:
        return f"has oft_blocks in {tensors[BLOCKS].dim()} dimensions, as in BOFT"
    return ""


def _whole(found: Mapping[str, Tensor], which: str) -> Tensor:
    """A Kronecker factor, (rows, columns) or (rows, columns, kh, kw)."""
    return found[which] if which in found else found[f"{which}_a"] @ found[f"{which}_b"].flatten(1)


def _sides(found: Mapping[str, Tensor], which: str) -> tuple[int, int]:
    if which in found:
        return found[which].shape[0], found[which].flatten(1).shape[1]
    return found[f"{which}_a"].shape[0], found[f"{which}_b"].flatten(1).shape[1]
