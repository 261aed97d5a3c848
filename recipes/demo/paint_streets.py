"""Paints street scenes with exact segmentation labels: an offline stand-in for a driving data set under domain shift.

A seed fixes one street: a camera, a layout in metres and everything standing in it. It is painted far to near with a
pinhole camera on a canvas that keeps, next to the colours, the class, the depth, the light source and the snow cover of
every pixel. The weather of a domain is then computed from those maps, so the labels of a seed are the same in all
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
# What shines at night, by glow index: none, warm and cool window, shop, headlight, tail light, lamp, green, red, amber.
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
        if width > 5:  # A lit streak makes it round.
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
            a0, a1, b0, b1 = u0 + shift * rp * s, u1 + shift * rq * s, v0 - abs(shift) * 4, v1 - abs(shift) * 4
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
        if u1 - u0 < 1 or v1 - v0 < 1:
            return
        span = max(abs(us[0] - us[2]), 1.0)
        rgb, glow, alpha = texture.at(span / (s1 - s0), max(abs(vs[1] - vs[0]), abs(vs[2] - vs[3])))
        w, h = rgb.size
        source = [(s0 * w, 0), (s0 * w, h), (s1 * w, h), (s1 * w, 0)]
        warp = homography([(u - u0, v - v0) for u, v in corners], source)
        box = (u1 - u0, v1 - v0)
        mask = Image.new("L", box)
        ImageDraw.Draw(mask).polygon([(u - u0, v - v0) for u, v in corners], fill=255)
        rgb = rgb.point([min(255, int(i * k)) for k in tint for i in range(256)])
        rgb = rgb.transform(box, Image.PERSPECTIVE, warp, Image.BILINEAR)
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

    def sprite(self, sprite: tuple[Image.Image, Image.Image], base: Point, height: float, label: int, tint) -> None:
        """Stands a flat cut-out (RGBA, snow cover) of the given height (metres) on the point `base`."""
        image, snow = sprite
        u, v = self.project(base)
        k = height * self.focal / base[2] / image.height  # canvas pixels per sprite pixel
        left, top = u - k * image.width / 2, v - k * image.height
        u0, v0 = max(0, round(left)), max(0, round(top))
        u1, v1 = min(self.rgb.width, round(left + k * image.width)), min(self.rgb.height, round(v))
        if u1 - u0 < 2 or v1 - v0 < 2:
            return
        box = [(u0 - left) / k, (v0 - top) / k, (u1 - left) / k, (v1 - top) / k]
        box = [max(0.0, min(b, m)) for b, m in zip(box, image.size * 2, strict=True)]
        size = (u1 - u0, v1 - v0)
        image = image.resize(size, Image.BILINEAR, box, reducing_gap=1.5)
        mask = image.getchannel("A").point([0] * 120 + [255] * 136)
        lut = [min(255, int(i * t)) for t in tint for i in range(256)]
        self.rgb.paste(image.convert("RGB").point(lut), (u0, v0), mask)
        bands = Image.new("L", size, label), Image.new("L", size), snow.resize(size, Image.NEAREST, box)
        self.maps.paste(Image.merge("RGBA", (*bands, Image.new("L", size, self.code(base[2])))), (u0, v0), mask)

    def shadow(self, points: Sequence[tuple[float, float]], strength: int, contact: bool = False) -> None:
        """Darkens a polygon of ground points (x, z), in metres."""
        line = [tuple(c / SCALE for c in self.project((x, 0.0, max(z, 1.2)))) for x, z in points]
        (self._contact if contact else self._sun).polygon(line, fill=strength)

    def blot(self, x: float, z: float, rx: float, rz: float, strength: int = 150) -> None:
        """A round contact shadow under something standing on the ground."""
        ring = [(x + rx * math.cos(t), z + rz * math.sin(t)) for t in np.linspace(0, 2 * math.pi, 14)]
        self.shadow(ring, strength, contact=True)

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
    return np.linalg.lstsq(np.array(rows, float), np.array(values, float), rcond=None)[0].tolist()
