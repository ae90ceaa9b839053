"""Where and when a scene is: grounds below a horizon, and the sky, the lamp in it and the light of a time of day."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lora_trainer.demo.shapes import RGB, Shape, line, oval, poly


@dataclass(frozen=True)
class Light:
    """What a time of day does to colours: the sky from zenith to horizon, and the tint of everything under it."""

    phrase: str
    zenith: RGB
    horizon: RGB
    tint: RGB


times: dict[str, Light] = {
    "day": Light("by day", (0.30, 0.62, 0.93), (0.80, 0.93, 0.99), (1.0, 1.0, 1.0)),
    "sunset": Light("at sunset", (0.42, 0.26, 0.55), (0.99, 0.66, 0.36), (1.0, 0.86, 0.78)),
    "night": Light("at night", (0.03, 0.04, 0.16), (0.13, 0.18, 0.40), (0.52, 0.58, 0.82)),
}


def _rolling(paint: RGB, y: float, height: float, rng: np.random.Generator, waves: float = 1.0) -> Shape:
    x = np.linspace(-0.02, 1.02, 24)
    ridge = y - height * np.sin(2 * math.pi * (waves * x + rng.random()))
    return Shape(np.concatenate([np.stack([x, ridge], 1), [[1.02, 1.05], [-0.02, 1.05]]]), paint)


def _field(y: float, rng: np.random.Generator) -> list[Shape]:
    dots = [(rng.random(), rng.uniform(y + 0.12, 0.98)) for _ in range(14)]
    bloom = ((0.98, 0.96, 0.80), (0.98, 0.72, 0.80))
    return [
        _rolling((0.36, 0.60, 0.34), y - 0.02, 0.025, rng, 1.3),
        _rolling((0.47, 0.74, 0.30), y + 0.06, 0.012, rng),
        *(oval(bloom[i % 2], px, py, 0.011, 0.009, traced=False) for i, (px, py) in enumerate(dots)),
    ]


def _sea(y: float, rng: np.random.Generator) -> list[Shape]:
    waves = []
    for i in range(9):
        wy, wx, half = y + 0.03 + 0.035 * i, rng.uniform(0.02, 0.98), rng.uniform(0.04, 0.09)
        bend = [(wx - half, wy), (wx - half / 2, wy - 0.009), (wx, wy), (wx + half / 2, wy - 0.009), (wx + half, wy)]
        waves.append(line((0.72, 0.91, 0.95), 0.008, *bend))
    return [
        poly((0.10, 0.45, 0.68), (-0.02, y), (1.02, y), (1.02, 1.05), (-0.02, 1.05)),
        _rolling((0.13, 0.55, 0.74), y + 0.15, 0.012, rng, 1.5),
        *waves,
    ]


def _desert(y: float, rng: np.random.Generator) -> list[Shape]:
    green, x, side = (0.25, 0.52, 0.30), rng.choice([0.1, 0.9]) + rng.uniform(-0.05, 0.05), rng.choice([-1, 1])
    foot = y + 0.08
    return [
        _rolling((0.83, 0.62, 0.38), y - 0.03, 0.04, rng, 1.2),
        line(green, 0.035, (x, foot), (x, foot - 0.19)),
        line(green, 0.025, (x, foot - 0.08), (x + 0.05 * side, foot - 0.08), (x + 0.05 * side, foot - 0.14)),
        _rolling((0.93, 0.77, 0.49), y + 0.07, 0.02, rng),
    ]


def _snow(y: float, rng: np.random.Generator) -> list[Shape]:
    shapes = [_rolling((0.78, 0.85, 0.94), y - 0.01, 0.02, rng)]
    for x in (rng.uniform(0.02, 0.16), rng.uniform(0.84, 0.98)):
        h = rng.uniform(0.2, 0.28)
        for level, wide in ((0.0, 0.3), (0.3, 0.24), (0.58, 0.17)):
            foot = y + 0.05 - level * h
            tip = (x, foot - 0.45 * h)
            shapes.append(poly((0.20, 0.42, 0.38), (x - wide * h, foot), tip, (x + wide * h, foot)))
    flakes = [oval((1, 1, 1), x, y, 0.007, 0.007, traced=False) for x, y in rng.random((22, 2))]
    return [*shapes, _rolling((0.93, 0.96, 0.99), y + 0.06, 0.015, rng), *flakes]


@dataclass(frozen=True)
class Place:
    """The words for a place, and what paints it below a horizon at height y."""

    phrase: str
    draw: Callable[[float, np.random.Generator], list[Shape]]
    soil: RGB  # the ground's own colour, which a shadow darkens


places: dict[str, Place] = {
    "field": Place("in a field", _field, (0.47, 0.74, 0.30)),
    "sea": Place("at the sea", _sea, (0.13, 0.50, 0.71)),
    "desert": Place("in a desert", _desert, (0.93, 0.77, 0.49)),
    "snow": Place("in the snow", _snow, (0.93, 0.96, 0.99)),
}


def heaven(time: str, rng: np.random.Generator) -> list[Shape]:
    """What is in the sky at that time: sun and clouds, or moon and stars."""
    x = rng.choice([rng.uniform(0.1, 0.26), rng.uniform(0.74, 0.9)])
    if time == "night":
        stars = [(rng.random(), rng.random() * 0.55, rng.uniform(0.004, 0.009)) for _ in range(26)]
        y = rng.uniform(0.12, 0.2)
        return [
            *(oval((0.95, 0.95, 0.85), sx, sy, r, r, traced=i % 2 == 0) for i, (sx, sy, r) in enumerate(stars)),
            oval((0.98, 0.95, 0.78), x, y, 0.075, 0.075),
            oval((0.87, 0.83, 0.66), x + 0.02, y - 0.02, 0.02, 0.017, traced=False),
            oval((0.87, 0.83, 0.66), x - 0.025, y + 0.015, 0.014, 0.012, traced=False),
        ]
    y = 0.46 if time == "sunset" else rng.uniform(0.12, 0.18)
    sun = (1.0, 0.88, 0.45) if time == "sunset" else (1.0, 0.93, 0.42)
    cloud = (0.99, 0.78, 0.68) if time == "sunset" else (1.0, 1.0, 1.0)
    shapes = [oval(sun, x, y, 0.09, 0.09)]
    for _ in range(2):
        cx, cy, size = rng.random(), rng.uniform(0.08, 0.34), rng.uniform(0.035, 0.055)
        shapes += [
            oval(cloud, cx + dx * size, cy + dy * size, rx * size, ry * size, traced=False)
            for dx, dy, rx, ry in ((-1.2, 0, 1.1, 0.6), (0, -0.4, 1.2, 0.9), (1.2, 0, 1.1, 0.6))
        ]
    return shapes
