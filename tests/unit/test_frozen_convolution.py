"""Frozen convolutions as matrix products give what torch's own give, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_trainer.families.frozen import hasten


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _frozen(channels: int, out: int, window: int, stride: int, bias: bool = True) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, out, window, stride, padding=window // 2, bias=bias)
    for seed, parameter in enumerate(convolution.parameters()):
        parameter.data = _random(*parameter.shape, seed=seed) / 10
    return convolution.requires_grad_(False)


def _both_ways(convolution: nn.Conv2d, image: Tensor) -> tuple[Tensor, Tensor]:
    image = image.clone().requires_grad_()
    made = convolution(image)
    made.backward(_random(*made.shape, seed=9))
    assert image.grad is not None
    return made.detach(), image.grad


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(4, 4), (5, 3), (2, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_results_and_gradients_are_torchs(window: int, stride: int, size: tuple[int, int], bias: bool) -> None:
    convolution = _frozen(24, 200, window, stride, bias)
    image = _random(2, 24, *size, seed=3)
    expected, gradient = _both_ways(convolution, image)  # torch's own, before
    assert len(hasten(convolution).layers) == 1
    made, our_gradient = _both_ways(convolution, image)
    assert made.is_contiguous(memory_format=torch.channels_last)  # so ours was it that ran
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_torchs(given: torch.dtype) -> None:
    """Within a run autocast gives it either type; the gradient comes back in that of the input."""
    exact, image = _frozen(24, 200, 3, 1), _random(2, 24, 4, 4, seed=3)
    truth, gradient = _both_ways(exact, image)
    half = _frozen(24, 200, 3, 1).bfloat16()
    theirs = _both_ways(half, image.bfloat16())
    assert len(hasten(half).layers) == 1
    x = image.to(given).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = half(x)
    made.backward(_random(*made.shape, seed=9).bfloat16())
    assert made.dtype == torch.bfloat16
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert x.grad is not None
    assert x.grad.dtype == given
    for ours, other, true in ((made, theirs[0], truth), (x.grad, theirs[1], gradient)):
        assert (ours.float() - true).norm() < max(1.5 * (other.float() - true).norm(), 2**-8 * true.norm())


def test_large_images_stay_torchs_whatever_the_layout_of_the_input() -> None:
    convolution = _frozen(8, 16, 3, 1)
    image = _random(1, 8, 12, 12).contiguous(memory_format=torch.channels_last)
    expected = convolution(image)
    hasten(convolution)
    made = convolution(image)
    assert made.is_contiguous()
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_trained_weights_get_their_gradient() -> None:
    convolution = _frozen(8, 64, 3, 1)
    hasten(convolution)
    convolution.requires_grad_(True)
    convolution(_random(1, 8, 2, 2)).sum().backward()
    assert convolution.weight.grad is not None
    assert convolution.weight.grad.abs().sum() > 0


def test_the_weights_stay_where_they_are_and_nothing_is_kept() -> None:
    convolution = _frozen(8, 64, 3, 1)
    place = convolution.weight.data_ptr()
    hasten(convolution)
    image = _random(1, 8, 2, 2).requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        convolution(image)
    assert convolution.weight.data_ptr() == place
    assert [t.data_ptr() for t in saved] == [place]


def test_what_is_no_plain_float_convolution_is_left_alone() -> None:
    others = nn.ModuleList(
        [
            nn.Conv2d(8, 64, 3, padding=1, groups=2),
            nn.Conv2d(8, 64, 3, padding=0),
            nn.Conv2d(8, 64, 3, padding=1, dilation=2),
            nn.Conv2d(8, 64, 3, padding=1, padding_mode="circular"),
            nn.Conv2d(8, 64, 5, padding=2),
            nn.Conv2d(8, 64, 3, padding=1).half(),
            nn.Linear(8, 64).half(),
        ]
    )
    assert len(hasten(others).layers) == 0
