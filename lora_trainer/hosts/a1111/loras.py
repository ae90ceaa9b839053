"""LoRA files and the WebUI's Lora extension: listed, known for a while under their name, proved to be read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_trainer.contracts import PlainError, Told
from lora_trainer.hosts.a1111.model import loaded
from lora_trainer.hosts.a1111.pristine import lora_extension, make_pristine


def announce(path: Path) -> None:
    """Have the extension find the file, forget what it knew of the name, and list it on the Lora page.

    To be called with the queue lock.
    """
    networks = lora_extension()
    if networks is None:
        return
    networks.list_available_networks()
    _forget(networks, path)
    _renew_pages()


@contextmanager
def registered(path: Path) -> Iterator[Any]:
    """Within it the extension knows the file by its stem, wherever it lies; yields the extension's entry for it."""
    networks, name = lora_extension(), path.stem
    entry = sys.modules["network"].NetworkOnDisk(name, str(path))
    tables = (networks.available_networks, networks.available_network_aliases, networks.available_network_hash_lookup)
    keys = (name, name, entry.shorthash)
    before = [table.get(key) for table, key in zip(tables, keys, strict=True)]
    try:
        for table, key in zip(tables, keys, strict=True):
            table[key] = entry
        networks.networks_in_memory.pop(name, None)
        yield entry
    finally:
        networks.networks_in_memory.pop(name, None)
        for table, key, old in zip(tables, keys, before, strict=True):
            if old is None:
                table.pop(key, None)
            else:
                table[key] = old
        _forget_notes(name)


def prove_keys(path: Path) -> list[Told]:
    """What the extension's own loader makes of the file: does it read it, and does it know every layer?"""
    from lora_trainer.weights.read import read_header

    networks = lora_extension()
    if networks is None:
        return [Told("The WebUI's Lora extension is switched off, so the LoRA cannot be used there.", "warning")]
    try:
        layers = {name.partition(".")[0] for name in read_header(path)}
        with registered(path) as entry:
            read = networks.load_network(path.stem, entry)
    except (PlainError, AssertionError, ValueError, KeyError, RuntimeError, OSError) as error:  # of a file not its own
        return [Told(f"The WebUI cannot read {path.name}: {error}", "warning")]
    known = {module.network_key.partition(".")[0] for module in read.modules.values()}
    missed = sorted(layers - known)
    if missed:
        text = f"The WebUI does not know {len(missed)} of the LoRA's {len(layers)} layers, such as {missed[0]}"
        return [Told(f"{text}; they have no effect there.", "warning")]
    return [Told(f"The WebUI reads {path.name}: it knows all of the LoRA's {len(layers)} layers.")]


def _forget(networks: Any, path: Path) -> None:
    """Drop everything by which an older file of the same name would be used on: the file read before, the weights it
    is merged into (a layer only compares name and weight), and the prompts encoded with it."""
    from modules import processing

    for name, network in list(networks.networks_in_memory.items()):
        if name == path.stem or Path(network.network_on_disk.filename) == path:
            networks.networks_in_memory.pop(name, None)
    if loaded() is not None:
        make_pristine(loaded())
    images = processing.StableDiffusionProcessingTxt2Img
    for cache in (images.cached_c, images.cached_uc, images.cached_hr_c, images.cached_hr_uc):
        cache[:] = [None, None]


def _forget_notes(name: str) -> None:
    """Notes and hashes are kept on disk by name, and read anew only where the file is younger."""
    from modules import cache

    for section in ("safetensors-metadata", "hashes", "hashes-addnet"):
        cache.cache(section).pop(f"lora/{name}", None)


def _renew_pages() -> None:
    """Have the list of cards made anew when a page is opened next; it is made once and kept by the page's functions.

    A page that is open shows the card when its own refresh button is pressed, by a person or by our script.
    """
    from modules import shared

    page = getattr(shared, "demo", None)
    for function in getattr(page, "fns", ()):
        for cell in getattr(getattr(function, "fn", None), "__closure__", None) or ():
            if type(_content(cell)).__name__ == "ExtraNetworksUi":
                cell.cell_contents.pages_contents = []


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that was never given a value
        return None
