"""The ground of a street: land, road, sidewalks, markings."""

import math

import numpy as np

from .colours import Colour, tone
from .labels import ROAD, SIDEWALK, TERRAIN
from .street import Street, Walk


NEAR, FAR = 1.3, 320  # metres ahead


def paint_ground(street: Street) -> None:
    """Paints the ground, and notes on the street where sidewalks and the pedestrian crossing are."""
    rng = street.rng
    grass, paving = tone((116, 128, 70), rng.uniform(0.85, 1.1)), tone((170, 164, 154), rng.uniform(0.85, 1.08))
    asphalt = tone((104, 104, 108), rng.uniform(0.8, 1.2))
    paint_land(street, grass, paving)
    if street.crossed:
        street.ribbon(-90, 90, street.cross - 2.5, street.cross_end + 2.5, paving, SIDEWALK)
        street.ribbon(-90, 90, street.cross, street.cross_end, asphalt, ROAD)
    street.ribbon(*street.edges, NEAR, FAR, asphalt, ROAD, snow=200)
    street.walks = [paint_walk(street, side, grass, paving) for side in (-1, 1)]
    paint_repairs(street, asphalt)
    white = tone((226, 224, 214), rng.uniform(0.85, 1.0))
    paint_lanes(street, white)
    street.zebra = paint_zebra(street, white)


def paint_land(street: Street, grass: Colour, paving: Colour) -> None:
    """Everything below the horizon: paved in town, grass elsewhere."""
    canvas, (w, h) = street.canvas, street.canvas.rgb.size
    horizon = canvas.project((0, 0, 400))[1]
    colour, label = (paving, SIDEWALK) if street.kind in ("boulevard", "old") else (grass, TERRAIN)
    canvas.fill([(0, horizon), (w, horizon), (w, h), (0, h)], colour, label, 300, snow=255)


def paint_walk(street: Street, side: int, grass: Colour, paving: Colour) -> Walk:
    """Kerb, verge and sidewalk on one side, interrupted by the side street."""
    rng, plan, edge = street.rng, street.plan, street.edges[side > 0]
    verge = rng.uniform(0.9, 2.2) if rng.random() < plan.verge else 0.0
    walk = rng.uniform(*plan.walk) if plan.walk[1] else 0.0
    if street.motorway:
        verge = rng.uniform(2.0, 5.0)
    inner = edge + side * (0.18 if not street.motorway else 0.0)
    found = Walk(side, inner, inner + side * verge, inner + side * (verge + walk))
    for z0, z1 in ((NEAR, min(street.cross - 1.2, FAR)), (street.cross_end + 1.2, FAR)):
        if z1 <= z0:
            continue
        if not street.motorway:
            kerb = tone((186, 182, 174), rng.uniform(0.9, 1.05))
            street.ribbon(edge, edge, z0, z1, tone(kerb, 0.66), SIDEWALK, 0.0, 0.13)
            street.ribbon(edge, inner, z0, z1, kerb, SIDEWALK, 0.13)
        street.ribbon(inner, found.verge, z0, z1, grass, TERRAIN, 0.1)
        street.ribbon(found.verge, found.border, z0, z1, paving, SIDEWALK, 0.1)
    return found


def paint_repairs(street: Street, asphalt: Colour) -> None:
    """Patches and manholes in the asphalt."""
    rng, (left, right) = street.rng, street.edges
    for _ in range(rng.poisson(4)):
        x, z = rng.uniform(left, right), math.exp(rng.uniform(1.4, 3.6))
        if rng.random() < 0.5:
            patch = tone(asphalt, rng.uniform(0.72, 0.92))
            street.ribbon(x, min(right, x + rng.uniform(0.6, 2)), z, z + rng.uniform(1, 6), patch, ROAD, snow=200)
        else:
            ring = [street.place(x + 0.34 * math.cos(t), z + 0.34 * math.sin(t)) for t in np.linspace(0, 6.28, 14)]
            street.canvas.face([(p.x, 0.0, p.z) for p in ring], tone(asphalt, 0.6), ROAD, snow=180)


def paint_lanes(street: Street, white: Colour) -> None:
    """The lines along the road; narrow old streets have none."""
    rng, centre, median = street.rng, street.centre, street.median
    if street.kind == "old":
        return
    if median:
        for x in (centre - median, centre + median):
            paint_line(street, x, 0, 0.18, white)
    else:
        paint_line(street, centre, 0 if rng.random() < 0.35 else 3.0, 0.13, white)
    for k in range(1, street.lanes):
        for s in (-1, 1):
            paint_line(street, centre + s * (k * street.lane + median), 5.0 if street.motorway else 3.0, 0.13, white)
    if street.parking or street.motorway:
        for s in (-1, 1):
            paint_line(street, centre + s * (street.lanes * street.lane + median), 0, 0.12, white)


def paint_line(street: Street, x: float, dash: float, width: float, ink: Colour) -> None:
    """One line with dashes of the given length and gaps twice as long, or without (0); in metres."""
    z = NEAR + (street.rng.uniform(0, 2 * dash) if dash else 0)
    while z < 120:
        end = min(z + dash, 120) if dash else 120
        if not dash or not street.near_crossing(end, 4, 8):
            stop = street.cross - 3.5 if z < street.cross < end else end
            street.ribbon(x - width / 2, x + width / 2, z, stop, ink, ROAD, snow=200)
        z = end + (2 * dash or 1)


def paint_zebra(street: Street, white: Colour) -> float:
    """A pedestrian crossing with its stop line; the answer is where it begins, in metres, or 0."""
    rng, (left, right) = street.rng, street.edges
    zebra = street.cross - 3.4 if street.crossed else rng.uniform(11, 30) if rng.random() < 0.25 else 0.0
    if zebra and not street.motorway:
        for x in np.arange(left + 0.4, right - 0.3, 1.0):
            street.ribbon(x, x + 0.5, zebra, zebra + 2.6, white, ROAD, snow=200)
        street.ribbon(street.centre, right, zebra - 1.4, zebra - 1.0, white, ROAD, snow=200)
    return zebra
