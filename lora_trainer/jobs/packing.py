"""Packed copies of a base's frozen weights on a CPU: whether a run keeps them, how many, and that it goes on so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from lora_trainer.config.options import RunConfig
from lora_trainer.contracts import Event, LentModel, Told
from lora_trainer.families.frozen import Hastened
from lora_trainer.families.frozen_product import PACKED_ROWS, direct_works
from lora_trainer.families.ldm_names import UNET_PREFIX, UnetNames
from lora_trainer.jobs.planned import Choice
from lora_trainer.train.ladder import Rung
from lora_trainer.train.memory import in_gigabytes, is_out_of_memory, let_go
from lora_trainer.train.rehearsal import Measured

# Steps after which the copies have paid for themselves: making them takes as long as some five steps, and each step is
# a tenth faster (SD1 at 128 px, two cores).
PAY_AFTER = 100
_NAME = "packed"  # of the measure in a state, with the number of copies behind it


def packing_choice(
    config: RunConfig, lent: LentModel, device: torch.device, dtype: torch.dtype, resolution: int, steps: int
) -> list[Choice]:
    """What a plan says of them: nothing where they would not help, or the weights are not the run's own."""
    ours = lent.owned and config.model.quantize == "none" and device.type == "cpu" and not config.train.compile
    if not ours or steps < PAY_AFTER or not direct_works(dtype):
        return []
    names = UnetNames.of_ldm(key.removeprefix(UNET_PREFIX) for key in lent.header if key.startswith(UNET_PREFIX))
    narrowest = resolution // 8 >> (len(names.attention) - 1)  # 8 pixels a latent, halved at each level
    if narrowest**2 * config.data.batch_size not in PACKED_ROWS.get(dtype, ()):
        return []
    reason = "faster on this CPU for small images; how many fit is measured before the first step"
    return [Choice("frozen weights", "packed copies of them are kept as memory allows", reason)]


@dataclass(frozen=True)
class Copies:
    """The copies of one run. With them a result differs within rounding, so a run that goes on makes the same ones."""

    hastened: Hastened

    def decide(self, measured: Measured, steps: int) -> Iterator[Event]:
        """Make as many as fit for a run of so many steps, and tell it.

        Half of what the heaviest step leaves free is for them, after room for the base itself: its pages are read from
        a file, and the system counts them as free.
        """
        if measured.room is None or steps < PAY_AFTER:
            return
        left = (measured.spare - self.hastened.bytes) // 2
        count = 0
        for layer, _ in self.hastened.worth_packing():
            left -= layer.bytes
            if left < 0:
                break
            count += 1
        yield from self._make(count, f", of {in_gigabytes(measured.room.free)} that were free")

    def again(self, measures: Iterable[str]) -> Iterator[Event]:
        """Make those of an earlier part of this run once more."""
        counts = [int(name.removeprefix(f"{_NAME} ")) for name in measures if name.startswith(f"{_NAME} ")]
        yield from self._make(sum(counts), ", as before the pause")

    def measures(self) -> tuple[str, ...]:
        """How many there are, for the state."""
        return (f"{_NAME} {self.hastened.packed}",) if self.hastened.packed else ()

    def rung(self) -> Rung:
        """The measure of dropping them."""
        done = "the packed copies of frozen weights are given up, and steps take longer"
        return Rung("unpacked", lambda: done if self.hastened.let_go() else "", dict)

    def _make(self, count: int, of_what: str) -> Iterator[Event]:
        if not count:
            return
        try:
            size = self.hastened.pack(count)
        except (RuntimeError, MemoryError) as error:
            self.hastened.let_go()
            let_go(torch.device("cpu"), error)
            why = "there was no room" if is_out_of_memory(error) else f"{error}".splitlines()[0]
            yield Told(f"No packed copies of frozen weights are kept ({why}); steps take longer than with them.")
            return
        yield Told(
            f"Packed copies of {self.hastened.packed} frozen weights take {in_gigabytes(size)}{of_what}: steps on this "
            "CPU are faster with them, and the same but for rounding."
        )
