"""Paints street scenes with exact segmentation labels: an offline stand-in for driving data under domain shift.

A seed fixes one street: a camera, a layout in metres and everything standing in it. It is painted far to near by a
pinhole camera on a canvas that keeps, next to the colours, the class, the depth, the light source and the snow cover
of every pixel. The weather of a domain is then computed from those maps, so the labels of a seed are the same in all
domains. Only numpy and Pillow are used; nothing is downloaded.

    python recipes/demo/paint_streets.py --output_dir data/streets --domain day --seeds 0 200
    python recipes/demo/paint_streets.py --sheet streets.png --seeds 0 6
"""

import argparse
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm


DOMAINS = ("day", "fog", "night", "rain", "snow")
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
VOID = 255
PALETTE = np.zeros((256, 3), np.uint8)  # The Cityscapes colours of the train ids; void stays black.
PALETTE[:19] = np.array(
    "128 64 128 244 35 232 70 70 70 102 102 156 190 153 153 153 153 153 250 170 30 220 220 0 107 142 35 152 251 152 "
    "70 130 180 220 20 60 255 0 0 0 0 142 0 0 70 0 60 100 0 80 100 0 0 230 119 11 32".split(),
    np.uint8,
).reshape(19, 3)

Colour = tuple[int, int, int]
Point = tuple[float, float, float]  # x to the right, y up, z ahead, in metres; the camera stands at (0, height, 0).
SCALE = 2  # Supersampling: painted twice as large without antialiasing, so that labels never mix.
DEPTH_CODE = 44.0  # Depth is kept in 8 bits as 44 ln(metres): steps of 2.3 %, up to 320 m; 255 is the sky.
# What shines at night, by glow index: none, warm and cool window, shop, head and tail light, lamp, green, red, amber.
GLOWS = "0 0 0 255 178 95 150 185 225 255 215 150 255 250 235 255 45 30 255 205 130 60 255 150 255 60 40 255 170 40"
GLOW = np.array(GLOWS.split(), np.float32).reshape(10, 3) / 255
WARM, COOL, SHOP, HEAD, TAIL, LAMP, GREEN, RED, AMBER = range(1, 10)


def tone(colour: Sequence[float], k: float) -> Colour:
    """Scales an RGB colour (0..255) by `k`."""
    return tuple(max(0, min(255, int(c * k))) for c in colour)


def pick(rng: np.random.Generator, options: Sequence):
    """One of the options, unconverted (rng.choice would turn tuples into arrays)."""
    return options[int(rng.integers(len(options)))]


@cache
def cloud_noise() -> np.ndarray:
    """Tileable fractal noise, float32 [512, 512] around 0.5, mostly within 0..1."""
    white = np.random.default_rng(7).standard_normal((512, 512))
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(512), np.fft.fftfreq(512)))
    f[0, 0] = np.inf
    noise = np.fft.ifft2(np.fft.fft2(white) / f**1.25).real
    return (0.5 + 0.2 * noise / noise.std()).astype(np.float32)


@cache
def circle(count: int) -> list[tuple[float, float]]:
    """Points on the unit circle: (cos, sin)."""
    return [(math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)) for i in range(count)]


def tinted(image: Image.Image, tint: Sequence[float]) -> Image.Image:
    """Multiplies the channels of an RGB image by three factors."""
    r, g, b = (float(k) for k in tint)
    if image.width * image.height < 8000:  # A colour matrix has no set-up cost, a look-up table is faster per pixel.
        return image.convert("RGB", (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
    return image.point([min(255, int(i * k)) for k in (r, g, b) for i in range(256)])


class Texture:
    """A flat painting (RGB, glow index, optional alpha), kept at several sizes so that far walls do not alias."""

    def __init__(self, rgb: Image.Image, width: float, height: float, glow=None, alpha=None) -> None:
        self.width, self.height = width, height  # metres
        glow = glow or Image.new("L", rgb.size)
        self.mips = [(rgb, glow, alpha)]
        while min(self.mips[-1][0].size) > 24:
            rgb, glow, alpha = self.mips[-1]
            half = (rgb.width // 2, rgb.height // 2)
            small = alpha.resize(half, Image.BOX) if alpha else None
            self.mips.append((rgb.resize(half, Image.BOX), glow.resize(half, Image.NEAREST), small))

    def at(self, width: float, height: float) -> tuple[Image.Image, Image.Image, Image.Image | None]:
        """The smallest version that is still about as large as the given size in pixels, in either direction."""
        level = 0
        while level + 1 < len(self.mips):
            w, h = self.mips[level + 1][0].size
            if h < 0.8 * height or w < 0.8 * width:
                break
            level += 1
        return self.mips[level]


class Canvas:
    """Colours (RGB) and maps (RGBA: label, glow index, snow cover, depth code), both `SCALE` times the picture size.

    Shadows are separate layers of picture size: `sun` vanishes under clouds, `contact` stays.
    """

    def __init__(self, size: tuple[int, int], focal: float, cx: float, cy: float, height: float, sun: Point) -> None:
        self.size, self.focal, self.cx, self.cy, self.height = size, focal * SCALE, cx * SCALE, cy * SCALE, height
        self.light = sun  # unit vector towards the sun
        big = (size[0] * SCALE, size[1] * SCALE)
        self.rgb, self.maps = Image.new("RGB", big), Image.new("RGBA", big, (SKY, 0, 0, 255))
        self.sun, self.contact = Image.new("L", size), Image.new("L", size)
        self._rgb, self._maps = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.maps)
        self._sun, self._contact = ImageDraw.Draw(self.sun), ImageDraw.Draw(self.contact)
        self.lamps: list[Point] = []

    def project(self, p: Point) -> tuple[float, float]:
        """Column and row on the large canvas of a point in metres."""
        s = self.focal / max(p[2], 0.8)
        return self.cx + p[0] * s, self.cy + (self.height - p[1]) * s

    @staticmethod
    def code(z: float) -> int:
        return int(max(0.0, min(254.0, DEPTH_CODE * math.log(max(z, 1.0)))))

    def fill(self, points: Sequence, colour: Colour, label: int, z: float, glow: int = 0, snow: int = 0) -> None:
        """Fills a polygon given in pixels."""
        self._rgb.polygon(points, fill=colour)
        self._maps.polygon(points, fill=(label, glow, snow, self.code(z)))

    def face(self, points: Sequence[Point], colour: Colour, label: int, centre: Point | None = None, **kw) -> bool:
        """Fills a polygon given in metres; with the `centre` of its body it is lit, and left out when facing away."""
        z = sum(p[2] for p in points) / len(points)
        if centre is not None:
            a, b, c = points[0], points[1], points[-1]
            u, v = [b[i] - a[i] for i in range(3)], [c[i] - a[i] for i in range(3)]
            n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
            norm = math.sqrt(sum(k * k for k in n)) or 1.0
            if sum(k * (p - m) for k, p, m in zip(n, a, centre, strict=True)) < 0:
                norm = -norm
            n = [k / norm for k in n]
            if n[0] * a[0] + n[1] * (a[1] - self.height) + n[2] * a[2] > 0:
                return False
            colour = tone(colour, self.lit(n))
            kw.setdefault("snow", 255 if n[1] > 0.5 else 0)
        self.fill([self.project(p) for p in points], colour, label, z, **kw)
        return True

    def lit(self, normal: Sequence[float]) -> float:
        """Brightness of a surface with this unit normal."""
        return 0.72 + 0.4 * max(0.0, sum(a * b for a, b in zip(normal, self.light, strict=True))) + 0.08 * normal[1]

    def stroke(self, points: Sequence[Point], radius: float, colour: Colour, label: int, glow: int = 0) -> None:
        """Draws a tube of constant radius (metres) along points; never thinner than about a picture pixel."""
        z = sum(p[2] for p in points) / len(points)
        width = max(2, round(2 * radius * self.focal / max(z, 0.8)))
        line = [self.project(p) for p in points]
        self._rgb.line(line, fill=colour, width=width, joint="curve")
        self._maps.line(line, fill=(label, glow, 0, self.code(z)), width=width, joint="curve")
        (u0, v0), (u1, v1) = line[0], line[-1]
        if width > 5 and abs(u1 - u0) < abs(
            v1 - v0
        ):  # A lit streak makes it round; lying tubes would lose it sideways.
            shift = -0.2 * width if self.light[0] < 0 else 0.2 * width
            self._rgb.line([(u + shift, v) for u, v in line], fill=tone(colour, 1.3), width=width // 4)

    def limb(self, p: Point, q: Point, rp: float, rq: float, colour: Colour, label: int, snow: int = 0) -> None:
        """Draws a capsule whose radius goes from rp at p to rq at q (metres)."""
        (u0, v0), (u1, v1) = self.project(p), self.project(q)
        s = self.focal / p[2]
        layers = [(0.0, 1.0, tone(colour, 0.86))]
        if max(rp, rq) * s > 3:
            layers.append((-0.28 if self.light[0] < 0 else 0.28, 0.64, tone(colour, 1.08)))
        for shift, k, c in layers:
            r0, r1 = max(rp * s * k, 0.8), max(rq * s * k, 0.8)
            a0, a1, b0, b1 = u0 + shift * rp * s, u1 + shift * rq * s, v0, v1
            length = math.hypot(a1 - a0, b1 - b0) or 1.0
            nx, ny = (b0 - b1) / length, (a1 - a0) / length
            quad = [(a0 + nx * r0, b0 + ny * r0), (a1 + nx * r1, b1 + ny * r1)]
            quad += [(a1 - nx * r1, b1 - ny * r1), (a0 - nx * r0, b0 - ny * r0)]
            ends = [(a0 - r0, b0 - r0, a0 + r0, b0 + r0), (a1 - r1, b1 - r1, a1 + r1, b1 + r1)]
            for draw, ink in ((self._rgb, c), (self._maps, (label, 0, snow, self.code(p[2])))):
                if draw is self._rgb or k == 1.0:
                    draw.polygon(quad, fill=ink)
                    for end in ends:
                        draw.ellipse(end, fill=ink)

    def wall(self, texture: Texture, p: Point, q: Point, top: float, label: int, tint=(1.0, 1.0, 1.0)) -> None:
        """Hangs a texture on the upright rectangle from the base line p -> q up to the height `top` (metres)."""
        s0, s1 = 0.0, 1.0
        right = self.rgb.width + 40 - self.cx
        for plane in (
            lambda m: m[2] - 1.0,
            lambda m: self.focal * m[0] + (self.cx + 40) * m[2],
            lambda m: right * m[2] - self.focal * m[0],
        ):  # Clipping by the view keeps the warp small, and points behind the camera out.
            d0, d1 = plane(p), plane(q)
            if d0 < 0 and d1 < 0:
                return
            if d0 < 0:
                s0 = max(s0, d0 / (d0 - d1))
            elif d1 < 0:
                s1 = min(s1, d0 / (d0 - d1))
        if s1 - s0 < 1e-3:
            return
        a, b = (tuple(m + (n - m) * s for m, n in zip(p, q, strict=True)) for s in (s0, s1))
        corners = [self.project(m) for m in ((a[0], top, a[2]), a, b, (b[0], top, b[2]))]
        us, vs = [c[0] for c in corners], [c[1] for c in corners]
        u0, u1 = max(0, math.floor(min(us))), min(self.rgb.width, math.ceil(max(us)))
        v0, v1 = max(0, math.floor(min(vs))), min(self.rgb.height, math.ceil(max(vs)))
        if u1 - u0 < 1 or v1 - v0 < 1 or abs(us[0] - us[2]) < 0.5:
            return
        span = max(abs(us[0] - us[2]), 1.0)
        rgb, glow, alpha = texture.at(span / (s1 - s0), max(abs(vs[1] - vs[0]), abs(vs[2] - vs[3])))
        w, h = rgb.size
        source = [(s0 * w, 0), (s0 * w, h), (s1 * w, h), (s1 * w, 0)]
        warp = homography([(u - u0, v - v0) for u, v in corners], source)
        box = (u1 - u0, v1 - v0)
        mask = Image.new("L", box)
        ImageDraw.Draw(mask).polygon([(u - u0, v - v0) for u, v in corners], fill=255)
        rgb = tinted(rgb.transform(box, Image.PERSPECTIVE, warp, Image.BILINEAR), tint)
        see = mask
        if alpha is not None:
            alpha = alpha.transform(box, Image.PERSPECTIVE, warp, Image.BILINEAR)
            see = Image.composite(alpha, mask, mask)
        self.rgb.paste(rgb, (u0, v0), see)
        columns = (np.arange(u0, u1) + 0.5 - us[0]) / (us[2] - us[0] or 1.0)
        depth = 1 / np.maximum(1 / a[2] + np.clip(columns, 0, 1) * (1 / b[2] - 1 / a[2]), 1e-3)
        codes = np.clip(DEPTH_CODE * np.log(np.maximum(depth, 1)), 0, 254).astype(np.uint8)
        bands = Image.new("L", box, label), glow.transform(box, Image.PERSPECTIVE, warp, Image.NEAREST)
        bands += Image.new("L", box), Image.fromarray(codes[None]).resize(box, Image.NEAREST)
        self.maps.paste(Image.merge("RGBA", bands), (u0, v0), mask)

    def sprite(self, sprite: Sequence[Image.Image], base: Point, height: float, label: int, tint) -> None:
        """Stands a flat cut-out (`foliage`) of the given height (metres) on the point `base`."""
        u, v = self.project(base)
        share = height * self.focal / base[2] / sprite[0].height
        level = 6 if share < 0.25 else 3 if share < 0.6 else 0
        image, alpha, snow = sprite[level : level + 3]
        k = height * self.focal / base[2] / image.height  # canvas pixels per sprite pixel
        left, top = u - k * image.width / 2, v - k * image.height
        u0, v0 = max(0, round(left)), max(0, round(top))
        u1, v1 = min(self.rgb.width, round(left + k * image.width)), min(self.rgb.height, round(v))
        if u1 - u0 < 2 or v1 - v0 < 2:
            return
        box = [(u0 - left) / k, (v0 - top) / k, (u1 - left) / k, (v1 - top) / k]
        box = [max(0.0, min(b, m)) for b, m in zip(box, image.size * 2, strict=True)]
        size = (u1 - u0, v1 - v0)
        # Nearest keeps leaves crisp and labels exact; the supersampling smooths what aliases.
        mask = alpha.resize(size, Image.NEAREST, box).point([0] * 118 + [255] * 138)
        self.rgb.paste(tinted(image.resize(size, Image.NEAREST, box), tint), (u0, v0), mask)
        bands = Image.new("L", size, label), Image.new("L", size), snow.resize(size, Image.NEAREST, box)
        self.maps.paste(Image.merge("RGBA", (*bands, Image.new("L", size, self.code(base[2])))), (u0, v0), mask)

    def shadow(self, points: Sequence[tuple[float, float]], strength: int, contact: bool = False, base=0.0) -> None:
        """Darkens a polygon of points (x, z) of the ground or of the sidewalk at height `base`, in metres."""
        line = [tuple(c / SCALE for c in self.project((x, base, max(z, 1.2)))) for x, z in points]
        (self._contact if contact else self._sun).polygon(line, fill=strength)

    def blot(self, x: float, z: float, rx: float, rz: float, base: float = 0.0) -> None:
        """A round contact shadow under something standing on the ground."""
        ring = [(x + rx * c, z + rz * s) for c, s in circle(12)]
        self.shadow(ring, 150, True, base)

    def cast(self, x: float, z: float, height: float, radius: float) -> None:
        """The sun shadow of a thin upright thing."""
        dx, dz = (-c / max(self.light[1], 0.2) * height for c in (self.light[0], self.light[2]))
        self.shadow([(x - radius, z), (x + radius, z), (x + dx + radius, z + dz), (x + dx - radius, z + dz)], 130)


def homography(output: Sequence, source: Sequence) -> list[float]:
    """The 8 coefficients with which PIL's PERSPECTIVE maps the 4 output corners to the 4 source corners."""
    rows, values = [], []
    for (u, v), (x, y) in zip(output, source, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -x * u, -x * v], [0, 0, 0, u, v, 1, -y * u, -y * v]]
        values += [x, y]
    return np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist()


# ---------------------------------------------------------------------------------------------------------------------
# Flat paintings, made once per process: facades, walls, fences, foliage


def plaster(rng: np.random.Generator, size: tuple[int, int], colour: Colour, grain: float = 0.12) -> Image.Image:
    """A weathered surface: large stains, fine grain, dirt towards the ground."""
    w, h = size
    y, x = np.mgrid[:h, :w]
    noise = cloud_noise()
    stains = noise[(y // 2 + rng.integers(512)) % 512, (x // 2 + rng.integers(512)) % 512] - 0.5
    k = 1 + grain * stains + 0.05 * (rng.random((h, w)) - 0.5) - 0.12 * np.clip((y - h + 50) / 50, 0, 1)
    return Image.fromarray(np.clip(k[..., None] * np.array(colour), 0, 255).astype(np.uint8))


def bricks(draw: ImageDraw.ImageDraw, rng: np.random.Generator, size, colour: Colour, w: int, h: int) -> None:
    """Single stones in slightly different tones; the ground shows through as mortar."""
    for row, y in enumerate(range(0, size[1], h)):
        for x in range(-(row % 2) * w // 2, size[0], w):
            draw.rectangle((x, y, x + w - 2, y + h - 2), fill=tone(colour, rng.uniform(0.82, 1.15)))


def window(draw, glow, rng: np.random.Generator, box, frame: Colour, style: str, shutter: Colour | None) -> None:
    """One window of a facade with frame, reflecting panes, curtains and sill; `glow` gets its light at night."""
    x0, y0, x1, y1 = box
    if shutter:
        for a, b in ((x0 - (x1 - x0) * 0.48, x0 - 2), (x1 + 2, x1 + (x1 - x0) * 0.48)):
            draw.rectangle((a, y0, b, y1), fill=shutter)
            for y in range(int(y0) + 3, int(y1), 5):
                draw.line((a + 2, y, b - 2, y), fill=tone(shutter, 0.75))
    draw.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), fill=frame)
    draw.line((x0 - 3, y0 - 4, x1 + 3, y0 - 4), fill=tone(frame, 0.5), width=2)
    glass = tone(pick(rng, ((62, 76, 92), (48, 56, 66), (92, 112, 128), (70, 84, 88))), rng.uniform(0.75, 1.15))
    draw.rectangle((x0, y0, x1, y1), fill=glass)
    draw.polygon([(x0, y0), (x1, y0), (x0 + 0.4 * (x1 - x0), y1), (x0, y1)], fill=tone(glass, 1.22))
    if rng.random() < 0.45:
        cloth, cut = tone((222, 214, 198), rng.uniform(0.65, 1.0)), rng.uniform(0.15, 0.35) * (x1 - x0)
        draw.rectangle((x0, y0, x0 + cut, y1), fill=cloth)
        draw.rectangle((x1 - cut, y0, x1, y1), fill=cloth)
    elif rng.random() < 0.25:
        draw.rectangle((x0, y0, x1, y0 + (y1 - y0) * rng.uniform(0.2, 0.7)), fill=tone(frame, 0.8))
    if rng.random() < 0.42:
        glow.rectangle((x0, y0, x1, y1), fill=pick(rng, (WARM, WARM, WARM, COOL)))
    middle = (x0 + x1) / 2
    for d, ink in ((draw, frame), (glow, 0)):
        d.line((middle, y0, middle, y1), fill=ink, width=3)
        if style != "modern":
            d.line((x0, y0 + (y1 - y0) * 0.35, x1, y0 + (y1 - y0) * 0.35), fill=ink, width=2)
    draw.rectangle((x0 - 6, y1 + 3, x1 + 6, y1 + 7), fill=tone(frame, 1.05))
    draw.rectangle((x0 - 5, y1 + 8, x1 + 5, y1 + 10), fill=tone(frame, 0.45))
    if style == "old" and rng.random() < 0.15:
        for x in np.arange(x0 - 4, x1 + 4, 4):
            leaf = pick(rng, ((70, 110, 50), (90, 130, 60), (190, 60, 70), (210, 120, 150)))
            draw.ellipse((x - 3, y1 - 6 + rng.uniform(-2, 2), x + 4, y1 + 4), fill=leaf)


def shop(draw, glow, rng: np.random.Generator, x0: int, x1: int, y0: int, y1: int) -> None:
    """A shop front: name board with letter-like marks, display window, door."""
    board = pick(rng, ((150, 40, 40), (36, 70, 58), (30, 52, 96), (60, 44, 38), (196, 160, 70), (40, 40, 46)))
    draw.rectangle((x0 + 3, y0 + 4, x1 - 3, y1), fill=tone(board, 0.8))
    draw.rectangle((x0 + 3, y0 + 4, x1 - 3, y0 + 26), fill=board)
    for x in np.arange(x0 + 14, x1 - 16, 10):
        if rng.random() < 0.85:
            draw.rectangle((x, y0 + 10, x + rng.integers(3, 7), y0 + 19), fill=(238, 228, 204))
    door = x1 - 32
    draw.rectangle((x0 + 8, y0 + 32, door - 5, y1 - 14), fill=(72, 82, 88))
    for x in np.arange(x0 + 12, door - 14, 9):
        goods = tone(pick(rng, ((190, 150, 90), (170, 90, 80), (120, 150, 160), (220, 210, 180))), rng.uniform(0.6, 1))
        draw.rectangle((x, y1 - 16 - rng.integers(6, 34), x + 6, y1 - 16), fill=goods)
    draw.polygon([(x0 + 16, y0 + 32), (x0 + 34, y0 + 32), (x0 + 20, y1 - 40), (x0 + 8, y1 - 40)], fill=(112, 124, 130))
    draw.rectangle((door, y0 + 32, x1 - 8, y1 - 2), fill=(54, 62, 66))
    if rng.random() < 0.6:
        glow.rectangle((x0 + 8, y0 + 32, door - 5, y1 - 14), fill=SHOP)
        glow.rectangle((x0 + 14, y0 + 10, x1 - 14, y0 + 19), fill=SHOP)


WALLS = ((222, 206, 172), (204, 178, 142), (190, 196, 196), (214, 190, 178), (226, 220, 204), (188, 164, 136))
BRICKS = ((156, 84, 66), (136, 78, 62), (172, 112, 84), (120, 90, 80))
CONCRETE = ((172, 172, 168), (196, 194, 188), (150, 156, 160), (206, 198, 184))
FACADES = {"old": range(14), "brick": range(14, 22), "modern": range(22, 28), "office": range(28, 32)}
FACADES["house"] = range(32, 42)


@cache
def facade(index: int) -> Texture:
    """The painted front of a building at 30 pixels per metre."""
    rng = np.random.default_rng([index, 1])
    style = next(name for name, indices in FACADES.items() if index in indices)
    bays, floors = int(rng.integers(3, 6)), int(rng.integers(1, 2) if style == "house" else rng.integers(2, 6))
    bay, storey = int(rng.uniform(2.3, 3.1) * 30), int(rng.uniform(2.9, 3.3) * 30)
    ground = storey if style == "house" else int(3.8 * 30)
    w, h = bays * bay + 20, floors * storey + ground + 16
    colour = pick(rng, {"brick": BRICKS, "modern": CONCRETE, "office": CONCRETE}.get(style, WALLS))
    rgb, lights = plaster(rng, (w, h), colour), Image.new("L", (w, h))
    draw, glow = ImageDraw.Draw(rgb), ImageDraw.Draw(lights)
    if style == "brick" or (style == "house" and rng.random() < 0.35):
        colour = pick(rng, BRICKS)
        rgb.paste(plaster(rng, (w, h), tone(colour, 1.25)))
        bricks(draw, rng, (w, h), colour, 13, 6)
    frame = pick(rng, ((236, 232, 222), (236, 232, 222), (92, 70, 54), (60, 66, 70)))
    shutter = pick(rng, ((62, 92, 78), (70, 90, 120), (120, 74, 56))) if rng.random() < 0.5 else None
    shutter = shutter if style in ("old", "house") else None
    ww, wh = bay * (0.4 if shutter else rng.uniform(0.4, 0.55)), storey * rng.uniform(0.5, 0.62)
    for f in range(floors):
        y = 16 + f * storey
        if style == "office":
            for x in range(8, w - 8, bay // 2):
                pane = tone((88, 112, 134), rng.uniform(0.7, 1.25) * (1.25 - 0.4 * f / floors))
                draw.rectangle((x, y + 8, x + bay // 2 - 5, y + storey - 22), fill=pane)
                if rng.random() < 0.4:
                    glow.rectangle((x, y + 8, x + bay // 2 - 5, y + storey - 22), fill=COOL)
            continue
        if style != "house":  # A string course between floors throws a thin shadow.
            draw.rectangle((0, y + storey - 6, w, y + storey - 2), fill=tone(colour, 1.1))
            draw.line((0, y + storey - 1, w, y + storey - 1), fill=tone(colour, 0.6), width=2)
        for b in range(bays):
            x, top = 10 + b * bay + (bay - ww) / 2, y + (storey - wh) / 2
            if style == "modern":
                x, right = 12 + b * bay, 8 + (b + 1) * bay - (b % 2) * bay * 0.25
                window(draw, glow, rng, (x, top, right, top + wh), frame, style, None)
                continue
            window(draw, glow, rng, (x, top, x + ww, top + wh), frame, style, shutter)
    y = 16 + floors * storey
    shops = style != "house" and rng.random() < 0.65
    door = int(rng.integers(bays))
    if shops:
        draw.rectangle((0, y, w, h), fill=tone(colour, 0.82))
    for b in range(bays):
        x0, x1 = 10 + b * bay, 10 + (b + 1) * bay
        if shops:
            shop(draw, glow, rng, x0, x1, y, h)
        elif b == door:
            wood = pick(rng, ((94, 60, 42), (52, 74, 62), (58, 62, 92), (130, 44, 40)))
            draw.rectangle((x0 + bay * 0.26, h - 70, x1 - bay * 0.26, h), fill=tone(frame, 0.95))
            draw.rectangle((x0 + bay * 0.32, h - 64, x1 - bay * 0.32, h), fill=wood)
            draw.rectangle((x0 + bay * 0.38, h - 58, x1 - bay * 0.38, h - 34), fill=tone(wood, 1.3))
            draw.rectangle((x0 + bay * 0.38, h - 28, x1 - bay * 0.38, h - 6), fill=tone(wood, 0.75))
        else:
            top = y + (ground - wh) / 2 - 6
            window(draw, glow, rng, (x0 + (bay - ww) / 2, top, x0 + (bay + ww) / 2, top + wh), frame, style, shutter)
    draw.rectangle((0, 0, w, 9), fill=tone(colour, 1.12))
    draw.rectangle((0, 10, w, 14), fill=tone(colour, 0.55))
    return Texture(rgb, w / 30, h / 30, lights)


@cache
def barrier(kind: str) -> tuple[Texture, int]:
    """A wall, fence or hedge (6 m long) and its label. The gaps of a fence show what is behind but count as fence."""
    rng = np.random.default_rng([len(kind), ord(kind[0])])
    height = {"stone": 1.5, "brick": 1.8, "noise": 3.2, "hedge": 1.6, "rail": 0.85, "picket": 1.1}.get(kind, 1.5)
    w, h = 360, int(height * 60)
    if kind in ("stone", "brick", "noise"):
        colour = {"stone": (150, 144, 132), "brick": (150, 86, 68), "noise": (160, 162, 150)}[kind]
        rgb = plaster(rng, (w, h), tone(colour, 0.8), 0.4)
        draw = ImageDraw.Draw(rgb)
        if kind == "noise":
            for x in range(0, w, 12):
                draw.line((x, 0, x, h), fill=tone(colour, 0.72 if x % 120 else 0.45), width=4 if x % 120 else 8)
        else:
            bricks(draw, rng, (w, h), colour, *((26, 16) if kind == "stone" else (16, 7)))
        draw.rectangle((0, 0, w, 7), fill=tone(colour, 1.25))
        draw.rectangle((0, 8, w, 10), fill=tone(colour, 0.5))
        return Texture(rgb, 6.0, height), WALL
    if kind == "hedge":
        rgb, alpha = Image.new("RGB", (w, h), (40, 62, 30)), Image.new("L", (w, h), 255)
        draw = ImageDraw.Draw(rgb)
        for _ in range(2600):
            x, y = rng.uniform(0, w), rng.uniform(0, h)
            leaf = tone((88, 124, 56), rng.uniform(0.55, 1.05) * (1.15 - 0.55 * y / h))
            draw.ellipse((x - 3, y - 2, x + 3, y + 3), fill=leaf)
        return Texture(rgb, 6.0, height, alpha=alpha), VEGETATION
    ink = {"rail": (176, 180, 182), "picket": (232, 228, 216), "iron": (44, 50, 50), "mesh": (110, 120, 112)}[kind]
    rgb, alpha = Image.new("RGB", (w, h), ink), Image.new("L", (w, h))
    draw, see = ImageDraw.Draw(rgb), ImageDraw.Draw(alpha)
    step, thick = {"rail": (120, 8), "picket": (14, 9), "iron": (12, 4), "mesh": (9, 2)}[kind]
    for x in range(0, w, step):
        see.rectangle((x, 0, x + thick, h), fill=255)
        draw.line((x + thick - 1, 0, x + thick - 1, h), fill=tone(ink, 0.65), width=2)
    bars = (range(4, h // 2, 9) if kind == "rail" else range(0, h, 9)) if kind in ("rail", "mesh") else (8, h - 22)
    for y in bars:
        see.rectangle((0, y, w, y + (6 if kind != "mesh" else 1)), fill=255)
    if kind in ("iron", "mesh"):
        for x in range(0, w, 120):
            see.rectangle((x, 0, x + 9, h), fill=255)
    return Texture(rgb, 6.0, height, alpha=alpha), FENCE


@cache
def foliage(kind: str, variant: int, flip: bool = False) -> tuple[Image.Image, ...]:
    """A tree or bush lit from the upper left (flipped: right): colours, cut-out and snow catch, large and small."""
    rng = np.random.default_rng([variant, len(kind), ord(kind[0])])
    w, h = {"poplar": 170, "conifer": 280, "bush": 560}.get(kind, 440), 480
    green = pick(rng, ((96, 128, 52), (108, 138, 60), (84, 118, 58), (126, 136, 58), (116, 130, 48)))
    if kind == "conifer":
        green = pick(rng, ((58, 94, 62), (66, 98, 74), (62, 90, 46)))
    bare, snowy = (
        100,
        200,
    )  # The fourth channel tells what there is: nothing (0), something, something that snow covers.
    image = Image.new("RGBA", (w, h), (*tone(green, 0.7), 0))
    draw = ImageDraw.Draw(image)
    bark = (176, 170, 158) if kind == "birch" else pick(rng, ((92, 72, 54), (104, 86, 68), (80, 66, 56)))
    if kind != "bush":
        lean, t = rng.uniform(-10, 10), 7 if kind == "poplar" else w * 0.03
        trunk = [(w / 2 - t, h), (w / 2 - t * 0.6 + lean, 160), (w / 2 + t * 0.6 + lean, 160), (w / 2 + t, h)]
        draw.polygon(trunk, fill=(*tone(bark, 0.72), bare))
        draw.polygon([trunk[0], trunk[1], (w / 2 + lean, 160), (w / 2 - t * 0.1, h)], fill=(*bark, bare))
        for y in range(170, h, 5):
            x, k = w / 2 + rng.uniform(-t, t) * 0.8, rng.uniform(0.5, 0.9)
            draw.line((x, y, x + 3, y + 2 if kind == "birch" else y + 14), fill=(*tone(bark, k), bare), width=2)
        for _ in range(8 if kind not in ("conifer", "poplar") else 0):
            branch = (
                w / 2 + lean * 0.5,
                rng.uniform(240, 320),
                w / 2 + rng.uniform(-0.3, 0.3) * w,
                rng.uniform(90, 220),
            )
            draw.line(branch, fill=(*tone(bark, 0.65), bare), width=6)
    clumps = []  # column, row, radius
    if kind == "conifer":
        for y in np.linspace(420, 16, 34):
            half = y * 0.25 * rng.uniform(0.85, 1.1)
            clumps += [
                (w / 2 + s * half, y + abs(s) * 14, 7 + half * 0.12) for s in rng.permutation(np.linspace(-1, 1, 7))
            ]
    else:
        cy, ry, rx = {"poplar": (225, 200, 58), "bush": (310, 160, 250)}.get(kind, (185, 165, 185))
        for _ in range({"birch": 46, "poplar": 60, "bush": 75}.get(kind, 64)):
            turn, r = rng.uniform(0, 2 * math.pi), math.sqrt(rng.random())
            size = rng.uniform(0.13, 0.24) * rx * (0.75 if kind == "birch" else 1.0) + 6
            clumps.append((w / 2 + rx * 0.84 * r * math.cos(turn), cy + ry * 0.86 * r * math.sin(turn), size))
        clumps.sort(key=lambda c: -c[1] + 60 * rng.random())
    top, bottom = min(c[1] for c in clumps), max(c[1] for c in clumps)
    for x, y, r in clumps:
        level = 0.6 + 0.4 * (1 - (y - top) / (bottom - top)) - 0.2 * (x - w / 2) / w + rng.uniform(-0.08, 0.08)
        hue = (green[0] * rng.uniform(0.92, 1.1), green[1], green[2] * rng.uniform(0.85, 1.1))
        count = 50 if kind == "birch" else 40 if kind == "conifer" else 80
        offsets = np.clip(rng.normal(0, 0.5, (count, 2)), -1.2, 1.2) * r
        offsets = offsets[np.argsort(-offsets[:, 1])]
        light = level + rng.uniform(-0.13, 0.13, count) - 0.3 * (offsets @ (0.5, 0.8)) / r
        inks = np.clip(np.outer(1.16 * light, hue), 0, 255).astype(int).tolist()
        sizes = rng.uniform(1.6, 3.9, (count, 2)).tolist()
        for (dx, dy), ink, (sx, sy) in zip(offsets.tolist(), inks, sizes, strict=True):
            u, v = x + dx, min(y + dy, h - 4)
            leaf = [(u - sx, v), (u, v - sy), (u + sx, v + sy * 0.3), (u + sx * 0.2, v + sy)]
            draw.polygon(leaf, fill=(*ink, snowy if dy < -0.12 * r else bare))
    there = image.getchannel("A")
    layers = [
        image.convert("RGB"),
        there.point([0] + [255] * 255),
        there.point([0, *[20] * bare, *[230] * (255 - bare)]),
    ]
    layers = [layer.transpose(Image.FLIP_LEFT_RIGHT) if flip else layer for layer in layers]
    return *layers, *(layer.reduce(2) for layer in layers), *(layer.reduce(5) for layer in layers)


TREES = ("round", "round", "round", "poplar", "conifer", "birch")

# ---------------------------------------------------------------------------------------------------------------------
# Things: vehicles, people, street furniture


class Place(NamedTuple):
    """A spot on the ground (x, z in view metres) and a heading: yaw 0 drives away from the camera."""

    x: float
    z: float
    yaw: float = 0.0
    base: float = 0.0

    def __call__(self, ahead: float, right: float, up: float) -> Point:
        s, c = math.sin(self.yaw), math.cos(self.yaw)
        return self.x + ahead * s + right * c, self.base + up, self.z + ahead * c - right * s


class Body(NamedTuple):
    """One extruded part of a vehicle, in metres: the side outline from rear bottom over the top to front bottom."""

    outline: tuple[tuple[float, float], ...]
    half: float  # half width
    belt: float  # above this height the sides lean inwards
    glass: tuple[int, ...]  # which stretches of the outline are panes
    panes: tuple[tuple[float, float, float, float], ...] = ()  # side windows (a0, a1, y0, y1); empty: a car's
    lean: float = 0.17
    paint: bool = True  # takes the colour of the vehicle (the box of a truck stays light)


class Vehicle(NamedTuple):
    label: int
    bodies: tuple[Body, ...]
    wheels: tuple[float, ...]
    radius: float


def rows(first: float, last: float, count: int, gap: float, y0: float, y1: float) -> tuple:
    """Evenly spaced side windows."""
    step = (last - first) / count
    return tuple((first + i * step, first + (i + 1) * step - gap, y0, y1) for i in range(count))


# fmt: off
HATCH = Body(((-1.9, .3), (-1.98, .6), (-1.9, .95), (-1.5, 1.4), (-1.2, 1.48), (.2, 1.47), (.5, 1.38), (1.2, .97),
              (1.8, .82), (1.98, .62), (1.98, .28)), .86, .95, (2, 6))
SEDAN = Body(((-2.25, .3), (-2.32, .62), (-2.2, .96), (-1.6, 1.02), (-1.0, 1.38), (-.7, 1.45), (.2, 1.45), (.5, 1.37),
              (1.2, .97), (2.0, .84), (2.26, .62), (2.26, .28)), .9, 1.0, (3, 7))
ESTATE = Body(((-2.25, .3), (-2.34, .62), (-2.28, .98), (-1.95, 1.4), (-1.7, 1.48), (.2, 1.48), (.5, 1.4), (1.2, .98),
               (2.0, .84), (2.26, .62), (2.26, .28)), .9, .98, (2, 6))
SUV = Body(((-2.2, .38), (-2.28, .75), (-2.22, 1.08), (-1.95, 1.6), (-1.65, 1.7), (.25, 1.69), (.6, 1.58), (1.2, 1.12),
            (2.0, 1.0), (2.25, .75), (2.25, .36)), .95, 1.08, (2, 6))
VAN = Body(((-2.5, .35), (-2.54, .9), (-2.5, 1.15), (-2.42, 1.9), (-2.2, 2.05), (1.0, 2.05), (1.3, 1.93), (1.9, 1.2),
            (2.4, .98), (2.54, .65), (2.54, .3)), .98, 1.15, (2, 6), ((.15, 1.45, 1.2, 1.75),), .12)
BOX = Body(((-4.2, .6), (-4.2, 3.5), (1.4, 3.5), (1.4, .6)), 1.22, 9, (), ((0, 0, 0, 0),), 0, False)
TANK = Body(((-4.2, .8), (-4.25, 2.0), (-4.0, 2.6), (-3.6, 2.75), (1.0, 2.75), (1.4, 2.5), (1.5, .8)), 1.15, 1.7, (),
            ((0, 0, 0, 0),), .5, False)
CAB = Body(((1.5, .45), (1.5, 2.75), (2.9, 2.85), (3.15, 2.7), (3.6, 1.6), (3.75, 1.4), (3.8, .4)), 1.18, 1.5, (3,),
           ((2.2, 3.15, 1.55, 2.4),), .1)
COACH = Body(((-5.6, .35), (-5.65, 1.5), (-5.6, 2.75), (-5.5, 3.0), (-5.2, 3.1), (5.2, 3.1), (5.5, 2.95), (5.6, 2.7),
              (5.7, 1.15), (5.72, .32)), 1.25, 1.3, (1, 7), rows(-5.2, 5.2, 7, .14, 1.3, 2.6), .06)
TRAM = Body(((-8, .3), (-8.2, 1.4), (-7.9, 2.9), (-7.5, 3.2), (7.5, 3.2), (7.9, 2.9), (8.2, 1.4), (8.0, .3)), 1.22,
            1.4, (1, 5), rows(-7.2, 7.2, 9, .18, 1.4, 2.7), .05)
# fmt: on
VEHICLES = {
    name: Vehicle(CAR, (body,), (body.outline[0][0] + 0.72, body.outline[-1][0] - 0.75), 0.33)
    for name, body in (("hatch", HATCH), ("sedan", SEDAN), ("estate", ESTATE), ("suv", SUV), ("van", VAN))
} | {
    "box": Vehicle(TRUCK, (BOX, CAB), (-3.0, -2.0, 2.7), 0.48),
    "tank": Vehicle(TRUCK, (TANK, CAB), (-3.0, -2.0, 2.7), 0.48),
    "bus": Vehicle(BUS, (COACH,), (-3.2, 3.3), 0.48),
    "tram": Vehicle(TRAIN, (TRAM,), (), 0.3),
}
PAINTS = (
    (196, 198, 202),
    (226, 226, 224),
    (58, 62, 68),
    (120, 126, 132),
    (168, 42, 38),
    (40, 70, 128),
    (72, 102, 140),
)
PAINTS += ((206, 178, 92), (64, 88, 70), (150, 92, 52), (96, 36, 44), (34, 36, 42))
COATS = ((52, 60, 92), (150, 46, 42), (46, 48, 52), (196, 168, 120), (86, 110, 92), (206, 200, 190), (182, 120, 52))
COATS += ((120, 70, 110), (84, 130, 160), (220, 180, 70))
SKINS, HAIRS = (
    ((226, 180, 150), (190, 138, 104), (130, 88, 64)),
    ((52, 38, 30), (96, 66, 40), (170, 136, 84), (40, 40, 44)),
)


def vehicle(canvas: Canvas, kind: str, place: Place, colour: Colour) -> None:
    """Paints a vehicle from its extruded bodies, farther body first."""
    spec = VEHICLES[kind]
    label, reach = spec.label, spec.bodies[-1].outline[-1][0]
    back, half = spec.bodies[0].outline[0][0], spec.bodies[0].half
    for grow, strength in ((0.35, 70), (0.1, 150), (-0.1, 190)):
        corners = [(a, b) for a, b in ((back, -half), (reach, -half), (reach, half), (back, half))]
        points = [place(a + math.copysign(grow, a), b + math.copysign(grow, b), 0) for a, b in corners]
        canvas.shadow([(p[0], p[2]) for p in points], strength, contact=True)
    height = max(y for body in spec.bodies for _, y in body.outline)
    for k in np.linspace(0.1, 0.9, 4):
        dx, dz = (-c / max(canvas.light[1], 0.2) * height * k for c in (canvas.light[0], canvas.light[2]))
        points = [place(a, b, 0) for a, b in ((back, -half), (reach, -half), (reach, half), (back, half))]
        canvas.shadow([(p[0] + dx, p[2] + dz) for p in points], 130)
    for a in (*spec.wheels, back + 0.3, reach - 0.4):  # Tyres and the dark underside, seen below the bumpers.
        span = ((-half, -half + 0.24, 0.0), (half - 0.24, half, 0.0), (-half, half, 0.22))
        for b0, b1, y0 in span[2:] if a not in spec.wheels else span:
            y1 = 0.42 if label != TRAIN else 0.5
            canvas.face([place(a, b0, y0), place(a, b1, y0), place(a, b1, y1), place(a, b0, y1)], (24, 24, 26), label)
    parts = sorted(spec.bodies, key=lambda body: -place(sum(p[0] for p in body.outline) / len(body.outline), 0, 0)[2])
    for body in parts:
        paint_body(canvas, body, place, colour if body.paint else tone((224, 222, 214), 0.95), label, spec)
    z = place.z
    if any(a < 0 for a, _ in spec.bodies[0].outline):
        lights(canvas, place, spec.bodies[0], -1, label)
        lights(canvas, place, spec.bodies[-1], 1, label)
    if label == TRAIN and z > 0:
        canvas.stroke([place(-1, 0, 3.2), place(-0.3, 0, 4.2), place(0.4, 0, 4.6)], 0.04, (60, 60, 62), TRAIN)


def paint_body(canvas: Canvas, body: Body, place: Place, colour: Colour, label: int, spec: Vehicle) -> None:
    """The strips over the outline of a body, then the side that faces the camera with panes and wheels."""
    outline, top = body.outline, max(y for _, y in body.outline)

    def half(y: float) -> float:
        return body.half - body.lean * max(0.0, y - body.belt) / max(top - body.belt, 0.1)

    low, high = outline[0][0], outline[-1][0]
    centre = place((low + high) / 2, 0, top * 0.45)
    strips = list(zip(range(len(outline) - 1), outline, outline[1:], strict=False))
    strips.sort(key=lambda s: -place((s[1][0] + s[2][0]) / 2, 0, 0)[2])
    bus = label in (BUS, TRAIN)
    for i, (a0, y0), (a1, y1) in strips:
        w0, w1 = half(y0), half(y1)
        quad = [place(a0, -w0, y0), place(a0, w0, y0), place(a1, w1, y1), place(a1, -w1, y1)]
        tint = tone(colour, 0.62) if max(y0, y1) < 0.66 and not bus else colour
        if canvas.face(quad, tint, label, centre) and i in body.glass:

            def pane(s: float, t: float, a0=a0, y0=y0, a1=a1, y1=y1, w0=w0, w1=w1) -> Point:
                w = (w0 + (w1 - w0) * t) * s
                return place(a0 + (a1 - a0) * t, w, y0 + (y1 - y0) * t)

            lo, hi = (0.1, 0.92) if y0 < y1 else (0.08, 0.9)
            quad = [pane(-0.88, lo), pane(0.88, lo), pane(0.88, hi), pane(-0.88, hi)]
            canvas.face(quad, (48, 56, 66), label)
            canvas.face([pane(-0.8, lo), pane(-0.15, lo), pane(-0.5, hi), pane(-0.84, hi)], (84, 98, 112), label)
    side = math.copysign(1.0, -(place.x * math.cos(place.yaw) - place.z * math.sin(place.yaw)))

    def at(a: float, y: float, out: float = 0.0) -> Point:
        return place(a, side * (half(y) + out), y)

    if not canvas.face([at(a, y) for a, y in outline], colour, label, centre, snow=0):
        return
    canvas.face([at(low, 0.3), at(low, 0.5), at(high, 0.5), at(high, 0.3)], tone(colour, 0.55), label)
    if body.belt < 2:
        crease = [at(low, body.belt - 0.1), at(low, body.belt - 0.04)]
        crease += [at(high - 0.3, body.belt - 0.12), at(high - 0.3, body.belt - 0.18)]
        canvas.face(crease, tone(colour, 1.18), label)
    glass, sheen = (44, 52, 62), (92, 106, 118)
    if body.panes:
        for a0, a1, y0, y1 in body.panes:
            if a1 > a0:
                canvas.face([at(a0, y0), at(a0, y1), at(a1, y1), at(a1, y0)], glass, label, glow=COOL if bus else 0)
                middle = (a0 + a1) / 2
                canvas.face([at(a0, (y0 + y1) / 2), at(a0, y1), at(middle, y1)], sheen, label, glow=COOL if bus else 0)
    else:
        r0, r1 = outline[body.glass[0]], outline[body.glass[0] + 1]
        f1, f0 = outline[body.glass[1]], outline[body.glass[1] + 1]
        bottom, roof = body.belt + 0.04, top - 0.1
        quad = [at(r0[0] + 0.16, bottom), at(r1[0] + 0.16, roof), at(f1[0] - 0.12, roof), at(f0[0] - 0.22, bottom)]
        canvas.face(quad, glass, label)
        canvas.face([quad[0], quad[1], at(r1[0] + 0.7, roof)], sheen, label)
        for a in (-0.25, -1.15):
            canvas.face([at(a, bottom), at(a, roof), at(a + 0.1, roof), at(a + 0.1, bottom)], tone(colour, 0.7), label)
        for a in (-0.2, -1.1) if place.z < 30 else ():
            canvas.stroke([at(a, 0.45), at(a, bottom)], 0.008, tone(colour, 0.5), label)
            canvas.stroke(
                [at(a + 0.12, bottom - 0.16, 0.01), at(a + 0.3, bottom - 0.16, 0.01)], 0.015, (40, 40, 44), label
            )
        mirror = at(f0[0] - 0.35, bottom + 0.04, 0.12)
        canvas.limb(mirror, (mirror[0], mirror[1] + 0.06, mirror[2]), 0.08, 0.08, tone(colour, 0.7), label)
    for a in spec.wheels:
        if low - 0.1 < a < high + 0.1:
            r = spec.radius
            parts = ((1.22, (22, 22, 24)), (1.0, (38, 38, 40)), (0.62, (150, 152, 156)), (0.2, (70, 72, 74)))
            for k, ink in parts if place.z < 25 else parts[0:3:2]:
                ring = [(a + k * r * c, r + k * r * s) for c, s in circle(14)]
                canvas.face([place(p, side * (body.half + 0.01), max(y, 0.0)) for p, y in ring], ink, label)


def lights(canvas: Canvas, place: Place, body: Body, end: int, label: int) -> None:
    """Lamps, number plate, grille or bumper on the front (end 1) or the rear (-1), if it faces the camera."""
    a = (max if end > 0 else min)(p[0] for p in body.outline) + end * 0.02
    p, q = place(a, 0, 1), place(a + end, 0, 1)
    if (q[0] - p[0]) * p[0] + (q[2] - p[2]) * p[2] > 0:
        return
    big = label in (BUS, TRUCK, TRAIN)
    y, w = (1.0, body.half * 0.98) if big else (body.belt - 0.2, body.half)

    def rect(b0: float, b1: float, y0: float, y1: float, ink: Colour, glow: int = 0) -> None:
        canvas.face([place(a, b0, y0), place(a, b1, y0), place(a, b1, y1), place(a, b0, y1)], ink, label, glow=glow)

    for s in (-1, 1):
        ink, glow = ((236, 238, 228), HEAD) if end > 0 else ((176, 26, 24), TAIL)
        rect(s * w * 0.62, s * w * 0.97, y - 0.1, y + 0.08, tone(ink, 0.6))
        rect(s * w * 0.66, s * w * 0.94, y - 0.07, y + 0.06, ink, glow)
        if end < 0:
            rect(s * w * 0.64, s * w * 0.76, y - 0.06, y + 0.04, (226, 130, 60))
    rect(-0.27, 0.27, 0.46, 0.58, (232, 230, 212))
    rect(-0.2, 0.2, 0.5, 0.54, (70, 70, 74))
    if end > 0:
        rect(-w * 0.55, w * 0.55, y - 0.1, y + 0.04, (36, 38, 42))
    elif label == TRUCK:
        for s in (-0.04, 0.04):
            rect(s - 0.02, s + 0.02, 0.85, 3.3, (150, 150, 146))
        rect(-w, w, 0.72, 0.86, (150, 40, 36))
    rect(-w * 0.95, w * 0.95, 0.3, 0.42, (42, 44, 48))
    if label in (BUS, TRAIN) and end > 0:
        rect(-w * 0.6, w * 0.6, 2.72, 2.92, (28, 28, 30))
        rect(-w * 0.4, w * 0.35, 2.77, 2.87, (240, 176, 60), AMBER)


def figure(canvas: Canvas, place: Place, limbs: list, label: int) -> None:
    """Paints limbs (from, to, radii, colour) far to near."""
    body = [(place(*p), place(*q), rp, rq, ink) for p, q, rp, rq, ink in limbs]
    for p, q, rp, rq, ink in sorted(body, key=lambda b: -(b[0][2] + b[1][2])):
        canvas.limb(p, q, rp, rq, ink, label)


def person(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A standing or walking person, 1.1 to 1.95 m tall."""
    k = rng.uniform(0.92, 1.1) if rng.random() < 0.85 else rng.uniform(0.62, 0.75)
    coat, legs, skin, hair = pick(rng, COATS), pick(rng, COATS), pick(rng, SKINS), pick(rng, HAIRS)
    legs = tone(legs, 0.55)
    stride = rng.uniform(0.12, 0.34) if rng.random() < 0.75 else 0.02
    limbs = [
        ((0, 0, 0.98), (0.03, 0, 1.36), 0.15, 0.15, coat),
        ((0.03, -0.13, 1.37), (0.03, 0.13, 1.37), 0.085, 0.085, coat),
    ]
    for s in (-1, 1):
        knee, foot = (stride * s * 0.55 + 0.03, 0.09 * s, 0.5), (stride * s, 0.09 * s, 0.09)
        limbs += [((0, 0.08 * s, 0.95), knee, 0.095, 0.07, legs), (knee, foot, 0.07, 0.05, legs)]
        limbs.append((foot, (foot[0] + 0.14, foot[1], 0.05), 0.05, 0.045, (40, 34, 32)))
        elbow = (-stride * s * 0.5, 0.25 * s, 1.1)
        limbs += [((0.02, 0.2 * s, 1.38), elbow, 0.06, 0.055, tone(coat, 0.92))]
        limbs += [(elbow, (-stride * s * 0.6 + 0.08, 0.24 * s, 0.86), 0.052, 0.04, tone(coat, 0.92))]
        limbs.append(((-stride * s * 0.6 + 0.09, 0.24 * s, 0.83),) * 2 + (0.045, 0.045, skin))
    if rng.random() < 0.45:
        limbs.append(((0, 0, 1.0), (0, 0, rng.uniform(0.55, 0.8)), 0.15, 0.21, coat))
    if rng.random() < 0.35:
        bag = pick(rng, COATS)
        limbs.append(((-0.2, 0, 1.08), (-0.18, 0, 1.32), 0.13, 0.12, tone(bag, 0.8)))
    limbs += [
        ((0.03, 0, 1.45), (0.03, 0, 1.5), 0.055, 0.055, skin),
        ((0.04, 0, 1.57), (0.04, 0, 1.63), 0.092, 0.1, skin),
    ]
    long = rng.random() < 0.4
    limbs += [
        ((-0.03, 0, 1.48 if long else 1.6), (0.0, 0, 1.67), 0.1, 0.102, hair),
        ((0.03, 0, 1.7),) * 2 + (0.09, 0.09, hair),
    ]
    scaled = [(tuple(c * k for c in p), tuple(c * k for c in q), a * k, b * k, ink) for p, q, a, b, ink in limbs]
    canvas.blot(place.x, place.z, 0.32, 0.3, place.base)
    canvas.cast(place.x, place.z, 1.7 * k, 0.16)
    figure(canvas, place, scaled, PERSON)


def two_wheeler(canvas: Canvas, place: Place, rng: np.random.Generator, motor: bool, ridden: bool) -> None:
    """A bicycle or motorcycle, with or without its rider."""
    label, ink = (MOTORCYCLE if motor else BICYCLE), pick(rng, PAINTS)
    r, gap, tyre = (0.31, 0.68, 0.075) if motor else (0.35, 0.53, 0.03)
    canvas.blot(place.x, place.z, 0.2 + 0.6 * abs(math.sin(place.yaw)), 0.4, place.base)
    canvas.cast(place.x, place.z, 1.6 if ridden else 1.0, 0.2)
    for a in (-gap, gap):
        turn = np.linspace(0, 2 * math.pi, 17)
        canvas.stroke([place(a + r * math.cos(t), 0, r + r * math.sin(t)) for t in turn], tyre, (30, 30, 32), label)
        for t in turn[:8:2]:
            spoke = r * math.cos(t), r * math.sin(t)
            ends = [place(a + k * spoke[0], 0, r + k * spoke[1]) for k in (-1, 1)]
            canvas.stroke(ends, 0.006 if not motor else 0.02, (120, 120, 122), label)
    if motor:
        end = 1 if math.cos(place.yaw) < 0 else -1
        limbs = [
            ((-0.75, 0, 0.78), (-0.1, 0, 0.82), 0.1, 0.15, (44, 40, 40)),
            ((0.0, 0, 0.9), (0.35, 0, 0.92), 0.17, 0.15, ink),
        ]
        limbs += [
            ((-0.3, 0, 0.45), (0.25, 0, 0.45), 0.2, 0.2, (92, 92, 96)),
            ((0.45, 0, 1.0), (0.68, 0, 0.32), 0.07, 0.06, ink),
        ]
        limbs += [((0.4, -0.36, 1.08), (0.4, 0.36, 1.08), 0.035, 0.035, (36, 36, 38))]
        limbs += [((-0.8, 0.12, 0.4), (-0.1, 0.14, 0.34), 0.06, 0.05, (170, 170, 172))]
        figure(canvas, place, limbs, MOTORCYCLE)
        lamp = place(0.62 * end + 0.1, 0, 0.85)
        canvas.limb(lamp, lamp, 0.09, 0.09, (240, 240, 226) if end > 0 else (190, 30, 26), MOTORCYCLE)
    else:
        seat, bar, crank = (-0.2, 0, 0.92), (0.4, 0, 1.02), (-0.05, 0, 0.32)
        frame = ((seat, crank), (crank, (0.36, 0, 0.82)), ((0.36, 0, 0.82), (-0.17, 0, 0.82)))
        frame += ((crank, (-gap, 0, r)), ((-gap, 0, r), (-0.17, 0, 0.82)), (bar, (gap, 0, r)))
        for p, q in (*frame, ((0.4, -0.27, 1.04), (0.4, 0.27, 1.04))):
            canvas.stroke([place(*p), place(*q)], 0.024, ink, BICYCLE)
        canvas.limb(place(-0.3, 0, 0.95), place(-0.1, 0, 0.96), 0.06, 0.04, (40, 36, 34), BICYCLE)
    if not ridden:
        return
    coat, legs, skin = pick(rng, COATS), tone(pick(rng, COATS), 0.6), pick(rng, SKINS)
    lift, foot_y = (-0.06, 0.4) if motor else (0.06, 0.3)
    limbs = [((-0.2, 0, 0.98 + lift), (0.1, 0, 1.4 + lift), 0.16, 0.16, coat)]
    limbs += [((0.1, -0.13, 1.42 + lift), (0.1, 0.13, 1.42 + lift), 0.08, 0.08, coat)]
    for s in (-1, 1):
        knee = (0.22, 0.15 * s, 0.72 + 0.1 * s)
        limbs += [((-0.18, 0.09 * s, 0.95 + lift), knee, 0.1, 0.075, legs)]
        limbs += [(knee, (0.02, 0.13 * s, foot_y + 0.09 * s), 0.07, 0.05, legs)]
        limbs += [
            ((0.02, 0.13 * s, foot_y + 0.09 * s), (0.15, 0.13 * s, foot_y + 0.07 * s), 0.05, 0.045, (40, 34, 32))
        ]
        limbs += [((0.1, 0.2 * s, 1.42 + lift), (0.2, 0.29 * s, 1.15), 0.06, 0.052, tone(coat, 0.92))]
        limbs += [((0.2, 0.29 * s, 1.15), (0.4, 0.26 * s, 1.08), 0.05, 0.04, skin if not motor else coat)]
    helmet = pick(rng, PAINTS) if motor or rng.random() < 0.6 else pick(rng, HAIRS)
    limbs += [
        ((0.16, 0, 1.5 + lift), (0.2, 0, 1.66 + lift), 0.07, 0.1, skin),
        ((0.15, 0, 1.7 + lift), (0.2, 0, 1.71 + lift), 0.115, 0.11, helmet),
    ]
    if motor:
        limbs.append(((0.12, 0, 1.6 + lift), (0.14, 0, 1.68 + lift), 0.12, 0.12, helmet))
    figure(canvas, place, limbs, RIDER)


def lamp_post(canvas: Canvas, place: Place, rng_style: float, reach: float) -> None:
    """A street light (class pole); the lamp is remembered because it lights its surroundings at night."""
    x, z, ink = place.x, place.z, (78, 84, 86) if rng_style < 0.6 else (52, 64, 58)
    canvas.blot(x, z, 0.2, 0.2)
    top = 7.5 if rng_style < 0.6 else 4.2
    canvas.cast(x, z, top, 0.08)
    canvas.stroke([(x, 0, z), (x, 1.0, z)], 0.11, ink, POLE)
    if rng_style < 0.6:
        canvas.stroke(
            [(x, 0.9, z), (x, top - 0.5, z), (x + 0.4 * reach, top, z), (x + reach, top + 0.1, z)], 0.06, ink, POLE
        )
        canvas.stroke(
            [(x + reach * 0.85, top + 0.08, z), (x + reach * 1.25, top + 0.1, z)],
            0.11,
            (196, 196, 188),
            POLE,
            glow=LAMP,
        )
        canvas.lamps.append((x + reach, top, z))
    else:
        canvas.stroke([(x, 0.9, z), (x, top, z)], 0.055, ink, POLE)
        canvas.limb((x, top, z), (x, top + 0.45, z), 0.12, 0.22, (226, 222, 206), POLE)
        canvas.stroke([(x, top, z), (x, top + 0.4, z)], 0.13, (236, 228, 200), POLE, glow=LAMP)
        canvas.limb((x, top + 0.6, z), (x, top + 0.62, z), 0.22, 0.05, ink, POLE)
        canvas.lamps.append((x, top, z))


def traffic_light(canvas: Canvas, place: Place, state: int, reach: float) -> None:
    """A signal on a pole, and with `reach` a second one on an arm over the road."""
    x, z = place.x, place.z
    heads = [(x, 2.6)]
    canvas.blot(x, z, 0.2, 0.2)
    canvas.cast(x, z, 3.6, 0.08)
    canvas.stroke([(x, 0, z), (x, 3.6 if not reach else 5.6, z)], 0.07, (86, 88, 86), POLE)
    if reach:
        canvas.stroke([(x, 5.55, z), (x + reach, 5.75, z)], 0.055, (86, 88, 86), POLE)
        heads.append((x + reach, 5.0))
    for u, y in heads:
        for grow, ink in ((0.06, (198, 196, 186)), (0.0, (34, 38, 38))) if y > 4 else ((0.0, (34, 40, 38)),):
            w, y0, y1 = 0.19 + grow, y - grow, y + 1.02 + grow
            canvas.face(
                [(u - w, y0, z - 0.1), (u + w, y0, z - 0.1), (u + w, y1, z - 0.1), (u - w, y1, z - 0.1)], ink, LIGHT
            )
        for i, (glow, ink) in enumerate(((GREEN, (70, 240, 150)), (AMBER, (250, 190, 60)), (RED, (250, 60, 44)))):
            on = i == state
            ring = [
                (u + 0.13 * math.cos(t), y + 0.19 + 0.32 * i + 0.13 * math.sin(t), z - 0.12)
                for t in np.linspace(0, 6.28, 12)
            ]
            canvas.face(ring, ink if on else tone(ink, 0.28), LIGHT, glow=glow if on else 0)


def sign(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A traffic sign of one of six kinds on a pole, facing the camera."""
    x, z, kind = place.x, place.z - 0.06, int(rng.integers(6))
    r, y = rng.uniform(0.34, 0.46), rng.uniform(2.3, 2.8)
    canvas.blot(x, z, 0.15, 0.15)
    canvas.cast(x, z, y + r, 0.06)
    canvas.stroke([(x, 0, place.z), (x, y + r, place.z)], 0.04, (140, 142, 142), POLE)

    def plate(k: float, ink: Colour, sides: int, turn: float = 0.0, wide: float = 1.0) -> None:
        ring = np.linspace(0, 2 * math.pi, sides, endpoint=False) + turn
        canvas.face([(x + k * r * wide * math.sin(t), y + k * r * math.cos(t), z) for t in ring], ink, SIGN)

    def mark(*points: tuple[float, float], ink: Colour = (30, 32, 36)) -> None:
        canvas.face([(x + r * u, y + r * v, z) for u, v in points], ink, SIGN)

    white, red, blue = (236, 236, 230), (196, 34, 36), (32, 84, 168)
    if kind == 0:  # speed limit
        plate(1.0, red, 20)
        plate(0.76, white, 20)
        for u in (-0.3, 0.12):
            mark((u, -0.34), (u + 0.24, -0.34), (u + 0.24, 0.34), (u, 0.34))
            mark((u + 0.08, -0.2), (u + 0.16, -0.2), (u + 0.16, 0.2), (u + 0.08, 0.2), ink=white)
    elif kind == 1:  # warning
        plate(1.1, red, 3)
        plate(0.74, white, 3)
        mark((-0.07, -0.1), (0.07, -0.1), (0.1, 0.42), (-0.1, 0.42))
        mark((-0.07, -0.28), (0.07, -0.28), (0.07, -0.17), (-0.07, -0.17))
    elif kind == 2:  # no entry
        plate(1.0, red, 20)
        mark((-0.66, -0.14), (0.66, -0.14), (0.66, 0.14), (-0.66, 0.14), ink=white)
    elif kind == 3:  # stop
        plate(1.05, white, 8, math.pi / 8)
        plate(0.96, red, 8, math.pi / 8)
        for u in (-0.6, -0.28, 0.04, 0.36):
            mark((u, -0.2), (u + 0.2, -0.2), (u + 0.2, 0.2), (u, 0.2), ink=white)
    elif kind == 4:  # arrow
        plate(1.0, blue, 20)
        mark((-0.1, -0.6), (0.1, -0.6), (0.1, 0.1), (-0.1, 0.1), ink=white)
        mark((-0.4, 0.08), (0.4, 0.08), (0.0, 0.6), ink=white)
    else:  # direction board or parking
        wide = 2.2 if rng.random() < 0.5 else 1.0
        plate(1.28, white, 4, math.pi / 4, wide)
        plate(1.16, blue if rng.random() < 0.6 else (40, 110, 66), 4, math.pi / 4, wide)
        for v in (0.3, -0.1, -0.5):
            for u in np.arange(-0.62, 0.6, 0.26) * wide:
                if rng.random() < 0.75:
                    mark((u, v), (u + 0.17, v), (u + 0.17, v + 0.24), (u, v + 0.24), ink=white)


# ---------------------------------------------------------------------------------------------------------------------
# The layout of a street


class Plan(NamedTuple):
    """What distinguishes kinds of streets; pairs are ranges in metres, the others are chances or mean counts."""

    lanes: tuple[int, int]  # driving lanes on our side at least and at most; as many come towards us
    walk: tuple[float, float]
    verge: float  # chance of a strip of grass between road and sidewalk
    setback: tuple[float, float]  # from sidewalk to houses
    fronts: tuple[str, ...]  # facade styles
    gap: float  # chance that a lot is a garden
    barriers: tuple[str, ...]
    people: float
    parked: float  # chance per parking space
    trees: float
    crossing: float


PLANS = {
    "boulevard": Plan((1, 2), (3.2, 5.5), 0.5, (0, 0.4), ("old", "brick", "modern", "office"), 0.12, (),
                      8, 0.55, 0.6, 0.5),
    "old": Plan((1, 1), (1.4, 2.4), 0.05, (0, 0.2), ("old", "old", "brick"), 0.06, ("stone",), 8, 0.3, 0.1, 0.2),
    "suburb": Plan((1, 1), (1.5, 2.2), 0.6, (4, 8), ("house",), 0.25,
                   ("picket", "hedge", "stone", "brick", "iron", "mesh"), 4, 0.35, 0.5, 0.2),
    "motorway": Plan((2, 3), (0, 0), 1.0, (6, 14), ("modern", "house"), 0.85, ("rail", "rail", "noise", "mesh"),
                     0, 0, 0.1, 0),
    "park": Plan((1, 2), (2.2, 3.5), 0.7, (1, 3), ("old", "modern", "house"), 0.6,
                 ("iron", "stone", "mesh", "hedge"), 6, 0.4, 0.6, 0.4),
}  # fmt: skip
CARS = ("hatch", "hatch", "sedan", "sedan", "estate", "suv", "suv", "van")


class Street:
    """One random street: ground first, then `items`, painted from far to near (key: distance of their far end)."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng, w, h = rng, *size
        self.kind = str(rng.choice(list(PLANS), p=(0.27, 0.17, 0.24, 0.12, 0.2)))
        self.plan = PLANS[self.kind]
        turn, up = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.1)
        sun = math.cos(turn) * math.cos(up), math.sin(up), math.sin(turn) * math.cos(up)
        focal = rng.uniform(0.88, 1.1) * w * 0.92
        cx, cy = w * rng.uniform(0.42, 0.58), h * rng.uniform(0.43, 0.55)
        self.canvas = Canvas(size, focal, cx, cy, rng.uniform(1.25, 2.1), sun)
        self.bend = rng.normal(0, 0.0006) if rng.random() < 0.6 else 0.0
        self.lane = rng.uniform(2.9, 3.5)
        lanes = int(rng.integers(self.plan.lanes[0], self.plan.lanes[1] + 1))
        self.mine = int(rng.integers(lanes))  # our lane, counted from the middle of the road
        self.centre = -self.lane * (self.mine + 0.5) - rng.uniform(-0.3, 0.3)
        self.median = 1.5 if self.kind == "motorway" else 0.0
        self.parking = self.plan.parked > 0 and self.kind != "old" and rng.random() < 0.75
        half = lanes * self.lane + self.median + (2.3 if self.parking else 0.3)
        if self.kind == "motorway":
            half += 2.0
        self.edges, self.lanes = (self.centre - half, self.centre + half), lanes
        self.cross = rng.uniform(17, 34) if rng.random() < self.plan.crossing else 1e9
        self.cross_end = self.cross + rng.uniform(7, 11)
        self.items: list[tuple[float, Callable[[], None]]] = []

    def place(self, x: float, z: float, yaw: float = 0.0, base: float = 0.0) -> Place:
        """A place given along the bending street."""
        return Place(x + self.bend * z * z, z, yaw + math.atan(2 * self.bend * z), base)

    def add(self, key: float, paint_it: Callable, *args) -> None:
        self.items.append((key, partial(paint_it, self.canvas, *args)))

    def ribbon(
        self, x0: float, x1: float, z0: float, z1: float, colour, label: int, y0=0.0, y1=None, snow=255
    ) -> None:
        """A strip of ground between two lines along the street."""
        z1 = max(z1, z0)
        stations = np.geomspace(max(z0, 1.3), max(z1, 1.31), 2 if z1 - z0 < 6 or not self.bend else 12)
        y1 = y0 if y1 is None else y1
        left = [self.canvas.project((x0 + self.bend * z * z, y0, z)) for z in stations]
        right = [self.canvas.project((x1 + self.bend * z * z, y1, z)) for z in stations]
        self.canvas.fill(left + right[::-1], tone(colour, 1.0), label, z0, snow=snow)

    def ground(self) -> None:
        """Land, road with patches and markings, sidewalks; and the far end of the view."""
        rng, kind = self.rng, self.kind
        grass, paving = tone((116, 128, 70), rng.uniform(0.85, 1.1)), tone((170, 164, 154), rng.uniform(0.85, 1.08))
        asphalt = tone((104, 104, 108), rng.uniform(0.8, 1.2))
        town = kind in ("boulevard", "old")
        outer = (paving, SIDEWALK) if town else (grass, TERRAIN)
        big = self.canvas.rgb.size
        horizon = self.canvas.project((0, 0, 400))[1]
        self.canvas.fill([(0, horizon), (big[0], horizon), big, (0, big[1])], outer[0], outer[1], 300, snow=255)
        left, right = self.edges
        if self.cross < 1e8:
            self.ribbon(-90, 90, self.cross - 2.5, self.cross_end + 2.5, paving, SIDEWALK)
            self.ribbon(-90, 90, self.cross, self.cross_end, asphalt, ROAD)
        self.ribbon(left, right, 1.3, 320, asphalt, ROAD, snow=200)
        self.walks = []
        for side, edge in ((-1, left), (1, right)):
            verge = rng.uniform(0.9, 2.2) if rng.random() < self.plan.verge else 0.0
            walk = rng.uniform(*self.plan.walk) if self.plan.walk[1] else 0.0
            if kind == "motorway":
                verge = rng.uniform(2.0, 5.0)
            inner = edge + side * (0.18 if kind != "motorway" else 0.0)
            for z0, z1 in ((1.3, self.cross - 1.2), (self.cross_end + 1.2, 320)):
                if z0 >= 300 or z1 <= z0:
                    continue
                z1 = min(z1, 320)
                if kind != "motorway":
                    kerb = tone((186, 182, 174), rng.uniform(0.9, 1.05))
                    self.ribbon(edge, edge, z0, z1, tone(kerb, 0.66), SIDEWALK, 0.0, 0.13)
                    self.ribbon(edge, inner, z0, z1, kerb, SIDEWALK, 0.13)
                self.ribbon(inner, inner + side * verge, z0, z1, grass, TERRAIN, 0.1)
                self.ribbon(inner + side * verge, inner + side * (verge + walk), z0, z1, paving, SIDEWALK, 0.1)
            self.walks.append((inner, inner + side * verge, inner + side * (verge + walk)))
        for _ in range(rng.poisson(4)):  # Repairs, manholes and cracks in the asphalt
            x, z = rng.uniform(left, right), math.exp(rng.uniform(1.4, 3.6))
            if rng.random() < 0.5:
                patch = tone(asphalt, rng.uniform(0.72, 0.92))
                self.ribbon(x, min(right, x + rng.uniform(0.6, 2)), z, z + rng.uniform(1, 6), patch, ROAD, snow=200)
            else:
                ring = [self.place(x + 0.34 * math.cos(t), z + 0.34 * math.sin(t)) for t in np.linspace(0, 6.28, 14)]
                self.canvas.face([(p.x, 0.0, p.z) for p in ring], tone(asphalt, 0.6), ROAD, snow=180)
        self.markings()

    def markings(self) -> None:
        rng, (left, right) = self.rng, self.edges
        white = tone((226, 224, 214), rng.uniform(0.85, 1.0))

        def line(x: float, dash: float, width: float = 0.13, ink: Colour = white) -> None:
            z = 1.3 + (rng.uniform(0, 2 * dash) if dash else 0)
            while z < 120:
                end = min(z + dash, 120) if dash else 120
                if not self.cross - 4 < end < self.cross_end + 8 or not dash:
                    stop = self.cross - 3.5 if z < self.cross < end else end
                    self.ribbon(x - width / 2, x + width / 2, z, stop, ink, ROAD, snow=200)
                z = end + (2 * dash or 1)

        if self.kind != "old":
            if self.median:
                for x in (self.centre - self.median, self.centre + self.median):
                    line(x, 0, 0.18)
            else:
                line(self.centre, 0 if rng.random() < 0.35 else 3.0)
            for k in range(1, self.lanes):
                for s in (-1, 1):
                    line(self.centre + s * (k * self.lane + self.median), 3.0 if self.kind != "motorway" else 5.0)
            if self.parking or self.kind == "motorway":
                for s in (-1, 1):
                    line(self.centre + s * (self.lanes * self.lane + self.median), 0, 0.12)
        zebra = self.cross - 3.4 if self.cross < 1e8 else rng.uniform(11, 30) if rng.random() < 0.25 else 0
        if zebra and self.kind != "motorway":
            for x in np.arange(left + 0.4, right - 0.3, 1.0):
                self.ribbon(x, x + 0.5, zebra, zebra + 2.6, white, ROAD, snow=200)
            self.ribbon(self.centre, right, zebra - 1.4, zebra - 1.0, white, ROAD, snow=200)
        self.zebra = zebra

    def lots(self) -> None:
        """Buildings, gardens and the barriers in front of them, on both sides."""
        rng, plan = self.rng, self.plan
        for side, (_, _, border) in zip((-1, 1), self.walks, strict=True):
            z, kinds = (
                rng.uniform(-9, 2),
                [plan.barriers[int(rng.integers(len(plan.barriers)))]] if plan.barriers else [],
            )
            fenced = bool(kinds) and rng.random() < 0.85
            closed, shield = False, 0.0  # whether the nearer neighbour adjoins, and the height up to which it hides
            while z < 95:
                if self.cross - 14 < z < self.cross_end + 2.5:  # The side street stays open.
                    if z + 5 > self.cross - 2.5:
                        z, closed = self.cross_end + 2.5, False
                front = facade(int(pick(rng, FACADES[pick(rng, plan.fronts)])))
                setback = rng.uniform(*plan.setback)
                length = front.width
                if z < self.cross and z + length > self.cross - 2.5:
                    length = max(self.cross - 2.5 - z, 3.0)
                x, end = border + side * setback, z + length
                garden = rng.random() < plan.gap
                shield = shield if closed else 0.0
                if garden:
                    length = rng.uniform(8, 16) if z + 16 < self.cross - 2.5 or z > self.cross else length
                    end = z + length
                    self.garden(side, border + side * 1.0, z, end)
                else:
                    self.building(side, x, z, end, front, front.height > shield)
                    shield = front.height
                if fenced and (garden or setback > 0.9):
                    kind = kinds[0] if rng.random() < 0.9 else pick(rng, plan.barriers)
                    self.barrier(kind, border + side * 0.15, z, end)
                closed = not garden and setback < 2.5 and rng.random() < 0.8
                z = end + (0.0 if closed else rng.uniform(2.5, 6) if setback > 2.5 else rng.uniform(0.0, 2.0))
        if self.kind == "motorway":
            kind = pick(rng, ("rail", "rail", "stone"))
            for z in np.arange(1.5, 110, 12):
                self.barrier(kind, self.centre, z, z + 12, 0.85)

    def barrier(self, kind: str, x: float, z0: float, z1: float, height: float | None = None) -> None:
        texture, label = barrier(kind)
        z = max(z0, 0.2)
        while z < z1:
            end = min(z + (6.0 if z < 20 else 12.0), z1)
            p, q = self.place(x, z), self.place(x, end)
            k = self.rng.uniform(0.92, 1.05) * (self.canvas.lit((-math.copysign(1, x), 0, 0)))
            top = height or texture.height
            self.add(end, Canvas.wall, texture, (p.x, 0.0, p.z), (q.x, 0.0, q.z), top, label, (k, k, k))
            z = end

    def garden(self, side: int, x: float, z0: float, z1: float) -> None:
        rng = self.rng
        for _ in range(int(rng.integers(2, 6))):
            far = rng.uniform(0.5, 14)
            z = rng.uniform(max(z0, 7), z1) if z1 > 8 else 0
            if z:
                kind = pick(rng, (*TREES, "bush", "bush"))
                self.tree(x + side * far, z, kind, key=z1 + far)

    def tree(self, x: float, z: float, kind: str, key: float | None = None) -> None:
        rng, place = self.rng, self.place(x, z)
        height = rng.uniform(1.0, 2.2) if kind == "bush" else rng.uniform(5.5, 10.5)
        tint = (
            np.array((1.0, 1.0, 1.0)) * rng.uniform(0.85, 1.12) * (rng.uniform(0.9, 1.2), 1.0, rng.uniform(0.85, 1.1))
        )
        if rng.random() < 0.07:
            tint *= (1.28, 1.0, 0.65)
        image = foliage(kind, int(rng.integers(4)), self.canvas.light[0] > 0)
        canvas = self.canvas
        dx, dz = (-c / max(canvas.light[1], 0.2) for c in (canvas.light[0], canvas.light[2]))
        for _ in range(10 if z < 45 else 0):
            k, r = height * rng.uniform(0.35, 1.0), height * rng.uniform(0.05, 0.15)
            u, v = place.x + dx * k + rng.normal(0, height * 0.13), z + dz * k + rng.normal(0, height * 0.13)
            canvas.shadow([(u + r * c, v + r * s) for c, s in circle(8)], 130)
        canvas.blot(place.x, z, 0.35 if kind != "bush" else height * 0.5, 0.3)
        if kind != "bush":
            canvas.cast(place.x, z, height * 0.6, 0.15)
        self.add(z if key is None else key, Canvas.sprite, image, (place.x, 0.0, z), height, VEGETATION, tint)

    def building(self, side: int, x: float, z0: float, z1: float, front: Texture, exposed: bool) -> None:
        """A block with a textured front, gable end (if exposed), roof, and sometimes balconies or awnings."""
        gabled = self.plan.setback[1] > 2.5
        rng, canvas = self.rng, self.canvas
        tint = rng.uniform(0.86, 1.1) * np.array((rng.uniform(0.94, 1.06), 1.0, rng.uniform(0.92, 1.06)))
        p, q = self.place(x, z0), self.place(x, z1)
        deep, top = rng.uniform(8, 12), front.height
        if z0 > self.cross - 14:
            deep = 30.0  # The corner house also lines the side street.
        roof = tone(pick(rng, ((134, 76, 60), (112, 72, 62), (92, 88, 88), (76, 80, 88))), rng.uniform(0.85, 1.15))
        rise = rng.uniform(2.0, 3.4) if gabled else rng.uniform(1.0, 2.4) if rng.random() < 0.6 else 0.0
        extras = rng.random(3)
        sun = np.array(canvas.light)
        dx, dz = -sun[0] / max(sun[1], 0.25) * top, -sun[2] / max(sun[1], 0.25) * top
        if z1 > 2:
            u, v = self.place(x + side * 3, max(z0, 1.3)), self.place(x + side * 3, z1)
            line = [(u.x, u.z), (u.x + dx, u.z + dz), (v.x + dx, v.z + dz), (v.x, v.z)]
            canvas.shadow(line, 130)
            canvas.shadow(
                [(p.x, max(p.z, 1.3)), (p.x - side * 0.35, max(p.z, 1.3)), (q.x - side * 0.35, q.z), (q.x, q.z)],
                90,
                True,
            )

        def paint_it(canvas: Canvas) -> None:
            centre = (p.x + side * 4, top / 2, (z0 + z1) / 2)
            ends = [(p.x, top, p.z), (q.x, top, q.z)]
            back = [(m[0] + side * (4.5 if gabled else 1.6), top + rise, m[2]) for m in ends]
            eave = [(m[0] - side * 0.35, top - 0.12, m[2]) for m in ends]
            near = max(p.z, 1.2)
            if p.z > 2:  # The gable end, seen over lower neighbours and across gaps
                shade = tint * canvas.lit((0, 0, -1)) * 0.95
                if exposed:
                    end = (p.x + side * deep, 0.0, p.z)
                    canvas.wall(front, (p.x, 0.0, p.z), end, top, BUILDING, tuple(shade))
                if rise and not gabled:
                    hip = [(p.x, top, p.z), (p.x + side * 1.6, top + rise, p.z)]
                    hip += [(p.x + side * deep, m[1], p.z) for m in hip[::-1]]
                    canvas.face(hip, tone(roof, 0.85), BUILDING)
                if gabled:
                    tip = [(p.x, top, p.z), (p.x + side * 4.5, top + rise, p.z), (p.x + side * 9, top, p.z)]
                    canvas.face(tip, tone((206, 190, 164), float(shade[0])), BUILDING)
            canvas.wall(
                front, (p.x, 0.0, p.z), (q.x, 0.0, q.z), top, BUILDING, tuple(tint * canvas.lit((-side, 0, 0)))
            )
            if rise and q.z > 2:
                quad = [(m[0], m[1], max(m[2], near)) for m in (eave[0], eave[1], back[1], back[0])]
                canvas.face(quad, roof, BUILDING, centre, snow=255)
                for t in np.linspace(0.15, 0.9, 6):  # rows of tiles
                    row = [tuple(a + (b - a) * t for a, b in zip(quad[i], quad[3 - i], strict=True)) for i in (0, 1)]
                    if canvas.height < row[0][1] + 20 and quad[0][2] < 45:
                        canvas.stroke(row, 0.03, tone(roof, 0.8), BUILDING)
                gutter = [(*eave[0][:2], near), eave[1], (eave[1][0], top - 0.32, q.z), (eave[0][0], top - 0.32, near)]
                canvas.face(gutter, tone(roof, 0.7), BUILDING)
                if extras[0] < 0.7 and z0 > 3:
                    cz, cx = (z0 + z1) / 2, back[0][0] - side * 0.6
                    for dz0, k in ((0.7, 0.75), (0.0, 1.0)):
                        body = [(cx, top + rise - 1, cz + dz0), (cx + side * 0.8, top + rise - 1, cz + dz0)]
                        body += [(m[0], top + rise + 1.0, m[2]) for m in body[::-1]]
                        canvas.face(body, tone((140, 88, 72), k), BUILDING)
            if not gabled and z1 < 45 and z0 > 1:
                self.additions(side, p, q, front, extras)

        self.items.append((z1, partial(paint_it, canvas)))

    def additions(self, side: int, p: Place, q: Place, front: Texture, chance: np.ndarray) -> None:
        """Balconies and awnings, which stand out from a facade."""
        canvas, length = self.canvas, q.z - p.z
        cloth = pick(
            np.random.default_rng(int(chance[1] * 1e6)), ((168, 54, 46), (62, 96, 76), (196, 160, 96), (70, 88, 120))
        )

        def at(t: float, out: float, y: float) -> Point:
            return p.x + (q.x - p.x) * t - side * out, y, p.z + length * t

        if chance[1] < 0.35 and front.height > 8:
            for storey in range(1, int((front.height - 4.2) / 3.1) + 1):
                y = 4.0 + 3.1 * (storey - 1)
                for t in (0.78, 0.3):
                    a, b = t - 0.09, t + 0.09
                    centre = at(t, 0.4, y + 0.5)
                    for face in (
                        [at(a, 0, y), at(a, 0.9, y), at(b, 0.9, y), at(b, 0, y)],
                        [at(a, 0, y), at(a, 0.9, y), at(a, 0.9, y + 0.95), at(a, 0, y + 0.95)],
                        [at(a, 0.9, y), at(b, 0.9, y), at(b, 0.9, y + 0.95), at(a, 0.9, y + 0.95)],
                    ):
                        canvas.face(face, (120, 118, 112), BUILDING, centre, snow=60)
                    for k in np.linspace(a, b, 8) if p.z < 22 else ():
                        canvas.stroke([at(k, 0.91, y + 0.1), at(k, 0.91, y + 0.9)], 0.02, (62, 64, 66), BUILDING)
                    canvas.stroke([at(a, 0.92, y + 0.95), at(b, 0.92, y + 0.95)], 0.035, (54, 56, 58), BUILDING)
        elif chance[1] > 0.7:
            strips = 12
            for i in reversed(range(strips)):
                a, b = 0.12 + 0.76 * i / strips, 0.12 + 0.76 * (i + 1) / strips
                ink = cloth if i % 2 else (226, 220, 206)
                canvas.face([at(a, 0, 3.1), at(b, 0, 3.1), at(b, 1.3, 2.5), at(a, 1.3, 2.5)], ink, BUILDING, snow=255)
                canvas.face(
                    [at(a, 1.3, 2.5), at(b, 1.3, 2.5), at(b, 1.3, 2.28), at(a, 1.3, 2.28)], tone(ink, 0.8), BUILDING
                )

    def backdrop(self) -> None:
        """Far trees and blocks that close the view."""
        rng, canvas = self.rng, self.canvas
        city = self.kind in ("boulevard", "old", "park")
        spread = 1.1 * canvas.rgb.width / canvas.focal * 200
        for x in np.arange(-spread, spread, 12.0):
            z = rng.uniform(150, 230)
            if city and rng.random() < 0.5:
                y, w = rng.uniform(8, 24), rng.uniform(8, 18)
                front = facade(pick(rng, (*FACADES["old"], *FACADES["modern"], *FACADES["office"])))
                tint = np.array((0.95, 1.02, 1.12)) * rng.uniform(0.95, 1.2)
                self.add(z, Canvas.wall, front, (x, 0.0, z), (x + w, 0.0, z), y, BUILDING, tint)
            else:
                image = foliage(pick(rng, ("round", "round", "conifer", "bush")), int(rng.integers(4)))
                tint = np.array((0.95, 1.0, 1.15)) * rng.uniform(0.85, 1.05)
                self.add(z, Canvas.sprite, image, (x, -0.5, z), rng.uniform(8, 15), VEGETATION, tint)

    def furniture(self) -> None:
        """Street trees, lamps, signals, signs and bins at the kerb."""
        rng, plan = self.rng, self.plan
        style = rng.random()
        for side, (kerb, verge, border) in zip((-1, 1), self.walks, strict=True):
            line = kerb + side * (0.45 if abs(verge - kerb) < 0.5 else abs(verge - kerb) / 2)
            wide = abs(border - kerb) > 2.6
            kind = pick(rng, TREES)
            if wide and rng.random() < plan.trees:
                z, step = rng.uniform(7, 14), rng.uniform(8, 13)
                while z < 90:
                    if not self.cross - 4 < z < self.cross_end + 4:
                        self.tree(line + side * 0.3, z + rng.normal(0, 0.5), kind)
                    z += step
            if rng.random() < 0.8:
                z, step = rng.uniform(6, 20), rng.uniform(20, 28)
                while z < 110:
                    if not self.cross - 2 < z < self.cross_end + 2:
                        self.add(z + 0.2, lamp_post, self.place(line, z), style, -side * 1.8)
                    z += step
            for _ in range(rng.poisson(1.7)):
                z = math.exp(rng.uniform(math.log(8.5), math.log(45)))
                if not self.cross - 1 < z < self.cross_end + 1:
                    self.add(z, sign, self.place(line, z), rng)
            if rng.random() < 0.3 and plan.walk[1]:
                place, h = self.place(border - side * 0.5, rng.uniform(7, 25)), rng.uniform(0.8, 1.1)
                self.canvas.blot(place.x, place.z, 0.4, 0.4)
                ends = (place.x, 0.22, place.z), (place.x, h, place.z)
                self.add(place.z, Canvas.limb, *ends, 0.24, 0.27, pick(rng, ((70, 92, 76), (92, 96, 100))), VOID)
        signals = [self.cross - 4.6] if self.cross < 1e8 else []
        if self.zebra and self.cross > 1e8 and rng.random() < 0.7:
            signals.append(self.zebra - 1.2)
        if not signals and self.kind != "motorway" and rng.random() < 0.25:
            signals.append(rng.uniform(12, 40))
        state, arm = int(rng.integers(3)), rng.random() < 0.45
        for z in signals:
            for side, walk in zip((-1, 1), self.walks, strict=True):
                reach = -side * abs(walk[0] - self.centre) * 0.55 if arm and side > 0 else 0.0
                self.add(z, traffic_light, self.place(walk[0] + side * 0.3, z), state, reach)
            if rng.random() < 0.6:  # the signals on the far side of the crossing
                far = z + rng.uniform(9, 15)
                for side, walk in zip((-1, 1), self.walks, strict=True):
                    self.add(far, traffic_light, self.place(walk[0] + side * 0.3, far), state, 0.0)

    def traffic(self) -> None:
        """Driving and parked vehicles, two-wheelers and people."""
        rng, plan = self.rng, self.plan
        tram = self.kind in ("boulevard", "park") and self.mine == 0 and rng.random() < 0.22
        heavy = 0.32 if self.kind == "motorway" else 0.16
        for direction in (-1, 1):
            for k in range(self.lanes):
                x = self.centre + direction * (self.median + (k + 0.5) * self.lane)
                ours = direction > 0 and k == self.mine
                z = rng.uniform(11, 34) if ours or abs(x) < 2 else rng.uniform(8, 40)
                if tram and k == 0 and direction < 0:
                    z = rng.uniform(22, 45)
                    for rail in (x - 0.7, x + 0.7):
                        self.ribbon(rail - 0.05, rail + 0.05, 1.3, 120, (72, 70, 70), ROAD, snow=120)
                    self.add(z, vehicle, "tram", self.place(x, z, math.pi), pick(rng, PAINTS[4:8]))
                    z += rng.uniform(25, 40)
                while z < 85:
                    roll = rng.random()
                    kind = pick(rng, CARS)
                    if roll < heavy and z > 14:
                        kind = pick(rng, ("box", "box", "tank", "bus", "bus") if self.kind != "old" else ("box",))
                    gap = 4 if kind in CARS else 9
                    if self.cross - 3 < z < self.cross_end + 3:
                        z = self.cross_end + 4
                        continue
                    yaw = (0.0 if direction > 0 else math.pi) + rng.normal(0, 0.02)
                    if roll > 0.9 and self.kind != "motorway":
                        self.add(
                            z,
                            two_wheeler,
                            self.place(x + rng.uniform(-0.6, 0.9), z, yaw),
                            rng,
                            rng.random() < 0.6,
                            True,
                        )
                    else:
                        place = self.place(x + rng.normal(0, 0.15), z + gap / 2, yaw)
                        self.add(z, vehicle, kind, place, pick(rng, PAINTS))
                    z += gap + rng.uniform(6, 38)
        if self.cross < 1e8 and rng.random() < 0.6:
            z, way = rng.uniform(self.cross + 1.8, self.cross_end - 1.8), pick(rng, (-1, 1))
            kind = pick(rng, (*CARS, "bus", "box"))
            self.add(z, vehicle, kind, Place(rng.uniform(-6, 8), z, way * math.pi / 2), pick(rng, PAINTS))
        for side, (kerb, verge, border) in zip((-1, 1), self.walks, strict=True):
            z = rng.uniform(6.5, 12)
            while self.parking and z < 85:
                if rng.random() < plan.parked and not self.cross - 6 < z < self.cross_end + 5:
                    yaw = (0.0 if side > 0 else math.pi) + rng.normal(0, 0.03)
                    self.add(
                        z, vehicle, pick(rng, CARS), self.place(kerb - side * 1.25, z + 2.3, yaw), pick(rng, PAINTS)
                    )
                z += rng.uniform(5.4, 6.4)
            if not plan.walk[1]:
                continue
            for _ in range(rng.poisson(plan.people / 2)):
                z = math.exp(rng.uniform(math.log(7), math.log(45)))
                x = rng.uniform(min(verge, border) + 0.35, max(verge, border) - 0.35)
                for mate in range(2 if rng.random() < 0.25 else 1):
                    yaw = pick(rng, (0.0, math.pi, math.pi)) + rng.normal(0, 0.4)
                    self.add(z, person, self.place(x + 0.6 * mate, z + 0.2 * mate, yaw, 0.1), rng)
            if rng.random() < 0.45:
                z = rng.uniform(7, 22)
                for i in range(int(rng.integers(1, 4))):
                    place = self.place(border - side * 0.6, z + 0.8 * i, side * rng.uniform(0.9, 1.4), 0.1)
                    self.add(place.z, two_wheeler, place, rng, rng.random() < 0.35, False)
            if rng.random() < 0.4 and self.kind != "motorway":
                z, yaw = rng.uniform(8, 24), 0.0 if side > 0 else math.pi
                x = kerb - side * (3.2 if self.parking else 0.9)
                self.add(z, two_wheeler, self.place(x, z, yaw + rng.normal(0, 0.15)), rng, rng.random() < 0.3, True)
        if self.zebra and rng.random() < 0.75 and self.kind != "motorway":
            for _ in range(int(rng.integers(1, 4))):
                z, x = self.zebra + rng.uniform(0.3, 2.2), rng.uniform(*self.edges)
                self.add(z, person, self.place(x, z, pick(rng, (-1, 1)) * math.pi / 2 + rng.normal(0, 0.2)), rng)
        elif rng.random() < 0.12 and plan.walk[1]:
            z = rng.uniform(12, 25)
            self.add(z, person, self.place(rng.uniform(*self.edges), z, math.pi / 2), rng)

    def paint(self) -> None:
        self.ground()
        for step in (self.backdrop, self.lots, self.furniture, self.traffic):
            step()
        for _, paint_it in sorted(self.items, key=lambda item: -item[0]):
            paint_it()


# ---------------------------------------------------------------------------------------------------------------------
# From the maps to a picture: light, ground texture and weather


class Frame(NamedTuple):
    """All maps of a scene at picture size; colours are float32 in 0..1, masks float32 in 0..1, lengths in metres."""

    rgb: np.ndarray  # [H, W, 3] painted colours under an even light
    label: np.ndarray  # [H, W] uint8
    glow: np.ndarray  # [H, W] uint8, index into GLOW
    snow: np.ndarray  # [H, W, 1] how much snow stays on the surface
    sky: np.ndarray  # [H, W, 1] share of sky in the pixel
    dome: np.ndarray  # [H, W, 3] the sky of a clear day, also where it is hidden
    depth: np.ndarray  # [H, W]
    x: np.ndarray  # [H, W] metres to the right of the camera
    across: np.ndarray  # [H, W] metres to the right of the middle of the road, following its bend
    sun: np.ndarray  # [H, W, 1] share of direct sunlight taken away
    contact: np.ndarray  # [H, W, 1] darkening where things touch the ground
    grain: np.ndarray  # [H, W, 1] coarse noise fixed to the ground, around 0
    street: Street


def smooth(array: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of a float image [H, W, 3] or [H, W, 1] in 0..1."""
    image = Image.fromarray((np.clip(array, 0, 1) * 255).astype(np.uint8).squeeze())
    step = 1 if radius < 4 else 4  # A wide blur loses nothing at a quarter of the size.
    image = image.reduce(step).filter(ImageFilter.GaussianBlur(radius / step)).resize(image.size, Image.BILINEAR)
    return (np.asarray(image, np.float32) / 255).reshape(array.shape)


def paint_sky(street: Street) -> Image.Image:
    """A gradient and a layer of clouds in perspective at half the picture size; enlarged, it lies below the scene."""
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


def resolve(street: Street, dome: Image.Image) -> Frame:
    """Shrinks the canvas to picture size and adds the texture of the ground; labels are taken, never mixed."""
    canvas, (w, h) = street.canvas, street.canvas.size
    rgb = np.asarray(canvas.rgb.reduce(SCALE), np.float32) / 255
    maps = np.asarray(canvas.maps)
    label, glow, snow, code = (maps[::SCALE, ::SCALE, i] for i in range(4))
    sky = canvas.maps.getchannel("A").point([0] * 255 + [255]).reduce(SCALE)
    depth = np.exp(code.astype(np.float32) / DEPTH_CODE)
    focal, cx, cy = (c / SCALE for c in (canvas.focal, canvas.cx, canvas.cy))
    v, u = np.mgrid[:h, :w].astype(np.float32) + 0.5
    ground = (label <= SIDEWALK) | (label == TERRAIN)
    depth = np.where(ground, np.clip(focal * canvas.height / np.maximum(v - cy, 0.5), 1.0, 300.0), depth)
    x = (u - cx) * depth / focal
    across = x - street.bend * depth**2 - street.centre
    start = max(int(cy), 0)
    grain = np.zeros((h, w, 1), np.float32)
    part = np.s_[start:]
    z, a, kind = depth[part], across[part], label[part]
    noise, jitter = cloud_noise(), np.random.default_rng(3).random((2, *z.shape), np.float32)
    # Jittered look-ups: a cheap interpolation whose error looks like the grain of asphalt.
    coarse = noise[(z * 9 + jitter[0]).astype(int) & 511, (a * 9 + jitter[1]).astype(int) & 511] - 0.5
    fine = noise[(z * 70).astype(int) & 511, (a * 70).astype(int) & 511] - 0.5
    fade = np.minimum(1.0, 14 / z)
    tracks = np.cos((np.abs(a) / street.lane % 1.0) * 4 * np.pi)
    speck = (jitter[0] - 0.5) * fade
    road = 0.3 * coarse + 0.22 * fine * fade + 0.12 * speck + 0.035 * tracks
    joint = 0.75 / max(street.lane, 1)  # slabs of about 0.75 m
    joints = (np.minimum(a / 0.75 % 1, z / (joint * 3.2) % 1) < 0.035 + 0.0014 * z) * np.clip(1.4 - z / 14, 0, 1)
    walk = 0.3 * coarse + 0.2 * fine * fade + 0.08 * speck - 0.2 * joints
    grass = 0.5 * coarse + 0.4 * fine * fade + 0.5 * speck
    texture = np.where(kind == ROAD, road, np.where(kind == SIDEWALK, walk, np.where(kind == TERRAIN, grass, 0)))
    rgb = rgb.copy()
    rgb[part] *= 1 + texture[..., None]
    rgb[part][kind == TERRAIN] *= 1 + coarse[kind == TERRAIN, None] * (0.3, 0.05, -0.1)
    grain[part] = coarse[..., None]
    on_ground = ground[..., None].astype(np.float32)
    sun = np.asarray(canvas.sun.filter(ImageFilter.BoxBlur(1.4)), np.float32)[..., None] / 255 * on_ground
    contact = np.asarray(canvas.contact.filter(ImageFilter.BoxBlur(1.6)), np.float32)[..., None] / 255 * on_ground
    snow = np.asarray(canvas.maps.getchannel("B").reduce(SCALE), np.float32)[..., None] / 255
    sky = np.asarray(sky, np.float32)[..., None] / 255
    day_sky = np.asarray(dome, np.float32) / 255
    return Frame(rgb, label, glow, snow, sky, day_sky, depth, x, across, sun, contact, grain, street)


def overcast(frame: Frame, sky: Sequence[float], light: float, grey: float) -> np.ndarray:
    """The scene without sun: no cast shadows, less colour, and a plain sky of the given colour (0..1)."""
    rgb = (frame.rgb - frame.dome * frame.sky) * (1 - 0.6 * frame.contact)
    rgb = rgb + grey * (rgb.mean(2, keepdims=True) - rgb)
    return np.maximum(rgb, 0) * light + np.array(sky, np.float32) * frame.sky


def day(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Sunlight of varied strength and warmth, cast shadows, a little haze."""
    warm, power, shade = rng.normal(0, 0.045), rng.uniform(0.96, 1.2), rng.uniform(0.35, 0.6)
    rgb = frame.rgb * (1 - 0.6 * frame.contact) * (1 - shade * frame.sun * (1 - 0.5 * frame.contact))
    rgb = rgb * np.array((1 + warm, 1.0, 1 - warm), np.float32) * power
    haze = ((1 - np.exp(-frame.depth / rng.uniform(500, 1500)))[..., None] * (1 - frame.sky)).astype(np.float32)
    return rgb + haze * (np.array((0.78, 0.83, 0.9), np.float32) - rgb)


def fog(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Koschmieder's law: contrast decays exponentially with depth towards the airlight."""
    air = np.array((0.74, 0.75, 0.76), np.float32) * rng.uniform(0.92, 1.08)
    rgb = overcast(frame, air, 0.9, 0.45)
    sight = rng.uniform(17, 36) * (1 + 0.5 * frame.grain[..., 0])
    clear = np.exp(-np.maximum(frame.depth - 3, 0) / sight)[..., None] * (1 - frame.sky)
    return air + (rgb - air) * clear


def night(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """Moonlight, pools of light below street lamps, our headlights, and everything that glows, with bloom."""
    canvas, step = frame.street.canvas, 4
    depth, x = frame.depth[::step, ::step], frame.x[::step, ::step]
    rows_ = np.arange(0, canvas.size[1], step, dtype=np.float32)[:, None] * SCALE
    y = canvas.height - (rows_ - canvas.cy) * depth / canvas.focal
    pools = np.zeros_like(depth)
    for lx, ly, lz in canvas.lamps:
        if lz < 70:
            pools += 5.0 / (7 + (x - lx) ** 2 + (y - ly) ** 2 + (depth - lz) ** 2)
    beam = (
        np.exp(-((x / (1.6 + 0.2 * depth)) ** 2))
        * np.exp(-(((depth - 6) / 16) ** 2))
        * np.exp(-np.maximum(y, 0) / 1.5)
    )
    big = tuple(canvas.size)
    light = np.zeros((big[1], big[0], 3), np.float32) + np.array((0.06, 0.08, 0.13), np.float32) * rng.uniform(
        0.8, 1.3
    )
    for part, ink in ((pools, (1.0, 0.72, 0.42)), (beam * 0.6, (1.0, 0.96, 0.86))):
        part = np.asarray(Image.fromarray(part.astype(np.float32)).resize(big, Image.BILINEAR))
        light += part[..., None] * np.array(ink, np.float32)
    rgb = overcast(frame, (0.016, 0.02, 0.042), 1.0, 0.25) * (light * (1 - frame.sky) + frame.sky)
    shine = GLOW[frame.glow]
    inside = np.clip(0.12 + 0.9 * frame.rgb.mean(2), 0, 0.75)  # curtains and goods still show in a lit window
    rgb = rgb + shine * np.where(frame.glow < HEAD, inside, 1.0)[..., None]
    strong = np.where((frame.glow >= HEAD)[..., None], shine, 0.3 * shine)
    bloom = smooth(strong, 1.5) * 0.8 + smooth(strong, 5) * 2.2 + smooth(strong, 16) * 3.0
    rgb = 1 - np.exp(-1.5 * (rgb + bloom))  # a film curve, so that lamps do not clip
    return rgb + 0.022 * rng.standard_normal(rgb.shape, np.float32)


def rain(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """A dim, soft scene over a wet road that mirrors it, behind streaks and drops on the windscreen."""
    rgb = overcast(frame, np.array((0.58, 0.6, 0.63)) * rng.uniform(0.85, 1.1), 0.66, 0.3)
    h, w = frame.label.shape
    cy = int(np.clip(frame.street.canvas.cy / SCALE, 1, h - 2))
    mirror = rgb[np.clip(2 * cy - np.arange(cy, h), 0, cy)]
    small = Image.fromarray((np.clip(mirror, 0, 1) * 255).astype(np.uint8)).resize(
        (w, max((h - cy) // 10, 1)), Image.BOX
    )
    mirror = np.asarray(small.resize((w, h - cy), Image.BICUBIC), np.float32) / 255
    ground = ((frame.label[cy:] == ROAD) * 1.0 + (frame.label[cy:] == SIDEWALK) * 0.6)[..., None]
    wet = np.clip(0.5 + 1.6 * frame.grain[cy:], 0.22, 0.92) * ground
    wet = wet * (0.55 + 0.45 * np.clip(frame.depth[cy:, :, None] / 25, 0, 1))
    rgb[cy:] = rgb[cy:] * (1 - 0.42 * ground) * (1 - 0.6 * wet) + mirror * wet * 0.85
    mist = ((1 - np.exp(-frame.depth / 75))[..., None] * (1 - frame.sky)).astype(np.float32)
    rgb = rgb + mist * (np.array((0.55, 0.57, 0.6), np.float32) - rgb)
    streaks = Image.new("L", (w, h))
    draw, slant = ImageDraw.Draw(streaks), rng.uniform(-0.25, 0.25)
    for x, y, length, ink in zip(
        *(rng.uniform(a, b, w * h // 180) for a, b in ((0, w), (-20, h), (5, 22), (25, 90))), strict=True
    ):
        draw.line((x, y, x + slant * length, y + length), fill=int(ink))
    rgb += np.asarray(streaks, np.float32)[..., None] / 255 * 0.42 * (0.95 - rgb)
    drops = Image.new("L", (w, h))
    draw = ImageDraw.Draw(drops)
    for _ in range(int(rng.integers(14, 34)) * w // 512):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.gamma(2.0, w / 220) + 2
        draw.ellipse((x - r, y - r * 1.15, x + r, y + r * 1.15), fill=255)
    mask = np.asarray(drops.filter(ImageFilter.GaussianBlur(1.2)), np.float32)[..., None] / 255
    lens = smooth(rgb, 5)
    return rgb + mask * 0.85 * (np.roll(lens[::-1], 6, 0) * 0.35 + lens * 0.7 - rgb)


def snow(frame: Frame, rng: np.random.Generator) -> np.ndarray:
    """White on everything that faces up, wheel tracks on the road, flakes near and far."""
    rgb = overcast(frame, np.array((0.76, 0.78, 0.81)) * rng.uniform(0.94, 1.06), 0.84, 0.35)
    road = (frame.label == ROAD)[..., None]
    tracks = np.exp(-((((np.abs(frame.across) / frame.street.lane % 1.0 - 0.5) ** 2) ** 0.5 - 0.24) ** 2) / 0.006)[
        ..., None
    ]
    cover = np.clip(rng.uniform(0.7, 1.0) + 1.3 * frame.grain - rng.uniform(0.5, 0.8) * tracks, 0, 1)
    cover = frame.snow * np.where(road, cover, np.clip(0.95 + 0.5 * frame.grain, 0, 1))
    white = np.array((0.88, 0.9, 0.94), np.float32) * (1 + 0.16 * frame.grain - 0.4 * frame.contact)
    rgb = rgb + cover * (white - rgb)
    haze = ((1 - np.exp(-frame.depth / 85))[..., None] * (1 - frame.sky)).astype(np.float32)
    rgb = rgb + haze * (np.array((0.76, 0.78, 0.81), np.float32) - rgb)
    h, w = frame.label.shape
    far = np.zeros((h, w), np.uint8)
    far[rng.integers(0, h, w * h // 70), rng.integers(0, w, w * h // 70)] = 255
    for count, size, blur in ((w * h // 1200, 1.5, 0.7), (w * h // 9000, 4.0, 2.2)):
        flakes = Image.fromarray(far if size < 2 else far * 0)
        draw = ImageDraw.Draw(flakes)
        for x, y, r in zip(
            *(rng.uniform(a, b, count) for a, b in ((0, w), (0, h), (0.5 * size, size * 1.3))), strict=True
        ):
            draw.ellipse((x - r, y - r * 1.2, x + r, y + r * 1.2), fill=235)
        flakes = flakes.filter(ImageFilter.GaussianBlur(blur))
        rgb += np.asarray(flakes, np.float32)[..., None] / 255 * 0.9 * (0.97 - rgb)
    return rgb


WEATHER = {"day": day, "fog": fog, "night": night, "rain": rain, "snow": snow}


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
    street.paint()
    frame = resolve(street, dome)
    rng = np.random.default_rng([seed, DOMAINS.index(domain)])
    rgb = WEATHER[domain](frame, rng)
    rgb = rgb + 0.009 * rng.standard_normal((*frame.label.shape, 1), np.float32)
    image = Image.fromarray((np.clip(rgb, 0, 1) * 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(0.3)), Image.fromarray(frame.label)


def save_whole(image: Image.Image, path: pathlib.Path) -> None:
    """Saves under a temporary name first: a file that exists under its own name is whole."""
    part = path.with_name(f".{path.name}.part")
    image.save(part, format="PNG")
    os.replace(part, path)


def write_dataset(root: pathlib.Path, domain: str, seeds: Iterable[int], size: tuple[int, int] = (512, 256)) -> None:
    """Writes root/images/<domain>_<seed:05d>.png and root/labels/<same name>, and skips what is already there.

    Labels are single channel 8 bit PNGs of Cityscapes train ids; `size` is (width, height) in pixels.
    """
    root = pathlib.Path(root)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for seed in tqdm(list(seeds), desc=f"painting {domain}", unit="scene"):
        paths = [root / name / f"{domain}_{seed:05d}.png" for name in ("images", "labels")]
        if all(path.exists() for path in paths):
            continue
        for image, path in zip(paint(seed, domain, size), paths, strict=True):
            if not path.exists():
                save_whole(image, path)


def contact_sheet(seeds: Iterable[int], size: tuple[int, int] = (512, 256)) -> Image.Image:
    """One row per seed: day, its label in Cityscapes colours, then the other domains."""
    rows_ = []
    for seed in seeds:
        pictures = {domain: paint(seed, domain, size) for domain in DOMAINS}
        row = [np.asarray(image) for image, _ in pictures.values()]
        rows_.append(np.concatenate([row[0], PALETTE[np.asarray(pictures["day"][1])], *row[1:]], 1))
    return Image.fromarray(np.concatenate(rows_, 0))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=pathlib.Path, help="folder that gets images/ and labels/")
    parser.add_argument("--domain", choices=DOMAINS, default="day")
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 8), metavar=("FIRST", "END"), help="END is excluded")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--sheet", type=pathlib.Path, help="writes a contact sheet of all domains to this file")
    args = parser.parse_args(argv)
    if args.output_dir is None and args.sheet is None:
        parser.error("Nothing to do: give --output_dir or --sheet.")
    if args.output_dir is not None:
        write_dataset(args.output_dir, args.domain, range(*args.seeds), tuple(args.size))
    if args.sheet is not None:
        contact_sheet(range(*args.seeds), tuple(args.size)).save(args.sheet)


if __name__ == "__main__":
    main()
