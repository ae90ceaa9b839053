"""Another rank keeps the change of the weights, or the nearest to it, and says how near."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lora_trainer.networks.resize import resize
from lora_trainer.networks.state import ModuleWeights, as_state, modules_of

SHAPES = {"unet.a.to_q": (24, 16), "unet.b.conv1": (20, 12, 3, 3), "text_encoder.c.fc1": (9, 30)}


def trained(rank: int, alpha: float, seed: int = 2) -> dict[str, Tensor]:
    """A state with one linear layer, one convolution and one other linear layer."""
    generator = torch.Generator().manual_seed(seed)
    modules: dict[str, ModuleWeights] = {}
    for name, (out, *rest) in SHAPES.items():
        down = torch.randn((rank, *rest), generator=generator)
        up = torch.randn((out, rank, *[1] * (len(rest) - 1)), generator=generator) * 0.1
        modules[name] = ModuleWeights(down, up, alpha)
    return as_state(modules)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.mark.parametrize(("rank", "alpha", "to", "to_alpha", "exact"), [
    (4, 4.0, 16, 16.0, True),  # scale stays 1
    (4, 2.0, 16, 16.0, True),  # 1/2 to 1: a power of two
    (4, 3.0, 8, 4.0, True),  # 3/4 to 1/2: the factor 3/2 needs one more bit, which rounds
    (5, 2.0, 7, 3.5, False),
    (8, 4.0, 8, 8.0, True),  # the rank stays, alpha does not
])  # fmt: skip
def test_upwards_the_change_is_the_same_and_new_rows_can_learn(
    rank: int, alpha: float, to: int, to_alpha: float, exact: bool
) -> None:
    state = trained(rank, alpha)
    resized = resize(state, to, to_alpha, generator())
    before, after = modules_of(state), modules_of(resized.state)
    for name, weights in after.items():
        assert weights.rank == to
        assert weights.alpha == to_alpha
        torch.testing.assert_close(weights.delta(), before[name].delta(), rtol=0, atol=2e-6)
        assert torch.equal(weights.down[:rank], before[name].down)
        ratio = before[name].scale / weights.scale
        if exact and ratio in (0.5, 1.0, 2.0):
            assert torch.equal(weights.up[:, :rank] * weights.scale, before[name].up * before[name].scale)
        assert not weights.up[:, rank:].any()
        assert all(row.any() for row in weights.down[rank:]), "a zero row beside a zero column never learns"
    assert resized.errors == {}
    assert resized.error == 0


def test_downwards_the_error_is_the_tail_of_the_svd_of_the_full_change() -> None:
    """Eckart and Young 1936, with the singular values of the (out, in) matrix itself, which `resize` never makes."""
    state = trained(10, 5.0)
    resized = resize(state, 3, 1.5, generator())
    lost = whole = 0.0
    for name, weights in modules_of(state).items():
        values = torch.linalg.svdvals(weights.delta().double().flatten(1))
        tail, total = float(values[3:].square().sum()), float(values.square().sum())
        assert resized.errors[name] == pytest.approx((tail / total) ** 0.5, rel=1e-5)
        smaller = modules_of(resized.state)[name]
        distance = (smaller.delta() - weights.delta()).double().norm()
        assert float(distance) == pytest.approx(tail**0.5, rel=1e-4), "what is written is as near as what is told"
        assert (smaller.rank, smaller.alpha) == (3, 1.5)
        assert smaller.down.shape == (3, *weights.down.shape[1:])
        lost, whole = lost + tail, whole + total
    assert resized.error == pytest.approx((lost / whole) ** 0.5, rel=1e-5)


def test_a_change_of_low_rank_survives_the_fall_whole() -> None:
    small = trained(2, 2.0)
    wide = resize(small, 8, 4.0, generator()).state
    back = resize(wide, 2, 2.0, generator())
    for name, weights in modules_of(back.state).items():
        torch.testing.assert_close(weights.delta(), modules_of(small)[name].delta(), rtol=1e-5, atol=1e-6)
    assert back.error < 1e-6


def test_a_layer_narrower_than_the_rank_is_filled_up_with_zeros() -> None:
    down, up = torch.randn(12, 5, generator=generator()), torch.randn(7, 12, generator=generator())
    state = as_state({"unet.narrow": ModuleWeights(down, up, 6.0)})
    resized = resize(state, 8, 4.0, generator())
    weights = modules_of(resized.state)["unet.narrow"]
    assert weights.down.shape == (8, 5)
    assert weights.up.shape == (7, 8)
    torch.testing.assert_close(weights.delta(), modules_of(state)["unet.narrow"].delta(), rtol=1e-4, atol=1e-5)
    assert resized.error < 1e-6


def test_mixed_ranks_each_go_their_way() -> None:
    wide, narrow = modules_of(trained(10, 10.0)), modules_of(trained(2, 1.0))
    mixed = as_state({"unet.a.to_q": wide["unet.a.to_q"], "unet.b.conv1": narrow["unet.b.conv1"]})
    resized = resize(mixed, 4, 4.0, generator())
    assert set(resized.errors) == {"unet.a.to_q"}
    tail = resized.errors["unet.a.to_q"] * wide["unet.a.to_q"].delta().norm()
    total = (wide["unet.a.to_q"].delta().norm() ** 2 + narrow["unet.b.conv1"].delta().norm() ** 2) ** 0.5
    assert resized.error == pytest.approx(float(tail / total), rel=1e-4)


def test_norm_is_that_of_the_change() -> None:
    for weights in modules_of(trained(6, 2.5)).values():
        assert weights.norm() == pytest.approx(float(weights.delta().double().norm()), rel=1e-5)
