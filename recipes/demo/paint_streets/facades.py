"""Facades: the painted fronts of buildings, 30 pixels per metre, each made once per process."""

from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .chance import pick
from .colours import COOL, NONE, SHOP, WARM, Colour, tone
from .textures import Texture, paint_bricks, plaster


# style -> indices of `facade`
FACADES = {
    "old": range(14),
    "brick": range(14, 22),
    "modern": range(22, 28),
    "office": range(28, 32),
    "house": range(32, 42),
}
PLASTERS = ((222, 206, 172), (204, 178, 142), (190, 196, 196), (214, 190, 178), (226, 220, 204), (188, 164, 136))
BRICKS = ((156, 84, 66), (136, 78, 62), (172, 112, 84), (120, 90, 80))
CONCRETE = ((172, 172, 168), (196, 194, 188), (150, 156, 160), (206, 198, 184))
WALLS = {"brick": BRICKS, "modern": CONCRETE, "office": CONCRETE}  # any other style has plaster
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class Front(NamedTuple):
    """A facade while it is painted; lengths in pixels."""

    draw: ImageDraw.ImageDraw
    glow: ImageDraw.ImageDraw  # takes glow indices
    rng: np.random.Generator
    style: str
    wall: Colour
    frame: Colour  # of windows
    shutter: Colour | None
    width: int
    bays: int  # windows side by side
    bay: int  # width of a bay
    pane: tuple[float, float]  # width and height of a window

    def window_box(self, b: int, middle: float) -> Box:
        """Where the window of bay `b` is whose middle is at the row `middle`."""
        w, h = self.pane
        x, top = 10 + b * self.bay + (self.bay - w) / 2, middle - h / 2
        return x, top, x + w, top + h


@cache
def facade(index: int) -> Texture:
    """The front of a building: `index` out of `FACADES`."""
    rng = np.random.default_rng([index, 1])
    style = next(name for name, indices in FACADES.items() if index in indices)
    bays, floors = int(rng.integers(3, 6)), 1 if style == "house" else int(rng.integers(2, 6))
    bay, storey = int(rng.uniform(2.3, 3.1) * 30), int(rng.uniform(2.9, 3.3) * 30)
    ground = storey if style == "house" else int(3.8 * 30)
    w, h = bays * bay + 20, floors * storey + ground + 16
    wall = pick(rng, WALLS.get(style, PLASTERS))
    rgb, lights = plaster(rng, (w, h), wall), Image.new("L", (w, h))
    draw = ImageDraw.Draw(rgb)
    if style == "brick" or (style == "house" and rng.random() < 0.35):
        wall = pick(rng, BRICKS)
        rgb.paste(plaster(rng, (w, h), tone(wall, 1.25)))
        paint_bricks(draw, rng, (w, h), wall, 13, 6)
    frame = pick(rng, ((236, 232, 222), (236, 232, 222), (92, 70, 54), (60, 66, 70)))
    shutter = pick(rng, ((62, 92, 78), (70, 90, 120), (120, 74, 56))) if rng.random() < 0.5 else None
    shutter = shutter if style in ("old", "house") else None
    pane = bay * (0.4 if shutter else rng.uniform(0.4, 0.55)), storey * rng.uniform(0.5, 0.62)
    front = Front(draw, ImageDraw.Draw(lights), rng, style, wall, frame, shutter, w, bays, bay, pane)
    for floor in range(floors):
        y = 16 + floor * storey
        if style == "office":
            paint_office_floor(front, y, storey, 1.25 - 0.4 * floor / floors)
        else:
            paint_floor(front, y, storey)
    paint_ground_floor(front, 16 + floors * storey, h)
    draw.rectangle((0, 0, w, 9), fill=tone(wall, 1.12))
    draw.rectangle((0, 10, w, 14), fill=tone(wall, 0.55))
    return Texture(rgb, w / 30, h / 30, lights)


def paint_office_floor(front: Front, y: int, storey: int, light: float) -> None:
    """A band of panes from the row `y` down; `light` scales what they reflect."""
    rng, bay = front.rng, front.bay
    for x in range(8, front.width - 8, bay // 2):
        box = (x, y + 8, x + bay // 2 - 5, y + storey - 22)
        front.draw.rectangle(box, fill=tone((88, 112, 134), rng.uniform(0.7, 1.25) * light))
        if rng.random() < 0.4:
            front.glow.rectangle(box, fill=COOL)


def paint_floor(front: Front, y: int, storey: int) -> None:
    """A row of windows from the row `y` down."""
    if front.style != "house":  # A string course between floors throws a thin shadow.
        front.draw.rectangle((0, y + storey - 6, front.width, y + storey - 2), fill=tone(front.wall, 1.1))
        front.draw.line((0, y + storey - 1, front.width, y + storey - 1), fill=tone(front.wall, 0.6), width=2)
    for b in range(front.bays):
        left, top, right, bottom = front.window_box(b, y + storey / 2)
        if front.style == "modern":
            left, right = 12 + b * front.bay, 8 + (b + 1) * front.bay - (b % 2) * front.bay * 0.25
        paint_window(front, (left, top, right, bottom))


def paint_ground_floor(front: Front, y: int, h: int) -> None:
    """Shops, or windows and a door, from the row `y` down to the row `h`."""
    draw, bay = front.draw, front.bay
    shops = front.style != "house" and front.rng.random() < 0.65
    door = int(front.rng.integers(front.bays))
    if shops:
        draw.rectangle((0, y, front.width, h), fill=tone(front.wall, 0.82))
    for b in range(front.bays):
        x0, x1 = 10 + b * bay, 10 + (b + 1) * bay
        if shops:
            paint_shop(front, x0, x1, y, h)
        elif b == door:
            wood = pick(front.rng, ((94, 60, 42), (52, 74, 62), (58, 62, 92), (130, 44, 40)))
            draw.rectangle((x0 + bay * 0.26, h - 70, x1 - bay * 0.26, h), fill=tone(front.frame, 0.95))
            draw.rectangle((x0 + bay * 0.32, h - 64, x1 - bay * 0.32, h), fill=wood)
            draw.rectangle((x0 + bay * 0.38, h - 58, x1 - bay * 0.38, h - 34), fill=tone(wood, 1.3))
            draw.rectangle((x0 + bay * 0.38, h - 28, x1 - bay * 0.38, h - 6), fill=tone(wood, 0.75))
        else:
            paint_window(front, front.window_box(b, (y + h) / 2 - 6))


def paint_window(front: Front, box: Box) -> None:
    """One window with frame, reflecting panes, curtains and sill, and sometimes light behind it or flowers."""
    draw, rng, frame, (x0, y0, x1, y1) = front.draw, front.rng, front.frame, box
    if front.shutter:
        for a, b in ((x0 - (x1 - x0) * 0.48, x0 - 2), (x1 + 2, x1 + (x1 - x0) * 0.48)):
            draw.rectangle((a, y0, b, y1), fill=front.shutter)
            for y in range(int(y0) + 3, int(y1), 5):
                draw.line((a + 2, y, b - 2, y), fill=tone(front.shutter, 0.75))
    draw.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), fill=frame)
    draw.line((x0 - 3, y0 - 4, x1 + 3, y0 - 4), fill=tone(frame, 0.5), width=2)
    glass = tone(pick(rng, ((62, 76, 92), (48, 56, 66), (92, 112, 128), (70, 84, 88))), rng.uniform(0.75, 1.15))
    draw.rectangle(box, fill=glass)
    draw.polygon([(x0, y0), (x1, y0), (x0 + 0.4 * (x1 - x0), y1), (x0, y1)], fill=tone(glass, 1.22))
    if rng.random() < 0.45:
        cloth, cut = tone((222, 214, 198), rng.uniform(0.65, 1.0)), rng.uniform(0.15, 0.35) * (x1 - x0)
        draw.rectangle((x0, y0, x0 + cut, y1), fill=cloth)
        draw.rectangle((x1 - cut, y0, x1, y1), fill=cloth)
    elif rng.random() < 0.25:
        draw.rectangle((x0, y0, x1, y0 + (y1 - y0) * rng.uniform(0.2, 0.7)), fill=tone(frame, 0.8))
    if rng.random() < 0.42:
        front.glow.rectangle(box, fill=pick(rng, (WARM, WARM, WARM, COOL)))
    middle = (x0 + x1) / 2
    for d, ink in ((draw, frame), (front.glow, NONE)):
        d.line((middle, y0, middle, y1), fill=ink, width=3)
        if front.style != "modern":
            d.line((x0, y0 + (y1 - y0) * 0.35, x1, y0 + (y1 - y0) * 0.35), fill=ink, width=2)
    draw.rectangle((x0 - 6, y1 + 3, x1 + 6, y1 + 7), fill=tone(frame, 1.05))
    draw.rectangle((x0 - 5, y1 + 8, x1 + 5, y1 + 10), fill=tone(frame, 0.45))
    if front.style == "old" and rng.random() < 0.15:
        for x in np.arange(x0 - 4, x1 + 4, 4):
            leaf = pick(rng, ((70, 110, 50), (90, 130, 60), (190, 60, 70), (210, 120, 150)))
            draw.ellipse((x - 3, y1 - 6 + rng.uniform(-2, 2), x + 4, y1 + 4), fill=leaf)


def paint_shop(front: Front, x0: int, x1: int, y0: int, y1: int) -> None:
    """A shop front: name board with letter-like marks, display window, door."""
    draw, rng = front.draw, front.rng
    board = pick(rng, ((150, 40, 40), (36, 70, 58), (30, 52, 96), (60, 44, 38), (196, 160, 70), (40, 40, 46)))
    draw.rectangle((x0 + 3, y0 + 4, x1 - 3, y1), fill=tone(board, 0.8))
    draw.rectangle((x0 + 3, y0 + 4, x1 - 3, y0 + 26), fill=board)
    for x in np.arange(x0 + 14, x1 - 16, 10):
        if rng.random() < 0.85:
            draw.rectangle((x, y0 + 10, x + rng.integers(3, 7), y0 + 19), fill=(238, 228, 204))
    door = x1 - 32
    display = (x0 + 8, y0 + 32, door - 5, y1 - 14)
    draw.rectangle(display, fill=(72, 82, 88))
    for x in np.arange(x0 + 12, door - 14, 9):
        goods = tone(pick(rng, ((190, 150, 90), (170, 90, 80), (120, 150, 160), (220, 210, 180))), rng.uniform(0.6, 1))
        draw.rectangle((x, y1 - 16 - rng.integers(6, 34), x + 6, y1 - 16), fill=goods)
    draw.polygon([(x0 + 16, y0 + 32), (x0 + 34, y0 + 32), (x0 + 20, y1 - 40), (x0 + 8, y1 - 40)], fill=(112, 124, 130))
    draw.rectangle((door, y0 + 32, x1 - 8, y1 - 2), fill=(54, 62, 66))
    if rng.random() < 0.6:
        front.glow.rectangle(display, fill=SHOP)
        front.glow.rectangle((x0 + 14, y0 + 10, x1 - 14, y0 + 19), fill=SHOP)
