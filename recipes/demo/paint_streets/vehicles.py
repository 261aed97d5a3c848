"""Cars, trucks, buses and trams."""

import math
from typing import NamedTuple

import numpy as np

from .bodies import VEHICLES, Body, Vehicle
from .canvas import Canvas, Point, circle
from .colours import AMBER, COOL, HEAD, NONE, TAIL, Colour, tone
from .labels import BUS, TRAIN, TRUCK
from .places import Place


GLASS, SHEEN = (44, 52, 62), (92, 106, 118)


class Side(NamedTuple):
    """The side of a body that is turned to the camera."""

    body: Body
    place: Place
    sign: float  # 1: the right side

    def __call__(self, a: float, y: float, out: float = 0.0) -> Point:
        """The point `a` metres ahead, `y` up, and `out` metres before the side."""
        return self.place(a, self.sign * (self.body.half_at(y) + out), y)


def paint_vehicle(canvas: Canvas, kind: str, place: Place, colour: Colour) -> None:
    """Paints a vehicle (`kind` of `VEHICLES`) with its shadows, farther body first."""
    spec = VEHICLES[kind]
    label, reach = spec.label, spec.bodies[-1].outline[-1][0]
    back, half = spec.bodies[0].outline[0][0], spec.bodies[0].half
    paint_shadows(canvas, place, back, reach, half, max(body.top for body in spec.bodies))
    for a in (*spec.wheels, back + 0.3, reach - 0.4):  # Tyres and the dark underside, seen below the bumpers.
        tyres = ((-half, -half + 0.24, 0.0), (half - 0.24, half, 0.0)) if a in spec.wheels else ()
        for b0, b1, y0 in (*tyres, (-half, half, 0.22)):
            canvas.face(place.upright(a, b0, b1, y0, 0.42 if label != TRAIN else 0.5), (24, 24, 26), label)
    for body in sorted(spec.bodies, key=lambda b: -place(sum(p[0] for p in b.outline) / len(b.outline), 0, 0)[2]):
        paint_body(canvas, body, place, colour if body.paint else tone((224, 222, 214), 0.95), spec)
    paint_end(canvas, place, spec.bodies[0], -1, label)
    paint_end(canvas, place, spec.bodies[-1], 1, label)
    if label == TRAIN:  # the pantograph
        canvas.stroke([place(-1, 0, 3.2), place(-0.3, 0, 4.2), place(0.4, 0, 4.6)], 0.04, (60, 60, 62), TRAIN)


def paint_shadows(canvas: Canvas, place: Place, back: float, reach: float, half: float, height: float) -> None:
    """Shadows of a box from `back` to `reach` metres ahead: soft ones of contact, and that of the sun."""
    corners = ((back, -half), (reach, -half), (reach, half), (back, half))
    for grow, strength in ((0.35, 70), (0.1, 150), (-0.1, 190)):
        points = [place(a + math.copysign(grow, a), b + math.copysign(grow, b), 0) for a, b in corners]
        canvas.shadow([(p[0], p[2]) for p in points], strength, contact=True)
    points = [place(a, b, 0) for a, b in corners]
    dx, dz = canvas.reach(height)
    for k in np.linspace(0.1, 0.9, 4):
        canvas.shadow([(p[0] + dx * k, p[2] + dz * k) for p in points], 130)


def paint_body(canvas: Canvas, body: Body, place: Place, colour: Colour, spec: Vehicle) -> None:
    """The strips over the outline of a body, then the side that faces the camera with windows and wheels."""
    outline, label = body.outline, spec.label
    low, high = outline[0][0], outline[-1][0]
    centre = place((low + high) / 2, 0, body.top * 0.45)
    paint_strips(canvas, body, place, colour, label, centre)
    side = Side(body, place, math.copysign(1.0, -(place.x * math.cos(place.yaw) - place.z * math.sin(place.yaw))))
    if not canvas.face([side(a, y) for a, y in outline], colour, label, centre, snow=0):
        return
    canvas.face([side(low, 0.3), side(low, 0.5), side(high, 0.5), side(high, 0.3)], tone(colour, 0.55), label)
    if body.belt < 2:
        crease = [side(low, body.belt - 0.1), side(low, body.belt - 0.04)]
        crease += [side(high - 0.3, body.belt - 0.12), side(high - 0.3, body.belt - 0.18)]
        canvas.face(crease, tone(colour, 1.18), label)
    if body.panes:
        paint_panes(canvas, side, label)
    else:
        paint_car_side(canvas, side, colour, label)
    for a in spec.wheels:
        if low - 0.1 < a < high + 0.1:
            paint_wheel(canvas, side, a, spec.radius, label)


def paint_strips(canvas: Canvas, body: Body, place: Place, colour: Colour, label: int, centre: Point) -> None:
    """Bonnet, roof, front and rear: the stretches of the outline across the body, far to near, some of glass."""
    strips = [(i, *body.outline[i], *body.outline[i + 1]) for i in range(len(body.outline) - 1)]
    for i, a0, y0, a1, y1 in sorted(strips, key=lambda s: -place((s[1] + s[3]) / 2, 0, 0)[2]):
        w0, w1 = body.half_at(y0), body.half_at(y1)
        quad = [place(a0, -w0, y0), place(a0, w0, y0), place(a1, w1, y1), place(a1, -w1, y1)]
        bumper = max(y0, y1) < 0.66 and label not in (BUS, TRAIN)
        if not canvas.face(quad, tone(colour, 0.62) if bumper else colour, label, centre) or i not in body.glass:
            continue
        lo, hi = (0.1, 0.92) if y0 < y1 else (0.08, 0.9)
        pane = ((-0.88, lo), (0.88, lo), (0.88, hi), (-0.88, hi))  # (share of the half width, share of the way up)
        gleam = ((-0.8, lo), (-0.15, lo), (-0.5, hi), (-0.84, hi))
        for shape, ink in ((pane, (48, 56, 66)), (gleam, (84, 98, 112))):
            points = [place(a0 + (a1 - a0) * t, (w0 + (w1 - w0) * t) * s, y0 + (y1 - y0) * t) for s, t in shape]
            canvas.face(points, ink, label)


def paint_panes(canvas: Canvas, side: Side, label: int) -> None:
    """The side windows that a body lists, lit at night if people travel behind them."""
    glow = COOL if label in (BUS, TRAIN) else NONE
    for a0, a1, y0, y1 in side.body.panes:
        if a1 > a0:
            canvas.face([side(a0, y0), side(a0, y1), side(a1, y1), side(a1, y0)], GLASS, label, glow=glow)
            sheen = [side(a0, (y0 + y1) / 2), side(a0, y1), side((a0 + a1) / 2, y1)]
            canvas.face(sheen, SHEEN, label, glow=glow)


def paint_car_side(canvas: Canvas, side: Side, colour: Colour, label: int) -> None:
    """The side windows of a car between its rear and front panes; pillars, doors and mirror."""
    body = side.body
    (rear, front), outline = body.glass, body.outline
    r0, r1, f1, f0 = outline[rear], outline[rear + 1], outline[front], outline[front + 1]
    bottom, roof = body.belt + 0.04, body.top - 0.1
    quad = [side(r0[0] + 0.16, bottom), side(r1[0] + 0.16, roof), side(f1[0] - 0.12, roof), side(f0[0] - 0.22, bottom)]
    canvas.face(quad, GLASS, label)
    canvas.face([quad[0], quad[1], side(r1[0] + 0.7, roof)], SHEEN, label)
    for a in (-0.25, -1.15):
        pillar = [side(a, bottom), side(a, roof), side(a + 0.1, roof), side(a + 0.1, bottom)]
        canvas.face(pillar, tone(colour, 0.7), label)
    for a in (-0.2, -1.1) if side.place.z < 30 else ():
        canvas.stroke([side(a, 0.45), side(a, bottom)], 0.008, tone(colour, 0.5), label)
        handle = [side(a + 0.12, bottom - 0.16, 0.01), side(a + 0.3, bottom - 0.16, 0.01)]
        canvas.stroke(handle, 0.015, (40, 40, 44), label)
    mirror = side(f0[0] - 0.35, bottom + 0.04, 0.12)
    canvas.limb(mirror, (mirror[0], mirror[1] + 0.06, mirror[2]), 0.08, 0.08, tone(colour, 0.7), label)


def paint_wheel(canvas: Canvas, side: Side, a: float, r: float, label: int) -> None:
    """A wheel of radius `r` metres at `a` metres ahead: arch, tyre, rim and hub, with fewer of them far away."""
    parts = ((1.22, (22, 22, 24)), (1.0, (38, 38, 40)), (0.62, (150, 152, 156)), (0.2, (70, 72, 74)))
    for k, ink in parts if side.place.z < 25 else parts[0:3:2]:
        ring = [(a + k * r * c, r + k * r * s) for c, s in circle(14)]
        canvas.face([side.place(p, side.sign * (side.body.half + 0.01), max(y, 0.0)) for p, y in ring], ink, label)


def paint_end(canvas: Canvas, place: Place, body: Body, end: int, label: int) -> None:
    """Lamps, number plate, grille or bumper on the front (end 1) or the rear (-1), if it faces the camera."""
    a = (max if end > 0 else min)(p[0] for p in body.outline) + end * 0.02
    p, q = place(a, 0, 1), place(a + end, 0, 1)
    if (q[0] - p[0]) * p[0] + (q[2] - p[2]) * p[2] > 0:
        return
    big = label in (BUS, TRUCK, TRAIN)
    y, w = (1.0, body.half * 0.98) if big else (body.belt - 0.2, body.half)

    def rect(b0: float, b1: float, y0: float, y1: float, ink: Colour, glow: int = NONE) -> None:
        canvas.face(place.upright(a, b0, b1, y0, y1), ink, label, glow=glow)

    for s in (-1, 1):
        ink, glow = ((236, 238, 228), HEAD) if end > 0 else ((176, 26, 24), TAIL)
        rect(s * w * 0.62, s * w * 0.97, y - 0.1, y + 0.08, tone(ink, 0.6))
        rect(s * w * 0.66, s * w * 0.94, y - 0.07, y + 0.06, ink, glow)
        if end < 0:
            rect(s * w * 0.64, s * w * 0.76, y - 0.06, y + 0.04, (226, 130, 60))
    rect(-0.27, 0.27, 0.46, 0.58, (232, 230, 212))
    rect(-0.2, 0.2, 0.5, 0.54, (70, 70, 74))
    if end > 0:
        rect(-w * 0.55, w * 0.55, y - 0.1, y + 0.04, (36, 38, 42))
    elif label == TRUCK:
        for s in (-0.04, 0.04):
            rect(s - 0.02, s + 0.02, 0.85, 3.3, (150, 150, 146))
        rect(-w, w, 0.72, 0.86, (150, 40, 36))
    rect(-w * 0.95, w * 0.95, 0.3, 0.42, (42, 44, 48))
    if label in (BUS, TRAIN) and end > 0:  # the destination board
        rect(-w * 0.6, w * 0.6, 2.72, 2.92, (28, 28, 30))
        rect(-w * 0.4, w * 0.35, 2.77, 2.87, (240, 176, 60), AMBER)
