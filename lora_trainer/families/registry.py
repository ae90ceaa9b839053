"""The families there are, and base models lent from files. Importing this costs nothing; using it imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_trainer.contracts import Family, LentModel, ModelFacts, PlainError, TensorInfo


def families() -> tuple[Family, ...]:
    """Every family, in the order in which they are tried."""
    from lora_trainer.families import sd1, sd2, sdxl

    return sdxl.FAMILY, sd2.FAMILY, sd1.FAMILY


def families_table() -> str:
    """What README.md says of the families, as a markdown table; running this file prints it."""
    rows = [
        "| family | trained at | text encoders | their rate | `ss_base_model_version` |",
        "|---|---|---|---|---|",
    ]
    for family in reversed(families()):
        resolution, text_rate, _ = family.defaults
        cells = [
            f"{family.title} (`{family.name}`)",
            f"{resolution} px",
            f"{len(family.text_parts)}",
            f"{text_rate:g}" if text_rate else "off",
            f"`{family.metadata_version}`",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def family_named(name: str) -> Family:
    """The family of this name ("sd1", "sd2", "sdxl"). KeyError if there is none."""
    return {family.name: family for family in families()}[name]


def identify(
    header: Mapping[str, TensorInfo], path: Path | str, metadata: Mapping[str, str] | None = None
) -> tuple[Family, ModelFacts]:
    """The family and what header and notes tell of a model; milliseconds. Raises PlainError saying what it is instead.

    `metadata` are the notes of a safetensors file. What SD2 predicts, its header may leave open: `lend_file` finds out.
    """
    from lora_trainer.families.prediction import noted
    from lora_trainer.families.recognise import refuse_other_kinds, why_not_whole

    refuse_other_kinds(header, path)
    for family in families():
        facts = family.recognise(header)
        if facts is not None:
            return family, noted(facts, metadata or {})
    raise PlainError(why_not_whole(header, path))


def lend_file(path: Path | str) -> LentModel:
    """A base model from a checkpoint file or a diffusers folder; its tensors are read when asked for.

    Only SD2 without a mark is read here, as its UNet must be asked what it predicts. Raises PlainError for anything
    but a supported whole model.
    """
    from lora_trainer.families.diffusers_folder import open_folder
    from lora_trainer.families.language.recognise import is_language_folder
    from lora_trainer.families.prediction import resolve
    from lora_trainer.weights.read import open_checkpoint

    path = Path(path)
    if is_language_folder(path):
        raise PlainError(
            f"{path} is a language model; set task_type: text-generation to train it, or name an image model."
        )
    stored = open_folder(path) if path.is_dir() else open_checkpoint(path)
    family, facts = identify(stored.header, path, stored.metadata)
    name = path.name if path.is_dir() else path.stem
    return resolve(LentModel(stored, stored.header, facts, name, path, owned=True), family)


if __name__ == "__main__":
    print(families_table())
