"""Places: where something stands, and which way it heads."""

import math
from typing import NamedTuple

from .canvas import Point


class Place(NamedTuple):
    """A spot on the ground (x, z in metres from the camera) and a heading: yaw 0 drives away from the camera."""

    x: float
    z: float
    yaw: float = 0.0  # radians
    base: float = 0.0  # height of the ground in metres

    def __call__(self, ahead: float, right: float, up: float) -> Point:
        """The point so many metres ahead of, right of and above the place."""
        s, c = math.sin(self.yaw), math.cos(self.yaw)
        return self.x + ahead * s + right * c, self.base + up, self.z + ahead * c - right * s

    def upright(self, ahead: float, b0: float, b1: float, y0: float, y1: float) -> list[Point]:
        """The corners of an upright rectangle across the heading, from `b0` to `b1` to the right, `y0` to `y1` up."""
        return [self(ahead, b0, y0), self(ahead, b1, y0), self(ahead, b1, y1), self(ahead, b0, y1)]
