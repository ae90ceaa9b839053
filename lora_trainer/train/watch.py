"""The course of a run by its held-out loss: which step was the best, whether it overfits, whether to go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Look(NamedTuple):
    """One measurement on what is held out."""

    step: int  # steps done
    loss: float  # of what is held out
    trained: float | None  # mean training loss of the steps since the look before; None where there were none


@dataclass
class Watch:
    """Judges each measurement as it comes; what it knows goes into the state, so that a resumed run knows it too."""

    patience: int  # looks without a better one after which the run may end; 0: never
    looks: list[Look] = field(default_factory=list[Look])
    warned: bool = False  # of the looks since the best
    _sum: float = 0.0
    _count: int = 0

    def stepped(self, loss: float) -> None:
        """A training step had this loss."""
        self._sum += loss
        self._count += 1

    def measured(self, step: int, loss: float) -> str:
        """Take a measurement; a sentence where it shows that the run overfits, once for each best, else nothing."""
        self.looks = [look for look in self.looks if look.step < step]  # of a run that was put back and went on
        self.looks.append(Look(step, loss, self._sum / self._count if self._count else None))
        self._sum, self._count = 0.0, 0
        if self.best == self.looks[-1]:
            self.warned = False
        if self.warned or not self._overfits():
            return ""
        self.warned = True
        since = self._since_best()[0].step
        return (
            f"Overfitting since step {since}: the training loss falls while the loss on the held-out data rises; "
            f"the best is step {self.best.step}."
        )

    @property
    def best(self) -> Look:
        """The look with the lowest loss, the first of equal ones. There must have been one."""
        return min(self.looks, key=lambda look: look.loss)

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience > 0 and len(self._since_best()) >= self.patience

    def _since_best(self) -> list[Look]:
        return self.looks[self.looks.index(self.best) + 1 :]

    def _overfits(self) -> bool:
        """Two looks in a row that rise above the best, while the mean training loss since the best is below that of
        as many looks up to it. With fixed noise and timesteps a rise is no chance, but one alone may be a bump."""
        after = self._since_best()
        if len(after) < 2 or not after[-1].loss > after[-2].loss > self.best.loss:
            return False
        upto = self.looks[: self.looks.index(self.best) + 1][-len(after) :]
        before = [look.trained for look in upto if look.trained is not None]
        since = [look.trained for look in after if look.trained is not None]
        return bool(before and since) and sum(since) / len(since) < sum(before) / len(before)

    def state(self) -> dict[str, Any]:
        """What a resumed run must know, as JSON values."""
        values = asdict(self)
        del values["patience"]
        return values

    def load(self, values: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; nothing in it begins anew."""
        if values:
            self.looks = [Look(*look) for look in values["looks"]]
            self.warned, self._sum, self._count = values["warned"], values["_sum"], values["_count"]
