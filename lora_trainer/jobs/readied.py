"""What a kind of training hands to the run when base, data and network are ready; made by `image_run.py`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lora_trainer.contracts import Batches, Event, Loss, Network, Sampled, Validation
from lora_trainer.jobs.packing import Copies
from lora_trainer.train.ladder import Ladder
from lora_trainer.train.pieces import Pieces
from lora_trainer.train.state import TrainingState
from lora_trainer.train.turns import Exclusive


class Sampler(Protocol):
    """Shows what the network does by now."""

    @property
    def wanted(self) -> bool:
        """Whether there is anything to show."""
        ...

    def draw(self, step: int) -> Sampled | None:
        """The samples with the weights of `step` steps, written to files."""
        ...


class Output(Protocol):
    """Writes the weights in the form that others read."""

    def write(self, path: Path, state: TrainingState) -> None:
        """The weights at `path`, whole or not at all. Raises PlainError."""
        ...

    def announce(self, path: Path) -> None:
        """Something usable was written at `path`."""
        ...

    def present(self, path: Path) -> Iterator[Event]:
        """The finished result, written at `path`, is announced, tried and told of; nothing here fails the run."""
        ...


@dataclass(frozen=True)
class Readied:
    """Everything that the loop works with, but for what every run has."""

    batches: Batches[Any]
    loss: Loss[Any]
    network: Network
    exclusive: Exclusive
    sampler: Sampler
    output: Output
    validation: Validation | None = None  # None where nothing is held out
    pieces: Pieces = field(default_factory=Pieces)  # how micro-batches go through the model
    ladder: Ladder | None = None  # what to do where memory does not suffice; None: the run ends
    heaviest: Callable[[], Any] | None = None  # the micro-batch that takes most; None: nothing is tried before the run
    heaviest_told: str = ""  # it in words
    copies: Copies | None = None  # packed ones of frozen weights; None where there is nothing to gain or to pack
    blocks: Sequence[nn.Module] = ()  # parts of the model that repeat, each of which can be compiled by itself


class Preparation(Protocol):
    """One kind of training."""

    def ready(self, borrowed: ExitStack) -> Generator[Event, None, Readied | None]:
        """Everything for the loop, or None when stop was ordered; what is borrowed is given back with `borrowed`."""
        ...
