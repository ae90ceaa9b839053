"""Pictures of a class, drawn by the base model itself: what a LoRA of one cat is to leave as it was.

Preserving a class by what the model itself draws of it is Ruiz et al. 2023's (DreamBooth, arXiv 2208.12242, section
3.3); counting what is there and drawing the rest is also what diffusers' examples/dreambooth do.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.config.class_images import ClassImagesConfig
from lora_trainer.config.load import load_as
from lora_trainer.config.options import ModelConfig
from lora_trainer.contracts import Control, Event, Finished, Host, LentModel, PlainError, Prepared, SampleOrder, Told
from lora_trainer.data.caption_files import Sidecars
from lora_trainer.data.images import ENDINGS
from lora_trainer.data.listing import listing
from lora_trainer.data.mask_files import MaskFiles
from lora_trainer.families.registry import family_named
from lora_trainer.families.sampling import LATENT_CELL, draw
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.jobs.limits import check_allowed, check_base, paths_for
from lora_trainer.jobs.plan import base_of
from lora_trainer.jobs.planned import precision_for
from lora_trainer.jobs.samples import host_draws, png_of
from lora_trainer.jobs.tasks import Chore
from lora_trainer.train.control import Controls
from lora_trainer.train.turns import in_turn
from lora_trainer.weights.write import write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ClassPlan", "Controls", "class_images_chore", "draw_class_images", "plan_class_images"]

_MOST_SEED = 2**31 - 1  # as the WebUIs take it


@dataclass(frozen=True)
class ClassPlan:
    """What is to be drawn."""

    config: ClassImagesConfig
    folder: Path
    lent: LentModel
    size: int  # pixels
    there: int  # images that are there already
    numbers: tuple[int, ...]  # of those to be drawn; a picture's number is added to the seed

    def text(self) -> str:
        """The plan for the user."""
        return "\n".join([
            f"base model  {self.lent.name}",
            f"prompt      {self.config.prompt}",
            f"to draw     {len(self.numbers)} of {self.size} x {self.size} px, beside {self.there} that are there",
            f"folder      {self.folder}",
        ])  # fmt: skip

    def order(self, number: int) -> SampleOrder:
        """The order for one picture."""
        config = self.config
        seed = (config.seed + number) % (_MOST_SEED + 1)
        return SampleOrder(
            (config.prompt,), config.negative, self.size, config.sampling_steps, config.guidance, seed,
            family_named(self.lent.facts.family).defaults.clip_skip,
        )  # fmt: skip


def name_of(number: int) -> str:
    """File name of one picture."""
    return f"class_{number:05}.png"


def plan_class_images(config: ClassImagesConfig, host: Host) -> ClassPlan:
    """Look what is there and what is missing; draws and writes nothing. Raises PlainError."""
    if not config.prompt.strip():
        raise PlainError("No prompt is given; say what the pictures show, such as --prompt 'a photo of a cat'.")
    if not config.folder:
        raise PlainError("No folder is named; give --folder the place for the pictures.")
    folder = Path(config.folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise PlainError(f"The folder {folder} is a file: name a folder for the pictures.")
    lent = base_of(ModelConfig(base=config.base), host)
    size = config.size or family_named(lent.facts.family).defaults.resolution
    if size % LATENT_CELL:
        raise PlainError(f"size is {size}, but sides of pictures are multiples of {LATENT_CELL}; give another.")
    files = [file for file in listing(folder) if file.lower().endswith(ENDINGS)] if folder.is_dir() else []
    there = len(set(files) - MaskFiles(files).names)
    taken = set(files)
    free = (number for number in count() if name_of(number) not in taken)
    return ClassPlan(config, folder, lent, size, there, tuple(islice(free, max(0, config.count - there))))


def class_images_chore(raw: Mapping[str, Any], host: Host, *, by_page: bool) -> Chore:
    """The drawing that is asked for, ready for the queue; `by_page` as in `limits.load_allowed`.

    Raises ConfigError and PlainError.
    """
    config = load_as(ClassImagesConfig, raw)
    paths = paths_for(host, by_page=by_page)
    if config.folder:
        check_allowed(config.folder, paths, "folder")
    check_base(config.base, host, paths)
    plan = plan_class_images(config, host)

    def start(host: Host, control: Control) -> Iterator[Event]:
        return draw_class_images(config, host, control)

    return Chore("class_images", plan.folder.name, plan.there + len(plan.numbers), start)


def draw_class_images(config: ClassImagesConfig, host: Host, control: Control) -> Iterator[Event]:
    """Draw what is missing, one picture a turn at the device; the last event is Finished.

    Stopping, also by the host's own Interrupt, takes effect after the picture under way; drawn again, it goes on.
    Raises PlainError for bad input and where a picture cannot be drawn or written.
    """
    plan = plan_class_images(config, host)
    total = plan.there + len(plan.numbers)
    if not plan.numbers:
        yield Finished("done", total, None, f"{plan.folder} holds {plan.there} images already; nothing was drawn.")
        return
    control, done = HostControl(control, host), plan.there
    with host.visit(), ExitStack() as borrowed:
        paint = yield from _painter(plan, host, control, borrowed)
        yield _told(host, done, total)
        for number in plan.numbers:
            control.wait_while_paused()
            if paint is None or control.take().stop:
                break
            work = partial(paint, plan.order(number))
            image = yield from in_turn(lambda: host.exclusive(plan.lent, ()), control, work)
            if image is None:
                break
            _keep(plan, number, image)
            done += 1
            yield _told(host, done, total)
    yield Finished("done" if done == total else "stopped", done, None, _summary(plan, done, total))


def _told(host: Host, done: int, total: int) -> Prepared:
    event = Prepared("class images", done, total)
    host.report(event)
    return event


Painter = Callable[[SampleOrder], "Image | None"]


def _painter(
    plan: ClassPlan, host: Host, control: Control, borrowed: ExitStack
) -> Generator[Told, None, Painter | None]:
    """Who draws: the host with its own base, or the engine with the base adopted; None where stop was ordered
    meanwhile."""
    if host_draws(host, plan.lent):
        return partial(_by_host, host)
    family, device = family_named(plan.lent.facts.family), host.device()
    dtype, _ = precision_for("auto", device)
    parts = ("unet", "vae", *family.text_parts)
    base = yield from in_turn(
        lambda: host.exclusive(plan.lent, parts), control, lambda: family.adopt(plan.lent, device, dtype, parts)
    )
    if base is None:
        return None
    borrowed.callback(base.release, *parts)

    def paint(order: SampleOrder) -> Image:
        (image,) = draw(
            base, order.prompts, order.negative, size=order.size, steps=order.sampling_steps, guidance=order.guidance,
            seed=order.seed, clip_skip=order.clip_skip,
        )  # fmt: skip
        return image

    return paint


def _by_host(host: Host, order: SampleOrder) -> Image | None:
    """The host's picture; None where it was interrupted."""
    images: Sequence[Image] | None = host.draw(order, None)
    if images is None:
        raise PlainError(f"{host.name} could not draw with the model it has loaded; choose a checkpoint in it first.")
    return images[0] if images else None


def _keep(plan: ClassPlan, number: int, image: Image) -> None:
    """Write caption and picture, the picture last: it is what counts."""
    path = plan.folder / name_of(number)
    Sidecars(plan.folder, ".txt").put(path.name, plan.config.prompt)
    write_whole(path, png_of(image))


def _summary(plan: ClassPlan, done: int, total: int) -> str:
    if done < total:
        return f"Stopped: {done} of {total} images are in {plan.folder}; start it again, and it goes on."
    return f"{done} images are in {plan.folder}: name it when you train, as data.regularization."
