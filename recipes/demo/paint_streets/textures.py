"""Flat paintings of surfaces, to be hung on walls in perspective."""

import numpy as np
from PIL import Image, ImageDraw

from .chance import cloud_noise
from .colours import Colour, tone


class Texture:
    """A flat painting, kept at several sizes so that far walls do not alias.

    Args:
        rgb: colours.
        width, height: in metres.
        glow: glow index per pixel (mode L); default: nothing glows.
        alpha: opacity (mode L); default: opaque.
    """

    def __init__(
        self,
        rgb: Image.Image,
        width: float,
        height: float,
        glow: Image.Image | None = None,
        alpha: Image.Image | None = None,
    ) -> None:
        self.width, self.height = width, height
        glow = glow or Image.new("L", rgb.size)
        self.mips = [(rgb, glow, alpha)]
        while min(self.mips[-1][0].size) > 24:
            rgb, glow, alpha = self.mips[-1]
            half = (rgb.width // 2, rgb.height // 2)
            small = alpha.resize(half, Image.BOX) if alpha else None
            self.mips.append((rgb.resize(half, Image.BOX), glow.resize(half, Image.NEAREST), small))

    def at(self, width: float, height: float) -> tuple[Image.Image, Image.Image, Image.Image | None]:
        """The smallest version (rgb, glow, alpha) still about as large as the given pixels, in either direction."""
        level = 0
        while level + 1 < len(self.mips):
            w, h = self.mips[level + 1][0].size
            if h < 0.8 * height or w < 0.8 * width:
                break
            level += 1
        return self.mips[level]


def plaster(rng: np.random.Generator, size: tuple[int, int], colour: Colour, grain: float = 0.12) -> Image.Image:
    """A weathered surface of `size` (width, height) pixels: large stains, fine grain, dirt towards the ground."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    noise = cloud_noise()
    stains = noise[(y // 2 + rng.integers(512)) % 512, (x // 2 + rng.integers(512)) % 512] - 0.5
    k = 1 + grain * stains + 0.05 * (rng.random((h, w)) - 0.5) - 0.12 * np.clip((y - h + 50) / 50, 0, 1)
    return Image.fromarray(np.clip(k[..., None] * np.array(colour), 0, 255).astype(np.uint8))


def paint_bricks(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, size: tuple[int, int], colour: Colour, w: int, h: int
) -> None:
    """Stones of w x h pixels in slightly different tones over `size`; the ground shows through as mortar."""
    for row, y in enumerate(range(0, size[1], h)):
        for x in range(-(row % 2) * w // 2, size[0], w):
            draw.rectangle((x, y, x + w - 2, y + h - 2), fill=tone(colour, rng.uniform(0.82, 1.15)))
