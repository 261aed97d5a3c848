"""Saturation and hue of an image changed, pixel for pixel as through Pillow's HSV images and at a third of their
time: what Pillow computes for each pixel anew is looked up in tables here, which Pillow itself fills."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image


# PIL divides the hue circle into this many steps: 255 is 0 again.
HUES = 255


def change_saturation_and_hue(image: Image.Image, factor: float | None, hue: int | None) -> Image.Image:
    """An RGB image of other saturation and hue.

    Args:
        image (`RGB`): of 8 bits.
        factor (`float`, *optional*): by which saturations are multiplied; the products end at the full saturation.
        hue (`int`, *optional*): by how many 255ths of the circle hues are turned.
    """
    to_hue, to_saturation, sector_of_hue, part_of_hue = _tables()
    red, green, blue = (np.asarray(channel).ravel() for channel in image.split())
    value = np.maximum(np.maximum(red, green), blue)
    spread = value - np.minimum(np.minimum(red, green), blue)

    # The hue depends on which channel is the largest, and by how much the two others are smaller.
    red, green, blue = value - red, value - green, value - blue
    is_red, is_green = red == 0, green == 0
    first = np.where(is_red, green, red)
    second = np.where(is_red | is_green, blue, green)
    hues = to_hue.take(_index(2 - 2 * is_red.view(np.uint8) - (is_green & ~is_red), first, second))
    if hue is not None:
        hues = ((np.arange(256) + hue) % HUES).astype(np.uint8).take(hues)

    saturation = to_saturation
    if factor is not None:
        saturation = np.clip(np.arange(256) * factor, 0, 255).astype(np.uint8).take(saturation)
    # By how much the smallest of the three channels is smaller than the largest.
    drops = np.arange(256, dtype=np.float32)[:, None] / 255 * saturation
    drop = drops.take(_index(value, spread))

    bright = value + np.float32(0.5)
    low = (bright - drop).astype(np.uint8)
    middle = (bright - drop * part_of_hue.take(hues)).astype(np.uint8)
    sector = sector_of_hue.take(hues)
    channels = []
    for largest, between in (((0, 5), (1, 4)), ((1, 2), (0, 3)), ((3, 4), (2, 5))):
        channel = np.where((sector == largest[0]) | (sector == largest[1]), value, low)
        np.copyto(channel, middle, where=(sector == between[0]) | (sector == between[1]))
        channels.append(Image.fromarray(channel.reshape(image.height, image.width)))
    return Image.merge("RGB", channels)


def _index(*digits: np.ndarray) -> np.ndarray:
    """Where in a flat table of sides of 256 the values (uint8) are."""
    index = digits[0].astype(np.int32)
    for digit in digits[1:]:
        index <<= 8
        index |= digit
    return index


@lru_cache(maxsize=1)
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Returns:
        The hue by the largest channel (0 red, 1 green, 2 blue) and by how much the two others are smaller
        (3 * 65536,); the saturation by value and spread (256, 256); of each hue, the sixth of the circle that it is in
        (256,), and which part of the drop its middle channel has (256,).
    """
    level = np.arange(256, dtype=np.uint8)
    first, second = (255 - plane for plane in np.meshgrid(level, level, indexing="ij"))
    full = np.full_like(first, 255)
    largest = ((full, first, second), (first, full, second), (first, second, full))
    hue = [np.asarray(Image.fromarray(np.stack(planes, -1)).convert("HSV"))[..., 0].ravel() for planes in largest]
    value, spread = np.meshgrid(level, level, indexing="ij")
    low = value - np.minimum(spread, value)
    saturation = np.asarray(Image.fromarray(np.stack([value, low, low], -1)).convert("HSV"))[..., 1]
    position = level * np.float32(6 / HUES)
    sector = position.astype(np.uint8)
    part = position - sector
    return np.concatenate(hue), saturation, sector % 6, np.where(sector % 2 == 0, 1 - part, part).astype(np.float32)
