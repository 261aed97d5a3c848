"""Foliage: cut-outs of trees and bushes, each made once per process."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .canvas import Cutout
from .chance import pick
from .colours import Colour, tone


HEIGHT = 480
WIDTHS = {"poplar": 170, "conifer": 280, "bush": 560}  # any other kind: 440
# row, half height and half width of the crown, and how many clumps of leaves it has
CROWNS = {"poplar": (225, 200, 58, 60), "bush": (310, 160, 250, 75), "birch": (185, 165, 185, 46)}
CROWN = (185, 165, 185, 64)
# The fourth channel tells what there is: nothing (0), something, something that snow covers.
BARE, SNOWY = 100, 200


@cache
def foliage(kind: str, variant: int, flip: bool = False) -> tuple[Cutout, ...]:
    """A tree or bush lit from the upper left (flipped: right), at full, a half and a fifth of `HEIGHT` pixels."""
    rng = np.random.default_rng([variant, len(kind), ord(kind[0])])
    w, h = WIDTHS.get(kind, 440), HEIGHT
    green = pick(rng, ((96, 128, 52), (108, 138, 60), (84, 118, 58), (126, 136, 58), (116, 130, 48)))
    if kind == "conifer":
        green = pick(rng, ((58, 94, 62), (66, 98, 74), (62, 90, 46)))
    image = Image.new("RGBA", (w, h), (*tone(green, 0.7), 0))
    draw = ImageDraw.Draw(image)
    bark = (176, 170, 158) if kind == "birch" else pick(rng, ((92, 72, 54), (104, 86, 68), (80, 66, 56)))
    if kind != "bush":
        paint_trunk(draw, rng, kind, w, bark)
    paint_leaves(draw, rng, kind, w, green, conifer_crown(rng, w) if kind == "conifer" else crown(rng, kind, w))
    there = image.getchannel("A")
    snow = there.point([0, *[20] * BARE, *[230] * (255 - BARE)])
    layers = [image.convert("RGB"), there.point([0] + [255] * 255), snow]
    layers = [layer.transpose(Image.FLIP_LEFT_RIGHT) if flip else layer for layer in layers]
    return Cutout(*layers), *(Cutout(*(layer.reduce(factor) for layer in layers)) for factor in (2, 5))


def paint_trunk(draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: str, w: int, bark: Colour) -> None:
    """Trunk, bark and branches in a picture `w` pixels wide."""
    h = HEIGHT
    lean, t = rng.uniform(-10, 10), 7 if kind == "poplar" else w * 0.03
    trunk = [(w / 2 - t, h), (w / 2 - t * 0.6 + lean, 160), (w / 2 + t * 0.6 + lean, 160), (w / 2 + t, h)]
    draw.polygon(trunk, fill=(*tone(bark, 0.72), BARE))
    draw.polygon([trunk[0], trunk[1], (w / 2 + lean, 160), (w / 2 - t * 0.1, h)], fill=(*bark, BARE))
    for y in range(170, h, 5):
        x, k = w / 2 + rng.uniform(-t, t) * 0.8, rng.uniform(0.5, 0.9)
        draw.line((x, y, x + 3, y + 2 if kind == "birch" else y + 14), fill=(*tone(bark, k), BARE), width=2)
    for _ in range(8 if kind not in ("conifer", "poplar") else 0):
        start = w / 2 + lean * 0.5, rng.uniform(240, 320)
        end = w / 2 + rng.uniform(-0.3, 0.3) * w, rng.uniform(90, 220)
        draw.line((start, end), fill=(*tone(bark, 0.65), BARE), width=6)


def conifer_crown(rng: np.random.Generator, w: int) -> list[tuple[float, float, float]]:
    """Column, row and radius of the clumps of leaves: tiers that widen towards the ground."""
    found = []
    for y in np.linspace(420, 16, 34):
        half = y * 0.25 * rng.uniform(0.85, 1.1)
        tier = rng.permutation(np.linspace(-1, 1, 7))
        found += [(w / 2 + s * half, y + abs(s) * 14, 7 + half * 0.12) for s in tier]
    return found


def crown(rng: np.random.Generator, kind: str, w: int) -> list[tuple[float, float, float]]:
    """Column, row and radius of the clumps of leaves: an elliptic crown, roughly from below upwards."""
    cy, ry, rx, count = CROWNS.get(kind, CROWN)
    found = []
    for _ in range(count):
        turn, r = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
        size = rng.uniform(0.13, 0.24) * rx * (0.75 if kind == "birch" else 1.0) + 6
        found.append((w / 2 + rx * 0.84 * r * math.cos(turn), cy + ry * 0.86 * r * math.sin(turn), size))
    return sorted(found, key=lambda c: -c[1] + 60 * rng.random())


def paint_leaves(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    kind: str,
    w: int,
    green: Colour,
    clumps: list[tuple[float, float, float]],
) -> None:
    """Leaves around each clump, lighter at the top and towards the light."""
    top, bottom = min(c[1] for c in clumps), max(c[1] for c in clumps)
    count = {"birch": 50, "conifer": 40}.get(kind, 80)
    for x, y, r in clumps:
        level = 0.6 + 0.4 * (1 - (y - top) / (bottom - top)) - 0.2 * (x - w / 2) / w + rng.uniform(-0.08, 0.08)
        hue = (green[0] * rng.uniform(0.92, 1.1), green[1], green[2] * rng.uniform(0.85, 1.1))
        offsets = np.clip(rng.normal(0, 0.5, (count, 2)), -1.2, 1.2) * r
        offsets = offsets[np.argsort(-offsets[:, 1])]
        light = level + rng.uniform(-0.13, 0.13, count) - 0.3 * (offsets @ (0.5, 0.8)) / r
        inks = np.clip(np.outer(1.16 * light, hue), 0, 255).astype(int).tolist()
        sizes = rng.uniform(1.6, 3.9, (count, 2)).tolist()
        for (dx, dy), ink, (sx, sy) in zip(offsets.tolist(), inks, sizes, strict=True):
            u, v = x + dx, min(y + dy, HEIGHT - 4)
            leaf = [(u - sx, v), (u, v - sy), (u + sx, v + sy * 0.3), (u + sx * 0.2, v + sy)]
            draw.polygon(leaf, fill=(*ink, SNOWY if dy < -0.12 * r else BARE))
