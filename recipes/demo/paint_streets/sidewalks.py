"""What stands at the kerb: street trees, lamps, traffic lights, signs and bins."""

import math

from .chance import pick
from .signs import paint_sign
from .street import Street, Walk
from .street_furniture import paint_bin, paint_lamp_post, paint_traffic_light
from .trees import TREES, add_tree


def add_furniture(street: Street) -> None:
    """All of it, on both sides; lamps of one style."""
    tall = street.rng.random() < 0.6
    for walk in street.walks:
        add_kerb(street, walk, tall)
    add_signals(street)


def add_kerb(street: Street, walk: Walk, tall: bool) -> None:
    """Trees, lamps, signs and a bin along one sidewalk."""
    rng, side = street.rng, walk.side
    grass = abs(walk.verge - walk.kerb)
    line = walk.kerb + side * (0.45 if grass < 0.5 else grass / 2)
    kind = pick(rng, TREES)
    if abs(walk.border - walk.kerb) > 2.6 and rng.random() < street.plan.trees:
        z, step = rng.uniform(7, 14), rng.uniform(8, 13)
        while z < 90:
            if not street.near_crossing(z, 4, 4):
                add_tree(street, line + side * 0.3, z + rng.normal(0, 0.5), kind)
            z += step
    if rng.random() < 0.8:
        z, step = rng.uniform(6, 20), rng.uniform(20, 28)
        while z < 110:
            if not street.near_crossing(z, 2, 2):
                street.add(z + 0.2, paint_lamp_post, street.place(line, z), tall, -side * 1.8)
            z += step
    for _ in range(rng.poisson(1.7)):
        z = math.exp(rng.uniform(math.log(8.5), math.log(45)))
        if not street.near_crossing(z, 1, 1):
            street.add(z, paint_sign, street.place(line, z), rng)
    if rng.random() < 0.3 and street.plan.walk[1]:
        place, height = street.place(walk.border - side * 0.5, rng.uniform(7, 25)), rng.uniform(0.8, 1.1)
        street.canvas.blot(place.x, place.z, 0.4, 0.4)
        street.add(place.z, paint_bin, place, height, pick(rng, ((70, 92, 76), (92, 96, 100))))


def add_signals(street: Street) -> None:
    """Traffic lights before the side street or the pedestrian crossing, and behind it; all in one phase."""
    rng = street.rng
    stops = [street.cross - 4.6] if street.crossed else []
    if street.zebra and not street.crossed and rng.random() < 0.7:
        stops.append(street.zebra - 1.2)
    if not stops and not street.motorway and rng.random() < 0.25:
        stops.append(rng.uniform(12, 40))
    phase, arm = int(rng.integers(3)), rng.random() < 0.45
    for z in stops:
        for side, kerb, *_ in street.walks:
            reach = -abs(kerb - street.centre) * 0.55 if arm and side > 0 else 0.0
            street.add(z, paint_traffic_light, street.place(kerb + side * 0.3, z), phase, reach)
        if rng.random() < 0.6:
            far = z + rng.uniform(9, 15)
            for side, kerb, *_ in street.walks:
                street.add(far, paint_traffic_light, street.place(kerb + side * 0.3, far), phase, 0.0)
