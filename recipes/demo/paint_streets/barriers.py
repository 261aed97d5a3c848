"""Walls, fences and hedges."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Canvas
from .colours import tone
from .labels import FENCE, VEGETATION, WALL
from .street import Street
from .textures import Texture, paint_bricks, plaster


# height in metres
HEIGHTS = {
    "stone": 1.5,
    "brick": 1.8,
    "noise": 3.2,
    "hedge": 1.6,
    "rail": 0.85,
    "picket": 1.1,
    "iron": 1.5,
    "mesh": 1.5,
}
WALLS = {"stone": (150, 144, 132), "brick": (150, 86, 68), "noise": (160, 162, 150)}
# fence -> colour, distance and thickness of its posts in pixels
FENCES = {
    "rail": ((176, 180, 182), 120, 8),
    "picket": ((232, 228, 216), 14, 9),
    "iron": ((44, 50, 50), 12, 4),
    "mesh": ((110, 120, 112), 9, 2),
}


@cache
def barrier(kind: str) -> tuple[Texture, int]:
    """A barrier 6 m long, 60 pixels per metre, and its label.

    The gaps of a fence show what is behind but count as fence.
    """
    rng = np.random.default_rng([len(kind), ord(kind[0])])
    size = (360, int(HEIGHTS[kind] * 60))
    if kind in WALLS:
        return Texture(masonry(kind, rng, size), 6.0, HEIGHTS[kind]), WALL
    if kind == "hedge":
        opaque = Image.new("L", size, 255)
        return Texture(hedge(rng, size), 6.0, HEIGHTS[kind], alpha=opaque), VEGETATION
    rgb, alpha = fence(kind, size)
    return Texture(rgb, 6.0, HEIGHTS[kind], alpha=alpha), FENCE


def masonry(kind: str, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A wall of stones, bricks or, against noise, panels."""
    colour, (w, h) = WALLS[kind], size
    rgb = plaster(rng, size, tone(colour, 0.8), 0.4)
    draw = ImageDraw.Draw(rgb)
    if kind == "noise":
        for x in range(0, w, 12):
            draw.line((x, 0, x, h), fill=tone(colour, 0.72 if x % 120 else 0.45), width=4 if x % 120 else 8)
    else:
        paint_bricks(draw, rng, size, colour, *((26, 16) if kind == "stone" else (16, 7)))
    draw.rectangle((0, 0, w, 7), fill=tone(colour, 1.25))
    draw.rectangle((0, 8, w, 10), fill=tone(colour, 0.5))
    return rgb


def hedge(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Leaves, darker towards the ground."""
    rgb, (w, h) = Image.new("RGB", size, (40, 62, 30)), size
    draw = ImageDraw.Draw(rgb)
    for _ in range(2600):
        x, y = rng.uniform(0, w), rng.uniform(0, h)
        leaf = tone((88, 124, 56), rng.uniform(0.55, 1.05) * (1.15 - 0.55 * y / h))
        draw.ellipse((x - 3, y - 2, x + 3, y + 3), fill=leaf)
    return rgb


def fence(kind: str, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """Colours and opacity of posts and bars."""
    (ink, step, thick), (w, h) = FENCES[kind], size
    rgb, alpha = Image.new("RGB", size, ink), Image.new("L", size)
    draw, see = ImageDraw.Draw(rgb), ImageDraw.Draw(alpha)
    for x in range(0, w, step):
        see.rectangle((x, 0, x + thick, h), fill=255)
        draw.line((x + thick - 1, 0, x + thick - 1, h), fill=tone(ink, 0.65), width=2)
    for y in {"rail": range(4, h // 2, 9), "mesh": range(0, h, 9)}.get(kind, (8, h - 22)):
        see.rectangle((0, y, w, y + (6 if kind != "mesh" else 1)), fill=255)
    if kind in ("iron", "mesh"):
        for x in range(0, w, 120):
            see.rectangle((x, 0, x + 9, h), fill=255)
    return rgb, alpha


def add_barrier(street: Street, kind: str, x: float, z0: float, z1: float, height: float | None = None) -> None:
    """Stands a barrier along the street from `z0` to `z1`, in pieces that follow its bend; all in metres."""
    texture, label = barrier(kind)
    z = max(z0, 0.2)
    while z < z1:
        end = min(z + (6.0 if z < 20 else 12.0), z1)
        p, q = street.place(x, z), street.place(x, end)
        k = street.rng.uniform(0.92, 1.05) * street.canvas.lit((-math.copysign(1, x), 0, 0))
        top = height or texture.height
        street.add(end, Canvas.wall, texture, (p.x, 0.0, p.z), (q.x, 0.0, q.z), top, label, (k, k, k))
        z = end
