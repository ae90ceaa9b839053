"""What a file is: a LoRA with its ranks, recipe and strengths, or a base model with what it predicts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_trainer.config.leaves import leaves
from lora_trainer.config.tasks import IMAGES, applies
from lora_trainer.jobs.lora_files import read
from lora_trainer.networks.changes import Change, changes_of
from lora_trainer.networks.dialects import is_network, unread
from lora_trainer.networks.metadata import RECIPE
from lora_trainer.networks.peft_folder import SETTINGS, WEIGHTS, read_adapter
from lora_trainer.weights.read import read_header, read_metadata

_BLOCK = re.compile(
    r"(unet)\.(mid_block|\w+_blocks\.\d+)|(text_encoder\w*)\.encoder\.layers\.(\d+)|(language_model)\.[a-z_.]*?\.(\d+)\."
)
_LONGEST = 200  # characters of a note that are shown
_KINDS = {"lora": "LoRA", "locon": "LoCon", "dora": "DoRA", "loha": "LoHa", "lokr": "LoKr", "oft": "OFT"}


@dataclass(frozen=True)
class Report:
    """What is told of a file; `str` gives it as text. Empty fields do not apply."""

    path: Path
    kind: str  # "LoRA", "LoHa", "base model", "a GLoRA" (which is not read), ...
    family: str = ""  # title
    told_by: str = ""  # of a base model: how its prediction was told
    prediction: str = ""
    precision: str = ""
    ranks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    modules: Mapping[str, int] = field(default_factory=dict[str, int])  # number by part
    norms: Mapping[str, float] = field(default_factory=dict[str, float])  # Frobenius norm of the change, by block
    recipe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def __str__(self) -> str:
        lines = [f"{self.path.name}: {self.kind}" + (f" for {self.family}" if self.modules else "")]
        if self.kind == "base model":
            lines = [f"{self.path.name}: base model, {self.family}, predicts {self.prediction} ({self.told_by})"]
        if self.modules:
            counts = ", ".join(f"{count} in {part}" for part, count in self.modules.items())
            lines.append(f"  modules    {counts}")
            if self.ranks:
                lines.append(f"  rank       {_listed(self.ranks)}")
            if self.alphas:
                lines.append(f"  alpha      {_listed(self.alphas)}")
        if self.precision:
            lines.append(f"  precision  {self.precision}")
        if self.norms:
            widest = max(len(block) for block in self.norms)
            lines.append("Strength by block (norm of the change at weight 1):")
            lines += [f"  {block:<{widest}}  {norm:.4g}" for block, norm in self.norms.items()]
        if self.recipe:
            lines.append("Recipe:")
            lines += [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in _flat(self.recipe)]
        if self.metadata:
            lines.append("Notes:")
            lines += [f"  {key}: {_short(value)}" for key, value in sorted(self.metadata.items()) if key != RECIPE]
        return "\n".join(lines)


def inspect(path: Path) -> Report:
    """What the file or folder at `path` is. Raises PlainError for anything but a network or a base model."""
    path = Path(path)
    if path.is_dir() and (path / SETTINGS).is_file():
        return _adapter(path)
    if path.is_dir():
        return _base(path, {})
    header, metadata = read_header(path), read_metadata(path)
    other = unread(header)
    if other:
        return Report(path, other[0], precision=_listed({info.dtype for info in header.values()}), metadata=metadata)
    if not is_network(header):
        return _base(path, metadata)
    lora = read(path)
    modules = changes_of(lora.state)
    parts = [name.partition(".")[0] for name in modules]
    scaled = [change for change in modules.values() if change.rank and change.kind != "oft"]
    return Report(
        path,
        _kind(modules),
        family=lora.family.title,
        precision=_listed({info.dtype for name, info in header.items() if not name.endswith(".alpha")}),
        ranks=tuple(sorted({change.rank for change in modules.values() if change.rank})),
        alphas=tuple(sorted({change.alpha for change in scaled})),
        modules={part: parts.count(part) for part in dict.fromkeys(parts)},
        norms=_norms(modules),
        recipe=_recipe(metadata),
        metadata=metadata,
    )


def _adapter(folder: Path) -> Report:
    """Of a language model, as peft keeps it."""
    state, settings = read_adapter(folder)
    metadata = read_metadata(folder / WEIGHTS)
    modules = changes_of(state)
    return Report(
        folder, _kind(modules), family=str(settings.get("base_model_name_or_path") or "a language model"),
        precision=_listed({info.dtype for info in read_header(folder / WEIGHTS).values()}),
        ranks=tuple(sorted({change.rank for change in modules.values()})),
        alphas=tuple(sorted({change.alpha for change in modules.values()})),
        modules={"layers": len(modules)}, norms=_norms(modules), recipe=_recipe(metadata), metadata=metadata,
    )  # fmt: skip


def _kind(modules: Mapping[str, Change]) -> str:
    """ "LoRA", "LoCon", "DoRA", ... or several, joined; LoCon is LoRA that reaches windowed convolutions."""
    kinds = {change.kind for change in modules.values()}
    windowed = any(change.kind == "lora" and change.plain().down[0, 0].numel() > 1 for change in modules.values())
    return " and ".join(sorted(_KINDS["locon" if kind == "lora" and windowed else kind] for kind in kinds))


def recipe_in(path: Path) -> dict[str, Any]:
    """The configuration that a LoRA file of ours carries; {} in one of another program's. Raises PlainError."""
    return _recipe(read_metadata(Path(path)))


def _base(path: Path, metadata: Mapping[str, str]) -> Report:
    from lora_trainer.families.registry import family_named, lend_file

    facts = lend_file(path).facts
    prediction = facts.prediction + (" with zero terminal SNR" if facts.zero_terminal_snr else "")
    title = family_named(facts.family).title
    return Report(path, "base model", family=title, told_by=facts.reason, prediction=prediction, metadata=metadata)


def _norms(modules: Mapping[str, Change]) -> dict[str, float]:
    """By block; nothing for kinds whose change depends on the base."""
    squares: dict[str, float] = {}
    for name, change in modules.items():
        norm = change.norm()
        if norm is not None:
            match = _BLOCK.match(name)
            block = " ".join(part for part in match.groups() if part) if match else name.partition(".")[0]
            squares[block] = squares.get(block, 0.0) + norm**2
    return {block: squares[block] ** 0.5 for block in sorted(squares, key=_natural)}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 after layer 9."""
    return [(int(word), "") if word.isdigit() else (-1, word) for word in re.split(r"(\d+)", name)]


def _recipe(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our own note; {} where another program wrote the file, or the note is not what we write."""
    try:
        recipe = json.loads(metadata.get(RECIPE, "{}"))
    except ValueError:
        return {}
    return _of_its_task(recipe) if isinstance(recipe, dict) else {}


def _of_its_task(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Without the settings that mean nothing for what was trained, which a recipe has at their defaults."""
    idle = {leaf.path for leaf in leaves() if not applies(leaf, str(recipe.get("task", IMAGES)))}

    def kept(held: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found = {
            name: kept(value, f"{prefix}{name}.") if isinstance(value, Mapping) else value
            for name, value in held.items()
            if prefix + name not in idle
        }
        return {name: value for name, value in found.items() if value != {} or held[name] == {}}

    return kept(recipe, "")


def _flat(nested: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, value in nested.items():
        flat += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(prefix + name, value)]
    return flat


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in sorted(values))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"
