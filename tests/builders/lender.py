"""A host without a WebUI: it holds a model in memory, lends it, moves it about and takes it away."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from lora_trainer.contracts import HostPaths, LentModel, ModelAway
from lora_trainer.families.registry import lend_file
from lora_trainer.hosts.standalone import Standalone


class _Live(Mapping[str, Tensor]):
    """The lender's tensors as they are at the time of asking."""

    def __init__(self, host: Lender) -> None:
        self._host = host

    def __getitem__(self, key: str) -> Tensor:
        return self._host.weights[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._host.weights)

    def __len__(self) -> int:
        return len(self._host.weights)


class Lender(Standalone):
    """`each_turn(n)` is called before the n-th turn (from 1), under the lock: what the host does between two steps."""

    name = "lender"

    def __init__(self, checkpoint: Path, loras: Path, runs: Path) -> None:
        super().__init__()
        self.file = lend_file(checkpoint)
        self.weights = {key: self.file.tensors[key].clone() for key in self.file.header}
        self.away = False
        self.crowded = False
        self.turns = 0
        self.announced: list[Path] = []
        self.each_turn: Callable[[int], None] = lambda turn: None
        self._lock = threading.Lock()
        self._paths = HostPaths(loras=loras, runs=runs)

    def base_file(self, base: str) -> Path | None:
        return Path(base) if base else None

    def lend(self) -> LentModel:
        return LentModel(_Live(self), self.file.header, self.file.facts, self.file.name, self.file.path, owned=False)

    @contextmanager
    def exclusive(self, lent: LentModel, parts: Iterable[str]) -> Iterator[None]:
        with self._lock:
            self.turns += 1
            self.each_turn(self.turns)
            if self.away:
                raise ModelAway("another checkpoint is loaded; load this one again.")
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            self.turns += 1
            self.each_turn(self.turns)
            yield

    def contended(self) -> bool:
        return self.crowded

    def announce(self, path: Path) -> None:
        self.announced.append(path)

    def paths(self) -> HostPaths:
        return self._paths
