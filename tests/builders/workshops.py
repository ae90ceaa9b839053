"""Open data sets over small folders, in this process or behind a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lora_trainer.data.workshop.opened import Workshop
from lora_trainer.hosts.standalone import Standalone
from lora_trainer.jobs.registry import Registry
from tests.builders.served import Client, application, served


def opened(folder: Path, metadata: Path | None = None, trigger: str = "") -> Workshop:
    """The folder, open and read; tokens are counted as words."""
    workshop = Workshop(
        folder, metadata, cache=folder / ".cache/lora_trainer", tokens=lambda text: len(text.split()), trigger=trigger
    )
    workshop.read()
    return workshop


def caption_of(workshop: Workshop, name: str) -> str:
    """The caption of an image as the workshop knows it."""
    return workshop.snapshot.items[name].caption


def saved(workshop: Workshop, name: str, caption: str) -> None:
    """Save a caption as somebody who has just seen the one before it."""
    workshop.save(name, caption, workshop.snapshot.version(name))


class Browser(Client):
    """A client with a data set open."""

    def __init__(self, address: str, folder: Path | str, **options: Any) -> None:
        super().__init__(address)
        self.id = self.post("/datasets", {"folder": str(folder), **options})["id"]
        self.at = f"/datasets/{self.id}"

    def ready(self) -> dict[str, Any]:
        """Wait until the folder is read."""
        return self.until(self.id, lambda form: form["state"] != "scanning", at="/datasets")

    def images(self, query: str = "") -> list[dict[str, Any]]:
        """Images of the list."""
        return self.get(f"{self.at}/images?{query}")["images"]

    def image(self, name: str) -> dict[str, Any]:
        """The one of that name."""
        return next(image for image in self.images(f"text={quote(name)}") if image["name"] == name)

    def save(self, name: str, caption: str) -> dict[str, Any]:
        """Save a caption over the one that is shown."""
        return self.post(
            f"{self.at}/captions", {"name": name, "caption": caption, "version": self.image(name)["version"]}
        )


@contextmanager
def open_server(runs: Path, **paths: Any) -> Iterator[str]:
    """The address of a real server."""
    host = Standalone(runs=runs, **paths)
    registry = Registry(host)
    with served(application(registry, host)) as address:
        yield address
        registry.close(60)
