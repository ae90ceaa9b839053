"""Slim base models with networks on them; weights that are not the initial zeros, which would prove nothing."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, LentModel, Network
from lora_trainer.families.registry import family_named
from lora_trainer.networks.network import AdaptedNetwork, inject
from lora_trainer.weights.read import TensorInfo, dtype_name
from tests.builders.slim import Kind, slim_checkpoint

KINDS: tuple[Kind, ...] = get_args(Kind)
TARGETS = ("attention", "linear", "all")
SIDE = 8  # latent cells; three halvings leave one


def lent(kind: Kind, seed: int = 0) -> LentModel:
    """A slim checkpoint as a file would lend it."""
    tensors = slim_checkpoint(kind, seed)
    header = {name: TensorInfo(dtype_name(t.dtype), tuple(t.shape)) for name, t in tensors.items()}
    facts = family_named(kind).recognise(header)
    assert facts is not None
    return LentModel(tensors, header, facts, f"slim_{kind}", None, owned=True)


def base_model(kind: Kind, seed: int = 0, dtype: torch.dtype = torch.float32) -> BaseModel:
    """UNet and text encoders of a slim model, for inference as a host has them."""
    family = family_named(kind)
    base = family.adopt(lent(kind, seed), torch.device("cpu"), dtype, parts=("unet", *family.text_parts))
    for part in base.parts.values():
        part.eval()
    return base


def put_on(
    base: BaseModel, targets: str = "attention", rank: int = 4, alpha: float = 3.0, dropout: float = 0.0
) -> AdaptedNetwork:
    """A fresh network on the UNet and every text encoder."""
    config = NetworkConfig(targets=targets, rank=rank, alpha=alpha, dropout=dropout)  # type: ignore[arg-type]
    return inject(base.parts, config, train_parts=tuple(base.parts), seed=5)


def randomise(network: Network, seed: int = 11) -> None:
    """Give every weight a value of the size that trained ones have: the output changes by some percents."""
    generator = torch.Generator().manual_seed(seed)
    for group in network.groups():
        for parameter in group.parameters:
            fan_in = parameter[0].numel()
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5 * fan_in**-0.5)


def outputs(base: BaseModel, seed: int = 3) -> dict[str, Tensor]:
    """What the UNet and the text encoders answer to fixed inputs; needs no gradient."""
    with torch.no_grad():
        return {"unet": predict(base, seed), "text": base.encode_text(["a red fox, at dawn"], clip_skip=1).context}


def predict(base: BaseModel, seed: int = 3) -> Tensor:
    """The UNet's output for random latents and text states; differentiable."""
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 4, SIDE, SIDE, generator=generator)
    text = base.encode_text(["a red fox, at dawn", "a barn"], clip_skip=1)
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
    return base.predict(noisy, torch.tensor([17, 800]), text, sizes)


def weights_of(part: nn.Module) -> dict[str, Tensor]:
    """A copy of all values."""
    return {name: tensor.detach().clone() for name, tensor in part.state_dict().items()}
