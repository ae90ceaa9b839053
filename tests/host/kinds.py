"""A network of any form, acting through our layers and through the WebUI's own Lora extension; called by door.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_trainer.contracts import BaseModel, LentModel, TextStates
from lora_trainer.families.registry import family_named
from lora_trainer.hosts import beside
from lora_trainer.hosts.a1111 import A1111
from lora_trainer.jobs.start import put_on
from lora_trainer.networks.file import write_lora
from tests.builders.networks import put_on as fresh
from tests.builders.networks import randomise

PROMPT = "a red boat"
CELLS = 16  # side of the latents
SIZES = torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2)  # as SDXL is told them; two rows, for two timesteps
TIMES = torch.tensor([17, 800])

Answers = dict[str, Tensor]


def compared(form: str, name: str) -> dict[str, dict[str, float]]:
    """Write a random network of the form for the loaded model, and let both act with it.

    By what answered: "ours" is the size of our change, "theirs" the size of the WebUI's, "apart" the size of what lies
    between the two, "base" how far the two are apart without any network; all against the size of the base's answer.
    """
    beside.ready()
    host = A1111()
    path = (host.paths().loras or Path()) / f"{name}.safetensors"
    loan = host.lend()
    ours = _ours(host, loan, lambda base: _written(base, form, path))
    theirs = _theirs(host, loan, path)
    return judged(ours, theirs)


def of_file(lora: str) -> dict[str, dict[str, float]]:
    """The same of a file that is there."""
    beside.ready()
    host = A1111()
    loan = host.lend()
    family = family_named(loan.facts.family)
    return judged(_ours(host, loan, lambda base: put_on(base, family, Path(lora))), _theirs(host, loan, Path(lora)))


def _written(base: BaseModel, form: str, path: Path) -> Any:
    network = fresh(base, "few", form=form)
    randomise(network)
    notes = {"ss_output_name": path.stem}
    write_lora(path, network.state(), kohya_name=base.kohya_name, metadata=notes, precision="fp32")
    return network


def _ours(host: A1111, loan: LentModel, network_on: Any) -> tuple[Answers, Answers]:
    """What our modules over the host's tensors answer without the network and with it."""
    family = family_named(loan.facts.family)
    with host.visit(), host.exclusive(loan, ("unet", *family.text_parts)), torch.no_grad():
        base = family.adopt(loan, host.device(), torch.float32, ["unet", *family.text_parts])

        def answers() -> Answers:
            text = base.encode_text([PROMPT], clip_skip=family.defaults.clip_skip)
            found = {"text": text.context}
            if text.pooled is not None:
                found["pooled"] = text.pooled
            context, pooled = conditions(base.parts["unet"])
            states = TextStates(context.expand(2, -1, -1), None if pooled is None else pooled.expand(2, -1))
            return {**found, "unet": base.predict(noisy(), TIMES, states, SIZES)}

        bare = answers()
        network = network_on(base)
        try:
            return bare, answers()
        finally:
            network.eject()


def _theirs(host: A1111, loan: LentModel, path: Path) -> tuple[Answers, Answers]:
    """What the WebUI's model answers without the file and with it at weight 1, by its own extension."""
    from modules import call_queue, sd_models

    networks: Any = sys.modules["networks"]
    host.announce(path)
    found: list[Answers] = []
    with call_queue.queue_lock, torch.no_grad():
        model = sd_models.model_data.sd_model
        try:
            for names in ([], [path.stem]):
                networks.load_networks(names, [1.0] * len(names), [1.0] * len(names), [None] * len(names))
                assert len(networks.loaded_networks) == len(names)
                found.append(_answers_of(model))
        finally:
            networks.load_networks([])
            _answers_of(model)  # the weights are given back when a layer is used next
    return found[0], found[1]


def _answers_of(model: Any) -> Answers:
    from modules import prompt_parser

    prompts = prompt_parser.SdConditioning([PROMPT], width=128, height=128)
    text = model.get_learned_conditioning(prompts)
    unet = model.model.diffusion_model
    context, pooled = conditions(unet)
    more = {}
    found = {"text": text}
    if isinstance(text, dict):
        from sgm.modules.diffusionmodules.util import timestep_embedding

        found = {"text": text["crossattn"], "pooled": text["vector"][:, : text["vector"].shape[1] - 6 * 256]}
        sizes = timestep_embedding(SIZES.flatten(), 256).reshape(2, -1)
        more["y"] = torch.cat([pooled.expand(2, -1), sizes], dim=1)
    answer = unet(noisy(), timesteps=TIMES, context=context.expand(2, -1, -1), **more)
    return {name: tensor.detach().clone() for name, tensor in {**found, "unet": answer}.items()}


def noisy() -> Tensor:
    return torch.randn(2, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(3))


def conditions(unet: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Text states and, for SDXL, the pooled one, as wide as a UNet wants them: diffusers' or the checkpoint's own."""
    config = getattr(unet, "config", None)
    generator = torch.Generator().manual_seed(4)
    if config is not None and hasattr(config, "cross_attention_dim"):
        width, classes = config.cross_attention_dim, getattr(config, "projection_class_embeddings_input_dim", None)
    else:
        width = next(layer.to_k.in_features for name, layer in unet.named_modules() if name.endswith("attn2"))
        embedding = getattr(unet, "label_emb", None)
        classes = embedding[0][0].in_features if embedding is not None else None
    context = torch.randn(1, 77, width, generator=generator)
    return context, torch.randn(1, classes - 6 * 256, generator=generator) if classes else None


def judged(ours: tuple[Answers, Answers], theirs: tuple[Answers, Answers]) -> dict[str, dict[str, float]]:
    judged: dict[str, dict[str, float]] = {}
    for name, bare in ours[0].items():
        change, other = ours[1][name] - bare, theirs[1][name] - theirs[0][name]
        sizes = {"ours": change, "theirs": other, "apart": change - other, "base": theirs[0][name] - bare}
        judged[name] = {what: float(each.norm() / bare.norm()) for what, each in sizes.items()}
    return judged
