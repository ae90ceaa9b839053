"""Draws the small captioned world the embedded base model is made of.

A scene is one object in one colour at one place at one time of day. Every picture is a list of flat shapes, so the same
scene can be painted ("plain", the world the base learns) or traced in glowing lines on black ("neon", what the sample
set teaches).
Coordinates are in picture heights: x to the right, y down, both 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lora_trainer.demo.objects import colours, objects
from lora_trainer.demo.places import heaven, places, times
from lora_trainer.demo.shapes import RGB, Shape, filtered, mix, oval, shade


@dataclass(frozen=True)
class Scene:
    """What a picture shows, in the words its caption uses."""

    object: str
    colour: str
    place: str
    time: str


# --- one scene as shapes ----------------------------------------------------------------------------------------------


def _tinted(shapes: list[Shape], tint: RGB) -> list[Shape]:
    return [Shape(s.points, filtered(s.paint, tint), s.line, s.traced) for s in shapes]


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
    ground_shade = filtered(shade(places[scene.place].soil, 0.72), light.tint)
    shadow = oval(ground_shade, x, y, size * 0.95, size * 0.13, traced=False)
    # The object keeps most of its own colour at night, or "a blue cat at night" could not be told from a black one.
    glow = mix(light.tint, (1.0, 1.0, 1.0), 0.62)
    body = _standing(_tinted(thing.draw(colours[scene.colour]), glow), x, y - thing.lift, size, flip)
    return [*heaven(scene.time, rng), *ground], [shadow, *body]


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
    return mix(shade(colour, 1.0), tuple(c / max(*colour, 1e-3) for c in colour), 0.9)  # type: ignore[arg-type]


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
