"""AUTOMATIC1111's WebUI as `contracts.Host`: the checkpoint it has loaded is trained upon, in its own process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.contracts import Event, HostCaptioner, HostPaths, LentModel, PlainError, SampleOrder, Told
from lora_trainer.hosts import beside
from lora_trainer.hosts.a1111 import drawing, loras, memory
from lora_trainer.hosts.a1111 import model as models
from lora_trainer.hosts.a1111.board import Board
from lora_trainer.hosts.a1111.captioners import DeepBooru, HostBlip
from lora_trainer.hosts.a1111.pristine import make_pristine
from lora_trainer.hosts.a1111.turn import Turn

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

ROOTS_SETTING = "lora_trainer_data_roots"  # further folders that requests may name, one a line
NOISE = 0.5  # of 255: a mean difference below it is not the LoRA's (GPUs do not repeat themselves to the bit)


class A1111:
    """Implements `contracts.Host` for A1111 v1.10.1; one for each run at a time."""

    name = "AUTOMATIC1111"
    draws = True

    @cached_property
    def _turn(self) -> Turn:
        from modules.call_queue import queue_lock

        return Turn(queue_lock)

    @cached_property
    def _board(self) -> Board:
        return Board()

    def base_file(self, base: str) -> Path | None:
        """None: the loaded checkpoint, lent. Raises PlainError where `base` names another one."""
        if base == "demo":
            return Path(__file__).parents[2] / "demo" / "assets" / "scenes.safetensors"
        if not base or models.same_base(base):
            return None
        raise models.other_base(base)

    def lend(self) -> LentModel:
        """The loaded checkpoint's own tensors; loaded now if it is not. Raises PlainError."""
        beside.ready()  # what is missing is told before the run: this is the first that is asked for it
        with self._turn:
            return models.lend()

    def device(self) -> torch.device:
        """Where the WebUI generates."""
        from modules import devices

        return devices.device

    @contextmanager
    def visit(self) -> Iterator[None]:
        """A whole run; afterwards nothing of it is left in the WebUI. Raises PlainError where packages are missing."""
        beside.ready()
        self.__dict__.pop("_board", None)  # what was pressed for an earlier run is past
        try:
            yield
        finally:
            with self._turn:
                self._board.close()
                model = models.loaded()
                if model is not None:
                    make_pristine(model)
                memory.send_back(model)

    @contextmanager
    def exclusive(self, lent: LentModel, parts: Iterable[str]) -> Iterator[None]:
        """The queue lock, with the lent checkpoint's own weights on the device. Raises ModelAway."""
        with self._turn:
            if isinstance(lent.tensors, models.LentTensors):
                model = lent.tensors.model()
                make_pristine(model)
                memory.bring(model, parts)
            with self._shown():
                yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The queue lock, and under --medvram a device without the checkpoint, as for the WebUI's own Interrogate."""
        with self._turn:
            memory.make_room()
            with self._shown():
                yield

    @contextmanager
    def _shown(self) -> Iterator[None]:
        """Our job on the progress bar, and Interrupt meant for it. To be entered with the queue lock."""
        self._board.take()
        try:
            yield
        finally:
            self._board.leave()

    def make_room(self) -> str:
        """Other checkpoints and interrogators to the CPU's memory, by the WebUI's own functions."""
        with self._turn:
            return memory.spare(models.loaded())

    def held(self) -> int:
        """What the loaded checkpoint takes; nothing on a CPU, or where --medvram keeps it off the device."""
        return memory.held(models.loaded())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The queue lock for as long as it takes, and the checkpoint off the device by the WebUI's own function."""
        with self._turn:
            model = models.loaded()
            moved = memory.held(model) > 0
            if moved:
                memory.set_aside(model)
            try:
                yield
            finally:
                if moved:
                    memory.bring_back(model)

    def contended(self) -> bool:
        """Whether a generation, a change of checkpoint or the like runs or waits."""
        return self._turn.contended()

    def report(self, event: Event) -> None:
        """Move the WebUI's progress bar."""
        self._board.show(event)

    def interrupted(self) -> bool:
        """Whether Interrupt was pressed while the run was the WebUI's job."""
        return self._board.interrupted()

    def draw(self, order: SampleOrder, lora: Path | None) -> Sequence[Image] | None:
        """Pictures by the WebUI's txt2img, with its first sampler."""
        with self._turn:
            return drawing.draw(order, lora)

    def announce(self, path: Path) -> None:
        """The Lora extension lists the file, and uses it where it is prompted for next."""
        with self._turn:
            loras.announce(path)

    def prove(self, path: Path, order: SampleOrder) -> list[Told]:
        """Read by the Lora extension, and drawn with and without."""
        with self._turn:
            if models.loaded() is None:
                return []
            told = loras.prove_keys(path)
            one = SampleOrder(
                order.prompts[:1] or ("",), order.negative, order.size, order.sampling_steps, order.guidance,
                order.seed, order.clip_skip,
            )  # fmt: skip
            pictures = [drawing.draw(one, lora) for lora in (None, path)] if told[0].level == "info" else []
        if not all(pictures) or len(pictures) < 2:
            return told
        return [*told, _compared(*[drawn[0] for drawn in pictures if drawn])]

    def captioners(self, *, threshold: float | None = None, download: bool = False) -> Sequence[HostCaptioner]:
        """What "Interrogate" asks: BLIP and DeepBooru."""
        turn = self._turn
        return (HostBlip(turn, download=download), DeepBooru(turn, threshold=threshold, download=download))

    def paths(self) -> HostPaths:
        """The WebUI's folders; requests over the network may name those, and what the settings add."""
        from modules import paths_internal, shared

        flags = shared.cmd_opts
        data, every_model = Path(paths_internal.data_path), Path(paths_internal.models_path)
        folders = {every_model / "Stable-diffusion": None}
        if flags.ckpt_dir:
            folders[Path(flags.ckpt_dir)] = None
        lines = str(shared.opts.data.get(ROOTS_SETTING) or "").splitlines()
        added = [Path(line.strip()) for line in lines if line.strip()]
        loras_folder = Path(flags.lora_dir)
        return HostPaths(
            loras=loras_folder,
            runs=data / "lora_trainer" / "runs",
            checkpoints=tuple(folders),
            allowed=(data, every_model, loras_folder, *folders, *added),
            widened_by="add yours in Settings > LoRA Trainer",
            at_the_machine=not flags.webui_is_non_local,
        )


def _compared(without: Any, with_lora: Any) -> Told:
    from PIL import ImageChops, ImageStat

    if without.size != with_lora.size:
        raise PlainError("The WebUI drew two pictures of different sizes for the same order.")
    differs = ImageChops.difference(without.convert("RGB"), with_lora.convert("RGB"))
    mean = sum(ImageStat.Stat(differs).mean) / 3
    if mean < NOISE:
        return Told(
            f"A picture with the LoRA differs from one without by {mean:.2f} of 255 only: it has learnt nothing that "
            "shows. Train longer, or with a higher learning_rate.",
            "warning",
        )
    return Told(f"A picture with the LoRA differs from the same one without by {mean:.1f} of 255 on average.")
