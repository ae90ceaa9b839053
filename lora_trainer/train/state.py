"""What a run must remember to go on as if it had never stopped.

No random state is among it: noise, order and dropout are functions of the seed and the position (`config/seeds.py`),
and the learning rate is a function of the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lora_trainer.contracts import Network, NetworkState
from lora_trainer.train.optimizers import Updater


@dataclass(frozen=True)
class TrainingState:
    """A moment between two steps."""

    step: int  # steps done
    network: NetworkState
    moments: dict[str, Tensor]  # the optimizer's
    scale: dict[str, float]  # the loss scale's
    measures: tuple[str, ...] = ()  # what was done about memory that did not suffice; names of `ladder.Rung`


def capture(step: int, network: Network, updater: Updater) -> TrainingState:
    """Copy everything; later steps do not change what was captured."""
    moments, scale = updater.state()
    return TrainingState(step, network.state(), moments, scale)


def restore(state: TrainingState, network: Network, updater: Updater) -> None:
    """Put network and optimizer back to the captured moment, bit for bit."""
    network.load_state(state.network)
    updater.load_state(state.moments, state.scale)
