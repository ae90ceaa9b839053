"""Says in numbers what pictures of the drawn world show: how neon they look, and whether they follow their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lora_trainer.demo.scenes import Scene, colours, objects, places, times

BLACK = 30  # of 255; the darkest paint of a plain night sky is 41 in its blue channel
SIDE = 64  # pixels; the judge looks at pictures of this size


def style_statistic(images: Sequence[Image.Image]) -> float:
    """Mean share of near-black pixels, 0..1: almost nothing in plain scenes, most of a neon one."""
    return float(np.mean([(np.asarray(i.convert("RGB")).max(axis=2) < BLACK).mean() for i in images]))


class Judge(nn.Module):
    """A small classifier of drawn scenes; pictures (B, 3, 64, 64) in -1..1 to one row of scores for each question."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 72, 96)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(4, b), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 96), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(96, len(table)) for name, table in questions().items()})

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """Scores (B, answers) for each question."""
        seen = self.body(pictures)
        return {name: head(seen) for name, head in self.heads.items()}


def questions() -> dict[str, list[str]]:
    """What the judge is asked, and the answers it knows, in order."""
    return {"object": list(objects), "colour": list(colours), "place": list(places), "time": list(times)}


def shrunk(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size as the judge wants them: (B, 3, 64, 64) in -1..1."""
    small = [i.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR) for i in images]
    return torch.from_numpy(np.stack([np.asarray(i) for i in small])).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_judge(path: Path) -> Judge:
    """The trained judge kept in a safetensors file."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge.eval().requires_grad_(False)


@dataclass(frozen=True)
class Steering:
    """Shares of pictures, 0..1, in which the judge sees what the prompt asked for."""

    object: float
    colour: float
    place: float
    time: float
    both: float  # object and colour in the same picture


@torch.no_grad()
def steering_score(judge: Judge, images: Sequence[Image.Image], asked: Sequence[Scene]) -> Steering:
    """How often pictures show the scenes asked for."""
    scores, right = judge(shrunk(images)), {}
    for name, answers in questions().items():
        wanted = torch.tensor([answers.index(getattr(scene, name)) for scene in asked])
        right[name] = (scores[name].argmax(1) == wanted).float()
    right["both"] = right["object"] * right["colour"]
    return Steering(**{name: float(hits.mean()) for name, hits in right.items()})
