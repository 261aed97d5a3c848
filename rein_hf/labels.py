"""Classes and ids: the 19 of Cityscapes, and what the label files of other data sets mean in them.

A table says for each id in a file which class it is: (256,) int16, 255 for pixels that do not count and -1 for an id
that the data set does not have.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping

import numpy as np


IGNORE = 255
MAX_CLASSES = IGNORE  # label maps hold 8 bits: ids 0 to 254, and 255 for pixels that do not count

# name -> colour (R, G, B); the position is the train id
CITYSCAPES: dict[str, tuple[int, int, int]] = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (70, 70, 70),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 0, 0),
    "car": (0, 0, 142),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
CITYSCAPES_CLASSES = tuple(CITYSCAPES)


# The classes that SYNTHIA has, and the 13 of them that are compared where thin ones are left out.
SUBSETS: dict[str, tuple[str, ...]] = {
    "synthia16": tuple(name for name in CITYSCAPES if name not in ("terrain", "truck", "train")),
    "synthia13": tuple(
        name for name in CITYSCAPES if name not in ("terrain", "truck", "train", "wall", "fence", "pole")
    ),
}

# Id in the files of Cityscapes and GTA5 -> train id. What a server of a benchmark expects is the other way round.
CITYSCAPES_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
)

SYNTHIA_IDS = {
    **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14},
    **{19: 15, 20: 16, 12: 17, 11: 18},
}

# Mapillary Vistas v1.2: the end of a class's name -> class of Cityscapes, where the names differ.
MAPILLARY_NAMES = {
    "traffic-sign--front": "traffic sign",
    "traffic-sign--back": "traffic sign",
    "traffic-sign-frame": "traffic sign",
    "traffic-light": "traffic light",
    "on-rails": "train",
    "bicyclist": "rider",
    "motorcyclist": "rider",
    "other-rider": "rider",
    "utility-pole": "pole",
    "street-light": "pole",
    "curb": "sidewalk",
    "pedestrian-area": "sidewalk",
    "crosswalk-plain": "road",
    "parking": "road",
    "bike-lane": "road",
    "service-lane": "road",
    "marking--general": "road",
    "marking--crosswalk-zebra": "road",
}

# CamVid's 11 classes and, of its 32 kinds of objects, those that make up each; the others do not count.
CAMVID: dict[str, tuple[str, ...]] = {
    "sky": ("Sky",),
    "building": ("Building", "Wall", "Tunnel", "Archway", "Bridge"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}
CAMVID_CLASSES = tuple(CAMVID)
# The class of CamVid that each class of Cityscapes is there, by train id.
CAMVID_OF_TRAIN_ID = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)


def id_table(class_of_id: Mapping[int, int], known: Iterable[int] = ()) -> np.ndarray:
    """A table, (256,) int16: the ids named get their class, others that are `known` do not count, the rest is -1."""
    table = np.full(256, -1, np.int16)
    table[list(known)] = IGNORE
    table[list(class_of_id)] = list(class_of_id.values())
    return table


def check_class_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """The names of classes, by id, once they are known to fit into label maps of 8 bits and to tell classes apart.

    Args:
        names: of the classes 0 to n - 1.
        where (`str`): what gave them, for the message: an argument, or a file and its key.

    Raises:
        ValueError: they are no list; there is none, or more than 255; one is no text, or empty; two are equal.
    """
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise ValueError(f"{where} has {names!r} for names of classes; expected a list of texts.")
    names = tuple(names)
    if not 1 <= len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{where} has {len(names)} classes; expected 1 to {MAX_CLASSES}: label maps hold 8 bits, and {IGNORE} "
            "stands for pixels that do not count."
        )
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{where} calls class {index} {name!r}; expected a name for it.")
    if len(set(names)) < len(names):
        twice = {name: [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)}
        name, ids = next((name, ids) for name, ids in twice.items() if len(ids) > 1)
        raise ValueError(f"{where} calls the classes {ids} all {name!r}; expected a name of its own for each class.")
    return names


def class_names_of(id2label: Mapping[int | str, str], where: str) -> tuple[str, ...]:
    """The names of classes in the order of their ids, checked as by [`check_class_names`].

    Args:
        id2label: name of each class, by its id; an id may be text, as in JSON.
        where (`str`): what gave it, for the message.

    Raises:
        ValueError: ids are not 0 to n - 1, each once; names are not as they should be.
    """
    try:
        by_id = {int(str(key)): name for key, name in id2label.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where} is {id2label!r}; expected a name for each id: {{0: 'road', ...}}.") from error
    if sorted(by_id) != list(range(len(id2label))):
        raise ValueError(
            f"{where} has the ids {', '.join(map(str, id2label))}; expected 0 to {max(len(id2label) - 1, 0)}, each "
            "once: the model numbers its classes from 0."
        )
    return check_class_names((by_id[index] for index in range(len(by_id))), where)


def palette_of(classes: Iterable[str]) -> list[tuple[int, int, int]]:
    """A colour (R, G, B) for each class: Cityscapes' for a class of that name, a hue of its own for any other."""
    colours = []
    for index, name in enumerate(classes):
        hue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.75, 0.9)  # the golden ratio keeps neighbours apart
        colours.append(CITYSCAPES.get(name, tuple(round(255 * value) for value in hue)))
    return colours
