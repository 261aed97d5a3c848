"""The 19 classes of Cityscapes: names and colours, by train id."""

import colorsys
from collections.abc import Iterable


IGNORE = 255

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


def palette_of(classes: Iterable[str]) -> list[tuple[int, int, int]]:
    """A colour (R, G, B) for each class: Cityscapes' for a class of that name, a hue of its own for any other."""
    colours = []
    for index, name in enumerate(classes):
        hue = colorsys.hsv_to_rgb(index * 0.618 % 1, 0.75, 0.9)  # the golden ratio keeps neighbours apart
        colours.append(CITYSCAPES.get(name, tuple(round(255 * value) for value in hue)))
    return colours
