"""Which image files of a folder are masks, and of which images."""

from __future__ import annotations

from collections.abc import Sequence

from lora_trainer.data.captions import spelled

MASK = "-masklabel"  # behind the stem of an image's name: its mask, as OneTrainer names it (X-masklabel.png)
FOLDER = "mask"  # a folder beside images with a file of the same stem for each, as kohya's sd-scripts pairs them


class MaskFiles:
    """The masks among image files. A file is a mask only where there is an image that it could be of."""

    def __init__(self, images: Sequence[str]) -> None:
        """`images` are names relative to the data set's folder, with "/"."""
        stems = {_stem(image) for image in images}
        self._of: dict[str, str] = {}  # comparable stem of the image: name of its mask
        self.names: set[str] = set()
        for image in images:
            stem = _stem(image)
            if stem.endswith(MASK) and stem.removesuffix(MASK) in stems:
                self._of[stem.removesuffix(MASK)] = image  # comes before a file in the folder
            elif (of := _besides(stem)) in stems:
                self._of.setdefault(of, image)
            else:
                continue
            self.names.add(image)

    def of(self, image: str) -> str | None:
        """The mask of the image of that name; None where it has none."""
        return self._of.get(_stem(image))


def _besides(stem: str) -> str:
    """The stem "sub/x" of the image that "sub/mask/x" would be the mask of; empty where it lies in no such folder."""
    folder, _, name = stem.rpartition("/")
    outer, _, inner = folder.rpartition("/")
    if inner != FOLDER:
        return ""
    return f"{outer}/{name}" if outer else name


def _stem(image: str) -> str:
    return spelled(image.rpartition(".")[0])
