"""The state of a run on disk: written whole or not at all, read back bit for bit."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any

from lora_trainer.contracts import PlainError
from lora_trainer.jobs.files import STATE_ENDING, RunFiles
from lora_trainer.train.state import TrainingState
from lora_trainer.weights.read import open_checkpoint
from lora_trainer.weights.write import write_safetensors

_NETWORK, _MOMENTS = "network/", "optimizer/"


@dataclass(frozen=True)
class SavedRun:
    """A training state with the facts that must agree before it is gone on from."""

    state: TrainingState
    facts: dict[str, Any]  # JSON values: seed, configuration, data


def write_state(files: RunFiles, state: TrainingState, facts: dict[str, Any]) -> None:
    """Write `<name>-<step>.state`. Raises PlainError where the disk refuses; an older state is left whole."""
    tensors = {_NETWORK + name: tensor for name, tensor in state.network.items()}
    tensors |= {_MOMENTS + name: tensor for name, tensor in state.moments.items()}
    notes = {"step": state.step, "scale": state.scale, "course": state.course, "measures": state.measures}
    header = {"lora_trainer.state": json.dumps(notes | {"facts": facts})}
    write_safetensors(files.state(state.step), tensors, header)


def newest_state(files: RunFiles) -> tuple[SavedRun | None, list[str]]:
    """The newest state that is whole, and a sentence for each newer one that is not."""
    told: list[str] = []
    for step in reversed(files.steps_saved(STATE_ENDING)):
        path = files.state(step)
        try:
            return _read_state(files, step), told
        except (PlainError, KeyError, json.JSONDecodeError):
            told.append(f"{path.name} is not whole and was passed over.")
    return None, told


def _read_state(files: RunFiles, step: int) -> SavedRun:
    with open_checkpoint(files.state(step)) as stored:
        header = json.loads(stored.metadata["lora_trainer.state"])
        tensors = {name: stored[name] for name in stored}
    state = TrainingState(
        step=header["step"],
        network={n.removeprefix(_NETWORK): t for n, t in tensors.items() if n.startswith(_NETWORK)},
        moments={n.removeprefix(_MOMENTS): t for n, t in tensors.items() if n.startswith(_MOMENTS)},
        scale=header["scale"],
        course=header.get("course", {}),  # older states have none
        measures=tuple(header.get("measures", ())),
    )
    return SavedRun(state, header["facts"])


def prune(files: RunFiles, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and states; 0 keeps all."""
    if keep == 0:
        return
    for step in files.steps_saved(STATE_ENDING)[:-keep]:
        files.state(step).unlink(missing_ok=True)
    for path in files.checkpoints()[:-keep]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)  # what stays of it is overwritten or pruned the next time
        else:
            path.unlink(missing_ok=True)
