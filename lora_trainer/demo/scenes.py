"""Draws the small captioned world the embedded base model is made of.

A scene is one object in one colour at one place at one time of day. Every picture is a list of flat shapes, so the same
scene can be painted ("plain", the world the base learns) or traced in glowing lines on black ("neon", what the sample
set teaches).
Coordinates are in picture heights: x to the right, y down, both 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

RGB = tuple[float, float, float]
"""Red, green, blue, each 0..1."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words its caption uses."""

    object: str
    colour: str
    place: str
    time: str


@dataclass(frozen=True)
class Shape:
    """One flat shape: `points` (N, 2) in picture heights, its paint, and whether the neon style traces it."""

    points: np.ndarray
    paint: RGB
    line: float = 0.0  # stroke width in picture heights of an open line; 0 is a filled outline
    traced: bool = True


@dataclass(frozen=True)
class Light:
    """What a time of day does to colours: the sky from zenith to horizon, and the tint of everything under it."""

    phrase: str
    zenith: RGB
    horizon: RGB
    tint: RGB


colours: dict[str, RGB] = {
    "red": (0.86, 0.13, 0.15),
    "green": (0.12, 0.62, 0.24),
    "blue": (0.13, 0.33, 0.86),
    "yellow": (0.98, 0.86, 0.16),
    "orange": (0.98, 0.52, 0.08),
    "purple": (0.56, 0.18, 0.72),
    "white": (0.96, 0.96, 0.97),
}

times: dict[str, Light] = {
    "day": Light("by day", (0.30, 0.62, 0.93), (0.80, 0.93, 0.99), (1.0, 1.0, 1.0)),
    "sunset": Light("at sunset", (0.42, 0.26, 0.55), (0.99, 0.66, 0.36), (1.0, 0.86, 0.78)),
    "night": Light("at night", (0.03, 0.04, 0.16), (0.13, 0.18, 0.40), (0.52, 0.58, 0.82)),
}


# --- shapes -----------------------------------------------------------------------------------------------------------


def _shade(colour: RGB, factor: float) -> RGB:
    """Darker below 1; above 1 towards white."""
    if factor <= 1:
        return tuple(c * factor for c in colour)  # type: ignore[return-value]
    return tuple(c + (1 - c) * (factor - 1) for c in colour)  # type: ignore[return-value]


def _times(a: RGB, b: RGB) -> RGB:
    return (a[0] * b[0], a[1] * b[1], a[2] * b[2])


def _mix(a: RGB, b: RGB, share: float) -> RGB:
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _poly(paint: RGB, *points: tuple[float, float], traced: bool = True) -> Shape:
    return Shape(np.array(points, float), paint, traced=traced)


def _oval(paint: RGB, x: float, y: float, rx: float, ry: float, turn: float = 0.0, traced: bool = True) -> Shape:
    angle = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    px, py = rx * np.cos(angle), ry * np.sin(angle)
    c, s = math.cos(turn), math.sin(turn)
    return Shape(np.stack([x + c * px - s * py, y + s * px + c * py], 1), paint, traced=traced)


def _line(paint: RGB, width: float, *points: tuple[float, float], traced: bool = True) -> Shape:
    return Shape(np.array(points, float), paint, line=width, traced=traced)


_BROWN, _DARK, _GLASS, _CREAM = (0.45, 0.29, 0.16), (0.13, 0.13, 0.16), (0.72, 0.88, 0.96), (0.99, 0.96, 0.86)


# --- objects: in a box x -1..1, y -2 (top)..0 (standing on the ground) ------------------------------------------------


def _house(c: RGB) -> list[Shape]:
    return [
        _poly(_shade(c, 0.72), (0.42, -1.85), (0.68, -1.85), (0.68, -1.2), (0.42, -1.2)),
        _poly(c, (-0.85, 0), (-0.85, -1.1), (0.85, -1.1), (0.85, 0)),
        _poly(_shade(c, 0.86), (0.35, 0), (0.35, -1.1), (0.85, -1.1), (0.85, 0), traced=False),
        _poly(_shade(c, 0.58), (-1.05, -1.05), (0, -1.95), (1.05, -1.05)),
        _poly(_BROWN, (-0.2, 0), (-0.2, -0.62), (0.2, -0.62), (0.2, 0)),
        _poly(_CREAM, (-0.68, -0.45), (-0.68, -0.82), (-0.34, -0.82), (-0.34, -0.45)),
        _poly(_CREAM, (0.34, -0.45), (0.34, -0.82), (0.68, -0.82), (0.68, -0.45)),
    ]


def _tree(c: RGB) -> list[Shape]:
    return [
        _poly(_BROWN, (-0.17, 0), (-0.11, -0.9), (0.11, -0.9), (0.17, 0)),
        _oval(_shade(c, 0.78), -0.45, -1.0, 0.48, 0.42),
        _oval(_shade(c, 0.78), 0.45, -1.0, 0.48, 0.42),
        _oval(c, 0, -1.35, 0.68, 0.62),
        _oval(_shade(c, 1.25), -0.2, -1.58, 0.28, 0.2, traced=False),
    ]


def _car(c: RGB) -> list[Shape]:
    return [
        _poly(c, (-0.68, -0.75), (-0.42, -1.22), (0.35, -1.22), (0.68, -0.75)),
        _poly(_GLASS, (-0.5, -0.76), (-0.34, -1.1), (-0.06, -1.1), (-0.06, -0.76)),
        _poly(_GLASS, (0.06, -0.76), (0.06, -1.1), (0.29, -1.1), (0.5, -0.76)),
        _poly(c, (-1.15, -0.22), (-1.12, -0.62), (-0.95, -0.76), (0.85, -0.76), (1.12, -0.6), (1.15, -0.22)),
        _poly(_shade(c, 0.75), (-1.15, -0.22), (-1.14, -0.36), (1.14, -0.36), (1.15, -0.22), traced=False),
        _oval(_CREAM, 1.05, -0.52, 0.09, 0.09, traced=False),
        *(_oval(_DARK, x, -0.22, 0.27, 0.27) for x in (-0.62, 0.62)),
        *(_oval((0.75, 0.76, 0.78), x, -0.22, 0.12, 0.12, traced=False) for x in (-0.62, 0.62)),
    ]


def _boat(c: RGB) -> list[Shape]:
    return [
        _line(_BROWN, 0.09, (0, -0.4), (0, -1.95)),
        _poly(_shade(c, 1.45), (0.08, -0.6), (0.08, -1.9), (0.95, -0.6)),
        _poly(_shade(c, 1.2), (-0.1, -0.6), (-0.1, -1.6), (-0.72, -0.6)),
        _poly(c, (-1.1, -0.48), (1.1, -0.48), (0.72, 0), (-0.72, 0)),
        _poly(_shade(c, 0.7), (-0.9, -0.2), (0.9, -0.2), (0.72, 0), (-0.72, 0), traced=False),
    ]


def _cat(c: RGB) -> list[Shape]:
    dark = _shade(c, 0.72)
    tail = [(0.42, -0.15), (0.85, -0.2), (1.0, -0.6), (0.85, -0.95)]
    return [
        _line(dark, 0.17, *tail),
        _oval(c, 0.05, -0.5, 0.52, 0.55),
        _oval(_shade(c, 1.3), -0.05, -0.42, 0.24, 0.34, traced=False),
        _oval(c, -0.22, -0.07, 0.2, 0.1),
        _oval(c, 0.28, -0.07, 0.2, 0.1),
        _poly(c, (-0.56, -1.3), (-0.52, -1.95), (-0.12, -1.6)),
        _poly(c, (0.46, -1.3), (0.42, -1.95), (0.02, -1.6)),
        _oval(c, -0.05, -1.25, 0.54, 0.45),
        *(_oval(_DARK, x, -1.3, 0.075, 0.1) for x in (-0.25, 0.15)),
        _poly(dark, (-0.12, -1.12), (0.02, -1.12), (-0.05, -1.04), traced=False),
    ]


def _fish(c: RGB) -> list[Shape]:
    return [
        _poly(_shade(c, 0.75), (0.55, -0.9), (1.2, -1.4), (1.05, -0.9), (1.2, -0.4)),
        _poly(_shade(c, 0.75), (-0.25, -1.3), (0.15, -1.7), (0.42, -1.2)),
        _oval(c, -0.15, -0.9, 0.85, 0.5),
        _oval(_shade(c, 1.3), -0.2, -0.72, 0.55, 0.2, traced=False),
        _line(_shade(c, 0.7), 0.07, (-0.35, -1.25), (-0.24, -0.9), (-0.35, -0.55)),
        _oval((1, 1, 1), -0.64, -1.02, 0.14, 0.14),
        _oval(_DARK, -0.67, -1.02, 0.07, 0.08, traced=False),
    ]


def _flower(c: RGB) -> list[Shape]:
    stem = (0.16, 0.50, 0.20)
    petals = [(0.44 * math.cos(a), -1.35 + 0.44 * math.sin(a), a) for a in np.arange(6) * math.pi / 3 + 0.3]
    return [
        _line(stem, 0.12, (0, 0), (0.06, -0.5), (0, -1.2)),
        _oval(stem, -0.3, -0.4, 0.3, 0.11, 0.5),
        _oval(stem, 0.36, -0.52, 0.3, 0.11, -0.5),
        *(_oval(_shade(c, 1.0 if i % 2 else 0.85), x, y, 0.36, 0.25, a) for i, (x, y, a) in enumerate(petals)),
        _oval((0.42, 0.25, 0.10), 0, -1.35, 0.22, 0.22),
    ]


def _balloon(c: RGB) -> list[Shape]:
    return [
        *(_line(_BROWN, 0.045, (x * 2.1, -0.75), (x, -0.3)) for x in (-0.17, 0.17)),
        _poly(c, (-0.66, -1.0), (-0.25, -0.62), (0.25, -0.62), (0.66, -1.0)),
        _oval(c, 0, -1.28, 0.75, 0.7),
        _oval(_shade(c, 1.4), 0, -1.28, 0.36, 0.7),
        _oval(_shade(c, 0.85), 0, -1.28, 0.1, 0.7, traced=False),
        _poly(_BROWN, (-0.22, -0.32), (0.22, -0.32), (0.17, 0), (-0.17, 0)),
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


# --- places: shapes over the whole picture, given the horizon's height, the tint and a generator ----------------------


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
        *(_oval(bloom[i % 2], px, py, 0.011, 0.009, traced=False) for i, (px, py) in enumerate(dots)),
    ]


def _sea(y: float, rng: np.random.Generator) -> list[Shape]:
    waves = []
    for i in range(9):
        wy, wx, half = y + 0.03 + 0.035 * i, rng.uniform(0.02, 0.98), rng.uniform(0.04, 0.09)
        bend = [(wx - half, wy), (wx - half / 2, wy - 0.009), (wx, wy), (wx + half / 2, wy - 0.009), (wx + half, wy)]
        waves.append(_line((0.72, 0.91, 0.95), 0.008, *bend))
    return [
        _poly((0.10, 0.45, 0.68), (-0.02, y), (1.02, y), (1.02, 1.05), (-0.02, 1.05)),
        _rolling((0.13, 0.55, 0.74), y + 0.15, 0.012, rng, 1.5),
        *waves,
    ]


def _desert(y: float, rng: np.random.Generator) -> list[Shape]:
    green, x, side = (0.25, 0.52, 0.30), rng.choice([0.1, 0.9]) + rng.uniform(-0.05, 0.05), rng.choice([-1, 1])
    foot = y + 0.08
    return [
        _rolling((0.83, 0.62, 0.38), y - 0.03, 0.04, rng, 1.2),
        _line(green, 0.035, (x, foot), (x, foot - 0.19)),
        _line(green, 0.025, (x, foot - 0.08), (x + 0.05 * side, foot - 0.08), (x + 0.05 * side, foot - 0.14)),
        _rolling((0.93, 0.77, 0.49), y + 0.07, 0.02, rng),
    ]


def _snow(y: float, rng: np.random.Generator) -> list[Shape]:
    shapes = [_rolling((0.78, 0.85, 0.94), y - 0.01, 0.02, rng)]
    for x in (rng.uniform(0.02, 0.16), rng.uniform(0.84, 0.98)):
        h = rng.uniform(0.2, 0.28)
        for level, wide in ((0.0, 0.3), (0.3, 0.24), (0.58, 0.17)):
            foot = y + 0.05 - level * h
            tip = (x, foot - 0.45 * h)
            shapes.append(_poly((0.20, 0.42, 0.38), (x - wide * h, foot), tip, (x + wide * h, foot)))
    flakes = [_oval((1, 1, 1), *rng.random(2), 0.007, 0.007, traced=False) for _ in range(22)]
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


def _heaven(time: str, rng: np.random.Generator) -> list[Shape]:
    x = rng.choice([rng.uniform(0.1, 0.26), rng.uniform(0.74, 0.9)])
    if time == "night":
        stars = [(rng.random(), rng.random() * 0.55, rng.uniform(0.004, 0.009)) for _ in range(26)]
        y = rng.uniform(0.12, 0.2)
        return [
            *(_oval((0.95, 0.95, 0.85), sx, sy, r, r, traced=i % 2 == 0) for i, (sx, sy, r) in enumerate(stars)),
            _oval((0.98, 0.95, 0.78), x, y, 0.075, 0.075),
            _oval((0.87, 0.83, 0.66), x + 0.02, y - 0.02, 0.02, 0.017, traced=False),
            _oval((0.87, 0.83, 0.66), x - 0.025, y + 0.015, 0.014, 0.012, traced=False),
        ]
    y = 0.46 if time == "sunset" else rng.uniform(0.12, 0.18)
    sun = (1.0, 0.88, 0.45) if time == "sunset" else (1.0, 0.93, 0.42)
    cloud = (0.99, 0.78, 0.68) if time == "sunset" else (1.0, 1.0, 1.0)
    shapes = [_oval(sun, x, y, 0.09, 0.09)]
    for _ in range(2):
        cx, cy, size = rng.random(), rng.uniform(0.08, 0.34), rng.uniform(0.035, 0.055)
        shapes += [_oval(cloud, cx + dx * size, cy + dy * size, rx * size, ry * size, traced=False)
                   for dx, dy, rx, ry in ((-1.2, 0, 1.1, 0.6), (0, -0.4, 1.2, 0.9), (1.2, 0, 1.1, 0.6))]
    return shapes


# --- one scene as shapes ----------------------------------------------------------------------------------------------


def _tinted(shapes: list[Shape], tint: RGB) -> list[Shape]:
    return [Shape(s.points, _times(s.paint, tint), s.line, s.traced) for s in shapes]


def _standing(shapes: list[Shape], x: float, y: float, size: float, flip: bool) -> list[Shape]:
    """Shapes from an object's box to the picture, its foot at (x, y); `size` is half its height."""
    scale = np.array([-size if flip else size, size])
    return [Shape(s.points * scale + (x, y), s.paint, s.line * size, s.traced) for s in shapes]


def compose(scene: Scene, rng: np.random.Generator) -> tuple[list[Shape], list[Shape]]:
    """The backdrop's and the object's shapes, back to front, with positions and sizes drawn from `rng`."""
    light, thing = times[scene.time], objects[scene.object]
    horizon = rng.uniform(0.58, 0.66)
    ground = _tinted(places[scene.place].draw(horizon, rng), light.tint)
    x, size = rng.uniform(0.38, 0.62), rng.uniform(0.25, 0.32)
    y = horizon + rng.uniform(0.16, 0.26)
    flip = bool(rng.random() < 0.5)
    shade = _times(_shade(places[scene.place].soil, 0.72), light.tint)
    shadow = _oval(shade, x, y, size * 0.95, size * 0.13, traced=False)
    # The object keeps most of its own colour at night, or "a blue cat at night" could not be told from a black one.
    glow = _mix(light.tint, (1.0, 1.0, 1.0), 0.62)
    body = _standing(_tinted(thing.draw(colours[scene.colour]), glow), x, y - thing.lift, size, flip)
    return [*_heaven(scene.time, rng), *ground], [shadow, *body]


# --- painting ---------------------------------------------------------------------------------------------------------


def _bytes(colour: RGB) -> tuple[int, int, int]:
    return tuple(round(255 * min(max(c, 0.0), 1.0)) for c in colour)  # type: ignore[return-value]


def _stroke(
    pen: ImageDraw.ImageDraw, points: list[tuple[float, float]], paint: tuple[int, int, int], width: int
) -> None:
    pen.line(points, fill=paint, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=paint)


def _plain(scene: Scene, shapes: list[Shape], side: int) -> Image.Image:
    light = times[scene.time]
    fade = np.clip(np.linspace(0, 1.55, side), 0, 1)[:, None, None]
    sky = np.array(light.zenith) * (1 - fade) + np.array(light.horizon) * fade
    picture = Image.fromarray(np.broadcast_to(sky * 255, (side, side, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for shape in shapes:
        points = [tuple(p) for p in shape.points * side]
        if shape.line:
            _stroke(pen, points, _bytes(shape.paint), max(1, round(shape.line * side)))
        else:
            pen.polygon(points, fill=_bytes(shape.paint))
    return picture


def _vivid(colour: RGB) -> RGB:
    """The colour at full brightness, as a lamp of it would be."""
    return _mix(_shade(colour, 1.0), tuple(c / max(*colour, 1e-3) for c in colour), 0.9)  # type: ignore[arg-type]


def _trace(shapes: list[Shape], side: int, width: int, colour: RGB | None) -> Image.Image:
    picture = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(picture)
    for shape in shapes:
        if not shape.traced:
            continue
        points = [tuple(p) for p in shape.points * side]
        paint = _bytes(_vivid(colour or shape.paint))
        if not shape.line:
            pen.polygon(points, fill=(0, 0, 0))  # what stands in front hides the lines behind it
            points = [*points, points[0], points[1]]
        _stroke(pen, points, paint, width)
    return picture


def _neon(scene: Scene, back: list[Shape], front: list[Shape], side: int) -> Image.Image:
    lines = _trace(back, side, max(1, side // 110), None).point(lambda v: int(v * 0.45))
    body = _trace(front, side, max(2, side // 56), colours[scene.colour])
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    for shape in front:
        if shape.traced and not shape.line:
            pen.polygon([tuple(p) for p in shape.points * side], fill=255)
    lines.paste((0, 0, 0), mask=mask)
    lit = ImageChops.lighter(lines, body)
    for radius, strength in ((side / 80, 0.9), (side / 26, 0.8)):
        lit = ImageChops.add(lit, lit.filter(ImageFilter.GaussianBlur(radius)).point(lambda v, s=strength: int(v * s)))
    return lit


def draw(scene: Scene, style: str, size: int, rng: np.random.Generator) -> Image.Image:
    """The scene as a square RGB picture of `size` pixels; `style` is "plain" or "neon".

    The same state of `rng` gives the same picture.
    """
    side = size * 3  # painted three times as large and shrunk, because PIL draws without antialiasing
    back, front = compose(scene, rng)
    if style == "plain":
        large = _plain(scene, [*back, *front], side)
    elif style == "neon":
        large = _neon(scene, back, front, side)
    else:
        raise ValueError(f"style is {style!r}; it is 'plain' or 'neon'")
    return large.resize((size, size), Image.Resampling.BOX)


# --- words ------------------------------------------------------------------------------------------------------------


def every_scene() -> list[Scene]:
    """All scenes there are, in a fixed order."""
    return [Scene(o, c, p, t) for o in objects for c in colours for p in places for t in times]


def caption(scene: Scene, phrasing: int = 0) -> str:
    """The scene in words; `phrasing` 0 is the full sentence, others change the order or leave something out."""
    what = f"a {scene.colour} {scene.object}" if scene.colour != "orange" else f"an orange {scene.object}"
    where, when = places[scene.place].phrase, times[scene.time].phrase
    ways = (
        f"{what} {where} {when}",
        f"{what} {when} {where}",
        f"{when}, {what} {where}",
        f"{scene.colour} {scene.object}, {scene.place}, {scene.time}",
        f"{what} {where}",
        f"{what} {when}",
        what,
    )
    return ways[phrasing % len(ways)]


PHRASINGS = 7
"""How many ways `caption` knows."""


def random_scene(rng: np.random.Generator) -> Scene:
    """One scene, each object, colour, place and time equally likely."""
    def pick(table: dict) -> str:
        return list(table)[int(rng.integers(len(table)))]

    return Scene(pick(objects), pick(colours), pick(places), pick(times))
