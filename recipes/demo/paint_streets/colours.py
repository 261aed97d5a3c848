"""Colours: of paint, and of what shines at night."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


Colour = tuple[int, int, int]  # RGB, 0..255

# glow index -> colour of the light, 0..1; windows first, so that `glow < HEAD` tells them from lamps
NONE, WARM, COOL, SHOP, HEAD, TAIL, LAMP, GREEN, RED, AMBER = range(10)
GLOW_COLOURS = {
    NONE: (0, 0, 0),
    WARM: (255, 178, 95),
    COOL: (150, 185, 225),
    SHOP: (255, 215, 150),
    HEAD: (255, 250, 235),
    TAIL: (255, 45, 30),
    LAMP: (255, 205, 130),
    GREEN: (60, 255, 150),
    RED: (255, 60, 40),
    AMBER: (255, 170, 40),
}
GLOW = np.array(list(GLOW_COLOURS.values()), np.float32) / 255

# fmt: off
PAINTS = (  # of vehicles, frames and helmets
    (196, 198, 202), (226, 226, 224), (58, 62, 68), (120, 126, 132), (168, 42, 38), (40, 70, 128), (72, 102, 140),
    (206, 178, 92), (64, 88, 70), (150, 92, 52), (96, 36, 44), (34, 36, 42),
)
COATS = (
    (52, 60, 92), (150, 46, 42), (46, 48, 52), (196, 168, 120), (86, 110, 92), (206, 200, 190), (182, 120, 52),
    (120, 70, 110), (84, 130, 160), (220, 180, 70),
)
# fmt: on


def tone(colour: Sequence[float], k: float) -> Colour:
    """Scales an RGB colour (0..255) by `k`."""
    return tuple(max(0, min(255, int(c * k))) for c in colour)


def tinted(image: Image.Image, tint: Sequence[float]) -> Image.Image:
    """Multiplies the channels of an RGB image by three factors."""
    r, g, b = (float(k) for k in tint)
    if image.width * image.height < 8000:  # A colour matrix has no set-up cost, a look-up table is faster per pixel.
        return image.convert("RGB", (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
    return image.point([min(255, int(i * k)) for k in (r, g, b) for i in range(256)])
