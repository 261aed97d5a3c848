"""The canvas: a pinhole camera that paints colours, labels, depth, light and snow at once."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .colours import NONE, Colour, tinted, tone
from .labels import SKY
from .textures import Texture


Point = tuple[float, float, float]  # x to the right, y up, z ahead, in metres; the camera stands at (0, height, 0).
SCALE = 2  # Supersampling: painted twice as large without antialiasing, so that labels never mix.
DEPTH_CODE = 44.0  # Depth is kept in 8 bits as 44 ln(metres): steps of 2.3 %, up to 320 m; 255 is the sky.


class Cutout(NamedTuple):
    """A flat picture to be stood upright."""

    image: Image.Image  # RGB
    alpha: Image.Image  # L
    snow: Image.Image  # L, how much snow it catches


class Canvas:
    """Colours (RGB) and maps (RGBA: label, glow index, snow cover, depth code), both `SCALE` times the picture size.

    Shadows are separate layers of picture size: `sun` vanishes under clouds, `contact` stays. `lamps` collects where
    street lamps hang, in metres.

    Args:
        size: (width, height) of the picture in pixels.
        focal: focal length in picture pixels.
        cx, cy: principal point in picture pixels; the horizon is the row `cy`.
        height: of the camera, in metres.
        light: unit vector towards the sun.
    """

    def __init__(self, size: tuple[int, int], focal: float, cx: float, cy: float, height: float, light: Point) -> None:
        self.size, self.focal, self.cx, self.cy, self.height = size, focal * SCALE, cx * SCALE, cy * SCALE, height
        self.light = light
        big = (size[0] * SCALE, size[1] * SCALE)
        self.rgb, self.maps = Image.new("RGB", big), Image.new("RGBA", big, (SKY, NONE, 0, 255))
        self.sun, self.contact = Image.new("L", size), Image.new("L", size)
        self._rgb, self._maps = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.maps)
        self._sun, self._contact = ImageDraw.Draw(self.sun), ImageDraw.Draw(self.contact)
        self.lamps: list[Point] = []

    def project(self, p: Point) -> tuple[float, float]:
        """Column and row on the large canvas of a point in metres."""
        s = self.focal / max(p[2], 0.8)
        return self.cx + p[0] * s, self.cy + (self.height - p[1]) * s

    def fill(self, points: Sequence, colour: Colour, label: int, z: float, glow: int = NONE, snow: int = 0) -> None:
        """Fills a polygon given in pixels of the large canvas, `z` metres away."""
        self._rgb.polygon(points, fill=colour)
        self._maps.polygon(points, fill=(label, glow, snow, _depth_code(z)))

    def face(
        self,
        points: Sequence[Point],
        colour: Colour,
        label: int,
        centre: Point | None = None,
        glow: int = NONE,
        snow: int | None = None,
    ) -> bool:
        """Fills a polygon given in metres.

        With the `centre` of its body it is lit, catches snow if it faces up, and is left out if it faces away: then
        the answer is False.
        """
        z = sum(p[2] for p in points) / len(points)
        if centre is not None:
            a, n = points[0], _outward_normal(points, centre)
            if n[0] * a[0] + n[1] * (a[1] - self.height) + n[2] * a[2] > 0:
                return False
            colour = tone(colour, self.lit(n))
            if snow is None and n[1] > 0.5:
                snow = 255
        self.fill([self.project(p) for p in points], colour, label, z, glow, snow or 0)
        return True

    def lit(self, normal: Sequence[float]) -> float:
        """Brightness of a surface with this unit normal."""
        return 0.72 + 0.4 * max(0.0, sum(a * b for a, b in zip(normal, self.light, strict=True))) + 0.08 * normal[1]

    def stroke(self, points: Sequence[Point], radius: float, colour: Colour, label: int, glow: int = NONE) -> None:
        """Draws a tube of constant radius (metres) along points; never thinner than about a picture pixel."""
        z = sum(p[2] for p in points) / len(points)
        width = max(2, round(2 * radius * self.focal / max(z, 0.8)))
        line = [self.project(p) for p in points]
        self._rgb.line(line, fill=colour, width=width, joint="curve")
        self._maps.line(line, fill=(label, glow, 0, _depth_code(z)), width=width, joint="curve")
        (u0, v0), (u1, v1) = line[0], line[-1]
        if width > 5 and abs(u1 - u0) < abs(v1 - v0):  # A lit streak rounds it; lying tubes would lose it sideways.
            shift = -0.2 * width if self.light[0] < 0 else 0.2 * width
            self._rgb.line([(u + shift, v) for u, v in line], fill=tone(colour, 1.3), width=width // 4)

    def limb(self, p: Point, q: Point, rp: float, rq: float, colour: Colour, label: int) -> None:
        """Draws a capsule whose radius goes from `rp` at `p` to `rq` at `q` (metres), with a lit streak if large."""
        (u0, v0), (u1, v1), s = self.project(p), self.project(q), self.focal / p[2]
        inks = (self._rgb, tone(colour, 0.86)), (self._maps, (label, NONE, 0, _depth_code(p[2])))
        _capsule(inks, u0, v0, rp * s, u1, v1, rq * s)
        if max(rp, rq) * s > 3:
            shift, inks = -0.28 if self.light[0] < 0 else 0.28, ((self._rgb, tone(colour, 1.08)),)
            _capsule(inks, u0 + shift * rp * s, v0, rp * s * 0.64, u1 + shift * rq * s, v1, rq * s * 0.64)

    def wall(self, texture: Texture, p: Point, q: Point, top: float, label: int, tint: Sequence[float]) -> None:
        """Hangs a texture on the upright rectangle from the base line p -> q up to the height `top` (metres)."""
        span = self._visible_span(p, q)
        if span is None:
            return
        a, b = (tuple(m + (n - m) * s for m, n in zip(p, q, strict=True)) for s in span)
        corners = [self.project(m) for m in ((a[0], top, a[2]), a, b, (b[0], top, b[2]))]
        us, vs = [c[0] for c in corners], [c[1] for c in corners]
        u0, u1 = max(0, math.floor(min(us))), min(self.rgb.width, math.ceil(max(us)))
        v0, v1 = max(0, math.floor(min(vs))), min(self.rgb.height, math.ceil(max(vs)))
        if u1 - u0 < 1 or v1 - v0 < 1 or abs(us[0] - us[2]) < 0.5:
            return
        s0, s1 = span
        width = max(abs(us[0] - us[2]), 1.0)
        rgb, glow, alpha = texture.at(width / (s1 - s0), max(abs(vs[1] - vs[0]), abs(vs[2] - vs[3])))
        w, h = rgb.size
        local = [(u - u0, v - v0) for u, v in corners]
        warp = homography(local, [(s0 * w, 0), (s0 * w, h), (s1 * w, h), (s1 * w, 0)])
        box = (u1 - u0, v1 - v0)
        mask = Image.new("L", box)
        ImageDraw.Draw(mask).polygon(local, fill=255)
        see = mask
        if alpha is not None:
            see = Image.composite(alpha.transform(box, Image.PERSPECTIVE, warp, Image.BILINEAR), mask, mask)
        self.rgb.paste(tinted(rgb.transform(box, Image.PERSPECTIVE, warp, Image.BILINEAR), tint), (u0, v0), see)
        columns = (np.arange(u0, u1) + 0.5 - us[0]) / (us[2] - us[0])
        depth = 1 / np.maximum(1 / a[2] + np.clip(columns, 0, 1) * (1 / b[2] - 1 / a[2]), 1e-3)
        codes = np.minimum(DEPTH_CODE * np.log(np.maximum(depth, 1)), 254).astype(np.uint8)
        bands = Image.new("L", box, label), glow.transform(box, Image.PERSPECTIVE, warp, Image.NEAREST)
        bands += Image.new("L", box), Image.fromarray(codes[None]).resize(box, Image.NEAREST)
        self.maps.paste(Image.merge("RGBA", bands), (u0, v0), mask)

    def _visible_span(self, p: Point, q: Point) -> tuple[float, float] | None:
        # the part of p -> q in view, as shares of its length: keeps warps small and points behind the camera out
        s0, s1 = 0.0, 1.0
        left, right = self.cx + 40, self.rgb.width + 40 - self.cx
        for d0, d1 in (
            (p[2] - 1.0, q[2] - 1.0),
            (self.focal * p[0] + left * p[2], self.focal * q[0] + left * q[2]),
            (right * p[2] - self.focal * p[0], right * q[2] - self.focal * q[0]),
        ):
            if d0 < 0 and d1 < 0:
                return None
            if d0 < 0:
                s0 = max(s0, d0 / (d0 - d1))
            elif d1 < 0:
                s1 = min(s1, d0 / (d0 - d1))
        return (s0, s1) if s1 - s0 >= 1e-3 else None

    def sprite(self, cutouts: Sequence[Cutout], base: Point, height: float, label: int, tint: Sequence[float]) -> None:
        """Stands a cut-out (of three sizes, largest first) of the given height (metres) on the point `base`."""
        u, v = self.project(base)
        share = height * self.focal / base[2] / cutouts[0].image.height
        image, alpha, snow = cutouts[2 if share < 0.25 else 1 if share < 0.6 else 0]
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
        self.maps.paste(Image.merge("RGBA", (*bands, Image.new("L", size, _depth_code(base[2])))), (u0, v0), mask)

    def shadow(self, points: Sequence[tuple[float, float]], strength: int, contact: bool = False, base=0.0) -> None:
        """Darkens a polygon of points (x, z) of the ground or of the sidewalk at height `base`, in metres."""
        line = [tuple(c / SCALE for c in self.project((x, base, max(z, 1.2)))) for x, z in points]
        (self._contact if contact else self._sun).polygon(line, fill=strength)

    def reach(self, height: float) -> tuple[float, float]:
        """How far (x, z) the sun throws the shadow of a point at this height, in metres."""
        return -self.light[0] / self.light[1] * height, -self.light[2] / self.light[1] * height

    def blot(self, x: float, z: float, rx: float, rz: float, base: float = 0.0) -> None:
        """A round contact shadow under something standing on the ground, in metres."""
        self.shadow([(x + rx * c, z + rz * s) for c, s in circle(12)], 150, True, base)

    def cast(self, x: float, z: float, height: float, radius: float) -> None:
        """The sun shadow of a thin upright thing, in metres."""
        dx, dz = self.reach(height)
        self.shadow([(x - radius, z), (x + radius, z), (x + dx + radius, z + dz), (x + dx - radius, z + dz)], 130)


@cache
def circle(count: int) -> list[tuple[float, float]]:
    """Points on the unit circle: (cos, sin)."""
    return [(math.cos(2 * math.pi * i / count), math.sin(2 * math.pi * i / count)) for i in range(count)]


def homography(output: Sequence, source: Sequence) -> list[float]:
    """The 8 coefficients with which PIL's PERSPECTIVE maps the 4 output corners to the 4 source corners."""
    rows, values = [], []
    for (u, v), (x, y) in zip(output, source, strict=True):
        rows += [[u, v, 1, 0, 0, 0, -x * u, -x * v], [0, 0, 0, u, v, 1, -y * u, -y * v]]
        values += [x, y]
    return np.linalg.solve(np.array(rows, float), np.array(values, float)).tolist()


def _capsule(inks: Sequence, u0: float, v0: float, r0: float, u1: float, v1: float, r1: float) -> None:
    # two circles in pixels and what is between them; `inks`: pairs of a drawing and its ink
    r0, r1, length = max(r0, 0.8), max(r1, 0.8), math.hypot(u1 - u0, v1 - v0) or 1.0
    nx, ny = (v0 - v1) / length, (u1 - u0) / length
    quad = [(u0 + nx * r0, v0 + ny * r0), (u1 + nx * r1, v1 + ny * r1)]
    quad += [(u1 - nx * r1, v1 - ny * r1), (u0 - nx * r0, v0 - ny * r0)]
    for draw, ink in inks:
        draw.polygon(quad, fill=ink)
        draw.ellipse((u0 - r0, v0 - r0, u0 + r0, v0 + r0), fill=ink)
        draw.ellipse((u1 - r1, v1 - r1, u1 + r1, v1 + r1), fill=ink)


def _depth_code(z: float) -> int:
    return int(min(254.0, DEPTH_CODE * math.log(max(z, 1.0))))


def _outward_normal(points: Sequence[Point], centre: Point) -> list[float]:
    a, b, c = points[0], points[1], points[-1]
    u, v = [b[i] - a[i] for i in range(3)], [c[i] - a[i] for i in range(3)]
    n = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]]
    norm = math.sqrt(sum(k * k for k in n)) or 1.0
    if sum(k * (p - m) for k, p, m in zip(n, a, centre, strict=True)) < 0:
        norm = -norm
    return [k / norm for k in n]
