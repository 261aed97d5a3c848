"""The shapes of vehicles: extruded bodies, wheels and labels."""

from typing import NamedTuple

from .labels import BUS, CAR, TRAIN, TRUCK


class Body(NamedTuple):
    """One extruded part of a vehicle, in metres: the side outline from rear bottom over the top to front bottom."""

    outline: tuple[tuple[float, float], ...]  # (ahead, up)
    half: float  # half width
    belt: float  # above this height the sides lean inwards
    glass: tuple[int, ...]  # which stretches of the outline are panes
    panes: tuple[tuple[float, float, float, float], ...] = ()  # side windows (a0, a1, y0, y1); empty: a car's
    lean: float = 0.17
    paint: bool = True  # takes the colour of the vehicle (the box of a truck stays light)

    @property
    def top(self) -> float:
        """Height of the roof in metres."""
        return max(y for _, y in self.outline)

    def half_at(self, y: float) -> float:
        """Half the width at the height `y`."""
        return self.half - self.lean * max(0.0, y - self.belt) / max(self.top - self.belt, 0.1)


class Vehicle(NamedTuple):
    """What a kind of vehicle consists of, in metres."""

    label: int
    bodies: tuple[Body, ...]  # rear to front
    wheels: tuple[float, ...]  # axles, ahead of the middle
    radius: float  # of the wheels


def rows(first: float, last: float, count: int, gap: float, y0: float, y1: float) -> tuple:
    """Evenly spaced side windows."""
    step = (last - first) / count
    return tuple((first + i * step, first + (i + 1) * step - gap, y0, y1) for i in range(count))


BLIND = ((0, 0, 0, 0),)  # no side windows
# fmt: off
HATCH = Body(((-1.9, .3), (-1.98, .6), (-1.9, .95), (-1.5, 1.4), (-1.2, 1.48), (.2, 1.47), (.5, 1.38), (1.2, .97),
              (1.8, .82), (1.98, .62), (1.98, .28)), .86, .95, (2, 6))
SEDAN = Body(((-2.25, .3), (-2.32, .62), (-2.2, .96), (-1.6, 1.02), (-1.0, 1.38), (-.7, 1.45), (.2, 1.45), (.5, 1.37),
              (1.2, .97), (2.0, .84), (2.26, .62), (2.26, .28)), .9, 1.0, (3, 7))
ESTATE = Body(((-2.25, .3), (-2.34, .62), (-2.28, .98), (-1.95, 1.4), (-1.7, 1.48), (.2, 1.48), (.5, 1.4), (1.2, .98),
               (2.0, .84), (2.26, .62), (2.26, .28)), .9, .98, (2, 6))
SUV = Body(((-2.2, .38), (-2.28, .75), (-2.22, 1.08), (-1.95, 1.6), (-1.65, 1.7), (.25, 1.69), (.6, 1.58), (1.2, 1.12),
            (2.0, 1.0), (2.25, .75), (2.25, .36)), .95, 1.08, (2, 6))
VAN = Body(((-2.5, .35), (-2.54, .9), (-2.5, 1.15), (-2.42, 1.9), (-2.2, 2.05), (1.0, 2.05), (1.3, 1.93), (1.9, 1.2),
            (2.4, .98), (2.54, .65), (2.54, .3)), .98, 1.15, (2, 6), ((.15, 1.45, 1.2, 1.75),), .12)
BOX = Body(((-4.2, .6), (-4.2, 3.5), (1.4, 3.5), (1.4, .6)), 1.22, 9, (), BLIND, 0, False)
TANK = Body(((-4.2, .8), (-4.25, 2.0), (-4.0, 2.6), (-3.6, 2.75), (1.0, 2.75), (1.4, 2.5), (1.5, .8)), 1.15, 1.7, (),
            BLIND, .5, False)
CAB = Body(((1.5, .45), (1.5, 2.75), (2.9, 2.85), (3.15, 2.7), (3.6, 1.6), (3.75, 1.4), (3.8, .4)), 1.18, 1.5, (3,),
           ((2.2, 3.15, 1.55, 2.4),), .1)
COACH = Body(((-5.6, .35), (-5.65, 1.5), (-5.6, 2.75), (-5.5, 3.0), (-5.2, 3.1), (5.2, 3.1), (5.5, 2.95), (5.6, 2.7),
              (5.7, 1.15), (5.72, .32)), 1.25, 1.3, (1, 7), rows(-5.2, 5.2, 7, .14, 1.3, 2.6), .06)
TRAM = Body(((-8, .3), (-8.2, 1.4), (-7.9, 2.9), (-7.5, 3.2), (7.5, 3.2), (7.9, 2.9), (8.2, 1.4), (8.0, .3)), 1.22,
            1.4, (1, 5), rows(-7.2, 7.2, 9, .18, 1.4, 2.7), .05)
# fmt: on
VEHICLES = {
    name: Vehicle(CAR, (body,), (body.outline[0][0] + 0.72, body.outline[-1][0] - 0.75), 0.33)
    for name, body in (("hatch", HATCH), ("sedan", SEDAN), ("estate", ESTATE), ("suv", SUV), ("van", VAN))
} | {
    "box": Vehicle(TRUCK, (BOX, CAB), (-3.0, -2.0, 2.7), 0.48),
    "tank": Vehicle(TRUCK, (TANK, CAB), (-3.0, -2.0, 2.7), 0.48),
    "bus": Vehicle(BUS, (COACH,), (-3.2, 3.3), 0.48),
    "tram": Vehicle(TRAIN, (TRAM,), (), 0.3),
}
CARS = ("hatch", "hatch", "sedan", "sedan", "estate", "suv", "suv", "van")  # as often as they are met
