"""The model that the WebUI has loaded, as named tensors: its own Parameters under the names of a checkpoint file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from lora_trainer.contracts import LentModel, ModelAway, ModelFacts, PlainError, PredictionType, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor, nn

_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3"}
_PREDICTS: Mapping[str, PredictionType] = {"v": "v_prediction", "eps": "epsilon"}
_MARKS = ("v_pred", "ztsnr")  # empty tensors by which SDXL files say what they predict; the WebUI does not load them


def loaded() -> Any:
    """The WebUI's model, or None; never loads one."""
    from modules import sd_models

    return sd_models.model_data.sd_model


def load() -> Any:
    """The WebUI's model, loaded now if it is not. To be called with the queue lock. Raises PlainError."""
    from modules import sd_models, shared

    model = shared.sd_model  # loads on first access; the WebUI prints what went wrong
    if model is None and sd_models.checkpoints_list:
        sd_models.reload_model_weights()
        model = loaded()
    if model is None:
        raise PlainError(
            "The WebUI has no checkpoint loaded, or could not load it; choose one in the list of checkpoints at the "
            "top of the page (they belong into models/Stable-diffusion)."
        )
    return model


def identity(model: Any) -> tuple[str, str]:
    """What tells one checkpoint from another: its file and its hash. The WebUI makes new objects for the same file."""
    info = model.sd_checkpoint_info
    return str(Path(info.filename).resolve()), str(info.sha256 or "")


def see_through(module: Any) -> Any:
    """What the WebUI's hijack has wrapped (text encoders, token embeddings), or the module itself."""
    while hasattr(module, "wrapped"):
        module = module.wrapped
    return module


def roots(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(prefix in a checkpoint file, module) of UNet, VAE and text encoders."""
    yield "model.diffusion_model.", model.model.diffusion_model
    if model.first_stage_model is not None:
        yield "first_stage_model.", model.first_stage_model
    if getattr(model, "is_sdxl", False):
        for number, embedder in enumerate(model.conditioner.embedders):
            yield from _text(f"conditioner.embedders.{number}.", see_through(embedder))
    elif getattr(model, "cond_stage_model", None) is not None:
        yield from _text("cond_stage_model.", see_through(model.cond_stage_model))


def _text(prefix: str, embedder: Any) -> Iterator[tuple[str, nn.Module]]:
    for tower in ("transformer", "model"):  # transformers' CLIP, open_clip's
        if getattr(embedder, tower, None) is not None:
            yield f"{prefix}{tower}.", getattr(embedder, tower)


class LentTensors(Mapping[str, "Tensor"]):
    """The tensors of the checkpoint that was loaded when this was made, looked up anew at each access.

    Nothing is kept but names, and where they were found last: the WebUI may move its model, or load it again. Raises
    ModelAway where it has another checkpoint loaded by now, KeyError for names that the model never had.
    """

    def __init__(self, model: Any) -> None:
        self._identity = identity(model)
        self._title = str(model.sd_checkpoint_info.title)
        self._places: dict[str, tuple[str, str]] = {}  # name to (prefix of its root, path below it)
        for prefix, root in roots(model):
            for path, _ in root.named_parameters():
                self._places[_plain(prefix + path)] = prefix, path
        self._owners: dict[str, ref[nn.Module]] = {}  # of the model that was looked at last
        self._looked_at: tuple[int, int] | None = None

    def model(self) -> Any:
        """The WebUI's model, sure to be of the checkpoint that was lent and where it can be used."""
        from modules import devices

        model = loaded()
        if model is None:
            raise ModelAway(f"the WebUI has no checkpoint loaded; choose {self._title} again to go on.")
        if identity(model) != self._identity:
            other = model.sd_checkpoint_info.title
            raise ModelAway(f"the WebUI has {other} loaded by now; choose {self._title} again to go on.")
        if devices.fp8:
            raise ModelAway('the WebUI stores the model in fp8 by now; set "FP8 weight" to "Disable" to go on.')
        if not model.lowvram and device_of(model).type != devices.device.type:
            raise ModelAway(
                f"the WebUI has unloaded {self._title} to {device_of(model)}; load it again in the settings "
                '("Load SD checkpoint to VRAM from RAM") to go on.'
            )
        return model

    def __getitem__(self, name: str) -> Tensor:
        prefix, path = self._places[name]
        model = loaded()
        if model is None or self._looked_at != (id(model), id(model.sd_checkpoint_info)):
            model = self.model()
            self._owners.clear()
            self._looked_at = id(model), id(model.sd_checkpoint_info)
        found = self._owners.get(name)
        owner = found() if found is not None else None
        if owner is None:
            owner = _owner(dict(roots(model))[prefix], path)
            self._owners[name] = ref(owner)
        return getattr(owner, path.rpartition(".")[2])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _plain(path: str) -> str:
    """A parameter's path without the WebUI's wrappers."""
    return ".".join(part for part in path.split(".") if part != "wrapped")


def _owner(root: Any, path: str) -> Any:
    """The module that holds the parameter `path`, whether or not the WebUI wraps what lies between just now."""
    module = root
    for part in _plain(path).split(".")[:-1]:
        module = see_through(getattr(module, part))
    return module


def device_of(model: Any) -> Any:
    """Where the UNet is."""
    return next(model.model.diffusion_model.parameters()).device


def lend() -> LentModel:
    """The loaded model, without a copy of anything. To be called with the queue lock. Raises PlainError."""
    from lora_trainer.families.registry import identify

    model = load()
    _refuse(model)
    _bring_home(model)
    path = Path(model.sd_checkpoint_info.filename)
    tensors = LentTensors(model)
    header = {name: _info(tensor) for name, tensor in _all(model)}
    marks, notes = _said_by(path)
    _, facts = identify({**header, **marks}, path, notes)
    return LentModel(tensors, header, _host_knows(facts, model), path.stem, path, owned=False)


def _all(model: Any) -> Iterator[tuple[str, Tensor]]:
    for prefix, root in roots(model):
        for path, tensor in root.named_parameters():
            yield _plain(prefix + path), tensor


def _refuse(model: Any) -> None:
    from modules import devices, sd_unet, shared

    title = model.sd_checkpoint_info.title
    if devices.fp8:
        raise PlainError(
            f"The WebUI stores {title} in fp8, which has lost what a training needs; set "
            'Settings > Optimizations > "FP8 weight" to "Disable".'
        )
    if shared.cmd_opts.lowvram:
        raise PlainError(
            "The WebUI was started with --lowvram, which keeps only a piece of the model on the device, and a training "
            "needs the whole UNet there; start it with --medvram instead."
        )
    if sd_unet.current_unet is not None:
        raise PlainError(
            f"The WebUI draws with another UNet than {title}'s ({sd_unet.current_unet.option.label}); set "
            'Settings > Stable Diffusion > "SD Unet" to "None".'
        )


def _bring_home(model: Any) -> None:
    """To the device, after "Unload SD checkpoint to RAM"."""
    from modules import devices, sd_models

    if not model.lowvram and device_of(model).type != devices.device.type:
        sd_models.send_model_to_device(model)


def _info(tensor: Tensor) -> TensorInfo:
    name = str(tensor.dtype).removeprefix("torch.")
    return TensorInfo(_DTYPES.get(name, name), tuple(tensor.shape))


def _said_by(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Marks and notes of the file, which the model in memory does not have; a .ckpt has none that are cheap to read."""
    from lora_trainer.weights.read import read_header, read_metadata

    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return {}, {}
    header = read_header(path)
    return {mark: header[mark] for mark in _MARKS if mark in header}, read_metadata(path)


def _host_knows(facts: ModelFacts, model: Any) -> ModelFacts:
    """Facts with what the WebUI knows beyond header and notes: from the .yaml beside the file, or by its own test."""
    from modules import shared

    said = _PREDICTS.get(getattr(model, "parameterization", ""))
    if said == "v_prediction" and facts.prediction != said:
        facts = replace(facts, prediction=said, reason="the WebUI runs it as v-prediction")
    elif said == "epsilon" and facts.prediction == said and facts.family == "sd2":
        facts = replace(facts, reason="the WebUI runs it as epsilon prediction")
    rescaled = shared.opts.sd_noise_schedule == "Zero Terminal SNR"
    if rescaled and facts.prediction == "v_prediction" and not facts.zero_terminal_snr:
        reason = f'{facts.reason}; zero terminal SNR by the WebUI\'s setting "Noise schedule"'
        facts = replace(facts, zero_terminal_snr=True, reason=reason)
    return facts


def same_base(base: str) -> bool:
    """Whether `base` (a title, name, hash or path) means the checkpoint that the WebUI has loaded or would load."""
    from modules import sd_models

    model = loaded()
    if model is None and not sd_models.checkpoints_list:
        return False
    info = model.sd_checkpoint_info if model is not None else sd_models.select_checkpoint()
    names = {*info.ids, info.name, info.title, info.short_title, info.name_for_extra, info.filename}
    return base in names or Path(base).expanduser().resolve() == Path(info.filename).resolve()


def other_base(base: str) -> PlainError:
    """Why `base` is not trained upon."""
    from modules import sd_models

    model = loaded()
    there = f"has {model.sd_checkpoint_info.title} loaded" if model is not None else "has no checkpoint loaded"
    known = sd_models.checkpoint_aliases.get(base) or sd_models.get_closet_checkpoint_match(base)
    do = f"choose {known.title} in the list of checkpoints first" if known else "it is in no list of checkpoints"
    return PlainError(
        f"The training is to be for {base}, but the WebUI {there}, and trains only upon that, so that no second model "
        f"fills the memory; {do}, or leave base_model out."
    )
