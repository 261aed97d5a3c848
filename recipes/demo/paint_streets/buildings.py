"""Buildings: blocks with a textured front, gable ends, roofs, balconies and awnings."""

from typing import NamedTuple

import numpy as np

from .canvas import Canvas, Point
from .chance import pick
from .colours import Colour, tone
from .labels import BUILDING
from .places import Place
from .street import Street
from .textures import Texture


ROOFS = ((134, 76, 60), (112, 72, 62), (92, 88, 88), (76, 80, 88))
CLOTHS = ((168, 54, 46), (62, 96, 76), (196, 160, 96), (70, 88, 120))


class Building(NamedTuple):
    """A building along the street, lengths in metres."""

    side: int  # of the street; -1: left
    p: Place  # near end of the front
    q: Place  # far end of the front
    front: Texture
    exposed: bool  # whether the near gable end shows over the neighbour
    gabled: bool
    tint: np.ndarray  # [3] factors of the colours
    deep: float
    roof: Colour
    rise: float  # height of the roof; 0: flat
    chimney: bool
    taste: float  # 0..1: chooses balconies, nothing or an awning, and its colour

    def paint(self, canvas: Canvas) -> None:
        """Far parts first: gable end, front, roof, and what stands out from the front."""
        p, q = self.p, self.q
        if p.z > 2:
            self.paint_gable(canvas)
        tint = self.tint * canvas.lit((-self.side, 0, 0))
        canvas.wall(self.front, (p.x, 0.0, p.z), (q.x, 0.0, q.z), self.front.height, BUILDING, tint)
        if self.rise and q.z > 2:
            self.paint_roof(canvas)
        if not self.gabled and q.z < 45 and p.z > 1:
            if self.taste < 0.35 and self.front.height > 8:
                self.paint_balconies(canvas)
            elif self.taste > 0.7:
                self.paint_awning(canvas)

    def paint_gable(self, canvas: Canvas) -> None:
        """The near end, seen over lower neighbours and across gaps."""
        (x, z, *_), side, top = self.p, self.side, self.front.height
        shade = self.tint * canvas.lit((0, 0, -1)) * 0.95
        if self.exposed:
            canvas.wall(self.front, (x, 0.0, z), (x + side * self.deep, 0.0, z), top, BUILDING, shade)
        if self.rise and not self.gabled:
            hip = [(x, top, z), (x + side * 1.6, top + self.rise, z)]
            hip += [(x + side * self.deep, m[1], z) for m in hip[::-1]]
            canvas.face(hip, tone(self.roof, 0.85), BUILDING)
        if self.gabled:
            tip = [(x, top, z), (x + side * 4.5, top + self.rise, z), (x + side * 9, top, z)]
            canvas.face(tip, tone((206, 190, 164), float(shade[0])), BUILDING)

    def paint_roof(self, canvas: Canvas) -> None:
        """The slope above the front with rows of tiles, the gutter, a chimney."""
        p, q, side, top, roof = self.p, self.q, self.side, self.front.height, self.roof
        middle, near = (p.z + q.z) / 2, max(p.z, 1.2)
        xs, ridge = (p.x, q.x), [x + side * (4.5 if self.gabled else 1.6) for x in (p.x, q.x)]
        eave = [x - side * 0.35 for x in xs]
        quad = [(eave[0], top - 0.12, near), (eave[1], top - 0.12, max(q.z, near))]
        quad += [(ridge[1], top + self.rise, max(q.z, near)), (ridge[0], top + self.rise, near)]
        canvas.face(quad, roof, BUILDING, (p.x + side * 4, top / 2, middle), snow=255)
        for t in np.linspace(0.15, 0.9, 6) if near < 45 else ():
            row = [tuple(a + (b - a) * t for a, b in zip(quad[i], quad[3 - i], strict=True)) for i in (0, 1)]
            canvas.stroke(row, 0.03, tone(roof, 0.8), BUILDING)
        gutter = [(eave[0], top - 0.12, near), (eave[1], top - 0.12, q.z)]
        gutter += [(eave[1], top - 0.32, q.z), (eave[0], top - 0.32, near)]
        canvas.face(gutter, tone(roof, 0.7), BUILDING)
        if self.chimney and p.z > 3:
            x, foot, head = ridge[0] - side * 0.6, top + self.rise - 1, top + self.rise + 1.0
            for z, k in ((middle + 0.7, 0.75), (middle, 1.0)):
                body = [(x, foot, z), (x + side * 0.8, foot, z), (x + side * 0.8, head, z), (x, head, z)]
                canvas.face(body, tone((140, 88, 72), k), BUILDING)

    def at(self, t: float, out: float, y: float) -> Point:
        """The point at the share `t` of the front, `out` metres before it, `y` metres up."""
        p, q = self.p, self.q
        return p.x + (q.x - p.x) * t - self.side * out, y, p.z + (q.z - p.z) * t

    def paint_balconies(self, canvas: Canvas) -> None:
        """Two balconies on each storey."""
        at = self.at
        for storey in range(1, int((self.front.height - 4.2) / 3.1) + 1):
            y = 4.0 + 3.1 * (storey - 1)
            for t in (0.78, 0.3):
                a, b = t - 0.09, t + 0.09
                for face in (
                    [at(a, 0, y), at(a, 0.9, y), at(b, 0.9, y), at(b, 0, y)],
                    [at(a, 0, y), at(a, 0.9, y), at(a, 0.9, y + 0.95), at(a, 0, y + 0.95)],
                    [at(a, 0.9, y), at(b, 0.9, y), at(b, 0.9, y + 0.95), at(a, 0.9, y + 0.95)],
                ):
                    canvas.face(face, (120, 118, 112), BUILDING, at(t, 0.4, y + 0.5), snow=60)
                for k in np.linspace(a, b, 8) if self.p.z < 22 else ():
                    canvas.stroke([at(k, 0.91, y + 0.1), at(k, 0.91, y + 0.9)], 0.02, (62, 64, 66), BUILDING)
                canvas.stroke([at(a, 0.92, y + 0.95), at(b, 0.92, y + 0.95)], 0.035, (54, 56, 58), BUILDING)

    def paint_awning(self, canvas: Canvas) -> None:
        """Striped cloth over the ground floor."""
        at, strips = self.at, 12
        cloth = pick(np.random.default_rng(int(self.taste * 1e6)), CLOTHS)
        for i in reversed(range(strips)):
            a, b = 0.12 + 0.76 * i / strips, 0.12 + 0.76 * (i + 1) / strips
            ink = cloth if i % 2 else (226, 220, 206)
            canvas.face([at(a, 0, 3.1), at(b, 0, 3.1), at(b, 1.3, 2.5), at(a, 1.3, 2.5)], ink, BUILDING, snow=255)
            valance = [at(a, 1.3, 2.5), at(b, 1.3, 2.5), at(b, 1.3, 2.28), at(a, 1.3, 2.28)]
            canvas.face(valance, tone(ink, 0.8), BUILDING)


def add_building(street: Street, side: int, x: float, z0: float, z1: float, front: Texture, exposed: bool) -> None:
    """A building whose front stands on the line `x` from `z0` to `z1` (metres), with its shadows."""
    rng, canvas, gabled = street.rng, street.canvas, street.plan.gabled
    p, q = street.place(x, z0), street.place(x, z1)
    tint = rng.uniform(0.86, 1.1) * np.array((rng.uniform(0.94, 1.06), 1.0, rng.uniform(0.92, 1.06)))
    deep = rng.uniform(8, 12)
    if z0 > street.cross - 14:
        deep = 30.0  # The corner house also lines the side street.
    roof = tone(pick(rng, ROOFS), rng.uniform(0.85, 1.15))
    rise = rng.uniform(2.0, 3.4) if gabled else rng.uniform(1.0, 2.4) if rng.random() < 0.6 else 0.0
    chimney, taste, _ = rng.random(3)  # The third goes unused: drawing two would give every seed another street.
    building = Building(side, p, q, front, exposed, gabled, tint, deep, roof, rise, chimney < 0.7, taste)
    street.add(z1, building.paint)
    if z1 > 2:
        dx, dz = canvas.reach(front.height)
        u, v = street.place(x + side * 3, max(z0, 1.3)), street.place(x + side * 3, z1)
        canvas.shadow([(u.x, u.z), (u.x + dx, u.z + dz), (v.x + dx, v.z + dz), (v.x, v.z)], 130)
        near, out = max(p.z, 1.3), side * 0.35
        canvas.shadow([(p.x, near), (p.x - out, near), (q.x - out, q.z), (q.x, q.z)], 90, contact=True)
