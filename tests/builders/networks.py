"""Slim base models with networks on them; weights that are not the initial zeros, which would prove nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import BaseModel, LentModel, Network
from lora_trainer.families.registry import family_named
from lora_trainer.networks.network import AdaptedNetwork, inject
from lora_trainer.weights.read import TensorInfo, dtype_name
from tests.builders.slim import Kind, slim_checkpoint

if TYPE_CHECKING:
    import pytest

KINDS: tuple[Kind, ...] = get_args(Kind)
TARGETS = ("attention", "linear", "all")
# Linear layers and convolutions of every window and stride, and a text encoder's: enough of each, and quick.
FEW = ("unet.mid_block", r"unet.down_blocks.0.*(?:attn1|conv)", r"encoder.layers.[01]\.")
# Every form a network may take, by name, as the configuration of its section.
FORMS: Mapping[str, Mapping[str, Any]] = {
    "lora": {}, "locon": {"kind": "locon"}, "dora": {"kind": "dora"}, "loha": {"kind": "loha"},
    "lokr": {"kind": "lokr"}, "lokr whole": {"kind": "lokr", "rank": 64}, "oft": {"kind": "oft"},
    "pissa": {"init": "pissa"}, "olora": {"init": "olora"}, "rslora": {"rslora": True},
    "by layer": {"ranks": ("mid_block = 6/2", "to_k = 0")},
}  # fmt: skip
VARIANTS = ("locon", "lokr whole", "olora", "rslora", "by layer")  # of a kind that stands there by itself
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


def rarely(form: str) -> list[pytest.MarkDecorator]:
    """Marks of a test with this form: variants run with the newest libraries only."""
    import pytest  # not in a WebUI's environment, where networks are made for tests/host

    return [pytest.mark.slow] if form in VARIANTS else []


def put_on(
    base: BaseModel, targets: str = "attention", rank: int = 4, alpha: float = 3.0, form: str = "lora", **more: Any
) -> AdaptedNetwork:
    """A fresh network on the UNet and every text encoder."""
    if targets == "few":
        targets, more = "all", {"layers": FEW, **more}
    settings = {"targets": targets, "rank": rank, "alpha": alpha, **FORMS[form], **more}
    return inject(base.parts, NetworkConfig(**settings), train_parts=tuple(base.parts), seed=5)


def randomise(network: Network, seed: int = 11) -> None:
    """Give every weight a value of the size that trained ones have: the output changes by some percents."""
    generator = torch.Generator().manual_seed(seed)
    gain = {"loha": 3.0}.get(network.kind, 1.0)  # whose change is a product of four weights
    for group in network.groups():
        for parameter in group.parameters:
            drawn = torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                if parameter.shape[0] == 1 and bool((parameter > 0).all()):  # lengths, which stay about what they are
                    parameter.mul_(1 + 0.05 * drawn.clamp(-2, 2))
                else:
                    parameter.copy_(drawn * gain * 0.5 * parameter[0].numel() ** -0.5)


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
