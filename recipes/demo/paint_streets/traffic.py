"""What moves: vehicles, two-wheelers and people."""

import math
from typing import NamedTuple

import numpy as np

from . import canvas as c
from .canvas import Canvas, Colour, Place, pick, tone


GLASS, RUBBER, METAL, LIGHT_PAINT = (52, 61, 72), (26, 26, 28), (150, 152, 156), (214, 212, 204)
SKINS = ((226, 180, 150), (190, 138, 104), (130, 88, 64))
# fmt: off
PAINTS = ((196, 198, 202), (226, 226, 224), (58, 62, 68), (120, 126, 132), (168, 42, 38), (40, 70, 128),
          (206, 178, 92), (64, 88, 70), (150, 92, 52), (96, 36, 44), (34, 36, 42), (72, 102, 140), (120, 70, 110))


class Body(NamedTuple):
    """One extruded part of a vehicle, in metres."""

    half: float  # half width
    belt: float  # height above which there are side windows
    glass: tuple[int, ...]  # which stretches of the outline are panes
    outline: tuple[tuple[float, float], ...]  # of its side, (ahead, up): from rear bottom over the top to front bottom


HATCH = Body(.86, .95, (1, 3), ((-1.9, .3), (-1.9, .95), (-1.45, 1.45), (.4, 1.45), (1.2, 1), (1.9, .8), (1.98, .3)))
SEDAN = Body(.9, 1, (2, 4), ((-2.2, .3), (-2.2, 1), (-1.7, 1), (-.9, 1.4), (.3, 1.4), (1.2, 1), (2.1, .8), (2.2, .3)))
VAN = Body(.97, 1.1, (1, 3), ((-2.4, .3), (-2.4, 1.1), (-2.3, 1.95), (1.1, 1.95), (1.9, 1.15), (2.4, .95), (2.5, .3)))
BOX = Body(1.22, 9, (), ((-4.2, .6), (-4.2, 3.5), (1.4, 3.5), (1.4, .6)))
CAB = Body(1.18, 1.5, (2,), ((1.5, .45), (1.5, 2.8), (3.1, 2.8), (3.65, 1.5), (3.8, .4)))
COACH = Body(1.25, 1.3, (1, 3), ((-5.6, .35), (-5.65, 1.4), (-5.5, 3.1), (5.4, 3.1), (5.7, 1.3), (5.72, .32)))
TRAM = Body(1.22, 1.4, (1, 3), ((-8, .3), (-8.2, 1.4), (-7.5, 3.2), (7.5, 3.2), (8.2, 1.4), (8, .3)))
# kind -> class, bodies from rear to front, axles (metres ahead of the middle) and radius of the wheels
VEHICLES = {
    "hatch": (c.CAR, (HATCH,), (-1.2, 1.25), 0.32), "sedan": (c.CAR, (SEDAN,), (-1.5, 1.5), 0.32),
    "van": (c.CAR, (VAN,), (-1.6, 1.65), 0.35), "truck": (c.TRUCK, (BOX, CAB), (-3.0, -2.0, 2.7), 0.48),
    "bus": (c.BUS, (COACH,), (-3.2, 3.3), 0.48), "tram": (c.TRAIN, (TRAM,), (), 0.4),
}
# class -> radius of a wheel and of a tyre, half the distance of the axles; tubes: radius, points (ahead, up)
TWO_WHEELERS = {
    c.BICYCLE: (0.35, 0.03, 0.53, (
        (0.025, ((-0.2, 0.92), (0, 0.32), (0.36, 0.82), (-0.17, 0.82), (-0.53, 0.35), (0, 0.32))),
        (0.025, ((0.4, 1.02), (0.53, 0.35))))),
    c.MOTORCYCLE: (0.31, 0.075, 0.68, (
        (0.12, ((-0.75, 0.78), (-0.1, 0.82))), (0.2, ((-0.3, 0.45), (0.25, 0.45))),
        (0.065, ((0.4, 1.05), (0.68, 0.32))), (0.16, ((0, 0.9), (0.35, 0.92))))),
}
# fmt: on


def paint_vehicle(canvas: Canvas, place: Place, rng: np.random.Generator, kind: str) -> None:
    """A vehicle (`kind` of `VEHICLES`) with its shadow, the farther body first."""
    label, bodies, axles, radius = VEHICLES[kind]
    colour = pick(rng, PAINTS)
    for body in bodies if math.cos(place.yaw) < 0 else bodies[::-1]:
        (low, _), *_, (high, _) = body.outline
        w = body.half
        corners = ((low, -w), (high, -w), (high, w), (low, w))
        canvas.shadow([place(ahead, right, 0) for ahead, right in corners], 0.0, body.outline[2][1])
        wheels = [a for a in axles if low < a < high]
        for a in (low + 0.3, *wheels, high - 0.4):  # the dark underside, and the tyres below it
            canvas.face(place.upright(a, -w, w, 0.0 if a in wheels else 0.2, 0.6), RUBBER, label)
        paint_body(canvas, body, place, LIGHT_PAINT if body is BOX else colour, label)
        for a, side in ((a, side) for a in wheels for side in (-1, 1)):
            for k, ink in ((1.1, RUBBER), (0.6, METAL)):
                turn = np.linspace(0, 6, 14)[::side]
                ring = zip(a + k * radius * np.cos(turn), radius * (1 + k * np.sin(turn)), strict=True)
                canvas.solid([place(u, side * (w + 0.01), max(v, 0.0)) for u, v in ring], ink, label)
    paint_end(canvas, bodies[0], place, -1, label)
    paint_end(canvas, bodies[-1], place, 1, label)


def paint_body(canvas: Canvas, body: Body, place: Place, colour: Colour, label: int) -> None:
    """The strips across the body (rear, roof, bonnet; far to near), then the sides, with their windows."""
    stretches = [(i, *np.array(body.outline[i : i + 2])) for i in range(len(body.outline) - 1)]
    for i, low, high in sorted(stretches, key=lambda stretch: -place(stretch[1][0] + stretch[2][0], 0, 0)[2]):
        for share, ink in ((1.0, colour), (0.85, GLASS)) if i in body.glass else ((1.0, colour),):
            along, out = share * (high - low) / 2, share * body.half
            (a0, y0), (a1, y1) = (low + high) / 2 - along, (low + high) / 2 + along
            quad = ((a0, -out, y0), (a0, out, y0), (a1, out, y1), (a1, -out, y1))
            canvas.solid([place(*corner) for corner in quad], ink, label)
    glow = c.COOL if label in (c.BUS, c.TRAIN) else c.NONE
    for side in (-1, 1):
        outline = [place(a, side * body.half, y) for a, y in body.outline]
        if canvas.solid(outline[::-side], colour, label) and body.glass:
            band = [(0.92 * a, body.belt + 0.05 + 0.8 * (y - body.belt)) for a, y in body.outline if y >= body.belt]
            canvas.face([place(a, side * body.half, y) for a, y in band], GLASS, label, glow)


def paint_end(canvas: Canvas, body: Body, place: Place, end: int, label: int) -> None:
    """Bumper and lamps of the rear (-1) or the front (1), if it faces the camera."""
    a, w = body.outline[0 if end < 0 else -1][0] + end * 0.08, body.half
    if canvas.solid(place.upright(a, -0.95 * w, 0.95 * w, 0.3, 0.44)[::-end], (42, 44, 48), label):
        ink, glow = ((236, 238, 228), c.HEAD) if end > 0 else ((176, 26, 24), c.RED)
        for b in (-0.95 * w, 0.65 * w):
            canvas.face(place.upright(a, b, b + 0.3 * w, 0.7, 0.87), ink, label, glow)


def paint_two_wheeler(canvas: Canvas, place: Place, rng: np.random.Generator, label: int, ridden: bool) -> None:
    """A bicycle or motorcycle, with or without its rider."""
    (radius, tyre, half, tubes), ink = TWO_WHEELERS[label], pick(rng, PAINTS)
    for a in (-half, half):
        rim = [place(a + radius * math.cos(t), 0, radius + radius * math.sin(t)) for t in np.linspace(0, 6.28, 17)]
        canvas.tube(rim, tyre, RUBBER, label)
        canvas.tube([rim[i] for i in (0, 8, 10, 2, 4, 12, 14, 6)], 0.006, METAL, label)  # the spokes
    for r, points in tubes:
        canvas.tube([place(a, 0, y) for a, y in points], r, ink, label)
    canvas.tube([place(0.4, -0.3, 1.05), place(0.4, 0.3, 1.05)], 0.03, RUBBER, label)  # the handlebar
    canvas.shadow(place.disc(0.3), 0.0, 1.0)
    if ridden:
        paint_person(canvas, place, rng, c.RIDER)


def paint_person(canvas: Canvas, place: Place, rng: np.random.Generator, label: int = c.PERSON) -> None:
    """A person, walking or (label RIDER) on a two-wheeler: tubes from far to near."""
    canvas.shadow(place.disc(0.3), 0.0, 1.6)
    walks, stride = label == c.PERSON, rng.uniform(0.02, 0.34)
    k = rng.uniform(0.92, 1.1) * (0.68 if walks and rng.random() < 0.15 else 1.0)  # Some are children.
    coat, trousers, hair, skin = *(pick(rng, PAINTS) for _ in range(3)), pick(rng, SKINS)
    # the joints of hip and chest, head and nape, (ahead, right, up) in metres
    trunk = ((0, 0, rng.uniform(0.7, 1.0)), (0.03, 0, 1.36)) if walks else ((-0.2, 0, 1.0), (0.1, 0, 1.4))
    head, nape = ((0.04, 0, 1.62), (0.0, 0, 1.68)) if walks else ((0.19, 0, 1.63), (0.16, 0, 1.69))
    limbs = [(*trunk, 0.17, coat), (head, head, 0.1, skin), (nape, nape, 0.105, hair)]
    for side, step in ((-1, stride), (1, -stride)):
        if walks:
            leg = ((0.0, 0.09, 0.95), (0.55 * step + 0.03, 0.09, 0.5), (step, 0.09, 0.07))
            arm = ((0.03, 0.19, 1.4), (-0.5 * step, 0.25, 1.1), (-0.6 * step + 0.08, 0.24, 0.84))
        else:
            leg = ((-0.18, 0.09, 0.97), (0.22, 0.15, 0.72 + 0.1 * side), (0.05, 0.13, 0.34 + 0.08 * side))
            arm = ((0.1, 0.19, 1.42), (0.2, 0.29, 1.15), (0.4, 0.26, 1.08))
        for joints, r, ink, end in ((leg, 0.075, tone(trousers, 0.6), RUBBER), (arm, 0.052, tone(coat, 0.9), skin)):
            upper, middle, tip = ((ahead, side * out, up) for ahead, out, up in joints)
            limbs += [(upper, middle, 1.15 * r, ink), (middle, tip, 0.85 * r, ink), (tip, tip, 0.06, end)]
    placed = [([place(*(k * m for m in p)) for p in ends], k * r, ink) for *ends, r, ink in limbs]
    for ends, r, ink in sorted(placed, key=lambda limb: -(limb[0][0][2] + limb[0][1][2])):
        canvas.tube(ends, r, ink, label)
