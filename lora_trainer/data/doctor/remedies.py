"""What code can do about a finding: no image is changed or deleted, of each text file the former stays as .bak."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from lora_trainer.contracts import PlainError
from lora_trainer.data.caption_files import Sidecars, Table, replace_text
from lora_trainer.data.caption_sources import SIDECARS
from lora_trainer.data.captions import read_text, with_trigger
from lora_trainer.data.doctor.findings import Finding, Remedy, count
from lora_trainer.data.excluded import EXCLUDED, with_excluded
from lora_trainer.data.hashes import write_whole
from lora_trainer.data.images import load_alpha
from lora_trainer.data.mask_files import MASK
from lora_trainer.data.scan import Item, Scan


def remedy(finding: Finding, scan: Scan, metadata: Path | None, trigger: str) -> str:
    """Do what the finding's kind names, and say in a sentence what was done.

    `scan` is the one that the finding was made from, and `metadata` the table that it was given, if any. Raises
    PlainError where a file cannot be written, or where the kind has no remedy.
    """
    steps: dict[Remedy, Callable[[], str]] = {
        "exclude": lambda: _exclude(scan.folder, finding.acted_on or finding.images),
        "trigger": lambda: _put_trigger(scan, finding.images, metadata, trigger),
        "rows": lambda: _drop_rows(scan, metadata),
        "utf8": lambda: _save_as_utf8(scan.not_unicode),
        "mask": lambda: _write_masks(scan, finding.images),
    }
    if finding.remedy not in steps:
        raise PlainError(f"For {finding.kind} there is no remedy that code could apply: {finding.sentence}")
    return steps[finding.remedy]()


def _exclude(folder: Path, names: Sequence[str]) -> str:
    replace_text(folder / EXCLUDED, with_excluded(folder, names), keep=True)
    return f"{count(len(names), 'image')} left out by {folder / EXCLUDED}; take a line out of it to have one back."


def _put_trigger(scan: Scan, names: Sequence[str], metadata: Path | None, trigger: str) -> str:
    wanted = set(names)
    by_source: dict[str, list[Item]] = defaultdict(list)
    for item in scan.items:
        if item.name in wanted:
            by_source[item.caption_source].append(item)
    for source, items in by_source.items():
        files = Sidecars(scan.folder, source) if source in SIDECARS else _table(scan, source, metadata)
        for item in items:
            files.put(item.name, with_trigger(item.caption, trigger))
        files.save()
    return f"{trigger!r} put in front of {count(len(names), 'caption')} ({', '.join(by_source)})."


def _drop_rows(scan: Scan, metadata: Path | None) -> str:
    path = metadata or next(path for path in _tables(scan.folder) if path.is_file())
    table = _table(scan, path.name, metadata)
    table.drop_doubles()
    table.save()
    return f"One row kept in {path} for {count(len(scan.doubled_rows), 'file')} that had several."


def _tables(folder: Path) -> list[Path]:
    return [folder / "metadata.csv", folder / "metadata.jsonl"]


def _table(scan: Scan, source: str, metadata: Path | None) -> Table:
    path = metadata or scan.folder / source
    if path.suffix.lower() == ".jsonl":
        raise PlainError(
            f"{path} is not a CSV table, and only these are edited here: change it by hand, or write the captions into "
            "metadata.csv."
        )
    unreadable = [bad.path.relative_to(scan.folder).as_posix() for bad in scan.unreadable]
    return Table(path, scan.folder, [*(item.name for item in scan.items), *unreadable, *scan.excluded])


def _save_as_utf8(paths: Sequence[Path]) -> str:
    for path in paths:
        replace_text(path, read_text(path).text, keep=True)
    return f"{count(len(paths), 'caption file')} saved as UTF-8."


def _write_masks(scan: Scan, names: Sequence[str]) -> str:
    written = 0
    for name in names:
        target = scan.folder / PurePosixPath(name).with_name(f"{PurePosixPath(name).stem}{MASK}.png")
        if target.exists():
            continue  # a mask that somebody drew is worth more than the alpha channel
        data = io.BytesIO()
        load_alpha(scan.folder / name).save(data, "PNG")
        try:
            write_whole(target, data.getvalue())
        except OSError as error:
            raise PlainError(
                f"{target} cannot be written ({error.strerror or error}); make room or change the folder's permissions."
            ) from error
        written += 1
    return f"{count(written, 'mask')} written, as NAME{MASK}.png beside the image."
