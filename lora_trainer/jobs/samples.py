"""Pictures drawn while a run goes on, with the weights of the moment: by the host, or by the engine where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from lora_trainer.contracts import BaseModel, Host, LentModel, Network, Sampled, SampleOrder
from lora_trainer.families.sampling import draw
from lora_trainer.families.thrift import work_in_tiles
from lora_trainer.jobs.plan import Plan
from lora_trainer.jobs.recipe import lora_metadata
from lora_trainer.jobs.relief import IdleParts
from lora_trainer.jobs.sliding import WEIGHTS, kind_of
from lora_trainer.networks.file import write_lora
from lora_trainer.train.memory import is_out_of_memory, let_go
from lora_trainer.weights.write import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

INFOTEXT = "parameters"  # the PNG's text where the WebUIs keep prompt and settings


@dataclass(frozen=True)
class SampleMaker:
    """Draws the prompts of the configuration."""

    plan: Plan
    base: BaseModel
    network: Network
    host: Host
    idle: IdleParts | None = None  # what was put away between two drawings

    @property
    def wanted(self) -> bool:
        return bool(self.plan.config.samples.prompts)

    def draw(self, step: int) -> Sampled | None:
        """One PNG for each prompt; None where no prompt is given."""
        if not self.wanted:
            return None
        images: list[Image] = []
        prompts: list[str] = []
        for order in self._orders():
            images += self._by_host(order, step) or self._by_engine(order)
            at = f" at {order.weight:+g}" if self._slides and order.weight else " at 0" if self._slides else ""
            prompts += [f"{prompt}{at}" for prompt in order.prompts]
        paths = tuple(self.plan.files.sample(step, index) for index in range(len(images)))
        for path, image in zip(paths, images, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, png_of(image))
        return Sampled(step, paths, tuple(prompts))

    @property
    def _slides(self) -> bool:
        return bool(kind_of(self.plan.config))

    def _orders(self) -> list[SampleOrder]:
        """The pictures to draw; of a slider at either end and in the middle."""
        order = sample_order(self.plan)
        return [replace(order, weight=weight) for weight in (WEIGHTS if self._slides else (1.0,))]

    def _by_engine(self, order: SampleOrder) -> Sequence[Image]:
        """Where memory runs out the pictures are decoded in tiles, smaller ones each time."""
        while True:
            try:
                with self.idle.awake() if self.idle else nullcontext(), self.network.scaled(order.weight):
                    return draw(
                        self.base, order.prompts, order.negative, size=order.size, steps=order.sampling_steps,
                        guidance=order.guidance, seed=order.seed, clip_skip=order.clip_skip,
                    )  # fmt: skip
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not work_in_tiles(self.base.parts["vae"]):
                    raise
                let_go(self.base.device, error)

    def _by_host(self, order: SampleOrder, step: int) -> Sequence[Image] | None:
        plan = self.plan
        if not host_draws(self.host, plan.lent):
            return None
        if order.weight == 0 or (step == 0 and not plan.config.network.start_from):
            return self.host.draw(order, None)  # a fresh network changes nothing
        path = plan.files.drawn_with(step)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(path, step)
            return self.host.draw(order, path)
        finally:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, step: int) -> None:
        write_lora(
            path,
            self.network.state(),
            kohya_name=self.base.kohya_name,
            metadata=lora_metadata(self.plan, path.stem, step),
            precision=self.plan.config.output.precision,
        )


def host_draws(host: Host, lent: LentModel) -> bool:
    """Whether the host makes the pictures of this base: it draws with the model it has loaded, and with no other."""
    return host.draws and not lent.owned


def sample_order(plan: Plan) -> SampleOrder:
    """What the configuration wants drawn."""
    options = plan.config.samples
    return SampleOrder(
        prompts=options.prompts, negative=options.negative, size=options.size or plan.resolution,
        sampling_steps=options.sampling_steps, guidance=options.guidance, seed=options.seed, clip_skip=plan.clip_skip,
    )  # fmt: skip


def png_of(image: Image) -> Callable[[BinaryIO], None]:
    """What writes the picture as PNG, with the text that a WebUI would save in it."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if INFOTEXT in image.info:
        text.add_text(INFOTEXT, str(image.info[INFOTEXT]))

    def fill(file: BinaryIO) -> None:
        image.save(file, format="PNG", pnginfo=text)

    return fill
