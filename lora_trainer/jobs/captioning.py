"""A folder of images gets its captions: scan, captioner in batches, files; told in events like a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_trainer.captioners.blip import Blip
from lora_trainer.captioners.models import needed
from lora_trainer.captioners.places import to_fetch
from lora_trainer.captioners.registry import captioner_of
from lora_trainer.captioners.wording import joined, worded
from lora_trainer.config.captioning import CaptionConfig
from lora_trainer.contracts import Captioner, Control, Event, Finished, Host, PlainError, Prepared, Told
from lora_trainer.data.caption_files import CaptionFiles, Sidecars, Table, refused
from lora_trainer.data.captions import one_line, with_trigger
from lora_trainer.data.images import load_rgb
from lora_trainer.data.scan import Item, Scan, scan
from lora_trainer.demo.show import ASSETS
from lora_trainer.jobs.fetching import fetched
from lora_trainer.jobs.host_control import HostControl
from lora_trainer.train.control import Controls

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

__all__ = ["Controls", "Plan", "caption_folder", "captioner_for", "plan_captions"]

SAVE_EVERY = 20.0  # seconds between two writings of the table: at each batch it would be written over and over
TABLE = "metadata.csv"


@dataclass(frozen=True)
class Plan:
    """What captioning would do."""

    scan: Scan
    work: tuple[Item, ...]  # images to be described
    target: Path | None  # the table; None for files beside the images
    ending: str  # of these, else ""
    warnings: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where captions go, in words."""
        return str(self.target) if self.target else f"{self.ending} files beside the images in {self.scan.folder}"

    def text(self) -> str:
        """The plan for the user, a line each."""
        found = len(self.scan.items)
        had = found - len(self.scan.missing_captions)
        lines = [
            f"images        {found} in {self.scan.folder}, {had} with a caption",
            f"to describe   {len(self.work)}",
            f"captions to   {self.place}",
        ]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.warnings)])


def plan_captions(config: CaptionConfig, *, in_step: bool = False) -> Plan:
    """Look at the folder and say what would be done; writes nothing. Raises PlainError.

    `in_step`: captions are written to every place where an image has one, so that none hides another.
    """
    if not config.input:
        raise PlainError("No folder of images is named; give its name with --input.")
    folder = Path(config.input).expanduser()
    target = _table_path(config, folder)
    found = scan(folder, target if target and target.is_file() else None)
    work = tuple(item for item in found.items if config.existing != "skip" or not item.caption)
    ending = "" if target else f".{config.format}"
    warnings = [] if target or in_step else list(_unseen(work, ending))
    if not target:
        work, doubles = _one_for_each_file(work)
        warnings += doubles
    work, unkept = _kept(work, ending)
    warnings += unkept
    unreadable = [f"{one.reason} It is left out." for one in found.unreadable]
    return Plan(found, work, target, ending, (*unreadable, *warnings))


def captioner_for(config: CaptionConfig, host: Host) -> Captioner:
    """The captioner that the options name, on the device that they or the host name. Raises PlainError."""
    device = _device(config, host)
    if config.model == "demo":
        return Blip("demo", ASSETS / "captioner", device)
    hosted = host.captioners(threshold=config.threshold, download=config.download)
    return captioner_of(config, device, hosted)


def caption_folder(
    config: CaptionConfig, host: Host, control: Control, shelf: Callable[[Plan], CaptionFiles] | None = None
) -> Iterator[Event]:
    """Describe the images and write their captions; the last event is Finished. `shelf` makes what they are put into
    where that is not what the options name.

    Stopping, also by the host's own Interrupt, takes effect after the batch under way, and what is done is kept, as it
    is when anything fails. Raises PlainError before anything is written for bad input, and later where the captioner
    or the disk fails.
    """
    plan = plan_captions(config, in_step=shelf is not None)
    yield from (Told(warning, "warning") for warning in plan.warnings)
    if not plan.work:
        yield Finished("done", 0, None, "Every image has a caption already; nothing was changed.")
        return
    _check_writable(plan.target.parent if plan.target else plan.scan.folder)
    yield from _fetched(config, host, control)
    if control.stopped():
        yield Finished("stopped", 0, None, "Stopped while the captioner was fetched; what has come is kept.")
        return
    control = HostControl(control, host)
    captioner = captioner_for(config, host)
    files = shelf(plan) if shelf else _files(plan)
    counts = _Counts()
    with host.visit():
        try:
            for event in _described(plan, config, captioner, host, files, control, counts):
                host.report(event)
                yield event
            stopped = control.stopped() and counts.seen < len(plan.work)
        finally:
            try:
                files.save()
            finally:
                captioner.close()  # before the visit ends, which gives the device's memory back to the host
    yield from _nameless(counts, captioner)
    yield Finished("stopped" if stopped else "done", counts.written, None, _summary(plan, counts, stopped=stopped))


def _fetched(config: CaptionConfig, host: Host, control: Control) -> Iterator[Event]:
    """Fetch the captioner where it is not here and that was asked for, until a stop is ordered."""
    if not config.download or config.model in {one.name for one in host.captioners()}:
        return
    repository = to_fetch(config.model, Path(config.models).expanduser())
    if not repository:
        return
    yield from fetched(repository, needed, "captioner", control)


# --- planning --------------------------------------------------------------------------------------------------------


def _table_path(config: CaptionConfig, folder: Path) -> Path | None:
    """The table to write, or None for files beside the images."""
    given = Path(config.output).expanduser() if config.output else None
    if config.format in ("txt", "caption"):
        if given and given.absolute() != folder.absolute():
            raise PlainError(
                f"output is {given}, but with the format {config.format} captions go beside the images in {folder}, "
                "where a training looks for them; leave output out, or write a table."
            )
        return None
    if given is None or given.is_dir():
        return (given or folder) / TABLE
    if given.suffix.lower() != ".csv":
        raise PlainError(f"output {given} is no name of a table; let it end in .csv, or choose the format txt.")
    return given


def _unseen(work: Sequence[Item], ending: str) -> Iterator[str]:
    """A warning where captions that a training asks first would hide the new ones."""
    later = (".txt", ".caption", "") if ending == ".txt" else (".caption", "")
    sources = sorted({item.caption_source for item in work if item.caption_source not in later})
    if sources:
        yield (
            f"Captions in {', '.join(sources)} are asked before {ending} files, so the new ones would not be seen by a "
            "training: take these away first, or write a table."
        )


def _one_for_each_file(work: Sequence[Item]) -> tuple[tuple[Item, ...], list[str]]:
    """Images that differ in their endings only would share a text file: the first of them has it."""
    first: dict[Path, Item] = {}
    for item in work:
        first.setdefault(item.path.with_suffix(""), item)
    doubles = [item.name for item in work if first[item.path.with_suffix("")] is not item]
    told = [
        f"{len(doubles)} images have the name of another one but for the ending, would share its text file and are "
        f"left out, such as {doubles[0]}: write a table to keep them apart."
    ] if doubles else []  # fmt: skip
    return tuple(first.values()), told


def _kept(work: Sequence[Item], ending: str) -> tuple[tuple[Item, ...], list[str]]:
    """The images whose captions can be kept where they go, and what is told of the others."""
    reasons = {item.name: reason for item in work if (reason := refused(item.name, ending))}
    told = [f"{len(reasons)} images are left out. The first: {next(iter(reasons.values()))}"] if reasons else []
    return tuple(item for item in work if item.name not in reasons), told


def _check_writable(folder: Path) -> None:
    """Told before a model is loaded, rather than after the first batch."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise PlainError(
            f"{nearest} is closed to writing, so no captions can be kept there; change its permissions, or name a "
            "table elsewhere with --output."
        )


def _device(config: CaptionConfig, host: Host) -> torch.device:
    import torch

    if config.device is None:
        return host.device()
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        told = str(error).partition("\n")[0]
        raise PlainError(f"device is {config.device!r}, which is not to be had here ({told}); try cpu.") from error
    return device


def _files(plan: Plan) -> CaptionFiles:
    if plan.target:
        images = [item.name for item in plan.scan.items]
        unreadable = [one.path.relative_to(plan.scan.folder).as_posix() for one in plan.scan.unreadable]
        return Table(plan.target, plan.scan.folder, [*images, *unreadable])
    return Sidecars(plan.scan.folder, plan.ending)


# --- describing ------------------------------------------------------------------------------------------------------


class _Counts:
    def __init__(self) -> None:
        self.seen = self.written = 0
        self.speechless: list[str] = []  # images of which the captioner found nothing to say


class _Decoded(NamedTuple):
    item: Item
    image: Image | None
    fault: str  # why there is no image


def _described(
    plan: Plan, config: CaptionConfig, captioner: Captioner, host: Host, files: CaptionFiles, control: Control,
    counts: _Counts,
) -> Iterator[Event]:  # fmt: skip
    total, saved = len(plan.work), time.monotonic()
    yield Prepared("captions", 0, total)
    for batch in _batches(plan.work, config.batch_size or captioner.batch_size, control):
        yield from (Told(f"{one.fault} It is left out.", "warning") for one in batch if one.fault)
        seen = [(one.item, one.image) for one in batch if one.image is not None]
        with host.turn():  # a batch at a time: who wants to generate waits for one, not for all
            sayings = _said(captioner, [image for _, image in seen])
        for (item, _), said in zip(seen, sayings, strict=True):
            caption = _caption(item, said, captioner.makes, config)
            if not one_line(said):
                counts.speechless.append(item.name)
            elif caption:
                files.put(item.name, caption)
                counts.written += 1
        counts.seen += len(batch)
        if time.monotonic() - saved > SAVE_EVERY:
            files.save()
            saved = time.monotonic()
        yield Prepared("captions", counts.seen, total)


def _batches(work: Sequence[Item], size: int, control: Control) -> Iterator[list[_Decoded]]:
    """Batches of decoded images, the next one being decoded while this one is described; none after a stop."""
    pieces = [work[start : start + size] for start in range(0, len(work), size)]
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(_decoded, pieces[0])
        for following in [*pieces[1:], []]:
            batch, coming = coming.result(), reader.submit(_decoded, following)
            if control.stopped():
                return
            yield batch


def _decoded(items: Sequence[Item]) -> list[_Decoded]:
    decoded = []
    for item in items:
        try:
            decoded.append(_Decoded(item, load_rgb(item.path), ""))
        except PlainError as error:
            decoded.append(_Decoded(item, None, str(error)))
    return decoded


def _said(captioner: Captioner, images: Sequence[Image]) -> list[str]:
    """What the captioner says of each image; where the device's memory does not hold all at once, of half of them."""
    import torch

    if not images:
        return []
    try:
        return captioner.caption(images)
    except torch.cuda.OutOfMemoryError as error:
        if len(images) == 1:
            raise PlainError(
                f"The captioner {captioner.name} needs more memory than the device has free; close what else uses it, "
                "or choose a smaller model or --device cpu."
            ) from error
    half = len(images) // 2  # outside of the handler, which would keep the failed batch in memory
    torch.cuda.empty_cache()
    return [*_said(captioner, images[:half]), *_said(captioner, images[half:])]


def _caption(item: Item, said: str, makes: str, config: CaptionConfig) -> str:
    new = one_line(worded(one_line(said), makes, config))
    return with_trigger(joined(item.caption, new, config.existing, makes), config.trigger)


# --- telling ---------------------------------------------------------------------------------------------------------


def _nameless(counts: _Counts, captioner: Captioner) -> Iterator[Event]:
    if counts.speechless:
        hint = "lower the threshold" if captioner.makes == "tags" else "try another model"
        yield Told(
            f"{captioner.name} found nothing to say of {len(counts.speechless)} images, such as "
            f"{counts.speechless[0]}: {hint}.", "warning",
        )  # fmt: skip


def _summary(plan: Plan, counts: _Counts, *, stopped: bool) -> str:
    done = "1 caption" if counts.written == 1 else f"{counts.written} captions"
    text = f"Wrote {done} to {plan.place}"
    skipped = len(plan.scan.items) - len(plan.work)
    if skipped:
        text += f"; {skipped} images were left as they are"
    if stopped:
        text += f"; stopped with {len(plan.work) - counts.seen} to go: the same command goes on from here"
    if plan.target and plan.target.absolute() != (plan.scan.folder / TABLE).absolute():
        text += f". Name it when you train: data.metadata {plan.target}"
    return f"{text}."
