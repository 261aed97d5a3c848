"""Traffic: driving and parked vehicles, two-wheelers and people."""

import math

from .bodies import CARS
from .chance import pick
from .colours import PAINTS
from .labels import ROAD
from .people import paint_person
from .places import Place
from .street import Street, Walk
from .two_wheelers import paint_two_wheeler
from .vehicles import paint_vehicle


def add_traffic(street: Street) -> None:
    """Everything that moves or could."""
    rng = street.rng
    tram = street.kind in ("boulevard", "park") and street.mine == 0 and rng.random() < 0.22
    for direction in (-1, 1):
        for k in range(street.lanes):
            add_lane(street, direction, k, tram and k == 0 and direction < 0)
    if street.crossed and rng.random() < 0.6:
        z, way = rng.uniform(street.cross + 1.8, street.cross_end - 1.8), pick(rng, (-1, 1))
        kind = pick(rng, (*CARS, "bus", "box"))
        street.add(z, paint_vehicle, kind, Place(rng.uniform(-6, 8), z, way * math.pi / 2), pick(rng, PAINTS))
    for walk in street.walks:
        add_parked(street, walk)
        if street.plan.walk[1]:
            add_people(street, walk)
            add_two_wheelers(street, walk)
    add_crossing_people(street)


def add_lane(street: Street, direction: int, k: int, tram: bool) -> None:
    """Vehicles and riders in the lane `k` (from the middle of the road), towards us (-1) or away (1)."""
    rng = street.rng
    x = street.centre + direction * (street.median + (k + 0.5) * street.lane)
    ours = direction > 0 and k == street.mine
    z = rng.uniform(11, 34) if ours or abs(x) < 2 else rng.uniform(8, 40)
    heading = 0.0 if direction > 0 else math.pi
    if tram:
        z = rng.uniform(22, 45)
        for rail in (x - 0.7, x + 0.7):
            street.ribbon(rail - 0.05, rail + 0.05, 1.3, 120, (72, 70, 70), ROAD, snow=120)
        street.add(z, paint_vehicle, "tram", street.place(x, z, math.pi), pick(rng, PAINTS[4:8]))
        z += rng.uniform(25, 40)
    while z < 85:
        roll, kind = rng.random(), pick(rng, CARS)
        if roll < (0.32 if street.motorway else 0.16) and z > 14:
            kind = pick(rng, ("box", "box", "tank", "bus", "bus") if street.kind != "old" else ("box",))
        if street.near_crossing(z, 3, 3):
            z = street.cross_end + 4
            continue
        gap = 4 if kind in CARS else 9
        yaw = heading + rng.normal(0, 0.02)
        if roll > 0.9 and not street.motorway:
            place = street.place(x + rng.uniform(-0.6, 0.9), z, yaw)
            street.add(z, paint_two_wheeler, place, rng, rng.random() < 0.6, True)
        else:
            place = street.place(x + rng.normal(0, 0.15), z + gap / 2, yaw)
            street.add(z, paint_vehicle, kind, place, pick(rng, PAINTS))
        z += gap + rng.uniform(6, 38)


def add_parked(street: Street, walk: Walk) -> None:
    """Cars parked at the kerb, if there is room, heading as those who drive on that side."""
    rng, z = street.rng, street.rng.uniform(6.5, 12)
    while street.parking and z < 85:
        if rng.random() < street.plan.parked and not street.near_crossing(z, 6, 5):
            yaw, kind = (0.0 if walk.side > 0 else math.pi) + rng.normal(0, 0.03), pick(rng, CARS)
            place = street.place(walk.kerb - walk.side * 1.25, z + 2.3, yaw)
            street.add(z, paint_vehicle, kind, place, pick(rng, PAINTS))
        z += rng.uniform(5.4, 6.4)


def add_people(street: Street, walk: Walk) -> None:
    """People on the sidewalk, alone or in pairs."""
    rng = street.rng
    left, right = min(walk.verge, walk.border) + 0.35, max(walk.verge, walk.border) - 0.35
    for _ in range(rng.poisson(street.plan.people / 2)):
        z, x = math.exp(rng.uniform(math.log(7), math.log(45))), rng.uniform(left, right)
        for mate in range(2 if rng.random() < 0.25 else 1):
            yaw = pick(rng, (0.0, math.pi, math.pi)) + rng.normal(0, 0.4)
            street.add(z, paint_person, street.place(x + 0.6 * mate, z + 0.2 * mate, yaw, 0.1), rng)


def add_two_wheelers(street: Street, walk: Walk) -> None:
    """Bicycles and motorcycles parked on the sidewalk, and a rider beside the kerb."""
    rng, side = street.rng, walk.side
    if rng.random() < 0.45:
        z = rng.uniform(7, 22)
        for i in range(int(rng.integers(1, 4))):
            place = street.place(walk.border - side * 0.6, z + 0.8 * i, side * rng.uniform(0.9, 1.4), 0.1)
            street.add(place.z, paint_two_wheeler, place, rng, rng.random() < 0.35, False)
    if rng.random() < 0.4:
        z, x = rng.uniform(8, 24), walk.kerb - side * (3.2 if street.parking else 0.9)
        place = street.place(x, z, (0.0 if side > 0 else math.pi) + rng.normal(0, 0.15))
        street.add(z, paint_two_wheeler, place, rng, rng.random() < 0.3, True)


def add_crossing_people(street: Street) -> None:
    """People on the pedestrian crossing, or, rarely, one who crosses elsewhere."""
    rng = street.rng
    if street.zebra and rng.random() < 0.75 and not street.motorway:
        for _ in range(int(rng.integers(1, 4))):
            z, x = street.zebra + rng.uniform(0.3, 2.2), rng.uniform(*street.edges)
            yaw = pick(rng, (-1, 1)) * math.pi / 2 + rng.normal(0, 0.2)
            street.add(z, paint_person, street.place(x, z, yaw), rng)
    elif rng.random() < 0.12 and street.plan.walk[1]:
        z = rng.uniform(12, 25)
        street.add(z, paint_person, street.place(rng.uniform(*street.edges), z, math.pi / 2), rng)
