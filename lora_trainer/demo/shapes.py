"""Flat shapes, of which every picture of the drawn world is made, and what is done to their colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

RGB = tuple[float, float, float]
"""Red, green, blue, each 0..1."""


@dataclass(frozen=True)
class Shape:
    """One flat shape: `points` (N, 2) in picture heights, its paint, and whether the neon style traces it."""

    points: np.ndarray
    paint: RGB
    line: float = 0.0  # stroke width in picture heights of an open line; 0 is a filled outline
    traced: bool = True


def shade(colour: RGB, factor: float) -> RGB:
    """Darker below 1; above 1 towards white."""
    if factor <= 1:
        return tuple(c * factor for c in colour)  # type: ignore[return-value]
    return tuple(c + (1 - c) * (factor - 1) for c in colour)  # type: ignore[return-value]


def filtered(a: RGB, b: RGB) -> RGB:
    """What is left of one colour in the light of another."""
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """`a` with `share`, 0..1, of the way to `b`."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def poly(paint: RGB, *points: tuple[float, float], traced: bool = True) -> Shape:
    """A filled outline through `points`, each (x, y)."""
    return Shape(np.array(points, float), paint, traced=traced)


def oval(paint: RGB, x: float, y: float, rx: float, ry: float, turn: float = 0.0, traced: bool = True) -> Shape:
    """A filled ellipse around (x, y) with half axes `rx` and `ry`, turned by `turn` radians."""
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    c, s = math.cos(turn), math.sin(turn)
    return Shape(np.stack([x + c * px - s * py, y + s * px + c * py], 1), paint, traced=traced)


def line(paint: RGB, width: float, *points: tuple[float, float], traced: bool = True) -> Shape:
    """An open line of `width` through `points`, each (x, y)."""
    return Shape(np.array(points, float), paint, line=width, traced=traced)
