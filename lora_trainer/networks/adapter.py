"""What every kind of update has in common: a layer in place of a base layer, its strength, and its dropouts.

The layers are our own and not peft's; the WebUI's own loader judges them in tests/host. peft's releases disagree on
what a LoKr's alpha means and on which side an OFT turns, its DoRA is not the one that the WebUIs read, its PiSSA
overwrites the base, its dropouts draw from the process's random state, and it does not know a host's own Linear.

Shape letters: B rows of a batch, r rank, `in` and `out` channels of the adapted layer, (kh, kw) its window.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_trainer.config.ranks import Size
from lora_trainer.config.seeds import sample_seed
from lora_trainer.networks.state import ALPHA

TURNED = "Conv1D"  # transformers' linear layer of GPT-2, whose weight stands as (in, out)


class Acting:
    """How the whole network acts now; one for all of its layers."""

    def __init__(self, dropout: float = 0.0, rank_dropout: float = 0.0, module_dropout: float = 0.0) -> None:
        self.weight = 1.0  # 0 is the base, 1 what is trained
        self.seeds: tuple[int, ...] = ()  # of the samples in the batch; without them nothing is dropped
        self._rows: tuple[float, ...] = ()  # weights of the samples in the batch; without them all are alike
        self._by_row: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}  # made once, not in every layer
        self.resting = False  # nothing is dropped, whatever the seeds
        self.dropout = dropout
        self.rank_dropout = rank_dropout
        self.module_dropout = module_dropout

    @contextmanager
    def at(self, weight: float) -> Generator[None, None, None]:
        """Within it the network acts at `weight`, and drops nothing."""
        outside = self.weight, self.resting, self._rows
        self.weight, self.resting, self._rows = weight, True, ()
        try:
            yield
        finally:
            self.weight, self.resting, self._rows = outside

    def weigh(self, weights: Sequence[float]) -> None:
        """Let the samples of a batch be acted upon at these weights from now on; none: all at the network's."""
        self._rows = tuple(weights)
        self._by_row.clear()

    def row_weights(self, like: Tensor) -> Tensor | None:
        """Weights (B, 1, ...) in as many dimensions as `like`; None where all rows are alike."""
        if not self._rows:
            return None
        rows = like.shape[0]
        if rows % len(self._rows):
            raise ValueError(f"{rows} rows cannot be shared out among the weights of {len(self._rows)} samples")
        key = rows, like.device, like.dtype
        if key not in self._by_row:
            # From pinned memory, for which the process need not wait.
            weights = torch.tensor(self._rows, dtype=like.dtype, pin_memory=like.is_cuda)
            here = weights.to(like.device, non_blocking=like.is_cuda)
            self._by_row[key] = here.repeat_interleave(rows // len(self._rows))
        return self._by_row[key].view(-1, *[1] * (like.dim() - 1))

    @property
    def drops_modules(self) -> bool:
        """Whether a layer's whole update may be left out now."""
        return self.module_dropout > 0 and bool(self.seeds) and not self.resting

    def kept(self, chance: float, layer: int, what: str, shape: Sequence[int], like: Tensor) -> Tensor | None:
        """1 where something stays and 0 where it is left out, (B, *shape); None where nothing can be left out.

        A function of the sample's seed, the layer and what is dropped alone: neither neighbours in the batch, nor
        accumulation, nor a second forward of gradient checkpointing changes it. A row of `like` is a sample, or, in a
        text encoder, one of a sample's chunks, which follow each other.
        """
        if chance == 0 or self.resting or not self.seeds:
            return None
        rows = like.shape[0]
        if rows % len(self.seeds):
            raise ValueError(f"{rows} rows cannot be shared out among {len(self.seeds)} samples")
        drawn: list[Tensor] = []
        generator = torch.Generator(like.device)
        for seed in self.seeds:
            generator.manual_seed(sample_seed(seed, layer, what))
            share = (rows // len(self.seeds), *shape)
            drawn.append(torch.rand(share, generator=generator, device=like.device) >= chance)
        return torch.cat(drawn).to(like.dtype)


class Adapter(nn.Module, ABC):
    """A base layer (linear, or a convolution of any window) with a trained update on it."""

    kind: ClassVar[str]
    endings: ClassVar[Mapping[str, str]]  # attribute of each trained weight: what its key in a state ends in
    faster: ClassVar[tuple[str, ...]] = ()  # endings of the weights that LoRA+ trains faster

    def __init__(self, base_layer: nn.Module, size: Size, acting: Acting, index: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.size = size
        self.scale = size.alpha / size.rank
        self.acting = acting
        self.index = index  # among the network's layers
        self.window = window_of(base_layer)

    @abstractmethod
    def delta(self, x: Tensor) -> Tensor:
        """What the update adds to the layer's output at weight 1, for its input `x` (rows and channels as theirs)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        result: Tensor = self.base_layer(x, *args, **kwargs)
        if self.acting.weight == 0:
            return result
        return self.added(result, self.delta(self.dropped(widened(x))))

    def added(self, result: Tensor, delta: Tensor) -> Tensor:
        """The base's output with the update's at the network's weight; rows whose module is dropped without it."""
        if self.acting.weight != 1:
            delta = delta * self.acting.weight
        weights = self.acting.row_weights(delta)
        if weights is not None:
            delta = delta * weights
        kept = self.module_kept(delta)
        if kept is not None:
            delta = delta * kept
        return result + (delta if delta.dtype == result.dtype else delta.to(result.dtype))

    def dropped(self, x: Tensor) -> Tensor:
        """The update's input with some values zeroed and the others raised, so that the mean stays."""
        kept = self.acting.kept(self.acting.dropout, self.index, "dropout", x.shape[1:], x)
        return x if kept is None else x * kept / (1 - self.acting.dropout)

    def rank_kept(self, count: int, like: Tensor) -> Tensor | None:
        """(B, count) of zeros and, so that the mean stays, numbers above one; None where nothing is dropped."""
        kept = self.acting.kept(self.acting.rank_dropout, self.index, "rank", (count,), like)
        return None if kept is None else kept / (1 - self.acting.rank_dropout)

    def module_kept(self, like: Tensor) -> Tensor | None:
        """(B, 1, ...) of zeros and ones, in as many dimensions as `like`."""
        ones = [1] * (like.dim() - 1)
        return self.acting.kept(self.acting.module_dropout, self.index, "module", ones, like)

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained weights by what their keys end in, in a fixed order."""
        weights = {ending: getattr(self, attribute) for attribute, ending in self.endings.items()}
        return {ending: weight for ending, weight in weights.items() if weight is not None}

    def stored(self) -> dict[str, Tensor]:
        """What a state keeps of the layer: copies on the CPU, float32."""
        trained = self.trained().items()
        weights = {ending: weight.detach().to("cpu", torch.float32, copy=True) for ending, weight in trained}
        return {**weights, ALPHA: torch.tensor(self.size.alpha, dtype=torch.float32)}

    def restore(self, stored: Mapping[str, Tensor]) -> None:
        """Put weights of the same shapes back, bit for bit."""
        with torch.no_grad():
            for ending, weight in self.trained().items():
                weight.copy_(stored[ending])

    def put(self, attribute: str, value: Tensor) -> None:
        """Make `value` a trained float32 weight on the base layer's device."""
        device = weight_of(self.base_layer).device
        setattr(self, attribute, nn.Parameter(value.to(device, torch.float32)))

    def applied(self, x: Tensor, weight: Tensor) -> Tensor:
        """The base layer's operation, without bias, with another weight (o, in[, kh, kw])."""
        if self.window is None:
            return functional.linear(x, weight)
        base = cast(nn.Conv2d, self.base_layer)
        return functional.conv2d(x, weight, None, base.stride, cast(Any, base.padding), base.dilation)


def window_of(layer: nn.Module) -> tuple[int, int] | None:
    """(kh, kw) of a convolution, None of a linear layer."""
    return cast("tuple[int, int]", layer.kernel_size) if isinstance(layer, nn.Conv2d) else None


def weight_of(layer: nn.Module) -> Tensor:
    """The base layer's weight (out, in[, kh, kw]) as it is now; a host may put another tensor into its place between
    two steps."""
    weight = cast(Tensor, layer.weight)
    return weight.T if type(layer).__name__ == TURNED else weight


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Shape of the weight, (out, in[, kh, kw]), also where it is packed into fewer bits than it has numbers."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(weight_of(layer).shape)


def widened(x: Tensor) -> Tensor:
    """The input in the update's own float32, unless autocast chooses the precision of its products."""
    return x.float() if x.dtype != torch.float32 and not autocasting(x.device.type) else x


def autocasting(device_type: str) -> bool:
    """Whether autocast chooses the precision of products on this device; asked in the words of torch before 2.4 too."""
    if device_type == "cpu":
        return torch.is_autocast_cpu_enabled()
    return torch.is_autocast_enabled()


def exactly(device: torch.device) -> AbstractContextManager[Any]:
    """Within it products are not in autocast's precision; `meta`, on which a step is counted, has no autocast."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def by_channel(values: Tensor, like: Tensor, window: tuple[int, int] | None) -> Tensor:
    """Values (B, channels) in the dimensions of a layer's input or output, to be multiplied with it."""
    if window is not None:  # (B, channels, h, w)
        return values[..., None, None]
    return values.view(values.shape[0], *[1] * (like.dim() - 2), values.shape[1])
