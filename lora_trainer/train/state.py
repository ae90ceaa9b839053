"""What a run must remember to go on as if it had never stopped.

No random state is among it: noise, order and dropout are functions of the seed and the position (`config/seeds.py`),
and the learning rate is a function of the step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lora_trainer.contracts import Network, NetworkState
from lora_trainer.train.optimizers import Updater


@dataclass(frozen=True)
class TrainingState:
    """A moment between two steps."""

    step: int  # steps done
    network: NetworkState
    moments: dict[str, Tensor]  # the optimizer's, and the moving average's
    scale: dict[str, Any]  # the loss scale's, and the optimizer's numbers; JSON values
    averaged: NetworkState | None = None  # the weights to be used, where they are others than those that are trained
    measures: tuple[str, ...] = ()  # what was done about memory that did not suffice; names of `ladder.Rung`

    course: dict[str, Any] = field(default_factory=dict[str, Any])  # of the held-out loss; JSON values

    @property
    def result(self) -> NetworkState:
        """The weights to be used."""
        return self.network if self.averaged is None else self.averaged


def capture(step: int, network: Network, updater: Updater) -> TrainingState:
    """Copy everything; later steps do not change what was captured."""
    moments, scale = updater.state()
    averaged = None
    if updater.averages:
        with updater.shown():
            averaged = network.state()
    return TrainingState(step, network.state(), moments, scale, averaged)


def restore(state: TrainingState, network: Network, updater: Updater) -> None:
    """Put network and optimizer back to the captured moment, bit for bit."""
    network.load_state(state.network)
    updater.load_state(state.moments, state.scale)
