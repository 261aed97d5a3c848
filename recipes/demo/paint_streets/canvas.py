"""The canvas: a pinhole camera that paints colours, classes, depth, light sources and snow at once."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw


# the train ids of Cityscapes
ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)
# what shines at night; windows first, so that `glow < HEAD` tells them from lamps
NONE, WARM, COOL, HEAD, RED, LAMP, GREEN = range(7)

Point = tuple[float, float, float]  # x to the right, y up, z ahead, in metres; the camera stands at (0, height, 0)
Colour = tuple[int, int, int]  # RGB, 0..255
SCALE = 2  # Painted twice as large without antialiasing, so that labels never mix.
NEAR = 1.2  # metres; what is nearer is not painted
DEPTH_CODE = 44.0  # Depth is kept in 8 bits as 44 ln(metres): steps of 2.3 %, up to 320 m; 255 is the sky.


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


class Place(NamedTuple):
    """A spot on the ground and a heading: yaw 0 drives away from the camera. Metres and radians."""

    x: float
    z: float
    yaw: float = 0.0

    def __call__(self, ahead: float, right: float, up: float) -> Point:
        """The point so many metres ahead of, right of and above the place."""
        s, c = math.sin(self.yaw), math.cos(self.yaw)
        return self.x + ahead * s + right * c, up, self.z + ahead * c - right * s

    def upright(self, ahead: float, b0: float, b1: float, y0: float, y1: float) -> list[Point]:
        """The corners of an upright rectangle across the heading, from `b0` to `b1` to the right, `y0` to `y1` up."""
        return [self(ahead, b, y) for b, y in ((b0, y0), (b1, y0), (b1, y1), (b0, y1))]

    def disc(self, r: float) -> list[Point]:
        """Six points on the ground around the place."""
        return [self(a * r, b * r, 0) for a, b in ((1, 0), (0.5, 1), (-0.5, 1), (-1, 0), (-0.5, -1), (0.5, -1))]


class Texture:
    """A flat painting to hang up or to stand upright, kept at several sizes so that far ones do not alias.

    `scale`: pixels per metre; and pictures of mode L: `glow`, what shines at night; `snow`, how much snow it catches;
    `cover`, 255: opaque, 128: see-through but still of its class (the gaps of a fence), 0: nothing.
    """

    def __init__(self, rgb: Image.Image, scale: float, glow=None, snow=None, cover=None) -> None:
        self.width, self.height, none = rgb.width / scale, rgb.height / scale, Image.new("L", rgb.size)
        maps = Image.merge("RGB", (glow or none, snow or none, cover or Image.new("L", rgb.size, 255)))
        self.sizes = [(rgb, maps)]
        while min(rgb.size) > 24:
            half = (rgb.width // 2, rgb.height // 2)
            rgb, maps = rgb.resize(half, Image.BOX), maps.resize(half, Image.NEAREST)
            self.sizes.append((rgb, maps))


class Canvas:
    """Colours (RGB) and maps (RGBA: label, glow, snow, depth code), both `SCALE` times the picture size.

    `focal`, `centre`: focal length and principal point in picture pixels. `height`: of the camera, in metres. `light`:
    unit vector towards the sun. Shadows on the ground are kept apart: `sun` vanishes under clouds, `contact` stays.
    """

    def __init__(self, size: tuple[int, int], focal: float, centre: Sequence[float], height: float, light: Point):
        self.size, self.focal, self.height, self.light = size, focal * SCALE, height, light
        self.cx, self.cy = (c * SCALE for c in centre)
        big = (size[0] * SCALE, size[1] * SCALE)
        self.rgb, self.maps = Image.new("RGB", big), Image.new("RGBA", big, (SKY, NONE, 0, 255))
        self.sun, self.contact = Image.new("L", big), Image.new("L", big)
        layers = (self.rgb, self.maps, self.sun, self.contact)
        self._rgb, self._maps, self._sun, self._contact = (ImageDraw.Draw(layer) for layer in layers)
        self.lamps: list[Point] = []  # where street lamps hang

    def project(self, p: Point) -> tuple[float, float]:
        """Column and row of a point on the canvas."""
        s = self.focal / max(p[2], NEAR)
        return self.cx + p[0] * s, self.cy + (self.height - p[1]) * s

    def lit(self, normal: Sequence[float]) -> float:
        """Brightness of a surface with this unit normal."""
        return 0.72 + 0.4 * max(0.0, sum(a * b for a, b in zip(normal, self.light, strict=True))) + 0.08 * normal[1]

    def face(self, points: Sequence[Point], colour: Colour, label: int, glow: int = NONE, snow: int = 0) -> None:
        """Fills a polygon."""
        line, depth = [self.project(p) for p in points], sum(p[2] for p in points) / len(points)
        self._rgb.polygon(line, fill=colour)
        self._maps.polygon(line, fill=(label, glow, snow, _depth_code(depth)))

    def solid(self, points: Sequence[Point], colour: Colour, label: int) -> bool:
        """Fills a face of a body, lit and snowed on, if its corners run counter-clockwise: answers whether it does."""
        a, b, c = points[0], points[1], points[-1]
        u, v = [c[i] - a[i] for i in range(3)], [b[i] - a[i] for i in range(3)]
        n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]  # outwards
        if n[0] * a[0] + n[1] * (a[1] - self.height) + n[2] * a[2] >= 0:
            return False
        n = [k / math.hypot(*n) for k in n]
        self.face(points, tone(colour, self.lit(n)), label, snow=255 if n[1] > 0.5 else 0)
        return True

    def tube(self, points: Sequence[Point], radius: float, colour: Colour, label: int, glow: int = NONE) -> None:
        """Draws a tube with round ends along points; never thinner than a picture pixel."""
        depth = sum(p[2] for p in points) / len(points)
        width = max(2, round(2 * radius * self.focal / max(depth, NEAR)))
        line, maps, r = [self.project(p) for p in points], (label, glow, 0, _depth_code(depth)), width / 2
        for draw, ink in ((self._rgb, colour), (self._maps, maps)):
            draw.line(line, fill=ink, width=width, joint="curve")
            for u, v in (line[0], line[-1]) if width > 3 else ():
                draw.ellipse((u - r, v - r, u + r, v + r), fill=ink)

    def wall(self, texture: Texture, p: Point, q: Point, top: float, label: int, tint: Sequence[float]) -> None:
        """Hangs a tinted texture upright on the line p -> q (`q` not the nearer), up to the height `top`."""
        if q[2] <= NEAR:
            return
        start = (NEAR - p[2]) / (q[2] - p[2]) if p[2] < NEAR else 0.0  # the share that is too near
        p = tuple(a + (b - a) * start for a, b in zip(p, q, strict=True))
        corners = [self.project(m) for m in ((p[0], top, p[2]), p, q, (q[0], top, q[2]))]
        us, vs = [c[0] for c in corners], [c[1] for c in corners]
        u0, u1 = max(0, math.floor(min(us))), min(self.rgb.width, math.ceil(max(us)))
        v0, v1 = max(0, math.floor(min(vs))), min(self.rgb.height, math.ceil(max(vs)))
        if u1 <= u0 or v1 <= v0 or abs(us[2] - us[0]) < 0.5:
            return
        size = (u1 - u0, v1 - v0)
        wide, high = 0.8 * abs(us[2] - us[0]) / (1 - start), 0.8 * max(vs[1] - vs[0], vs[2] - vs[3])
        rgb, maps = [m for m in texture.sizes if m[0].width > wide and m[0].height > high or m is texture.sizes[0]][-1]
        (w, h), left = rgb.size, start * rgb.width
        warp = _homography([(u - u0, v - v0) for u, v in corners], [(left, 0), (left, h), (w, h), (w, 0)])
        # Outside of the rectangle the warped maps are 0, and so is their cover: nothing is painted there.
        glow, snow, cover = maps.transform(size, Image.PERSPECTIVE, warp, Image.NEAREST).split()
        colours, (r, g, b) = rgb.transform(size, Image.PERSPECTIVE, warp, Image.NEAREST), (float(k) for k in tint)
        colours = colours.convert("RGB", (r, 0, 0, 0, 0, g, 0, 0, 0, 0, b, 0))
        self.rgb.paste(colours, (u0, v0), cover.point([0] * 192 + [255] * 64))
        share = np.clip((np.arange(u0, u1) + 0.5 - us[0]) / (us[2] - us[0]), 0, 1)
        codes = np.minimum(-DEPTH_CODE * np.log(1 / p[2] + share * (1 / q[2] - 1 / p[2])), 254).astype(np.uint8)
        codes = Image.fromarray(codes[None]).resize(size, Image.NEAREST)
        maps = Image.merge("RGBA", (Image.new("L", size, label), glow, snow, codes))
        self.maps.paste(maps, (u0, v0), cover.point([0] * 64 + [255] * 192))

    def shadow(self, footprint: Sequence[Point], low: float, high: float) -> None:
        """The shadows of an upright body from `low` to `high` metres over its footprint on the ground."""
        sx, sz = -self.light[0] / self.light[1], -self.light[2] / self.light[1]
        near, far = ([self.project((x + sx * y, 0, z + sz * y)) for x, _, z in footprint] for y in (low, high))
        for i in range(len(footprint)):  # Every side of the footprint sweeps a part of the shadow.
            self._sun.polygon([near[i - 1], near[i], far[i], far[i - 1]], fill=150)
        if low == 0:
            self._contact.polygon(near, fill=150)


def _depth_code(z: float) -> int:
    return int(min(254.0, DEPTH_CODE * math.log(max(z, 1.0))))


def _homography(output: Sequence, source: Sequence) -> list[float]:
    # the 8 coefficients with which PIL's PERSPECTIVE maps the 4 output corners to the 4 source corners
    rows = []
    for (u, v), (x, y) in zip(output, source, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -x * u, -x * v], [0, 0, 0, u, v, 1, -y * u, -y * v]]
    return np.linalg.solve(np.array(rows, float), np.array(source, float).ravel()).tolist()
