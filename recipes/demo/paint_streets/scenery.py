"""What stands still: buildings, trees, barriers, street lamps, traffic lights and signs."""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from . import canvas as c
from .canvas import Canvas, Colour, Place, Texture, cloud_noise, pick, tone


PLASTERS = ((222, 206, 172), (204, 178, 142), (190, 196, 196), (214, 190, 178), (226, 220, 204), (172, 172, 168))
BRICKS = ((156, 84, 66), (136, 78, 62), (172, 112, 84), (120, 90, 80))
BOARDS = ((150, 40, 40), (36, 70, 58), (30, 52, 96), (60, 44, 38), (196, 160, 70), (40, 40, 46))
GREENS = ((96, 128, 52), (108, 138, 60), (84, 118, 58), (126, 136, 58), (62, 94, 60))
WHITE, DARK, CRIMSON, BLUE, STEEL = (236, 236, 230), (32, 36, 38), (196, 34, 36), (32, 84, 168), (84, 88, 88)
PHASES = ((c.GREEN, (70, 240, 150)), (c.LAMP, (250, 190, 60)), (c.RED, (250, 60, 44)))  # of a signal, from below
# fmt: off
TREES = {  # kind -> middle, half height and half width of the crown in shares of the height; heights in metres
    "round": (0.38, 0.34, 0.38, (5, 11)), "conifer": (0.46, 0.43, 0.2, (6, 12)), "bush": (0.62, 0.36, 0.5, (1, 2.2)),
}
BARRIERS = {  # kind -> class, height in metres, colour, size of the stones or distance and width of the bars in pixels
    "stone": (c.WALL, 1.7, (150, 144, 132), 26, 16), "noise": (c.WALL, 3.4, (160, 162, 150), 60, 30),
    "hedge": (c.VEGETATION, 1.6, (74, 104, 48), 4, 4), "rail": (c.FENCE, 0.85, (176, 180, 182), 120, 8),
    "picket": (c.FENCE, 1.1, (232, 228, 216), 14, 9), "iron": (c.FENCE, 1.5, (44, 50, 50), 12, 4),
}
SIGNS = (  # corners, turn in half corners, width by height, rim, field, half width and half height of its mark (radii)
    (20, 0, 1, CRIMSON, WHITE, 0.3, 0.3), (3, 0, 1, CRIMSON, WHITE, 0.1, 0.3), (20, 0, 1, CRIMSON, CRIMSON, 0.7, 0.2),
    (8, 1, 1, WHITE, CRIMSON, 0.6, 0.2), (20, 0, 1, BLUE, BLUE, 0.1, 0.6), (4, 1, 2, WHITE, BLUE, 1.2, 0.2),
)
# fmt: on


def masonry(size: tuple[int, int], colour: Colour, w: int, h: int) -> Image.Image:
    """A stained surface of stones of w x h pixels; 0 x 0: plain plaster."""
    row, column = np.mgrid[: size[1], : size[0]]
    grain = 0.2 * (cloud_noise()[row // 2 % 512, column // 2 % 512] - 0.5)
    if w:
        column += row // h % 2 * (w // 2)
        stones = np.random.default_rng(0).uniform(-0.18, 0.15, (size[1] // h + 1, size[0] // w + 2))
        grain += np.where((column % w == 0) | (row % h == 0), -0.2, stones[row // h, column // w])
    return Image.fromarray(np.clip((1 + grain[..., None]) * np.array(colour), 0, 255).astype(np.uint8))


@cache
def facade(style: str, variant: int) -> Texture:
    """The front of a building (style "old", "brick", "office" or "house"): rows of windows, perhaps over shops."""
    rng, home, brick = np.random.default_rng([variant, *style.encode()]), style == "house", style == "brick"
    bays, floors = int(rng.integers(3, 6)), 2 if home else int(rng.integers(3, 7))
    bay, storey, shops = int(rng.uniform(70, 93)), int(rng.uniform(90, 102)), not home and rng.random() < 0.65
    wall, frame = pick(rng, BRICKS if brick else PLASTERS), pick(rng, (WHITE, WHITE, *BRICKS[-1:], STEEL))
    rgb = masonry((bays * bay + 20, floors * storey + 20), wall, *((13, 6) if brick else (0, 0)))
    glow = Image.new("L", rgb.size)
    draw, shine = ImageDraw.Draw(rgb), ImageDraw.Draw(glow)
    half, tall = bay * (0.45 if style == "office" else rng.uniform(0.19, 0.3)), storey * rng.uniform(0.5, 0.62)
    for floor, b in np.ndindex(floors, bays):
        middle, top = 10 + (b + 0.5) * bay, 20 + floor * storey
        x0, y0, x1, y1 = middle - half, top + (storey - tall) / 2, middle + half, top + (storey + tall) / 2
        if floor == floors - 1 and shops:  # a board over a large window
            x0, y0, x1, y1 = middle - 0.42 * bay, top + 28, middle + 0.42 * bay, rgb.height - 14
            draw.rectangle((x0 - 3, top, x1 + 3, rgb.height), fill=pick(rng, BOARDS))
        glass = pick(rng, ((62, 76, 92), (48, 56, 66), (92, 112, 128)))
        draw.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), fill=frame)
        draw.line((x0 - 5, y1 + 7, x1 + 5, y1 + 7), fill=tone(wall, 0.5), width=3)
        draw.rectangle((x0, y0, x1, y1), fill=glass)
        draw.polygon([(x0, y0), (x1, y0), (x0 + 0.4 * (x1 - x0), y1), (x0, y1)], fill=tone(glass, 1.22))
        if rng.random() < 0.42:
            shine.rectangle((x0, y0, x1, y1), fill=pick(rng, (c.WARM, c.WARM, c.COOL)))
        for d, bar in ((draw, frame), (shine, c.NONE)):
            d.line((middle, y0, middle, y1), fill=bar, width=3)
    return Texture(rgb, 30, glow)


def paint_building(canvas: Canvas, q: Place, rng: np.random.Generator, p: Place, style: str, ridge: float) -> None:
    """A house whose front runs from `q` to the nearer `p`: gable end, front and roof, up to a ridge so far behind."""
    front, side = facade(style, int(rng.integers(8))), 1 if p.x > 0 else -1
    tint, top = rng.uniform(0.86, 1.1) * rng.uniform((0.94, 1.0, 0.92), (1.06, 1.0, 1.06)), front.height
    tip = top + rng.uniform(0.0, 0.8) * ridge
    canvas.shadow([p(0, 0, 0), q(0, 0, 0), q(0, 8 * side, 0), p(0, 8 * side, 0)], 0.0, top)
    if p.z > 2:  # the gable end
        canvas.wall(front, p(0, 0, 0), p(0, 10 * side, 0), top, c.BUILDING, tint * canvas.lit((0, 0, -1)))
        canvas.face([p(0, 0, top), p(0, ridge * side, tip), p(0, 10 * side, top)], PLASTERS[1], c.BUILDING)
    canvas.wall(front, p(0, 0, 0), q(0, 0, 0), top, c.BUILDING, tint * canvas.lit((-side, 0, 0)))
    slope = [p(0, 0, top), q(0, 0, top), q(0, ridge * side, tip), p(0, ridge * side, tip)]
    canvas.solid(slope[::-side], pick(rng, (*BRICKS[:2], STEEL)), c.BUILDING)


@cache
def foliage(kind: str, variant: int) -> Texture:
    """A tree or bush, 1 m high: a trunk with branches and clumps of leaves, lighter at the top."""
    rng, h = np.random.default_rng([variant, *kind.encode()]), 400
    cy, ry, rx = (h * share for share in TREES[kind][:3])
    w, green, bark = int(2.4 * rx), pick(rng, GREENS if kind != "conifer" else GREENS[-1:]), rng.uniform(0.6, 1.3)
    rgb, maps = Image.new("RGB", (w, h), tone(green, 0.6)), Image.new("RGB", (w, h))  # maps: glow, snow, cover
    draw, draw_maps = ImageDraw.Draw(rgb), ImageDraw.Draw(maps)
    for x, y, width in ((0, 0.3 * h, 16), *((s * rx, cy, 6) for s in (-0.5, -0.2, 0.3, 0.6))):
        for d, ink in ((draw, tone((98, 80, 62), bark)), (draw_maps, (0, 20, 255))):
            d.line((w / 2, h - 0.3 * abs(x), w / 2 + x, y), fill=ink, width=width)
    for v in np.sort(rng.uniform(-1, 1, 80)):  # clumps from the foot of the crown to its top
        u = rng.uniform(-1, 1) * ((1 - v) / 2 if kind == "conifer" else math.sqrt(1 - v * v))
        light, r = 0.85 + 0.25 * v - 0.12 * u + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.2) * rx + 8
        for dx, dy in rng.normal(0, 0.5, (50, 2)) * r:
            x, y, size = w / 2 + 0.84 * rx * u + dx, min(cy - 0.88 * ry * v + dy, h - 4), rng.uniform(1.8, 4)
            leaf = (x - size, y - size, x + size, y + size)
            draw.ellipse(leaf, fill=tone(green, light + rng.uniform(-0.13, 0.13) - 0.25 * dy / r))
            draw_maps.ellipse(leaf, fill=(0, 230 if dy < -0.1 * r else 20, 255))
    return Texture(rgb, h, *maps.split())


def paint_tree(canvas: Canvas, place: Place, rng: np.random.Generator, kind: str) -> None:
    """A tree or bush that faces the camera."""
    texture, tint = foliage(kind, int(rng.integers(4))), rng.uniform((0.78, 0.85, 0.75), (1.25, 1.1, 1.15))
    height = rng.uniform(*TREES[kind][3])
    half = texture.width * height / 2
    canvas.shadow(place.disc(0.7 * half), 0.0 if kind == "bush" else 0.4 * height, 0.9 * height)
    canvas.wall(texture, place(0, -half, 0), place(0, half, 0), height, c.VEGETATION, tint)


@cache
def barrier(kind: str) -> Texture:
    """A barrier 6 m long; the gaps of a fence show what is behind but count as fence."""
    label, height, ink, a, b = BARRIERS[kind]
    rgb = masonry((360, int(height * 60)), ink, *((a, b) if label != c.FENCE else (0, 0)))
    cover = Image.new("L", rgb.size, 128 if label == c.FENCE else 255)
    draw, see = ImageDraw.Draw(rgb), ImageDraw.Draw(cover)
    for x in range(0, 360, a) if label == c.FENCE else ():
        see.rectangle((x, 0, x + b, rgb.height), fill=255)
    for y in range(4, rgb.height // 2, 9) if kind == "rail" else (0, rgb.height - 22):
        see.rectangle((0, y, 360, y + 6), fill=255)
    draw.rectangle((0, 0, 360, 6), fill=tone(ink, 1.2))
    return Texture(rgb, 60, cover=cover)


def paint_barrier(canvas: Canvas, q: Place, rng: np.random.Generator, kind: str) -> None:
    """Six metres of a barrier, up to `q` along the street."""
    texture, tint = barrier(kind), [rng.uniform(0.85, 1.0)] * 3
    canvas.wall(texture, q(-6, 0, 0), q(0, 0, 0), texture.height, BARRIERS[kind][0], tint)


def paint_lamp(canvas: Canvas, place: Place, rng: np.random.Generator, reach: float) -> None:
    """A street lamp (class pole) with an arm of `reach` metres to the right, or short without one."""
    (x, z, _), top = place, 7.5 if reach else 4.3
    canvas.tube([(x, 0, z), (x, top - 0.4, z), (x + 0.4 * reach, top, z), (x + reach, top, z)], 0.07, STEEL, c.POLE)
    lamp = [(x + 0.8 * reach, top, z), (x + 1.2 * reach, top + (0 if reach else 0.4), z)]
    canvas.tube(lamp, 0.11 if reach else 0.17, (216, 212, 196), c.POLE, glow=c.LAMP)
    canvas.lamps.append((x + reach, top, z))


def paint_traffic_light(canvas: Canvas, place: Place, rng: np.random.Generator, phase: int, right: float) -> None:
    """A signal on a pole, and with `right` (metres) another one that hangs over the road."""
    (x, z, _), top = place, 5.7 if right else 3.6
    canvas.tube([(x, 0, z), (x, top, z), (x + right, top, z)], 0.07, STEEL, c.POLE)
    for lowest in (place(-0.1, 0, 2.8), place(-0.1, right, top - 0.8)):
        signal = Place(lowest[0], lowest[2])
        canvas.face(signal.upright(0, -0.2, 0.2, lowest[1] - 0.2, lowest[1] + 0.85), DARK, c.LIGHT)
        for i, (glow, colour) in enumerate(PHASES):
            lamp, on = signal(0, 0, lowest[1] + 0.32 * i), i == phase
            canvas.tube([lamp, lamp], 0.13, colour if on else tone(colour, 0.28), c.LIGHT, glow if on else c.NONE)


def paint_sign(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """One of the `SIGNS` on a pole, facing the camera."""
    (corners, turn, wide, rim, field, u, v), (x, z, _) = pick(rng, SIGNS), place
    r, y = rng.uniform(0.36, 0.5), rng.uniform(2.3, 2.8)
    canvas.tube([(x, 0, z), (x, y, z)], 0.04, tone(STEEL, 1.6), c.POLE)
    ring = (np.arange(corners) + turn / 2) * 2 * math.pi / corners
    for k, ink in ((1.1, rim), (0.8 if field == WHITE else 1.0, field)):
        canvas.face([(x + k * r * wide * math.sin(t), y + k * r * math.cos(t), z) for t in ring], ink, c.SIGN)
    canvas.face(place.upright(0, -u * r, u * r, y - v * r, y + v * r), DARK if field == WHITE else WHITE, c.SIGN)
