"""People, made of limbs: on foot or riding."""

import numpy as np

from .canvas import Canvas, Point
from .chance import pick
from .colours import COATS, PAINTS, Colour, tone
from .labels import PERSON, RIDER
from .places import Place


SKINS = ((226, 180, 150), (190, 138, 104), (130, 88, 64))
HAIRS = ((52, 38, 30), (96, 66, 40), (170, 136, 84), (40, 40, 44))
SHOE = (40, 34, 32)
Limb = tuple[Point, Point, float, float, Colour]  # from and to (ahead, right, up), a radius at each, in metres


def paint_limbs(canvas: Canvas, place: Place, limbs: list[Limb], label: int) -> None:
    """Paints limbs far to near."""
    body = [(place(*p), place(*q), rp, rq, ink) for p, q, rp, rq, ink in limbs]
    for p, q, rp, rq, ink in sorted(body, key=lambda b: -(b[0][2] + b[1][2])):
        canvas.limb(p, q, rp, rq, ink, label)


def paint_person(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A standing or walking person, 1.1 to 1.95 m tall."""
    k = rng.uniform(0.92, 1.1) if rng.random() < 0.85 else rng.uniform(0.62, 0.75)
    coat, legs, skin, hair = pick(rng, COATS), pick(rng, COATS), pick(rng, SKINS), pick(rng, HAIRS)
    legs, sleeve = tone(legs, 0.55), tone(coat, 0.92)
    stride = rng.uniform(0.12, 0.34) if rng.random() < 0.75 else 0.02
    limbs = [
        ((0, 0, 0.98), (0.03, 0, 1.36), 0.15, 0.15, coat),
        ((0.03, -0.13, 1.37), (0.03, 0.13, 1.37), 0.085, 0.085, coat),
    ]
    for s in (-1, 1):
        knee, foot = (stride * s * 0.55 + 0.03, 0.09 * s, 0.5), (stride * s, 0.09 * s, 0.09)
        elbow, hand = (-stride * s * 0.5, 0.25 * s, 1.1), (-stride * s * 0.6 + 0.09, 0.24 * s, 0.83)
        limbs += [
            ((0, 0.08 * s, 0.95), knee, 0.095, 0.07, legs),
            (knee, foot, 0.07, 0.05, legs),
            (foot, (foot[0] + 0.14, foot[1], 0.05), 0.05, 0.045, SHOE),
            ((0.02, 0.2 * s, 1.38), elbow, 0.06, 0.055, sleeve),
            (elbow, (-stride * s * 0.6 + 0.08, 0.24 * s, 0.86), 0.052, 0.04, sleeve),
            (hand, hand, 0.045, 0.045, skin),
        ]
    if rng.random() < 0.45:  # the skirt of a coat
        limbs.append(((0, 0, 1.0), (0, 0, rng.uniform(0.55, 0.8)), 0.15, 0.21, coat))
    if rng.random() < 0.35:
        bag = pick(rng, COATS)
        limbs.append(((-0.2, 0, 1.08), (-0.18, 0, 1.32), 0.13, 0.12, tone(bag, 0.8)))
    nape = 1.48 if rng.random() < 0.4 else 1.6
    limbs += [
        ((0.03, 0, 1.45), (0.03, 0, 1.5), 0.055, 0.055, skin),
        ((0.04, 0, 1.57), (0.04, 0, 1.63), 0.092, 0.1, skin),
        ((-0.03, 0, nape), (0.0, 0, 1.67), 0.1, 0.102, hair),
        ((0.03, 0, 1.7), (0.03, 0, 1.7), 0.09, 0.09, hair),
    ]
    scaled = [(tuple(c * k for c in p), tuple(c * k for c in q), a * k, b * k, ink) for p, q, a, b, ink in limbs]
    canvas.blot(place.x, place.z, 0.32, 0.3, place.base)
    canvas.cast(place.x, place.z, 1.7 * k, 0.16)
    paint_limbs(canvas, place, scaled, PERSON)


def paint_rider(canvas: Canvas, place: Place, rng: np.random.Generator, motor: bool) -> None:
    """Who sits on the bicycle or motorcycle at `place`."""
    coat, legs, skin = pick(rng, COATS), tone(pick(rng, COATS), 0.6), pick(rng, SKINS)
    sleeve = tone(coat, 0.92)
    lift, foot_y = (-0.06, 0.4) if motor else (0.06, 0.3)
    limbs = [
        ((-0.2, 0, 0.98 + lift), (0.1, 0, 1.4 + lift), 0.16, 0.16, coat),
        ((0.1, -0.13, 1.42 + lift), (0.1, 0.13, 1.42 + lift), 0.08, 0.08, coat),
    ]
    for s in (-1, 1):
        knee, foot = (0.22, 0.15 * s, 0.72 + 0.1 * s), (0.02, 0.13 * s, foot_y + 0.09 * s)
        elbow, hand = (0.2, 0.29 * s, 1.15), (0.4, 0.26 * s, 1.08)
        limbs += [
            ((-0.18, 0.09 * s, 0.95 + lift), knee, 0.1, 0.075, legs),
            (knee, foot, 0.07, 0.05, legs),
            (foot, (0.15, 0.13 * s, foot_y + 0.07 * s), 0.05, 0.045, SHOE),
            ((0.1, 0.2 * s, 1.42 + lift), elbow, 0.06, 0.052, sleeve),
            (elbow, hand, 0.05, 0.04, skin if not motor else coat),
        ]
    helmet = pick(rng, PAINTS) if motor or rng.random() < 0.6 else pick(rng, HAIRS)
    limbs += [
        ((0.16, 0, 1.5 + lift), (0.2, 0, 1.66 + lift), 0.07, 0.1, skin),
        ((0.15, 0, 1.7 + lift), (0.2, 0, 1.71 + lift), 0.115, 0.11, helmet),
    ]
    if motor:
        limbs.append(((0.12, 0, 1.6 + lift), (0.14, 0, 1.68 + lift), 0.12, 0.12, helmet))
    paint_limbs(canvas, place, limbs, RIDER)
