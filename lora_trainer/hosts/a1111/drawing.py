"""Pictures by the WebUI's own txt2img, from within a run: nothing is saved, and no setting or state stays changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_trainer.contracts import SampleOrder
from lora_trainer.hosts.a1111.loras import registered
from lora_trainer.hosts.a1111.model import loaded
from lora_trainer.hosts.a1111.pristine import lora_extension, make_pristine

if TYPE_CHECKING:
    from PIL.Image import Image

_STATE = (
    "job", "job_no", "job_count", "job_timestamp", "sampling_step", "sampling_steps", "textinfo", "time_start",
    "processing_has_refined_job_count",
)  # fmt: skip


def draw(order: SampleOrder, lora: Path | None) -> Sequence[Image] | None:
    """One picture for each prompt, as a user would get it; fewer where Interrupt is pressed meanwhile.

    To be called with the queue lock. None where the WebUI cannot draw it: no model, or no Lora extension.
    """
    model = loaded()
    if model is None or (lora is not None and lora_extension() is None):
        return None
    with ExitStack() as borrowed:
        borrowed.enter_context(_state())
        borrowed.enter_context(_settings(model, order))
        borrowed.callback(make_pristine, model)
        make_pristine(model)  # else a LoRA of the same name and weight is taken for the one that is merged already
        if lora is not None:
            borrowed.enter_context(registered(lora))
        if not _keeps(model):
            return None
        drawn = (_one(model, order, index, lora) for index in range(len(order.prompts)))
        return [image for image in drawn if image is not None]


def _one(model: Any, order: SampleOrder, index: int, lora: Path | None) -> Image | None:
    from modules import processing, scripts, sd_samplers, shared

    if shared.state.interrupted:
        return None
    process = processing.StableDiffusionProcessingTxt2Img(
        sd_model=model,
        prompt=with_lora(order.prompts[index], lora, order.weight),
        negative_prompt=order.negative,
        seed=order.seed + index,
        sampler_name=sd_samplers.visible_sampler_names()[0],  # what the page offers first
        scheduler="Automatic",
        steps=order.sampling_steps,
        cfg_scale=order.guidance,
        width=order.size,
        height=order.size,
        do_not_save_samples=True,
        do_not_save_grid=True,
    )
    process.scripts = scripts.ScriptRunner()  # none at all; with no runner the infotext would lack the <lora:...>
    process.cached_c, process.cached_uc = [None, None], [None, None]  # the WebUI's own know prompts, not weights
    with closing(process):
        drawn = processing.process_images(process)
        shared.total_tqdm.clear()
    if shared.state.interrupted or not drawn.images:
        return None
    image = drawn.images[0]
    image.info["parameters"] = drawn.infotexts[0]
    return image


def with_lora(prompt: str, lora: Path | None, weight: float = 1.0) -> str:
    """The prompt as a user would write it to have the LoRA."""
    if lora is None or f"<lora:{lora.stem}:" in prompt:
        return prompt
    return f"{prompt} <lora:{lora.stem}:{weight:g}>"


def _keeps(model: Any) -> bool:
    """Whether a generation would leave the model as it is, and not load another."""
    from modules import sd_models

    return sd_models.select_checkpoint().filename == model.sd_checkpoint_info.filename


@contextmanager
def _settings(model: Any, order: SampleOrder) -> Iterator[None]:
    """The settings of the drawing. Written where they stand: setting them properly would call their handlers, which
    wait for the lock that we hold."""
    from modules import shared

    wanted = {
        "CLIP_stop_at_last_layers": order.clip_skip,
        "sd_model_checkpoint": model.sd_checkpoint_info.title,  # somebody may have chosen another and be waiting
        "fp8_storage": "Disable",  # likewise
        "live_previews_enable": False,  # for some models they need a file from the network
    }
    data, flags = shared.opts.data, shared.cmd_opts
    before = {name: data[name] for name in wanted if name in data}
    history = flags.no_prompt_history
    try:
        data.update(wanted)
        flags.no_prompt_history = True  # the user's last prompt stays the last
        yield
    finally:
        flags.no_prompt_history = history
        for name in wanted:
            data.pop(name, None)
        data.update(before)


@contextmanager
def _state() -> Iterator[None]:
    """The progress bar is ours again afterwards; a pressed Interrupt stays."""
    from modules import shared

    state = shared.state
    before = {name: getattr(state, name) for name in _STATE}
    try:
        state.job_count = -1  # let the generation say how many
        yield
    finally:
        for name, value in before.items():
            setattr(state, name, value)
        state.current_latent = state.current_image = None
        state.skipped = state.stopping_generation = False
