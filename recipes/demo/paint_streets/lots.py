"""The lots along a street: buildings, gardens and the barriers in front of them; and what closes the view."""

import numpy as np

from .barriers import add_barrier
from .buildings import add_building
from .canvas import Canvas
from .chance import pick
from .facades import FACADES, facade
from .foliage import foliage
from .labels import BUILDING, VEGETATION
from .street import Street, Walk
from .trees import add_garden


def add_lots(street: Street) -> None:
    """The lots on both sides, and the barrier in the middle of a motorway."""
    for walk in street.walks:
        add_row(street, walk)
    if street.motorway:
        kind = pick(street.rng, ("rail", "rail", "stone"))
        for z in np.arange(1.5, 110, 12):
            add_barrier(street, kind, street.centre, z, z + 12, 0.85)


def add_row(street: Street, walk: Walk) -> None:
    """One lot after the other beyond the sidewalk, up to 95 m ahead; the side street stays open."""
    rng, plan, cross, side = street.rng, street.plan, street.cross, walk.side
    z = rng.uniform(-9, 2)
    usual = pick(rng, plan.barriers) if plan.barriers else None
    fenced = usual is not None and rng.random() < 0.85
    closed, shield = False, 0.0  # whether the nearer neighbour adjoins, and the height up to which it hides
    while z < 95:
        if street.near_crossing(z, 14, 2.5) and z + 5 > cross - 2.5:
            z, closed = street.cross_end + 2.5, False
        front = facade(pick(rng, FACADES[pick(rng, plan.fronts)]))
        setback, length = rng.uniform(*plan.setback), front.width
        if z < cross and z + length > cross - 2.5:
            length = max(cross - 2.5 - z, 3.0)
        garden = rng.random() < plan.gap
        if garden and (z + 16 < cross - 2.5 or z > cross):
            length = rng.uniform(8, 16)
        end = z + length
        shield = shield if closed else 0.0
        if garden:
            add_garden(street, side, walk.border + side * 1.0, z, end)
        else:
            add_building(street, side, walk.border + side * setback, z, end, front, front.height > shield)
            shield = front.height
        if fenced and (garden or setback > 0.9):
            kind = usual if rng.random() < 0.9 else pick(rng, plan.barriers)
            add_barrier(street, kind, walk.border + side * 0.15, z, end)
        closed = not garden and setback < 2.5 and rng.random() < 0.8
        z = end + (0.0 if closed else rng.uniform(2.5, 6) if setback > 2.5 else rng.uniform(0.0, 2.0))


def add_backdrop(street: Street) -> None:
    """Far trees and blocks that close the view."""
    rng, canvas = street.rng, street.canvas
    city = street.kind in ("boulevard", "old", "park")
    spread = 1.1 * canvas.rgb.width / canvas.focal * 200
    for x in np.arange(-spread, spread, 12.0):
        z = rng.uniform(150, 230)
        if city and rng.random() < 0.5:
            top, width = rng.uniform(8, 24), rng.uniform(8, 18)
            front = facade(pick(rng, (*FACADES["old"], *FACADES["modern"], *FACADES["office"])))
            tint = np.array((0.95, 1.02, 1.12)) * rng.uniform(0.95, 1.2)
            street.add(z, Canvas.wall, front, (x, 0.0, z), (x + width, 0.0, z), top, BUILDING, tint)
        else:
            image = foliage(pick(rng, ("round", "round", "conifer", "bush")), int(rng.integers(4)))
            tint = np.array((0.95, 1.0, 1.15)) * rng.uniform(0.85, 1.05)
            street.add(z, Canvas.sprite, image, (x, -0.5, z), rng.uniform(8, 15), VEGETATION, tint)
