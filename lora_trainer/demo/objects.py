"""The things that can stand in a scene, in the colours that captions name.

Each is drawn in a box of its own: x -1..1, y -2 (top)..0 (standing on the ground).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lora_trainer.demo.shapes import RGB, Shape, line, oval, poly, shade

colours: dict[str, RGB] = {
    "red": (0.86, 0.13, 0.15),
    "green": (0.12, 0.62, 0.24),
    "blue": (0.13, 0.33, 0.86),
    "yellow": (0.98, 0.86, 0.16),
    "orange": (0.98, 0.52, 0.08),
    "purple": (0.56, 0.18, 0.72),
    "white": (0.96, 0.96, 0.97),
}

BROWN, DARK, GLASS, CREAM = (0.45, 0.29, 0.16), (0.13, 0.13, 0.16), (0.72, 0.88, 0.96), (0.99, 0.96, 0.86)


def _house(c: RGB) -> list[Shape]:
    return [
        poly(shade(c, 0.72), (0.42, -1.85), (0.68, -1.85), (0.68, -1.2), (0.42, -1.2)),
        poly(c, (-0.85, 0), (-0.85, -1.1), (0.85, -1.1), (0.85, 0)),
        poly(shade(c, 0.86), (0.35, 0), (0.35, -1.1), (0.85, -1.1), (0.85, 0), traced=False),
        poly(shade(c, 0.58), (-1.05, -1.05), (0, -1.95), (1.05, -1.05)),
        poly(BROWN, (-0.2, 0), (-0.2, -0.62), (0.2, -0.62), (0.2, 0)),
        poly(CREAM, (-0.68, -0.45), (-0.68, -0.82), (-0.34, -0.82), (-0.34, -0.45)),
        poly(CREAM, (0.34, -0.45), (0.34, -0.82), (0.68, -0.82), (0.68, -0.45)),
    ]


def _tree(c: RGB) -> list[Shape]:
    return [
        poly(BROWN, (-0.17, 0), (-0.11, -0.9), (0.11, -0.9), (0.17, 0)),
        oval(shade(c, 0.78), -0.45, -1.0, 0.48, 0.42),
        oval(shade(c, 0.78), 0.45, -1.0, 0.48, 0.42),
        oval(c, 0, -1.35, 0.68, 0.62),
        oval(shade(c, 1.25), -0.2, -1.58, 0.28, 0.2, traced=False),
    ]


def _car(c: RGB) -> list[Shape]:
    return [
        poly(c, (-0.68, -0.75), (-0.42, -1.22), (0.35, -1.22), (0.68, -0.75)),
        poly(GLASS, (-0.5, -0.76), (-0.34, -1.1), (-0.06, -1.1), (-0.06, -0.76)),
        poly(GLASS, (0.06, -0.76), (0.06, -1.1), (0.29, -1.1), (0.5, -0.76)),
        poly(c, (-1.15, -0.22), (-1.12, -0.62), (-0.95, -0.76), (0.85, -0.76), (1.12, -0.6), (1.15, -0.22)),
        poly(shade(c, 0.75), (-1.15, -0.22), (-1.14, -0.36), (1.14, -0.36), (1.15, -0.22), traced=False),
        oval(CREAM, 1.05, -0.52, 0.09, 0.09, traced=False),
        *(oval(DARK, x, -0.22, 0.27, 0.27) for x in (-0.62, 0.62)),
        *(oval((0.75, 0.76, 0.78), x, -0.22, 0.12, 0.12, traced=False) for x in (-0.62, 0.62)),
    ]


def _boat(c: RGB) -> list[Shape]:
    return [
        line(BROWN, 0.09, (0, -0.4), (0, -1.95)),
        poly(shade(c, 1.45), (0.08, -0.6), (0.08, -1.9), (0.95, -0.6)),
        poly(shade(c, 1.2), (-0.1, -0.6), (-0.1, -1.6), (-0.72, -0.6)),
        poly(c, (-1.1, -0.48), (1.1, -0.48), (0.72, 0), (-0.72, 0)),
        poly(shade(c, 0.7), (-0.9, -0.2), (0.9, -0.2), (0.72, 0), (-0.72, 0), traced=False),
    ]


def _cat(c: RGB) -> list[Shape]:
    dark = shade(c, 0.72)
    tail = [(0.42, -0.15), (0.85, -0.2), (1.0, -0.6), (0.85, -0.95)]
    return [
        line(dark, 0.17, *tail),
        oval(c, 0.05, -0.5, 0.52, 0.55),
        oval(shade(c, 1.3), -0.05, -0.42, 0.24, 0.34, traced=False),
        oval(c, -0.22, -0.07, 0.2, 0.1),
        oval(c, 0.28, -0.07, 0.2, 0.1),
        poly(c, (-0.56, -1.3), (-0.52, -1.95), (-0.12, -1.6)),
        poly(c, (0.46, -1.3), (0.42, -1.95), (0.02, -1.6)),
        oval(c, -0.05, -1.25, 0.54, 0.45),
        *(oval(DARK, x, -1.3, 0.075, 0.1) for x in (-0.25, 0.15)),
        poly(dark, (-0.12, -1.12), (0.02, -1.12), (-0.05, -1.04), traced=False),
    ]


def _fish(c: RGB) -> list[Shape]:
    return [
        poly(shade(c, 0.75), (0.55, -0.9), (1.2, -1.4), (1.05, -0.9), (1.2, -0.4)),
        poly(shade(c, 0.75), (-0.25, -1.3), (0.15, -1.7), (0.42, -1.2)),
        oval(c, -0.15, -0.9, 0.85, 0.5),
        oval(shade(c, 1.3), -0.2, -0.72, 0.55, 0.2, traced=False),
        line(shade(c, 0.7), 0.07, (-0.35, -1.25), (-0.24, -0.9), (-0.35, -0.55)),
        oval((1, 1, 1), -0.64, -1.02, 0.14, 0.14),
        oval(DARK, -0.67, -1.02, 0.07, 0.08, traced=False),
    ]


def _flower(c: RGB) -> list[Shape]:
    stem = (0.16, 0.50, 0.20)
    petals = [(0.44 * math.cos(a), -1.35 + 0.44 * math.sin(a), a) for a in np.arange(6) * math.pi / 3 + 0.3]
    return [
        line(stem, 0.12, (0, 0), (0.06, -0.5), (0, -1.2)),
        oval(stem, -0.3, -0.4, 0.3, 0.11, 0.5),
        oval(stem, 0.36, -0.52, 0.3, 0.11, -0.5),
        *(oval(shade(c, 1.0 if i % 2 else 0.85), x, y, 0.36, 0.25, a) for i, (x, y, a) in enumerate(petals)),
        oval((0.42, 0.25, 0.10), 0, -1.35, 0.22, 0.22),
    ]


def _balloon(c: RGB) -> list[Shape]:
    return [
        *(line(BROWN, 0.045, (x * 2.1, -0.75), (x, -0.3)) for x in (-0.17, 0.17)),
        poly(c, (-0.66, -1.0), (-0.25, -0.62), (0.25, -0.62), (0.66, -1.0)),
        oval(c, 0, -1.28, 0.75, 0.7),
        oval(shade(c, 1.4), 0, -1.28, 0.36, 0.7),
        oval(shade(c, 0.85), 0, -1.28, 0.1, 0.7, traced=False),
        poly(BROWN, (-0.22, -0.32), (0.22, -0.32), (0.17, 0), (-0.17, 0)),
    ]


@dataclass(frozen=True)
class Thing:
    """How an object is drawn in its box, and how far its foot floats above the ground, in picture heights."""

    draw: Callable[[RGB], list[Shape]]
    lift: float = 0.0


objects: dict[str, Thing] = {
    "house": Thing(_house),
    "tree": Thing(_tree),
    "car": Thing(_car),
    "boat": Thing(_boat),
    "cat": Thing(_cat),
    "fish": Thing(_fish, lift=0.08),
    "flower": Thing(_flower),
    "balloon": Thing(_balloon, lift=0.15),
}
