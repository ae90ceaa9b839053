"""A short name for a module's weights, to tell whether cached results are still theirs."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

_SAMPLES = 256  # values read of each tensor: training or merging moves nearly all, so some of them


def fingerprint(module: nn.Module) -> str:
    """Hex digest over names, shapes, dtypes and values sampled evenly from each parameter; reads a few kilobytes."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        flat = parameter.detach().reshape(-1)  # a view, but of the few turned or strided tensors
        places = torch.linspace(0, len(flat) - 1, min(_SAMPLES, len(flat)), dtype=torch.float64).long()
        digest.update(flat[places.to(flat.device)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()
