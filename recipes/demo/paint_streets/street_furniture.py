"""Street lamps, traffic lights and bins."""

import math

import numpy as np

from .canvas import Canvas
from .colours import AMBER, GREEN, LAMP, NONE, RED, Colour, tone
from .labels import LIGHT, POLE, VOID
from .places import Place


PHASES = ((GREEN, (70, 240, 150)), (AMBER, (250, 190, 60)), (RED, (250, 60, 44)))  # of a signal, from below


def paint_lamp_post(canvas: Canvas, place: Place, tall: bool, reach: float) -> None:
    """A street light (class pole), tall with an arm of `reach` metres to the right, or a short one.

    Its lamp is noted on the canvas because it lights its surroundings at night.
    """
    x, z, top, ink = place.x, place.z, *((7.5, (78, 84, 86)) if tall else (4.2, (52, 64, 58)))
    canvas.blot(x, z, 0.2, 0.2)
    canvas.cast(x, z, top, 0.08)
    canvas.stroke([(x, 0, z), (x, 1.0, z)], 0.11, ink, POLE)
    if tall:
        arm = [(x, 0.9, z), (x, top - 0.5, z), (x + 0.4 * reach, top, z), (x + reach, top + 0.1, z)]
        canvas.stroke(arm, 0.06, ink, POLE)
        head = [(x + reach * 0.85, top + 0.08, z), (x + reach * 1.25, top + 0.1, z)]
        canvas.stroke(head, 0.11, (196, 196, 188), POLE, glow=LAMP)
        canvas.lamps.append((x + reach, top, z))
    else:
        canvas.stroke([(x, 0.9, z), (x, top, z)], 0.055, ink, POLE)
        canvas.limb((x, top, z), (x, top + 0.45, z), 0.12, 0.22, (226, 222, 206), POLE)
        canvas.stroke([(x, top, z), (x, top + 0.4, z)], 0.13, (236, 228, 200), POLE, glow=LAMP)
        canvas.limb((x, top + 0.6, z), (x, top + 0.62, z), 0.22, 0.05, ink, POLE)
        canvas.lamps.append((x, top, z))


def paint_traffic_light(canvas: Canvas, place: Place, phase: int, reach: float) -> None:
    """A signal on a pole, and with `reach` (metres to the right) a second one on an arm over the road."""
    x, z, ink = place.x, place.z, (86, 88, 86)
    canvas.blot(x, z, 0.2, 0.2)
    canvas.cast(x, z, 3.6, 0.08)
    canvas.stroke([(x, 0, z), (x, 3.6 if not reach else 5.6, z)], 0.07, ink, POLE)
    if reach:
        canvas.stroke([(x, 5.55, z), (x + reach, 5.75, z)], 0.055, ink, POLE)
    paint_signal(canvas, x, 2.6, z, phase, ((0.0, (34, 40, 38)),))
    if reach:
        paint_signal(canvas, x + reach, 5.0, z, phase, ((0.06, (198, 196, 186)), (0.0, (34, 38, 38))))


def paint_signal(
    canvas: Canvas, x: float, y: float, z: float, phase: int, plates: tuple[tuple[float, Colour], ...]
) -> None:
    """Three lamps on plates (how much they are larger in metres, colour), the lowest at the height `y`."""
    for grow, ink in plates:
        w, y0, y1 = 0.19 + grow, y - grow, y + 1.02 + grow
        canvas.face(Place(x, z).upright(-0.1, -w, w, y0, y1), ink, LIGHT)
    for i, (glow, ink) in enumerate(PHASES):
        on, middle = i == phase, y + 0.19 + 0.32 * i
        turn = np.linspace(0, 6.28, 12)
        ring = [(x + 0.13 * math.cos(t), middle + 0.13 * math.sin(t), z - 0.12) for t in turn]
        canvas.face(ring, ink if on else tone(ink, 0.28), LIGHT, glow=glow if on else NONE)


def paint_bin(canvas: Canvas, place: Place, height: float, ink: Colour) -> None:
    """A round bin (void, as it has no class), `height` in metres."""
    canvas.limb((place.x, 0.22, place.z), (place.x, height, place.z), 0.24, 0.27, ink, VOID)
