"""A LoRA for an image model: one file, its card, and what the host makes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_trainer.contracts import BaseModel, Event, Host, ModelAway, Told
from lora_trainer.jobs.card import write_card
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.recipe import lora_metadata
from lora_trainer.jobs.samples import sample_order
from lora_trainer.networks.file import write_lora
from lora_trainer.train.state import TrainingState
from lora_trainer.train.told import in_words
from lora_trainer.train.turns import Exclusive

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageOutput:
    """Implements `readied.Output`."""

    plan: Plan
    base: BaseModel
    host: Host
    exclusive: Exclusive

    def write(self, path: Path, state: TrainingState) -> None:
        """The LoRA file."""
        write_lora(
            path,
            state.result,
            kohya_name=self.base.kohya_name,
            metadata=lora_metadata(self.plan, path.stem, state.step, state.measures),
            precision=self.plan.config.output.precision,
        )

    def announce(self, path: Path) -> None:
        """To the host; the file is written, so that whatever happens there is no fault of the run's."""
        try:
            self.host.announce(path)
        except Exception as error:
            _log.error("The host did not take note of %s.", path, exc_info=error)

    def present(self, path: Path) -> Iterator[Event]:
        """The card beside it, the host told of it, and the host's own loader asked what it makes of it."""
        yield from write_card(self.plan, self.host.paths())
        self.announce(path)
        yield from self._proof(path)

    def _proof(self, lora: Path) -> list[Told]:
        try:
            with self.exclusive():
                return self.host.prove(lora, sample_order(self.plan))
        except ModelAway as error:
            return [Told(f"The WebUI's own loader was not asked to read the LoRA: {error}", "warning")]
        except Exception as error:
            _log.warning("The proof failed.", exc_info=error)
            return [Told(f"The LoRA is saved, but the WebUI could not try it: {in_words(error)}", "warning")]
