"""The layers alone, on a part of a few modules: precision, dropout, targets, and giving back after a failure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora_trainer.config.options import NetworkConfig
from lora_trainer.contracts import PlainError
from lora_trainer.networks.adapter import Adapter
from lora_trainer.networks.changes import changes_of
from lora_trainer.networks.network import AdaptedNetwork, inject
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


def network_on(part: nn.Module, dropout: float = 0.0) -> AdaptedNetwork:
    network = inject({"unet": part}, NetworkConfig(targets="all", rank=3, alpha=2.0, dropout=dropout),
                     train_parts=("unet",), seed=0)  # fmt: skip
    randomise(network)
    return network


def pictures(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 5, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


# --- precision -------------------------------------------------------------------------------------------------------


def computes_halves() -> bool:
    try:
        torch.nn.functional.linear(torch.ones(1, 1, dtype=torch.float16), torch.ones(1, 1, dtype=torch.float16))
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_half_precision_base_keeps_float32_weights_on_top(dtype: torch.dtype, autocast: bool) -> None:
    """Against the same in float32; the tolerance is that of the format (8 or 11 bits) over two layers."""
    if dtype == torch.float16 and not computes_halves():
        pytest.skip("this torch computes no float16 on the CPU")
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
    grad = part.get_submodule("attn1.to_q").lora_up.grad
    assert grad is not None
    assert grad.any()


def test_a_convolution_that_leaves_pixels_out_keeps_its_size() -> None:
    part = Part()
    part.resnets[0].conv1 = torch.nn.Conv2d(8, 8, 1, stride=2).to(memory_format=torch.channels_last)
    network_on(part)
    x = pictures().movedim(-1, 1).contiguous(memory_format=torch.channels_last)
    layer = part.resnets[0].conv1
    plain = layer.base_layer(x)
    down = torch.nn.functional.conv2d(x, layer.lora_down, stride=2)
    expected = plain + torch.nn.functional.conv2d(down, layer.lora_up) * layer.scale
    torch.testing.assert_close(layer(x), expected)


def test_autocast_of_float32_layers_computes_in_its_own_precision() -> None:
    part = Part()
    network_on(part)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = part(pictures())
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), part(pictures()), rtol=0, atol=0.05)


# --- dropout ---------------------------------------------------------------------------------------------------------

EACH_DROPOUT = pytest.mark.parametrize("which", ["dropout", "rank_dropout", "module_dropout"])
EACH_KIND = pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])


def dropping(part: nn.Module, kind: str, which: str) -> AdaptedNetwork:
    config = NetworkConfig(kind=kind, targets="all", rank=4, **{which: 0.5})  # type: ignore[arg-type]
    network = inject({"unet": part}, config, train_parts=("unet",), seed=0)
    randomise(network)
    return network


@EACH_KIND
@EACH_DROPOUT
def test_each_sample_is_dropped_from_by_its_own_seed_alone(kind: str, which: str) -> None:
    """Neighbours in the batch, the process's random state and another pass change nothing, as resuming, accumulating
    and checkpointing need; at a weight nothing is dropped."""
    part = Part()
    network = dropping(part, kind, which)
    x = pictures().repeat(4, 1, 1, 1)  # eight samples: all of them keeping everything would be chance 1 in 256
    with torch.no_grad():
        still = part(x)
        before = torch.get_rng_state()
        network.drop_by(range(8))
        together = part(x)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(part(x), together)
        assert not torch.equal(together, still)
        for sample in (0, 5):
            network.drop_by([sample])
            torch.testing.assert_close(part(x[sample : sample + 1])[0], together[sample], rtol=1e-5, atol=1e-6)
        network.drop_by(range(8, 16))
        assert not torch.equal(part(x), together)
        with network.scaled(1.0):
            torch.testing.assert_close(part(x), still)


@EACH_KIND
@EACH_DROPOUT
def test_dropouts_have_the_right_mean(kind: str, which: str) -> None:
    """On one linear layer, in which they are linear. A module that is left out is left out: the mean is half of it."""
    layer = nn.Sequential(nn.Linear(8, 8))
    config = NetworkConfig(kind=kind, layers=("unet",), rank=4, **{which: 0.5})  # type: ignore[arg-type]
    bare = layer(torch.ones(1, 8)).detach()
    network = inject({"unet": layer}, config, train_parts=("unet",), seed=0)
    randomise(network)
    with torch.no_grad():
        still = layer(torch.ones(1, 8))
        network.drop_by(range(4000))
        mean = layer(torch.ones(4000, 8)).mean(0, keepdim=True)
    share = 0.5 if which == "module_dropout" else 1.0
    # One standard error is at most the change itself / sqrt(4000) = 1.6 %.
    torch.testing.assert_close(mean, bare + share * (still - bare), rtol=0, atol=0.1 * float((still - bare).norm()))


def test_a_module_left_out_is_the_base_and_one_kept_is_whole() -> None:
    layer = nn.Sequential(nn.Linear(8, 8))
    bare = layer(torch.ones(1, 8)).detach()
    network = inject({"unet": layer}, NetworkConfig(kind="dora", layers=("unet",), rank=4, module_dropout=0.5),
                     train_parts=("unet",), seed=0)  # fmt: skip
    randomise(network)
    with torch.no_grad():
        whole = layer(torch.ones(1, 8))
        network.drop_by(range(40))
        for row in layer(torch.ones(40, 8)):
            assert torch.allclose(row, bare[0], atol=1e-6) != torch.allclose(row, whole[0], atol=1e-6)


def test_a_text_encoders_chunks_share_their_samples_seed() -> None:
    """Chunks stand below each other, those of one caption together: rows 0 and 1 are the first sample's."""
    layer = nn.Sequential(nn.Linear(8, 8))
    network = inject({"text": layer}, NetworkConfig(layers=("text",), rank=4, module_dropout=0.5),
                     train_parts=("text",), seed=0)  # fmt: skip
    randomise(network)
    with torch.no_grad():
        network.drop_by([3, 4])
        two = layer(torch.ones(4, 8))
        network.drop_by([4])
        torch.testing.assert_close(layer(torch.ones(2, 8)), two[2:])
        network.drop_by([3, 4, 5])
        with pytest.raises(ValueError, match="4 rows cannot be shared out among 3"):
            layer(torch.ones(4, 8))


def test_without_dropout_nothing_is_drawn() -> None:
    part = Part()
    network = network_on(part)
    network.drop_by([1, 2])
    before, still = torch.get_rng_state(), part(pictures())
    still.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    network.drop_by([3, 4])
    assert torch.equal(part(pictures()), still)


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


# --- layers and ranks by name ----------------------------------------------------------------------------------------


def named(part: nn.Module, **config: Any) -> dict[str, tuple[int, float]]:
    """Rank and alpha of each layer that a configuration adapts."""
    network = inject({"unet": part}, NetworkConfig(**config), train_parts=("unet",), seed=0)
    found = {name: (change.rank, change.alpha) for name, change in changes_of(network.state()).items()}
    network.eject()
    return found


def test_layers_by_pattern_take_the_place_of_targets() -> None:
    assert set(named(Part(), layers=(r"to_[qk]$", "conv_in"))) == {"unet.attn1.to_q", "unet.attn1.to_k", "unet.conv_in"}
    with pytest.raises(PlainError, match=r"'to_x', which is found in none of the 6 layers of unet, such as unet\."):
        named(Part(), layers=("to_q", "to_x"))


def test_locon_adds_the_convolutions_to_any_targets() -> None:
    attention = set(named(Part(), targets="attention"))
    assert set(named(Part(), kind="locon", targets="attention")) == {*attention, "unet.resnets.0.conv1"}


def test_ranks_by_pattern_the_first_counts_and_zero_leaves_out() -> None:
    found = named(
        Part(), targets="all", rank=8, alpha=4.0, ranks=("to_q = 2/1.5", "to_k = 0", r"resnets = 4", "to_ = 6")
    )
    assert found == {
        "unet.attn1.to_q": (2, 1.5), "unet.attn1.to_v": (6, 3.0), "unet.attn1.to_out.0": (6, 3.0),
        "unet.resnets.0.conv1": (4, 2.0),  # half of the rank, as of the whole network's
    }  # fmt: skip
    with pytest.raises(PlainError, match=r"'mid_block', which is found in none of the 4 layers"):
        named(Part(), ranks=("mid_block = 3",))
    with pytest.raises(PlainError, match="nothing is left to train"):
        named(Part(), ranks=(". = 0",))


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    """alpha / sqrt(16) = alpha 4 / 16: Kalajdzievski 2023, arXiv 2312.03732, definition 1."""
    assert set(named(Part(), rank=16, alpha=3.0, rslora=True).values()) == {(16, 12.0)}


# --- failure ---------------------------------------------------------------------------------------------------------


class Unknown(nn.Linear):
    """A layer whose weight is not to be had, so that an adapter for it cannot be made."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width)
        del self.weight


def test_a_hosts_own_linear_is_adapted_like_torchs() -> None:
    part = Part(Linear)
    network = network_on(part)
    part.attn1.to_k(torch.ones(1, 8)).sum().backward()
    assert part.get_submodule("attn1.to_k").lora_up.grad.any()
    assert not torch.equal(part.attn1.to_k(torch.ones(1, 8)), torch.ones(1, 8))
    network.eject()
    assert torch.equal(part.attn1.to_k(torch.ones(1, 8)), torch.ones(1, 8))


def test_a_failure_half_way_gives_everything_back() -> None:
    whole, part = Part(), Part(Unknown)
    modules = [(name, id(module)) for name, module in part.named_modules()]
    with pytest.raises(AttributeError, match="weight"):
        inject({"text": whole, "unet": part}, NetworkConfig(rank=2), train_parts=("text", "unet"), seed=0)
    assert [(name, id(module)) for name, module in part.named_modules()] == modules
    for one in (whole, part):
        assert all(parameter.requires_grad for parameter in one.parameters())
        assert not any(isinstance(module, Adapter) for module in one.modules())
