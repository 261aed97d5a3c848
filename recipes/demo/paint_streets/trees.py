"""Trees and bushes standing along a street."""

import numpy as np

from .canvas import Canvas, circle
from .chance import pick
from .foliage import foliage
from .labels import VEGETATION
from .street import Street


TREES = ("round", "round", "round", "poplar", "conifer", "birch")


def add_tree(street: Street, x: float, z: float, kind: str, key: float | None = None) -> None:
    """A tree or bush at (x, z) metres with its shadow; `key`: painted as if this far away, not `z`."""
    rng, canvas, place = street.rng, street.canvas, street.place(x, z)
    height = rng.uniform(1.0, 2.2) if kind == "bush" else rng.uniform(5.5, 10.5)
    tint = np.full(3, rng.uniform(0.85, 1.12)) * (rng.uniform(0.9, 1.2), 1.0, rng.uniform(0.85, 1.1))
    if rng.random() < 0.07:  # autumn
        tint *= (1.28, 1.0, 0.65)
    image = foliage(kind, int(rng.integers(4)), canvas.light[0] > 0)
    for _ in range(10 if z < 45 else 0):
        k, r = height * rng.uniform(0.35, 1.0), height * rng.uniform(0.05, 0.15)
        dx, dz = canvas.reach(k)
        u, v = place.x + dx + rng.normal(0, height * 0.13), z + dz + rng.normal(0, height * 0.13)
        canvas.shadow([(u + r * c, v + r * s) for c, s in circle(8)], 130)
    canvas.blot(place.x, z, 0.35 if kind != "bush" else height * 0.5, 0.3)
    if kind != "bush":
        canvas.cast(place.x, z, height * 0.6, 0.15)
    street.add(z if key is None else key, Canvas.sprite, image, (place.x, 0.0, z), height, VEGETATION, tint)


def add_garden(street: Street, side: int, x: float, z0: float, z1: float) -> None:
    """Trees and bushes behind the line `x`, from `z0` to `z1`; in metres."""
    rng = street.rng
    for _ in range(int(rng.integers(2, 6))):
        far = rng.uniform(0.5, 14)
        if z1 > 8:
            z = rng.uniform(max(z0, 7), z1)
            add_tree(street, x + side * far, z, pick(rng, (*TREES, "bush", "bush")), key=z1 + far)
