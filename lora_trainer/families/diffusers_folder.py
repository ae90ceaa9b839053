"""A diffusers folder shown under the names of an LDM checkpoint, so that everything else knows one layout only.

Tensors are read when asked for; most are the file's own, a few are put together or seen from another side.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lora_trainer.contracts import PlainError, TensorInfo
from lora_trainer.families.ldm_names import UNET_PREFIX, VAE_PREFIX, UnetNames, VaeNames, is_vae_attention
from lora_trainer.families.prediction import SCHEDULER_NOTE
from lora_trainer.families.text import OPEN_CLIP_LAYER, OPEN_CLIP_TOP
from lora_trainer.weights.read import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_PIPELINES = {
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline",
}  # fmt: skip
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # diffusers' files, transformers', its older ones
# diffusers before 0.17 named the VAE's attention otherwise, and so do many folders.
_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class _Source(NamedTuple):
    """How one LDM tensor is had from the folder."""

    info: TensorInfo
    read: Callable[[], Tensor]


class FolderTensors(Mapping[str, "Tensor"]):
    """The tensors of a diffusers folder under LDM names; `header` and `metadata` as of a single file."""

    def __init__(self, sources: Mapping[str, _Source], metadata: dict[str, str]) -> None:
        self.header = {key: source.info for key, source in sources.items()}
        self.metadata = metadata
        self._sources = sources

    def __getitem__(self, key: str) -> Tensor:
        return self._sources[key].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self.header)

    def __len__(self) -> int:
        return len(self.header)


def open_folder(folder: Path) -> FolderTensors:
    """Present a folder with model_index.json. Raises PlainError where it is none, or of another pipeline."""
    pipeline = _json(folder / "model_index.json").get("_class_name", "an unnamed pipeline")
    if pipeline not in _PIPELINES:
        raise PlainError(
            f"{folder} is a diffusers folder for {pipeline}, which is not supported; choose a Stable Diffusion 1, 2 "
            "or XL model for text to image."
        )
    unet = _component(folder / "unet")
    sources = _unet(unet) | _vae(_component(folder / "vae"))
    if (folder / "text_encoder_2").is_dir():
        sources |= _clip(_component(folder / "text_encoder"), "conditioner.embedders.0.transformer.")
        sources |= _open_clip(_component(folder / "text_encoder_2"), "conditioner.embedders.1.model.")
    elif len(next(s.info.shape for n, s in unet.items() if n.endswith(".proj_in.weight"))) == 2:
        # SD2, which made the projections linear. Its folders lack the last layer, which is never run; LDM files have
        # it, and it is counted there, so the one before stands in.
        sources |= _open_clip(_component(folder / "text_encoder"), "cond_stage_model.model.", repeat_last=True)
    else:
        sources |= _clip(_component(folder / "text_encoder"), "cond_stage_model.transformer.")
    return FolderTensors(sources, _schedule_notes(folder, sources))


def _schedule_notes(folder: Path, sources: dict[str, _Source]) -> dict[str, str]:
    """What the folder's scheduler says of the training, in the way single files say it: in notes, and by a mark."""
    path = folder / "scheduler" / "scheduler_config.json"
    scheduler = _json(path) if path.is_file() else {}
    if scheduler.get("rescale_betas_zero_snr"):
        import torch

        for mark in ("v_pred", "ztsnr"):
            sources[mark] = _Source(TensorInfo("F32", (0,)), lambda: torch.zeros(0))
    said = scheduler.get("prediction_type")
    return {SCHEDULER_NOTE: str(said)} if said else {}


def _json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PlainError(
            f"{path.parent} is a folder without {path.name}, so it is no diffusers model; name a checkpoint file."
        ) from None
    except (OSError, ValueError) as error:
        raise PlainError(f"{path} cannot be read ({error}); download or copy it again.") from error
    if not isinstance(content, dict):
        raise PlainError(f"{path} is not what diffusers writes there; download or copy it again.")
    return content


# --- files -----------------------------------------------------------------------------------------------------------


def _component(folder: Path) -> dict[str, _Source]:
    """All tensors of one part, by diffusers' or transformers' names."""
    sources: dict[str, _Source] = {}
    for path in _weight_files(folder):
        checkpoint = open_checkpoint(path)
        for name, info in checkpoint.header.items():
            sources[name] = _Source(info, _reader(checkpoint, name))
    return sources


def _reader(checkpoint: Checkpoint, name: str) -> Callable[[], Tensor]:
    return lambda: checkpoint[name]


def _weight_files(folder: Path) -> list[Path]:
    """The part's files: safetensors before pickles, the full-precision ones before variants such as fp16."""
    for ending, stem, variant in product(("safetensors", "bin"), _STEMS, ("", ".fp16")):
        whole = folder / f"{stem}{variant}.{ending}"
        if whole.is_file():
            return [whole]
        pieces = sorted(folder.glob(f"{stem}{variant}-?????-of-?????.{ending}"))
        if pieces:
            return pieces
    raise PlainError(f"{folder} holds no weights (.safetensors or .bin); download the diffusers folder as a whole.")


# --- names -----------------------------------------------------------------------------------------------------------


def _unet(sources: Mapping[str, _Source]) -> dict[str, _Source]:
    names = UnetNames.of_diffusers(sources)
    return {UNET_PREFIX + _known(names.to_ldm, name): source for name, source in sources.items()}


def _vae(sources: Mapping[str, _Source]) -> dict[str, _Source]:
    sources = {_new_vae_name(name): source for name, source in sources.items()}
    names = VaeNames.of_diffusers(sources)
    return {
        VAE_PREFIX + _known(names.to_ldm, name): _as_convolution(source) if is_vae_attention(name) else source
        for name, source in sources.items()
    }


def _as_convolution(source: _Source) -> _Source:
    if len(source.info.shape) == 4:
        return source
    return _Source(TensorInfo(source.info.dtype, (*source.info.shape, 1, 1)), lambda: source.read()[:, :, None, None])


def _new_vae_name(name: str) -> str:
    match = re.match(r"(.+\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)$", name)
    return f"{match[1]}.{_OLD_VAE_ATTENTION[match[2]]}.{match[3]}" if match else name


def _known(to_ldm: Callable[[str], str], name: str) -> str:
    try:
        return to_ldm(name)
    except KeyError:
        raise PlainError(f"The folder holds the unknown weight {name}; choose a Stable Diffusion model.") from None


def _clip(sources: Mapping[str, _Source], prefix: str) -> dict[str, _Source]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": source for name, source in sources.items()}


def _open_clip(sources: Mapping[str, _Source], prefix: str, *, repeat_last: bool = False) -> dict[str, _Source]:
    """transformers' tower as open_clip keeps it: q, k and v as one tensor, the projection turned."""
    ours = {name.removeprefix("text_model."): source for name, source in sources.items()}
    found = {prefix + key: ours[name] for name, key in OPEN_CLIP_TOP.items() if name in ours}
    if "text_projection.weight" in ours:
        turned = ours["text_projection.weight"]
        info = TensorInfo(turned.info.dtype, turned.info.shape[::-1])
        found[prefix + "text_projection"] = _Source(info, lambda: turned.read().T)
    layers = max((int(m[1]) + 1 for n in ours if (m := re.match(r"encoder\.layers\.(\d+)\.", n))), default=0)
    for layer in range(layers + repeat_last):
        old, new = f"encoder.layers.{min(layer, layers - 1)}.", f"{prefix}transformer.resblocks.{layer}."
        for leaf in ("weight", "bias"):
            for name, key in OPEN_CLIP_LAYER.items():
                if f"{old}{name}.{leaf}" in ours:
                    found[f"{new}{key}.{leaf}"] = ours[f"{old}{name}.{leaf}"]
            rows = [ours[name] for letter in "qkv" if (name := f"{old}self_attn.{letter}_proj.{leaf}") in ours]
            if len(rows) == 3:
                found[f"{new}attn.in_proj_{leaf}"] = _stacked(rows)
    return found


def _stacked(rows: list[_Source]) -> _Source:
    first, *rest = rows[0].info.shape

    def read() -> Tensor:
        import torch

        return torch.cat([row.read() for row in rows])

    return _Source(TensorInfo(rows[0].info.dtype, (first * len(rows), *rest)), read)
