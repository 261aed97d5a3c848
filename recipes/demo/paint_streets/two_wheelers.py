"""Bicycles and motorcycles."""

import math

import numpy as np

from .canvas import Canvas
from .chance import pick
from .colours import PAINTS, Colour
from .labels import BICYCLE, MOTORCYCLE
from .people import paint_limbs, paint_rider
from .places import Place


# radius of a wheel, half the distance of the axles, radius of a tyre and of a spoke, in metres
MOTORCYCLE_WHEELS = (0.31, 0.68, 0.075, 0.02)
BICYCLE_WHEELS = (0.35, 0.53, 0.03, 0.006)


def paint_two_wheeler(canvas: Canvas, place: Place, rng: np.random.Generator, motor: bool, ridden: bool) -> None:
    """A bicycle or motorcycle, with or without its rider."""
    ink = pick(rng, PAINTS)
    canvas.blot(place.x, place.z, 0.2 + 0.6 * abs(math.sin(place.yaw)), 0.4, place.base)
    canvas.cast(place.x, place.z, 1.6 if ridden else 1.0, 0.2)
    (paint_motorcycle if motor else paint_bicycle)(canvas, place, ink)
    if ridden:
        paint_rider(canvas, place, rng, motor)


def paint_wheels(canvas: Canvas, place: Place, wheels: tuple[float, float, float, float], label: int) -> None:
    """Two wheels with spokes."""
    r, gap, tyre, spoke = wheels
    turn = np.linspace(0, 2 * math.pi, 17)
    for a in (-gap, gap):
        canvas.stroke([place(a + r * math.cos(t), 0, r + r * math.sin(t)) for t in turn], tyre, (30, 30, 32), label)
        for t in turn[:8:2]:
            x, y = r * math.cos(t), r * math.sin(t)
            canvas.stroke([place(a - x, 0, r - y), place(a + x, 0, r + y)], spoke, (120, 120, 122), label)


def paint_motorcycle(canvas: Canvas, place: Place, ink: Colour) -> None:
    """Saddle, tank, engine, fork, handlebar and exhaust, and the lamp at the end that faces the camera."""
    paint_wheels(canvas, place, MOTORCYCLE_WHEELS, MOTORCYCLE)
    limbs = [
        ((-0.75, 0, 0.78), (-0.1, 0, 0.82), 0.1, 0.15, (44, 40, 40)),
        ((0.0, 0, 0.9), (0.35, 0, 0.92), 0.17, 0.15, ink),
        ((-0.3, 0, 0.45), (0.25, 0, 0.45), 0.2, 0.2, (92, 92, 96)),
        ((0.45, 0, 1.0), (0.68, 0, 0.32), 0.07, 0.06, ink),
        ((0.4, -0.36, 1.08), (0.4, 0.36, 1.08), 0.035, 0.035, (36, 36, 38)),
        ((-0.8, 0.12, 0.4), (-0.1, 0.14, 0.34), 0.06, 0.05, (170, 170, 172)),
    ]
    paint_limbs(canvas, place, limbs, MOTORCYCLE)
    end = 1 if math.cos(place.yaw) < 0 else -1
    lamp = place(0.62 * end + 0.1, 0, 0.85)
    canvas.limb(lamp, lamp, 0.09, 0.09, (240, 240, 226) if end > 0 else (190, 30, 26), MOTORCYCLE)


def paint_bicycle(canvas: Canvas, place: Place, ink: Colour) -> None:
    """Frame, fork, handlebar and saddle."""
    paint_wheels(canvas, place, BICYCLE_WHEELS, BICYCLE)
    r, gap, *_ = BICYCLE_WHEELS
    seat, bar, crank = (-0.2, 0, 0.92), (0.4, 0, 1.02), (-0.05, 0, 0.32)
    head, post = (0.36, 0, 0.82), (-0.17, 0, 0.82)
    tubes = [(seat, crank), (crank, head), (head, post), (crank, (-gap, 0, r)), ((-gap, 0, r), post)]
    tubes += [(bar, (gap, 0, r)), ((0.4, -0.27, 1.04), (0.4, 0.27, 1.04))]
    for p, q in tubes:
        canvas.stroke([place(*p), place(*q)], 0.024, ink, BICYCLE)
    canvas.limb(place(-0.3, 0, 0.95), place(-0.1, 0, 0.96), 0.06, 0.04, (40, 36, 34), BICYCLE)
