"""The street: its layout in metres, its ground, and what stands where."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from . import canvas as c
from .canvas import Canvas, Colour, Place, pick, tone
from .scenery import paint_barrier, paint_building, paint_lamp, paint_sign, paint_traffic_light, paint_tree
from .traffic import TWO_WHEELERS, paint_person, paint_two_wheeler, paint_vehicle


NEAR, FAR = 1.3, 320.0  # metres ahead
CARS = ("hatch", "hatch", "sedan", "sedan", "van")  # as often as they are met; so are all options
TREES = ("round", "round", "conifer")
TOWN = ("old", "brick", "office")
FENCES = ("iron", "picket", "stone", "hedge")
# Pairs are ranges: lanes per direction, and widths in metres (no verge if negative); the other numbers are chances.
# fmt: off
PLANS = {
    "boulevard": dict(share=0.27, lanes=(1, 2), walk=(3.2, 5.5), verge=(-2, 2), setback=(0, 0.4), fronts=TOWN,
                      garden=0.12, barriers=(), people=0.6, parked=0.75, crossing=0.5),
    "old": dict(share=0.17, lanes=(1, 1), walk=(1.4, 2.4), verge=(0, 0), setback=(0, 0.2), fronts=TOWN[:2],
                garden=0.06, barriers=("stone",), people=0.6, parked=0.0, crossing=0.2),
    "suburb": dict(share=0.24, lanes=(1, 1), walk=(1.5, 2.2), verge=(-1.5, 2.2), setback=(4, 8), fronts=("house",),
                   garden=0.25, barriers=FENCES, people=0.3, parked=0.75, crossing=0.2),
    "motorway": dict(share=0.12, lanes=(2, 3), walk=(0, 0), verge=(2, 5), setback=(6, 14), fronts=("office",),
                     garden=0.85, barriers=("rail", "rail", "noise"), people=0.0, parked=0.0, crossing=0.0),
    "park": dict(share=0.2, lanes=(1, 2), walk=(2.2, 3.5), verge=(-1, 2.2), setback=(1, 3), fronts=("old", "house"),
                 garden=0.6, barriers=FENCES, people=0.5, parked=0.75, crossing=0.4),
}
# fmt: on


class Street:
    """One random street. What stands in it is gathered and then painted from far to near; lengths in metres.

    `centre`, `half`: the middle of the road, to the right of the camera, and half its width; `median`: that of the
    strip between the directions. `zebra`, `stop`: where pedestrians cross and traffic lights stand, if at all.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, (w, h) = rng, size
        self.kind = str(rng.choice(list(PLANS), p=[plan["share"] for plan in PLANS.values()]))
        self.plan, self.motorway = PLANS[self.kind], self.kind == "motorway"
        turn, up = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.1)
        light = (math.cos(turn) * math.cos(up), math.sin(up), math.sin(turn) * math.cos(up))
        centre = (w * rng.uniform(0.42, 0.58), h * rng.uniform(0.43, 0.55))
        self.canvas = Canvas(size, w * rng.uniform(0.81, 1.01), centre, rng.uniform(1.25, 2.1), light)
        self.lane, self.lanes = rng.uniform(2.9, 3.5), int(rng.integers(*self.plan["lanes"], endpoint=True))
        self.centre = -self.lane * (int(rng.integers(self.lanes)) + rng.uniform(0.4, 0.6))
        self.parking, self.median = rng.random() < self.plan["parked"], 1.5 if self.motorway else 0.0
        self.half = self.lanes * self.lane + self.median + (2.3 if self.parking or self.motorway else 0.3)
        self.zebra = rng.uniform(13, 34) if rng.random() < self.plan["crossing"] else 2 * FAR
        self.stop, self.phase = min(self.zebra - 1.2, rng.uniform(12, 150)), int(rng.integers(3))
        self._items: list[tuple[float, Callable, tuple]] = []

    def paint(self) -> None:
        """Paints all of it below the sky."""
        for x in np.arange(-150, 150, 10.0):  # far trees that close the view
            self.add(paint_tree, Place(x, self.rng.uniform(140, 200)), pick(self.rng, TREES))
        for side, walk in zip((-1, 1), self.paint_ground(), strict=True):
            self.add_lots(side, walk[2])
            self.add_side(side, *walk)
        self.paint_items()

    def paint_items(self) -> None:
        """Paints what was added, from far to near."""
        for _, paint, args in sorted(self._items, key=lambda item: -item[0]):
            paint(self.canvas, *args)

    def add(self, paint: Callable, place: Place, *args) -> None:
        """Has `paint(canvas, place, rng, *args)` called after all that is farther away."""
        self._items.append((place.z, paint, (place, self.rng, *args)))

    def row(self, paint: Callable, xs: tuple, first: tuple, step: tuple, *options: Sequence, yaw: float = 0.0) -> None:
        """Adds things along the street; each picks one out of every list of options.

        `xs`, `first`, `step`: ranges of their `x`, of the `z` of the first one, and of the way to the next.
        """
        z = self.rng.uniform(*first)
        while z < 95:
            place = Place(xs[0] + (xs[1] - xs[0]) * self.rng.random(), z, yaw + self.rng.normal(0, 0.04))
            self.add(paint, place, *(pick(self.rng, option) for option in options))
            z += self.rng.uniform(*step)

    def strip(self, x0: float, x1: float, z0: float, z1: float, colour: Colour, label: int, y: float = 0.0) -> None:
        """Fills a rectangle of ground."""
        self.canvas.face([(x0, y, z0), (x0, y, z1), (x1, y, z1), (x1, y, z0)], colour, label, snow=255)

    def paint_ground(self) -> list[tuple[float, float, float]]:
        """Paints land, road and markings; answers where road, verge and sidewalk end on both sides."""
        rng, centre, half, walks = self.rng, self.centre, self.half, []
        grass, paving = tone((116, 128, 70), rng.uniform(0.85, 1.1)), tone((170, 164, 154), rng.uniform(0.85, 1.08))
        asphalt, white = tone((104, 104, 108), rng.uniform(0.8, 1.2)), tone((226, 224, 214), rng.uniform(0.85, 1.0))
        land = (paving, c.SIDEWALK) if self.kind in ("boulevard", "old") else (grass, c.TERRAIN)
        self.strip(-3000, 3000, NEAR, 2000, *land)
        for side in (-1, 1):
            edge = centre + side * half
            verge = edge + side * (0.15 + max(0.0, rng.uniform(*self.plan["verge"])))
            border = verge + side * rng.uniform(*self.plan["walk"])
            self.strip(edge, border, NEAR, FAR, paving, c.SIDEWALK, 0.1)
            self.strip(edge + side * 0.15, verge, NEAR, FAR, grass, c.TERRAIN, 0.1)  # behind the kerb
            walks.append((edge, verge, border))
        self.strip(centre - half, centre + half, NEAR, FAR, asphalt, c.ROAD)
        lines = [(k * self.lane + self.median, 6) for k in range(self.lanes if self.kind != "old" else 0)]
        lines += [(self.lanes * self.lane + self.median, 0)] if self.parking or self.motorway else []
        for x, gap in lines:
            for z in np.arange(NEAR + rng.uniform(0, 6), 110, 3 + gap):
                for middle in (centre - x, centre + x):
                    self.strip(middle - 0.07, middle + 0.07, z, z + 3.1, white, c.ROAD)
        for x in np.arange(centre - half + 0.4, centre + half - 0.3, 1.0) if self.zebra < FAR else ():
            self.strip(x, x + 0.5, self.zebra, self.zebra + 2.6, white, c.ROAD)
        return walks

    def add_side(self, side: int, edge: float, verge: float, border: float) -> None:
        """All that stands on the left (-1) or right (1), from the sidewalk to the middle of the road."""
        rng, plan, heading = self.rng, self.plan, (1 - side) * math.pi / 2
        post = (edge + side * max(0.45, abs(verge - edge) / 2),) * 2
        if abs(border - edge) > 2.6 and rng.random() < 0.6:
            self.row(paint_tree, post, (7, 14), (8, 13), (pick(rng, TREES),))
        if rng.random() < 0.8:
            self.row(paint_lamp, post, (6, 20), (20, 28), (-1.8 * side if self.half > 6 else 0.0,))
        self.row(paint_sign, post, (8, 30), (12, 40))
        if self.parking:
            self.row(paint_vehicle, (edge - side * 1.1,) * 2, (6.5, 18), (5.6, 20), CARS, yaw=heading)
        if plan["people"]:
            for z in (self.stop, self.stop + 13) if self.stop < 60 else ():
                arm = -0.55 * self.half if side > 0 and self.lanes > 1 else 0.0
                self.add(paint_traffic_light, Place(edge + side * 0.5, z), self.phase, arm)
            on_zebra = (self.zebra + 0.4, self.zebra + 2.2)
            self.row(paint_person, (self.centre, edge), on_zebra, (100, 100), yaw=side * math.pi / 2)
            for yaw in (0.0, math.pi):
                self.row(paint_person, (verge, border), (7, 20), (2, 14 / plan["people"]), yaw=yaw)
            stand, ride = (border - side * 0.6,) * 2, (edge - side * (3.0 if self.parking else 0.8),) * 2
            self.row(paint_two_wheeler, stand, (7, 40), (1, 50), tuple(TWO_WHEELERS), (False,), yaw=side * 1.2)
            self.row(paint_two_wheeler, ride, (8, 45), (30, 90), tuple(TWO_WHEELERS), (True,), yaw=heading)
        kinds = (*CARS, "truck", "truck", "bus") if self.motorway else (*CARS * 5, "truck", "truck", "bus")
        for k in range(self.lanes):
            x = self.centre + side * (self.median + (k + 0.5) * self.lane)
            tram = self.kind in ("boulevard", "park") and side < 0 and k == 0 and rng.random() < 0.12
            first, step, options = ((24, 44), (60, 80), ("tram",)) if tram else ((14, 38), (15, 46), kinds)
            self.row(paint_vehicle, (x - 0.2, x + 0.2), first, step, options, yaw=heading)

    def add_lots(self, side: int, border: float) -> None:
        """Houses and gardens beyond the sidewalk, and the barriers in front of them."""
        rng, plan, z = self.rng, self.plan, self.rng.uniform(-9, 2)
        kind = pick(rng, plan["barriers"]) if plan["barriers"] and rng.random() < 0.85 else None
        detached = plan["setback"][1] > 2.5
        while z < 95:
            garden, front, end = rng.random() < plan["garden"], rng.uniform(*plan["setback"]), z + rng.uniform(8, 15)
            if not garden:
                x, style = border + side * front, pick(rng, plan["fronts"])
                self.add(paint_building, Place(x, end), Place(x, z), style, 4.5 if detached else 1.6)
            for _ in range(int(rng.integers(2, 6)) if garden else 0):
                x = border + side * rng.uniform(1.5, 15)
                self.add(paint_tree, Place(x, max(7.0, rng.uniform(z, end))), pick(rng, (*TREES, "bush", "bush")))
            for far in np.arange(max(z, 0) + 6, end + 3, 6) if kind and (garden or front > 0.9) else ():
                self.add(paint_barrier, Place(border + side * 0.15, far), kind)
            z = end + (rng.uniform(2.5, 6) if detached else pick(rng, (0.0, 0.0, 0.0, 1.5)))
        if self.motorway:
            self.row(paint_barrier, (self.centre, self.centre), (7, 7), (6, 6), ("rail",))
