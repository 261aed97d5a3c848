"""The weather of the domains: each makes a picture from the maps of a painted street."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .canvas import DEPTH_CODE, HEAD, ROAD, SCALE, SIDEWALK, TERRAIN, cloud_noise
from .street import Street


# the colour of what shines, by glow index
GLOW = (0, 0, 0), (255, 185, 105), (150, 185, 225), (255, 250, 235), (255, 50, 32), (255, 200, 120), (60, 255, 150)


def resolve(street: Street) -> SimpleNamespace:
    """Shrinks the canvas to picture size and adds the texture of the ground; labels are taken, never mixed.

    Returns:
        Maps of the scene, [H, W, 1], shares and colours in 0..1: `rgb` ([H, W, 3], under an even light, black in the
        sky), `label`, `glow` ([H, W]), `snow` (what it can cover), `sky`, `depth` (metres), `across` (to the right of
        the middle of the road, in lanes), `sun` and `contact` (shadows), `grain` (noise fixed to the ground).
    """
    canvas, (w, h), noise = street.canvas, street.canvas.size, cloud_noise()
    label, glow, _, code = (np.asarray(canvas.maps)[::SCALE, ::SCALE, i, None] for i in range(4))
    ground = (label <= SIDEWALK) | (label == TERRAIN)
    v, u = np.mgrid[:h, :w, :1].astype(np.float32)[:2] * SCALE + 1
    depth = canvas.focal * canvas.height / np.maximum(v - canvas.cy, 1)  # of the ground
    depth = np.where(ground, np.clip(depth, 1, 300), np.exp(code.astype(np.float32) / DEPTH_CODE))
    across = (u - canvas.cx) * depth / canvas.focal - street.centre
    # Jittered look-ups: a cheap interpolation whose error looks like the grain of asphalt.
    jitter, near = np.random.default_rng(3).random((h, w, 1), np.float32), np.minimum(1, 14 / depth)
    coarse = noise[(depth * 9 + jitter).astype(int) & 511, (across * 9 + jitter).astype(int) & 511] - 0.5
    fine = noise[(depth * 70).astype(int) & 511, (across * 70).astype(int) & 511] - 0.5
    texture = (0.3 * coarse + near * (0.2 * fine + 0.12 * (jitter - 0.5))) * (
        1 + (label == TERRAIN).astype(np.float32)
    )
    joints = np.minimum(across / 0.75 % 1, depth / 0.75 % 1) < 0.035 + 0.0014 * depth  # of the slabs of a sidewalk
    texture -= 0.2 * near * joints * (label == SIDEWALK)
    return SimpleNamespace(
        canvas=canvas,
        rgb=np.asarray(canvas.rgb.reduce(SCALE), np.float32) / 255 * (1 + texture * ground),
        label=label,
        glow=glow[..., 0],
        snow=mask(canvas.maps.getchannel("B").reduce(SCALE)),
        sky=mask(canvas.maps.getchannel("A").point([0] * 255 + [255]).reduce(SCALE)),
        depth=depth,
        across=across / street.lane,
        sun=mask(canvas.sun.reduce(SCALE).filter(ImageFilter.BoxBlur(1.5))) * ground,
        contact=mask(canvas.contact.reduce(SCALE).filter(ImageFilter.BoxBlur(1.5))) * ground,
        grain=coarse * ground,
    )


def mask(image: Image.Image) -> np.ndarray:
    """A picture of mode L as float32 [H, W, 1] in 0..1."""
    return np.asarray(image, np.float32)[..., None] / 255


def smooth(rgb: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of colours [H, W, 3] in 0..1; the radius in pixels."""
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    step = 1 if radius < 4 else 4  # A wide blur loses nothing at a quarter of the size.
    image = image.reduce(step).filter(ImageFilter.GaussianBlur(radius / step)).resize(image.size, Image.BILINEAR)
    return np.asarray(image, np.float32) / 255


def clouded(frame: SimpleNamespace, sky: Sequence[float], light: float, grey: float) -> np.ndarray:
    """The scene without sun: no cast shadows, less colour, and a plain sky of the given colour."""
    rgb = frame.rgb * (1 - 0.6 * frame.contact)
    return (rgb + grey * (rgb.mean(2, keepdims=True) - rgb)) * light + np.array(sky, np.float32) * frame.sky


def hazy(frame: SimpleNamespace, rgb: np.ndarray, sight: float, air: Sequence[float]) -> np.ndarray:
    """Fades the scene, not the sky, towards the colour of the air: by 63 % in `sight` metres."""
    return rgb + (1 - np.exp(-frame.depth / sight)) * (1 - frame.sky) * (np.array(air, np.float32) - rgb)


def day(frame: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Sunlight of varied strength and warmth, cast shadows, a little haze, and a layer of clouds in perspective."""
    warm, power, shade = rng.normal(0, 0.045), rng.uniform(0.96, 1.2), rng.uniform(0.35, 0.6)
    rgb = frame.rgb * (1 - 0.6 * frame.contact) * (1 - shade * frame.sun * (1 - 0.5 * frame.contact))
    rgb = rgb * np.array((power * (1 + warm), power, power * (1 - warm)), np.float32)
    rgb = hazy(frame, rgb, rng.uniform(500, 1500), (0.78, 0.83, 0.9))
    h, w, _ = rgb.shape
    blue, low = rng.uniform((0.28, 0.46, 0.7), (0.54, 0.64, 0.8)), rng.uniform((0.76, 0.82, 0.8), (0.92, 0.87, 0.92))
    up = np.clip(1 - np.arange(h) * SCALE / frame.canvas.cy, 0, 1)[:, None].astype(np.float32)
    far, (dx, dy) = 60 / (up + 0.25), rng.integers(512, size=2)
    noise = cloud_noise()[(far + dy).astype(int) % 512, (far * np.linspace(-1, 1, w) + dx).astype(int) % 512]
    cloud = (np.clip((noise - rng.uniform(0.3, 0.52)) * 3, 0, 1) * np.minimum(1, 3 * up))[..., None]
    sky = (low + (blue - low) * up[..., None] ** 0.7).astype(np.float32)
    return rgb + smooth(sky + cloud * (0.8 + 0.25 * noise[..., None] - sky), 1.5) * frame.sky


def fog(frame: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Koschmieder's law: contrast decays exponentially with depth towards the airlight."""
    air = np.array((0.74, 0.75, 0.76), np.float32) * rng.uniform(0.92, 1.08)
    sight = rng.uniform(17, 36) * (1 + 0.5 * frame.grain)
    clear = np.exp(-np.maximum(frame.depth - 3, 0) / sight) * (1 - frame.sky)
    return air + (clouded(frame, air, 0.9, 0.45) - air) * clear


def night(frame: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Moonlight, pools of light below street lamps, our headlights, and everything that glows, with bloom."""
    canvas, step = frame.canvas, 4  # Light is computed at a quarter of the size.
    depth = frame.depth[::step, ::step, 0]
    v, u = (m * step * SCALE for m in np.mgrid[: depth.shape[0], : depth.shape[1]])
    x, y = (u - canvas.cx) * depth / canvas.focal, canvas.height - (v - canvas.cy) * depth / canvas.focal
    far = [(x - lamp[0]) ** 2 + (y - lamp[1]) ** 2 + (depth - lamp[2]) ** 2 for lamp in canvas.lamps]
    pools = sum((5 / (7 + squared) for squared in far), np.zeros_like(depth))
    beam = 0.6 * np.exp(-((x / (1.6 + 0.2 * depth)) ** 2) - ((depth - 6) / 16) ** 2 - np.maximum(y, 0) / 1.5)
    light = np.array((0.06, 0.08, 0.13), np.float32) * rng.uniform(0.8, 1.3)
    for part, colour in ((pools, (1.0, 0.72, 0.42)), (beam, (1.0, 0.96, 0.86))):
        part = Image.fromarray(part.astype(np.float32)).resize(canvas.size, Image.BILINEAR)
        light = light + np.asarray(part)[..., None] * np.array(colour, np.float32)
    rgb = clouded(frame, (0.016, 0.02, 0.042), 1.0, 0.25) * (light * (1 - frame.sky) + frame.sky)
    shine, lamp = np.array(GLOW, np.float32)[frame.glow] / 255, (frame.glow >= HEAD)[..., None]
    inside = np.clip(0.12 + 0.9 * frame.rgb.mean(2, keepdims=True), 0, 0.75)  # Curtains still show in a lit window.
    rgb, strong = rgb + shine * np.where(lamp, 1.0, inside), shine * np.where(lamp, 1.0, 0.3)
    bloom = smooth(strong, 1.5) * 0.8 + smooth(strong, 5) * 2.2 + smooth(strong, 16) * 3.0
    rgb = 1 - np.exp(-1.5 * (rgb + bloom))  # a film curve, so that lamps do not clip
    return rgb + 0.022 * rng.standard_normal(rgb.shape, np.float32)


def rain(frame: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """A dim, soft scene over a wet road that mirrors it, behind streaks and drops on the windscreen."""
    rgb = clouded(frame, np.array((0.58, 0.6, 0.63)) * rng.uniform(0.85, 1.1), 0.66, 0.3)
    h, w, _ = rgb.shape
    horizon = int(frame.canvas.cy / SCALE)
    mirror = np.clip(rgb[np.clip(2 * horizon - np.arange(h), 0, horizon)], 0, 1)
    mirror = Image.fromarray((mirror * 255).astype(np.uint8)).resize((w, h // 10), Image.BOX)
    mirror = np.asarray(mirror.resize((w, h), Image.BICUBIC), np.float32) / 255
    ground = np.where(frame.label == ROAD, 1, 0.6 * (frame.label == SIDEWALK)).astype(np.float32)
    wet = np.clip(0.5 + 1.6 * frame.grain, 0.22, 0.92) * ground * (0.55 + 0.45 * np.clip(frame.depth / 25, 0, 1))
    rgb = hazy(frame, rgb * (1 - 0.42 * ground) * (1 - 0.6 * wet) + mirror * wet * 0.85, 75, (0.55, 0.57, 0.6))
    streaks = Image.new("L", (w, h))
    draw, slant = ImageDraw.Draw(streaks), rng.uniform(-0.25, 0.25)
    for x, y, length, ink in rng.uniform((0, -20, 5, 25), (w, h, 22, 90), (w * h // 180, 4)):
        draw.line((x, y, x + slant * length, y + length), fill=int(ink))
    rgb = rgb + mask(streaks) * 0.42 * (0.95 - rgb)
    lens = smooth(rgb, 5)  # A drop shows the scene out of focus, and upside down.
    drops = discs(rng, (w, h), int(rng.integers(14, 34)) * w // 512, 2, w / 50, 1.2)
    return rgb + drops * 0.85 * (lens[::-1] * 0.35 + lens * 0.7 - rgb)


def snow(frame: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """White on everything that faces up, wheel tracks on the road, flakes near and far."""
    rgb = clouded(frame, np.array((0.76, 0.78, 0.81)) * rng.uniform(0.94, 1.06), 0.84, 0.35)
    h, w, _ = rgb.shape
    aside = np.abs(np.abs(frame.across) % 1 - 0.5)  # from the middle of the lane, 0..0.5
    road = rng.uniform(0.7, 1.0) + 1.3 * frame.grain - rng.uniform(0.5, 0.8) * np.exp(-((aside - 0.24) ** 2) / 0.006)
    cover = frame.snow * np.clip(np.where(frame.label == ROAD, road, 0.95 + 0.5 * frame.grain), 0, 1)
    white = np.array((0.88, 0.9, 0.94), np.float32) * (1 + 0.16 * frame.grain - 0.4 * frame.contact)
    rgb = hazy(frame, rgb + cover * (white - rgb), 85, (0.76, 0.78, 0.81))
    for share, low, high, blur in ((70, 0.3, 0.5, 0.4), (1200, 0.7, 2.0, 0.7), (9000, 2.0, 5.2, 2.2)):
        rgb = rgb + discs(rng, (w, h), w * h // share, low, high, blur) * 0.9 * (0.97 - rgb)
    return rgb


def discs(rng: np.random.Generator, size: tuple, count: int, low: float, high: float, blur: float) -> np.ndarray:
    """A mask of blurred discs with radii from `low` to `high`, in pixels."""
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for x, y, r in rng.uniform((0, 0, low), (*size, high), (count, 3)):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=240)
    return mask(image.filter(ImageFilter.GaussianBlur(blur)))


WEATHER = {"day": day, "fog": fog, "night": night, "rain": rain, "snow": snow}
