"""Traffic signs."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .canvas import Canvas
from .colours import Colour
from .labels import POLE, SIGN
from .places import Place


WHITE, BLACK = (236, 236, 230), (30, 32, 36)
RED, BLUE, GREEN = (196, 34, 36), (32, 84, 168), (40, 110, 66)


class Board(NamedTuple):
    """A sign of radius `r` facing the camera around the point (x, y, z), in metres."""

    canvas: Canvas
    x: float
    y: float
    z: float
    r: float

    def plate(self, k: float, ink: Colour, sides: int, turn: float = 0.0, wide: float = 1.0) -> None:
        """A regular polygon of `k` times the radius, turned (radians) and widened."""
        ring, r = np.linspace(0, 2 * math.pi, sides, endpoint=False) + turn, k * self.r
        points = [(self.x + r * wide * math.sin(t), self.y + r * math.cos(t), self.z) for t in ring]
        self.canvas.face(points, ink, SIGN)

    def mark(self, *points: tuple[float, float], ink: Colour = BLACK) -> None:
        """A polygon; points (right, up) from the middle in radii."""
        self.canvas.face([(self.x + self.r * u, self.y + self.r * v, self.z) for u, v in points], ink, SIGN)

    def box(self, u0: float, v0: float, u1: float, v1: float, ink: Colour = BLACK) -> None:
        """A rectangle, in radii."""
        self.mark((u0, v0), (u1, v0), (u1, v1), (u0, v1), ink=ink)


def speed_limit(board: Board, rng: np.random.Generator) -> None:
    """Two digits in a red ring."""
    board.plate(1.0, RED, 20)
    board.plate(0.76, WHITE, 20)
    for u in (-0.3, 0.12):
        board.box(u, -0.34, u + 0.24, 0.34)
        board.box(u + 0.08, -0.2, u + 0.16, 0.2, WHITE)


def warning(board: Board, rng: np.random.Generator) -> None:
    """An exclamation mark in a red triangle."""
    board.plate(1.1, RED, 3)
    board.plate(0.74, WHITE, 3)
    board.mark((-0.07, -0.1), (0.07, -0.1), (0.1, 0.42), (-0.1, 0.42))
    board.box(-0.07, -0.28, 0.07, -0.17)


def no_entry(board: Board, rng: np.random.Generator) -> None:
    """A white bar on red."""
    board.plate(1.0, RED, 20)
    board.box(-0.66, -0.14, 0.66, 0.14, WHITE)


def stop(board: Board, rng: np.random.Generator) -> None:
    """Four letter-like marks on a red octagon."""
    board.plate(1.05, WHITE, 8, math.pi / 8)
    board.plate(0.96, RED, 8, math.pi / 8)
    for u in (-0.6, -0.28, 0.04, 0.36):
        board.box(u, -0.2, u + 0.2, 0.2, WHITE)


def arrow(board: Board, rng: np.random.Generator) -> None:
    """A white arrow ahead on blue."""
    board.plate(1.0, BLUE, 20)
    board.box(-0.1, -0.6, 0.1, 0.1, WHITE)
    board.mark((-0.4, 0.08), (0.4, 0.08), (0.0, 0.6), ink=WHITE)


def directions(board: Board, rng: np.random.Generator) -> None:
    """A direction board, or a square one, with letter-like marks."""
    wide = 2.2 if rng.random() < 0.5 else 1.0
    board.plate(1.28, WHITE, 4, math.pi / 4, wide)
    board.plate(1.16, BLUE if rng.random() < 0.6 else GREEN, 4, math.pi / 4, wide)
    for v in (0.3, -0.1, -0.5):
        for u in np.arange(-0.62, 0.6, 0.26) * wide:
            if rng.random() < 0.75:
                board.box(u, v, u + 0.17, v + 0.24, WHITE)


SIGNS: tuple[Callable[[Board, np.random.Generator], None], ...]
SIGNS = (speed_limit, warning, no_entry, stop, arrow, directions)


def paint_sign(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """One of the `SIGNS` on a pole."""
    paint_board = SIGNS[int(rng.integers(len(SIGNS)))]
    r, y = rng.uniform(0.34, 0.46), rng.uniform(2.3, 2.8)
    x, z = place.x, place.z - 0.06
    canvas.blot(x, z, 0.15, 0.15)
    canvas.cast(x, z, y + r, 0.06)
    canvas.stroke([(x, 0, place.z), (x, y + r, place.z)], 0.04, (140, 142, 142), POLE)
    paint_board(Board(canvas, x, y, z, r), rng)
