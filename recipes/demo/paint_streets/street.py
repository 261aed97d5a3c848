"""The street that everything stands in: its layout in metres, its canvas, and what remains to be painted."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from .canvas import Canvas
from .colours import Colour
from .places import Place
from .plans import PLANS


class Walk(NamedTuple):
    """What lies beside the road on one side: metres to the right of the camera."""

    side: int  # -1: left
    kerb: float
    verge: float  # where a strip of grass ends; `kerb` if there is none
    border: float  # where the sidewalk ends


class Street:
    """One random street. What stands in it is gathered in order of distance and painted from far to near.

    Attributes:
        kind, plan: of `PLANS`.
        canvas: what it is painted on, with the camera and the sun.
        bend: the street shifts by `bend * z**2` metres to the right.
        lane: width of a lane in metres.
        lanes: their number per direction.
        mine: our lane, counted from the middle of the road.
        centre: the middle of the road, metres to the right of the camera.
        median: half the width of the strip between the directions, in metres.
        parking: whether there is room for parked cars.
        edges: left and right end of the road, metres to the right of the camera.
        cross, cross_end: where a side street begins and ends, metres ahead; infinite if there is none.
        walks: left and right, known once the ground is painted.
        zebra: where a pedestrian crossing begins, metres ahead, known once the ground is painted; 0: there is none.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, (w, h) = rng, size
        self.kind = str(rng.choice(list(PLANS), p=[plan.share for plan in PLANS.values()]))
        self.plan = PLANS[self.kind]
        turn, up = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.1)
        light = math.cos(turn) * math.cos(up), math.sin(up), math.sin(turn) * math.cos(up)
        focal = rng.uniform(0.88, 1.1) * w * 0.92
        cx, cy = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.43, 0.55)
        self.canvas = Canvas(size, focal, cx, cy, rng.uniform(1.25, 2.1), light)
        self.bend = rng.normal(0, 0.0006) if rng.random() < 0.6 else 0.0
        self.lane = rng.uniform(2.9, 3.5)
        self.lanes = int(rng.integers(self.plan.lanes[0], self.plan.lanes[1] + 1))
        self.mine = int(rng.integers(self.lanes))
        self.centre = -self.lane * (self.mine + 0.5) - rng.uniform(-0.3, 0.3)
        self.median = 1.5 if self.motorway else 0.0
        self.parking = self.plan.parked > 0 and self.kind != "old" and rng.random() < 0.75
        half = self.lanes * self.lane + self.median + (2.3 if self.parking else 0.3)
        if self.motorway:
            half += 2.0
        self.edges = (self.centre - half, self.centre + half)
        self.cross = rng.uniform(17, 34) if rng.random() < self.plan.crossing else math.inf
        self.cross_end = self.cross + rng.uniform(7, 11)
        self.walks: list[Walk] = []
        self.zebra = 0.0
        self._items: list[tuple[float, Callable[[], None]]] = []

    @property
    def motorway(self) -> bool:
        """Whether it has hard shoulders, a median and neither kerbs nor sidewalks."""
        return self.kind == "motorway"

    @property
    def crossed(self) -> bool:
        """Whether a side street crosses."""
        return math.isfinite(self.cross)

    def near_crossing(self, z: float, before: float, behind: float) -> bool:
        """Whether `z` is within the side street, or so many metres before or behind it."""
        return self.cross - before < z < self.cross_end + behind

    def place(self, x: float, z: float, yaw: float = 0.0, base: float = 0.0) -> Place:
        """A place given along the bending street."""
        return Place(x + self.bend * z * z, z, yaw + math.atan(2 * self.bend * z), base)

    def ribbon(
        self, x0: float, x1: float, z0: float, z1: float, colour: Colour, label: int, y0=0.0, y1=None, snow=255
    ) -> None:
        """Fills a strip of ground between two lines along the street, at the heights `y0` and `y1`; in metres."""
        z1 = max(z1, z0)
        stations = np.geomspace(z0, z1, 2 if z1 - z0 < 6 or not self.bend else 12)
        y1 = y0 if y1 is None else y1
        left = [self.canvas.project((x0 + self.bend * z * z, y0, z)) for z in stations]
        right = [self.canvas.project((x1 + self.bend * z * z, y1, z)) for z in stations]
        self.canvas.fill(left + right[::-1], colour, label, z0, snow=snow)

    def add(self, key: float, paint: Callable, *args) -> None:
        """Has `paint(canvas, *args)` called after all that is farther away than `key` metres."""
        self._items.append((key, partial(paint, self.canvas, *args)))

    def paint_items(self) -> None:
        """Paints what was added, far to near; what is equally far in the order it came."""
        for _, paint in sorted(self._items, key=lambda item: -item[0]):
            paint()
