"""The layers alone, on a part of a few modules: precision, dropout, targets, and giving back after a failure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import PlainError
from lora_trainer.networks.lora import LoraNetwork, inject
from lora_trainer.networks.targets import choose, layer_kind
from tests.builders.networks import randomise


class Linear(nn.Module):
    """A host's own: no subclass of torch's, as Forge has it (backend/operations.py:126)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_features = self.out_features = width
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Attention(nn.Module):
    def __init__(self, make: Callable[[int], nn.Module] = lambda width: nn.Linear(width, width)) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(8, 8), make(8), nn.Linear(8, 8)
        self.to_out = nn.ModuleList([nn.Linear(8, 8), nn.Dropout(0.0)])


class Part(nn.Module):
    """Names as in a UNet's transformer; the forward goes through one linear layer and one convolution."""

    def __init__(self, make: Callable[[int], nn.Module] = lambda width: nn.Linear(width, width)) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.attn1 = Attention(make)
            self.resnets = nn.ModuleList([nn.Module()])
            self.resnets[0].conv1 = nn.Conv2d(8, 8, 3, padding=1)
            self.conv_in = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn1.to_q(x)  # (B, H, W, 8)
        return self.resnets[0].conv1(x.movedim(-1, 1))


def network_on(part: nn.Module, dropout: float = 0.0) -> LoraNetwork:
    network = inject({"unet": part}, NetworkConfig(targets="all", rank=3, alpha=2.0, dropout=dropout),
                     train_parts=("unet",), seed=0)  # fmt: skip
    randomise(network)
    return network


def pictures(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_half_precision_base_keeps_float32_weights_on_top(dtype: torch.dtype, autocast: bool) -> None:
    """Against the same in float32; the tolerance is that of the format (8 or 11 bits) over two layers."""
    whole = Part()
    network_on(whole)
    expected = whole(pictures()).detach()
    part = Part().to(dtype)
    network = network_on(part)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        result = part(pictures(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.float(), expected, rtol=0, atol=float(expected.abs().max()) * 0.02)
    result.float().square().mean().backward()
    for parameter in network.groups()[0].parameters:
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    grad = part.get_submodule("attn1.to_q").lora_A["lt_train"].weight.grad
    assert grad is not None
    assert grad.any()


def test_autocast_of_float32_layers_computes_in_its_own_precision() -> None:
    part = Part()
    network_on(part)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = part(pictures())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), part(pictures()), rtol=0, atol=0.05)


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_follows_the_seed_rests_at_a_weight_and_is_an_average() -> None:
    part = Part()
    network = network_on(part, dropout=0.5)

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return part(pictures())

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        assert torch.equal(drawn(1), drawn(1))
        assert not torch.equal(drawn(1), drawn(2))
        with network.scaled(1.0):
            still = drawn(1)
            assert torch.equal(still, drawn(2))
        # Inverted dropout has the right mean where the layers are linear in their input, as these are.
        mean = torch.stack([drawn(seed) for seed in range(200)]).mean(0)
    torch.testing.assert_close(mean, still, rtol=0, atol=0.2 * float(still.abs().max()))
    bare = Part()
    network_on(bare)
    torch.testing.assert_close(still, bare(pictures()))


def test_without_dropout_nothing_is_drawn() -> None:
    part = Part()
    network_on(part)
    before = torch.get_rng_state()
    part(pictures()).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_each_level_holds_the_one_before() -> None:
    part = Part()
    attention = choose(part, "attention")
    assert attention.paths == ("attn1.to_k", "attn1.to_out.0", "attn1.to_q", "attn1.to_v")
    everything = choose(part, "all")
    assert set(everything.paths) == {*attention.paths, "resnets.0.conv1"}
    assert "down- and upsampling" in everything.unmatched
    assert attention.unmatched == ()


def test_a_part_without_such_layers_is_told() -> None:
    with pytest.raises(PlainError, match="match no layer of Sequential"):
        choose(nn.Sequential(nn.Linear(4, 4)), "attention")
    with pytest.raises(PlainError, match="'everything' are unknown; there are attention, linear, all"):
        choose(Part(), "everything")


def test_a_hosts_own_linear_is_known_by_what_it_holds() -> None:
    assert [layer_kind(m) for m in (Linear(4), nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.LayerNorm(4))] == [
        "linear", "linear", "conv", None,
    ]  # fmt: skip


# --- failure ---------------------------------------------------------------------------------------------------------


def test_a_failure_half_way_gives_everything_back() -> None:
    """peft knows no such Linear and stops at to_k, when others are wrapped already."""
    whole, part = Part(), Part(Linear)
    modules = [(name, id(module)) for name, module in part.named_modules()]
    with pytest.raises(ValueError, match="not supported"):
        inject({"text": whole, "unet": part}, NetworkConfig(rank=2), train_parts=("text", "unet"), seed=0)
    assert [(name, id(module)) for name, module in part.named_modules()] == modules
    for one in (whole, part):
        assert all(parameter.requires_grad for parameter in one.parameters())
        assert not hasattr(one, "peft_config")
        assert not any("lora" in name for name, _ in one.named_modules())
