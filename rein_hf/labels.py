"""Classes and ids: the 19 classes of Cityscapes, and which of them the ids of other data sets are.

An id table, (256,) int16, gives the class of each id in a label file: 255 for pixels that are ignored, and -1 for an
id that the data set does not have.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


IGNORE = 255  # id of pixels that neither training nor evaluation counts
MAX_CLASSES = 255  # ids 0 to 254; labels are of 8 bits, and 255 is IGNORE

# name -> colour (R, G, B); the position is the class's id, called train id
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


# The 16 classes that SYNTHIA has, and the 13 of them that papers compare, which leave out wall, fence and pole.
SUBSETS: dict[str, tuple[str, ...]] = {
    "synthia16": tuple(name for name in CITYSCAPES if name not in ("terrain", "truck", "train")),
    "synthia13": tuple(
        name for name in CITYSCAPES if name not in ("terrain", "truck", "train", "wall", "fence", "pole")
    ),
}

# Id in the label files of Cityscapes and GTA5 ("label id") -> train id. Benchmark servers expect label ids.
CITYSCAPES_IDS = dict(
    zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)
)

# Id in SYNTHIA's label files -> train id
SYNTHIA_IDS = {
    **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14},
    **{19: 15, 20: 16, 12: 17, 11: 18},
}

# Mapillary Vistas v1.2: the last one or two parts of a class's name -> class of Cityscapes, where the names differ.
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

# CamVid's 11 classes, and which of the 32 kinds of objects in its label files make up each; the others are ignored.
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
# Train id -> the class of CamVid that objects of this class of Cityscapes have there.
CAMVID_OF_TRAIN_ID = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)


def check_class_names(names: Sequence[str], source: str) -> tuple[str, ...]:
    """Names of classes by id, once they are known to be usable: names are keys of results, and ids fit into 8 bits.

    Raises:
        ValueError: they are not 1 to 255 different texts. The message begins with `source`, which is where they are
            from.

    Example:

    ```py
    >>> from rein_hf.labels import check_class_names
    >>> check_class_names(["road", "sky"], "classes.json")
    ('road', 'sky')

    ```
    """
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{source}: the classes are {str(names)[:200]}; expected a list of their names, as texts.")
    if not 0 < len(names) <= MAX_CLASSES:
        raise ValueError(
            f"{source}: there are {len(names)} classes; expected 1 to {MAX_CLASSES}, since labels have 8 bits and the "
            f"id {IGNORE} means pixels that are ignored."
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        ids = {name: [index for index, other in enumerate(names) if other == name] for name in twice[:5]}
        raise ValueError(
            f"{source}: several classes have one name: {ids} (name: ids). Results are kept by name; give each class "
            "a name of its own."
        )
    return tuple(names)


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
    return check_class_names([by_id[index] for index in range(len(by_id))], where)


def id_table(class_of_id: Mapping[int, int], known: Iterable[int] = ()) -> np.ndarray:
    """An id table, (256,) int16: the class of each id in `class_of_id`, 255 for other `known` ids, -1 for the rest."""
    table = np.full(256, -1, np.int16)
    table[list(known)] = IGNORE
    table[list(class_of_id)] = list(class_of_id.values())
    return table


def palette_of(classes: Iterable[str]) -> list[tuple[int, int, int]]:
    """A colour (R, G, B) for each class: that of Cityscapes for a class of the same name, another hue for each of the
    others."""
    colours = []
    for index, name in enumerate(classes):
        hue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.75, 0.9)  # golden ratio: neighbours differ
        colours.append(CITYSCAPES.get(name, tuple(round(255 * value) for value in hue)))
    return colours


def check_palette(palette: Any, count: int, source: str) -> list[tuple[int, int, int]]:
    """Colours of classes by id, once they are known to be a colour for each.

    Args:
        palette: what was found: `count` times red, green and blue, from 0 to 255.
        count (`int`): number of classes.
        source (`str`): where it is from, for the message.

    Raises:
        ValueError: it is not as described.

    Example:

    ```py
    >>> from rein_hf.labels import check_palette
    >>> check_palette([[128, 64, 128], [70, 130, 180]], 2, "classes.json: palette")
    [(128, 64, 128), (70, 130, 180)]

    ```
    """
    colours = list(palette) if isinstance(palette, list | tuple) else []
    wrong = [index for index, colour in enumerate(colours) if not _is_colour(colour)]
    if len(colours) != count or wrong:
        found = f"colour {wrong[0]} is {colours[wrong[0]]!r}" if wrong else f"found {str(palette)[:100]}"
        raise ValueError(
            f"{source} is not a colour for each of the {count} classes; {found}. Expected a list of [red, green, "
            "blue], whole numbers from 0 to 255, in the order of the classes."
        )
    return [tuple(map(int, colour)) for colour in colours]


def palette_of_model(config: Any) -> list[tuple[int, int, int]]:
    """The colour (R, G, B) of each class of a model: those that its configuration keeps as `palette`, else those of
    [`palette_of`].

    Args:
        config: of the model, with `id2label`.

    Raises:
        ValueError: the classes are not numbered from 0, or `palette` is not a colour for each.
    """
    names = class_names_of(config.id2label, "id2label")
    palette = getattr(config, "palette", None)
    return (
        palette_of(names) if palette is None else check_palette(palette, len(names), "palette of the model's config")
    )


def _is_colour(colour: Any) -> bool:
    return (
        isinstance(colour, list | tuple)
        and len(colour) == 3
        and all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in colour)
        and all(0 <= value <= 255 for value in colour)
    )
