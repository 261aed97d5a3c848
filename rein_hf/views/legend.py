"""Legends of pictures: the colour and the name of each class, in letters of any language that the computer has."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..labels import IGNORE


Legend = Sequence[tuple[str, tuple[int, int, int]]]  # name and colour (R, G, B) of each class


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels that has every letter of a text: DejaVu Sans, which matplotlib brings along (Latin,
    Greek, Cyrillic, Arabic and more), or else one that is installed. Letters that no font has are drawn as boxes.

    Pillow's own font draws a box for every letter beyond ASCII.
    """
    letters = frozenset(letter for letter in text if letter.isprintable() and not letter.isspace())
    return _load_font(letters - _letters_of(_own_font()), size)


@lru_cache(maxsize=64)
def _load_font(lacking: frozenset[str], size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans or, if it lacks letters, the first installed font that has these."""
    path = _own_font()
    if lacking:
        from matplotlib import font_manager

        installed = sorted({entry.fname for entry in font_manager.fontManager.ttflist})
        # matplotlib's font of last resort has a box for every letter there is
        others = (path for path in installed if "LastResort" not in path and lacking <= _letters_of(path))
        path = next(others, path)
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1)
def _own_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@lru_cache
def _letters_of(path: str) -> frozenset[str]:
    from matplotlib import font_manager

    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError, ValueError):  # a file that is no font
        return frozenset()


def legend_of(labels: Iterable[np.ndarray], names: Sequence[str], palette: Sequence[tuple[int, int, int]]) -> Legend:
    """Name and colour of the classes that occur in some label maps, in the order of their ids, and of pixels that do
    not count, where there are any.

    Args:
        labels: maps (H, W) of class ids.
        names, palette: name and colour (R, G, B) of each class, by id.
    """
    present = np.zeros(256, bool)
    for label in labels:
        present[np.unique(np.asarray(label))] = True
    classes = [(name, colour) for name, colour, shown in zip(names, palette, present, strict=False) if shown]
    return [*classes, ("(does not count)", (0, 0, 0))] if present[IGNORE] else classes


def merge_legends(legends: Iterable[Legend]) -> Legend:
    """The entries of several legends, each once."""
    return list(dict.fromkeys((name, tuple(colour)) for legend in legends for name, colour in legend))


def draw_legend(legend: Legend, width: int, size: int = 15) -> Image.Image:
    """A legend as a white strip: a coloured box and a name for each entry, in as many lines as `width` pixels need.

    Args:
        legend: name and colour (R, G, B) of each entry.
        width (`int`): of the strip in pixels. A name that is longer is cut off.
        size (`int`): of the letters in pixels.

    Returns:
        An RGB image of the given width; of height 0 for no entries.
    """
    line, gap = size + 9, 6
    places, left, top = [], gap, 0
    for name, colour in legend:
        font = font_for(name, size)
        length = size + gap + round(font.getlength(name)) + 2 * gap
        if left > gap and left + length > width:
            left, top = gap, top + line
        places.append((left, top, name, colour, font))
        left += length
    strip = Image.new("RGB", (width, top + line if places else 0), "white")
    draw = ImageDraw.Draw(strip)
    for left, top, name, colour, font in places:
        box = (left, top + 4, left + size, top + 4 + size)
        draw.rectangle(box, fill=tuple(colour), outline=(90, 90, 90))
        draw.text((left + size + gap, top + 4 + size // 2), name, fill="black", font=font, anchor="lm")
    return strip


def with_legend(picture: Image.Image, legend: Legend, size: int = 15) -> Image.Image:
    """A picture with a legend below it, as an RGB image of the same width."""
    strip = draw_legend(legend, picture.width, size)
    joined = Image.new("RGB", (picture.width, picture.height + strip.height), "white")
    joined.paste(picture.convert("RGB"), (0, 0))
    joined.paste(strip, (0, picture.height))
    return joined
