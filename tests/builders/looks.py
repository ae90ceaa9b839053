"""What can be seen of a configuration, at several depths: whatever turning an option changes shows in one of them.

The recipe in a file's notes holds every option as it was given, so it is never looked at.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_trainer.config.load import load
from lora_trainer.contracts import BaseModel, PlainError, Sampled, Saved, Stepped, Told, Validated
from lora_trainer.families.registry import family_named, lend_file
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.image_run import ImageRun
from lora_trainer.jobs.plan import Plan, plan_run
from lora_trainer.jobs.relief import IdleParts, image_ladder
from lora_trainer.jobs.run import Controls, run
from lora_trainer.jobs.start import starting_weights
from lora_trainer.networks.network import inject
from lora_trainer.train.pieces import Pieces
from tests.builders.networks import randomise
from tests.builders.runs import run_all

_MEASURED = re.compile(r"[\d.,]+ ?(?:[KMG]i?B|s)\b")  # memory and time differ from run to run


class Looks:
    """Ways to look at a configuration; each gives text that can be compared. What is refused shows as its sentence."""

    def __init__(self, base_file: Path) -> None:
        family = family_named("sd1")
        self._cpu = torch.device("cpu")
        self._adopt = lambda parts: family.adopt(lend_file(base_file), self._cpu, torch.float32, parts)
        self._base: BaseModel = self._adopt(("vae", "unet", *family.text_parts))
        self._count = 0

    def look(self, way: str, raw: dict[str, Any]) -> str:
        """What is seen that way."""
        try:
            return getattr(self, f"_{way}")(raw)
        except PlainError as error:
            return f"refused: {error}"

    def _plan(self, raw: dict[str, Any]) -> str:
        """What was decided: values, and what the user is told; the course of the rate."""
        plan = plan_run(load(raw), Standalone())
        told = {one.name: getattr(plan, one.name) for one in fields(plan)}
        plain = {name: value for name, value in told.items() if isinstance(value, int | float | str | tuple | dict)}
        course = [round(plan.schedule.factor(step), 6) for step in range(plan.steps)]
        return repr((plain, str(plan.dtype), course, plan.files, plan.summary()))

    def _cached(self, raw: dict[str, Any]) -> str:
        """The batches, and what the folder of images keeps of them."""
        plan = self._planned(raw)
        folder = plan.scan.folder
        batches = _digest(self._first(plan, 2))
        return repr((batches, sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))))

    def _batches(self, raw: dict[str, Any]) -> str:
        """What the loss would be given: latents, captions, sizes, weights, masks."""
        return _digest(self._first(self._planned(raw), 6))

    def _learnt(self, raw: dict[str, Any]) -> str:
        """A network on the base, fresh and random: its weights, loss and gradients on the first batches."""
        plan = self._planned(raw)
        base = _as_planned(self._base, plan)
        options = replace(plan.config.network, alpha=plan.alpha)
        network = inject(base.parts, options, train_parts=list(plan.rates), seed=plan.seed)
        try:
            told = [event.text for event in starting_weights(plan, network)] if options.start_from else []
            fresh = network.state()
            randomise(network)
            host = Standalone()
            course = ImageRun(plan, host, HostControl(Controls(), host), True)
            loss = course._loss(base, network)  # by the very wiring of a run
            seen: list[Any] = [told, fresh, [(group.part, group.rate) for group in network.groups()]]
            for batch in self._first(plan, 2):
                value = loss(batch)
                value.backward()
                seen.append(value.detach())
            grads = [p.grad for group in network.groups() for p in group.parameters if p.grad is not None]
            return _digest([*seen, grads])
        finally:
            network.eject()

    def _ladder(self, raw: dict[str, Any]) -> str:
        """What is done to the base's own modules to save memory."""
        plan = self._planned(raw)
        base = self._adopt(("unet", *plan.family.text_parts))
        image_ladder(plan, base, Standalone(), Pieces(), IdleParts(base, ()), [])
        modules = [module for part in base.parts.values() for module in part.modules()]
        recomputing = sum(bool(getattr(module, "gradient_checkpointing", False)) for module in modules)
        return repr((recomputing, sorted({type(getattr(m, "processor", None)).__name__ for m in modules})))

    def _run(self, raw: dict[str, Any]) -> str:
        """A whole run: the files it leaves, what was learnt, drawn, measured and said, and when."""
        folder = Path(raw["output.directory"])
        config = load({**raw, "output.directory": str(self._elsewhere(folder))})
        events = run_all(config)
        found = Path(str(config.output.directory)).parent
        files = sorted(str(path.relative_to(found)) for path in found.rglob("*") if "events.out" not in path.name)
        learnt = [_tensors(path) for path in sorted(found.rglob("*.safetensors"))]
        seen: list[Any] = []
        for event in events:
            if isinstance(event, Told):
                seen.append(_MEASURED.sub("some", event.text.replace(str(found), "there")))
            elif isinstance(event, Stepped):
                seen.append((event.step, event.loss))
            elif isinstance(event, Validated):
                seen.append(repr(event))
            elif isinstance(event, Saved):
                seen.append(event.step)
            elif isinstance(event, Sampled):
                seen.append((event.step, *_pictures(event.paths), event.texts))
        return repr((files, learnt, _digest(seen)))

    def _aside(self, raw: dict[str, Any]) -> str:
        """How often a host was asked to put its own model aside."""
        asked: list[str] = []

        class Holding(Standalone):
            def aside(self) -> Any:
                asked.append("aside")
                return super().aside()

        folder = self._elsewhere(Path(raw["output.directory"]))
        list(run(load({**raw, "output.directory": str(folder)}), host=Holding(), control=Controls()))
        return repr(asked)

    def _elsewhere(self, folder: Path) -> Path:
        self._count += 1
        return folder.parent / str(self._count) / folder.name

    def _planned(self, raw: dict[str, Any]) -> Plan:
        plan = plan_run(load(raw), Standalone())
        assert isinstance(plan, Plan)
        return plan

    def _first(self, plan: Plan, count: int) -> list[Any]:
        text = None if plan.text_rate else (lambda captions: self._base.encode_text(captions, plan.clip_skip))
        list(plan.data.prepare(self._base.encode_images, text, fingerprint="a base"))
        return [plan.data(index) for index in range(count)]


def _as_planned(base: BaseModel, plan: Plan) -> BaseModel:
    """The base as a family adopts it from the plan's facts, over the modules that are there."""
    fresh = plan.family.adopt(plan.lent, torch.device("cpu"), torch.float32, ())
    fresh.join(base)
    return fresh


def _tensors(path: Path) -> str:
    tensors = load_file(path)
    return f"{path.name} {_digest([sorted(tensors), [tensors[name] for name in sorted(tensors)]])}"


def _pictures(paths: Iterable[Path]) -> list[str]:
    return [hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in paths]


def _digest(value: Any) -> str:
    """The same for equal values, bit for bit."""
    digest = hashlib.blake2b(digest_size=12)

    def add(one: Any) -> None:
        if isinstance(one, Tensor):
            digest.update(f"{one.dtype}{tuple(one.shape)}".encode())
            digest.update(one.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif is_dataclass(one):
            for name in (each.name for each in fields(one)):
                add(name)
                add(getattr(one, name))
        elif isinstance(one, dict):
            for name, inner in one.items():
                add(name)
                add(inner)
        elif isinstance(one, list | tuple):
            digest.update(b"[")
            for inner in one:
                add(inner)
        else:
            digest.update(repr(one).encode())

    add(value)
    return digest.hexdigest()
