"""Scenes: a seeded street in the weather of a domain, and its label."""

import numpy as np
from PIL import Image, ImageFilter

from .frames import resolve
from .ground import paint_ground
from .lots import add_backdrop, add_lots
from .sidewalks import add_furniture
from .sky import paint_sky
from .street import Street
from .traffic import add_traffic
from .weather import WEATHER


DOMAINS = tuple(WEATHER)


def paint(seed: int, domain: str = "day", size: tuple[int, int] = (512, 256)) -> tuple[Image.Image, Image.Image]:
    """Paints one street scene.

    Args:
        seed: Not negative. Fixes the street: geometry and label of a seed are the same in all domains.
        domain: One of `DOMAINS`.
        size: (width, height) of the picture in pixels.

    Returns:
        The picture (mode RGB) and its label (mode L) with Cityscapes train ids 0..18 and 255 for void, both of `size`.
        The same arguments give the same bytes.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain is {domain!r}, but it has to be one of {', '.join(DOMAINS)}.")
    street = Street(np.random.default_rng([seed]), size)
    dome = paint_sky(street)
    paint_ground(street)
    for add in (add_backdrop, add_lots, add_furniture, add_traffic):
        add(street)
    street.paint_items()
    frame = resolve(street, dome)
    rng = np.random.default_rng([seed, DOMAINS.index(domain)])
    rgb = WEATHER[domain](frame, rng)
    rgb = rgb + 0.009 * rng.standard_normal((*frame.label.shape, 1), np.float32)
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(0.3)), Image.fromarray(frame.label)
