"""The weather of the domains: day, fog, night, rain and snow.

Each takes a `Frame` and returns colours, float32 or float64 [H, W, 3], mostly in 0..1.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import SCALE
from .colours import GLOW, HEAD
from .frames import Frame, mask, smooth
from .labels import ROAD, SIDEWALK


def overcast(frame: Frame, sky: Sequence[float], light: float, grey: float) -> np.ndarray:
    """The scene without sun: no cast shadows, less colour, and a plain sky of the given colour (0..1)."""
    rgb = (frame.rgb - frame.dome * frame.sky) * (1 - 0.6 * frame.contact)
    rgb = rgb + grey * (rgb.mean(2, keepdims=True) - rgb)
    return np.maximum(rgb, 0) * light + np.array(sky, np.float32) * frame.sky


def hazy(frame: Frame, rgb: np.ndarray, sight: float, air: Sequence[float]) -> np.ndarray:
    """Fades the scene, not the sky, towards the colour `air` (0..1): by 63 % in `sight` metres."""
    haze = ((1 - np.exp(-frame.depth / sight))[..., None] * (1 - frame.sky)).astype(np.float32)
    return rgb + haze * (np.array(air, np.float32) - rgb)


def day(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Sunlight of varied strength and warmth, cast shadows, a little haze."""
    warm, power, shade = rng.normal(0, 0.045), rng.uniform(0.96, 1.2), rng.uniform(0.35, 0.6)
    rgb = frame.rgb * (1 - 0.6 * frame.contact) * (1 - shade * frame.sun * (1 - 0.5 * frame.contact))
    rgb = rgb * np.array((1 + warm, 1.0, 1 - warm), np.float32) * power
    return hazy(frame, rgb, rng.uniform(500, 1500), (0.78, 0.83, 0.9))


def fog(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Koschmieder's law: contrast decays exponentially with depth towards the airlight."""
    air = np.array((0.74, 0.75, 0.76), np.float32) * rng.uniform(0.92, 1.08)
    rgb = overcast(frame, air, 0.9, 0.45)
    sight = rng.uniform(17, 36) * (1 + 0.5 * frame.grain[..., 0])
    clear = np.exp(-np.maximum(frame.depth - 3, 0) / sight)[..., None] * (1 - frame.sky)
    return air + (rgb - air) * clear


def night(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Moonlight, pools of light below street lamps, our headlights, and everything that glows, with bloom."""
    light = np.zeros_like(frame.rgb) + np.array((0.06, 0.08, 0.13), np.float32) * rng.uniform(0.8, 1.3)
    pools, beam = lamplight(frame)
    light += pools * np.array((1.0, 0.72, 0.42), np.float32)
    light += beam * np.array((1.0, 0.96, 0.86), np.float32)
    rgb = overcast(frame, (0.016, 0.02, 0.042), 1.0, 0.25) * (light * (1 - frame.sky) + frame.sky)
    shine = GLOW[frame.glow]
    inside = np.clip(0.12 + 0.9 * frame.rgb.mean(2), 0, 0.75)  # curtains and goods still show in a lit window
    rgb = rgb + shine * np.where(frame.glow < HEAD, inside, 1.0)[..., None]
    strong = np.where((frame.glow >= HEAD)[..., None], shine, 0.3 * shine)
    bloom = smooth(strong, 1.5) * 0.8 + smooth(strong, 5) * 2.2 + smooth(strong, 16) * 3.0
    rgb = 1 - np.exp(-1.5 * (rgb + bloom))  # a film curve, so that lamps do not clip
    return rgb + 0.022 * rng.standard_normal(rgb.shape, np.float32)


def lamplight(frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """How much light street lamps and our headlights throw, float32 [H, W, 1] each; computed at a quarter of it."""
    canvas, step = frame.street.canvas, 4
    depth, x = frame.depth[::step, ::step], frame.x[::step, ::step]
    rows = np.arange(0, canvas.size[1], step, dtype=np.float32)[:, None] * SCALE
    y = canvas.height - (rows - canvas.cy) * depth / canvas.focal
    pools = np.zeros_like(depth)
    for lx, ly, lz in canvas.lamps:
        if lz < 70:
            pools += 5.0 / (7 + (x - lx) ** 2 + (y - ly) ** 2 + (depth - lz) ** 2)
    wide, far = np.exp(-((x / (1.6 + 0.2 * depth)) ** 2)), np.exp(-(((depth - 6) / 16) ** 2))
    beam = wide * far * np.exp(-np.maximum(y, 0) / 1.5) * 0.6
    small = (Image.fromarray(part.astype(np.float32)) for part in (pools, beam))
    return tuple(np.asarray(image.resize(canvas.size, Image.BILINEAR))[..., None] for image in small)


def rain(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """A dim, soft scene over a wet road that mirrors it, behind streaks and drops on the windscreen."""
    rgb = overcast(frame, np.array((0.58, 0.6, 0.63)) * rng.uniform(0.85, 1.1), 0.66, 0.3)
    h, w = frame.label.shape
    cy = int(np.clip(frame.street.canvas.cy / SCALE, 1, h - 2))
    mirror = rgb[np.clip(2 * cy - np.arange(cy, h), 0, cy)]
    mirror = Image.fromarray((np.clip(mirror, 0, 1) * 255).astype(np.uint8))
    mirror = mirror.resize((w, max((h - cy) // 10, 1)), Image.BOX).resize((w, h - cy), Image.BICUBIC)
    mirror = np.asarray(mirror, np.float32) / 255
    ground = ((frame.label[cy:] == ROAD) * 1.0 + (frame.label[cy:] == SIDEWALK) * 0.6)[..., None]
    wet = np.clip(0.5 + 1.6 * frame.grain[cy:], 0.22, 0.92) * ground
    wet = wet * (0.55 + 0.45 * np.clip(frame.depth[cy:, :, None] / 25, 0, 1))
    rgb[cy:] = rgb[cy:] * (1 - 0.42 * ground) * (1 - 0.6 * wet) + mirror * wet * 0.85
    rgb = hazy(frame, rgb, 75, (0.55, 0.57, 0.6))
    rgb += mask(streaks(rng, (w, h))) * 0.42 * (0.95 - rgb)
    lens = smooth(rgb, 5)
    return rgb + mask(drops(rng, (w, h))) * 0.85 * (np.roll(lens[::-1], 6, 0) * 0.35 + lens * 0.7 - rgb)


def streaks(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Falling rain (mode L), slanted by the wind."""
    (w, h), image = size, Image.new("L", size)
    draw, slant = ImageDraw.Draw(image), rng.uniform(-0.25, 0.25)
    for x, y, length, ink in uniform(rng, w * h // 180, (0, w), (-20, h), (5, 22), (25, 90)):
        draw.line((x, y, x + slant * length, y + length), fill=int(ink))
    return image


def drops(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Drops on the windscreen (mode L), out of focus."""
    (w, h), image = size, Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(14, 34)) * w // 512):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.gamma(2.0, w / 220) + 2
        draw.ellipse((x - r, y - r * 1.15, x + r, y + r * 1.15), fill=255)
    return image.filter(ImageFilter.GaussianBlur(1.2))


def snow(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """White on everything that faces up, wheel tracks on the road, flakes near and far."""
    rgb = overcast(frame, np.array((0.76, 0.78, 0.81)) * rng.uniform(0.94, 1.06), 0.84, 0.35)
    (h, w), lane = frame.label.shape, frame.street.lane
    aside = ((np.abs(frame.across) / lane % 1.0 - 0.5) ** 2) ** 0.5  # from the middle of the lane, 0..0.5
    tracks = np.exp(-((aside - 0.24) ** 2) / 0.006)[..., None]
    cover = np.clip(rng.uniform(0.7, 1.0) + 1.3 * frame.grain - rng.uniform(0.5, 0.8) * tracks, 0, 1)
    road = (frame.label == ROAD)[..., None]
    cover = frame.snow * np.where(road, cover, np.clip(0.95 + 0.5 * frame.grain, 0, 1))
    white = np.array((0.88, 0.9, 0.94), np.float32) * (1 + 0.16 * frame.grain - 0.4 * frame.contact)
    rgb = rgb + cover * (white - rgb)
    rgb = hazy(frame, rgb, 85, (0.76, 0.78, 0.81))
    far = np.zeros((h, w), np.uint8)
    far[rng.integers(0, h, w * h // 70), rng.integers(0, w, w * h // 70)] = 255
    middle = flakes(rng, Image.fromarray(far), w * h // 1200, 1.5, 0.7)
    rgb += mask(middle) * 0.9 * (0.97 - rgb)
    near = flakes(rng, Image.new("L", (w, h)), w * h // 9000, 4.0, 2.2)
    rgb += mask(near) * 0.9 * (0.97 - rgb)
    return rgb


def flakes(rng: np.random.Generator, image: Image.Image, count: int, size: float, blur: float) -> Image.Image:
    """So many more flakes on a picture of mode L, about `size` pixels in radius, blurred."""
    draw = ImageDraw.Draw(image)
    for x, y, r in uniform(rng, count, (0, image.width), (0, image.height), (0.5 * size, size * 1.3)):
        draw.ellipse((x - r, y - r * 1.2, x + r, y + r * 1.2), fill=235)
    return image.filter(ImageFilter.GaussianBlur(blur))


def uniform(rng: np.random.Generator, count: int, *ranges: tuple[float, float]) -> zip:
    """`count` tuples of a number in each of the ranges."""
    return zip(*(rng.uniform(low, high, count) for low, high in ranges), strict=True)


WEATHER = {"day": day, "fog": fog, "night": night, "rain": rain, "snow": snow}
