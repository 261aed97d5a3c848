"""The sky of a clear day."""

import numpy as np
from PIL import Image

from .canvas import SCALE
from .chance import cloud_noise, pick
from .street import Street


def paint_sky(street: Street) -> Image.Image:
    """A gradient and a layer of clouds in perspective, at half the picture size; enlarged, it lies below the scene.

    Returns:
        The sky at picture size (mode RGB), also where the scene will hide it.
    """
    rng, canvas = street.rng, street.canvas
    w, h = canvas.size[0] // 2, canvas.size[1] // 2
    horizon = max(min(int(canvas.cy / SCALE / 2) + 3, h), 8)
    top = np.array(pick(rng, ((84, 132, 196), (110, 152, 204), (136, 160, 190), (72, 118, 186))), np.float32)
    low = np.array(pick(rng, ((206, 220, 232), (232, 222, 206), (196, 212, 226))), np.float32)
    t = (np.linspace(0, 1, horizon, dtype=np.float32) ** 1.4)[:, None, None]
    sky = top + (low - top) * t
    tile = Image.fromarray(np.tile(cloud_noise(), (2, 2)))
    x, y, k = rng.uniform(0, 400), rng.uniform(0, 300), rng.uniform(70, 130)
    cover, lit = [], rng.uniform(0.3, 0.52)
    for shift in (0, 5):  # The second look-up, a little towards the light, tells the sunny side of a cloud.
        quad = (x, y + shift, x + 60, y + k + shift, x + 60 + k * 0.6, y + k + shift, x + 60 + k * 1.6, y + shift)
        cover.append(np.asarray(tile.transform((w, horizon), Image.QUAD, quad, Image.BICUBIC))[..., None])
    cloud = np.clip((cover[0] - lit) * 3.2, 0, 1) * (1 - 0.6 * t**2)
    white = np.clip(238 + 260 * (cover[0] - cover[1]) - 46 * np.clip(cover[0] - lit - 0.25, 0, 1), 150, 253)
    sky = sky + cloud * (white * np.array((1.0, 0.995, 0.98), np.float32) - sky)
    image = Image.new("RGB", (w, h), tuple(int(c) for c in low))
    image.paste(Image.fromarray(np.clip(sky, 0, 255).astype(np.uint8)))
    canvas.rgb.paste(image.resize(canvas.rgb.size, Image.BILINEAR))
    return image.resize(canvas.size, Image.BILINEAR)
