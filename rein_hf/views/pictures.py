"""Pictures of label maps (colours, overlays, contact sheets) and of what Rein does inside a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from ..files import atomic_write
from ..images import to_photo
from ..labels import CITYSCAPES, MAX_CLASSES, palette_of_model
from .legend import Legend, draw_legend, font_for


if TYPE_CHECKING:
    import torch

    from .explain import BlockView

# Colours (R, G, B) by class id, or a model, whose classes have colours.
Palette = Sequence[tuple[int, int, int]] | Any
CITYSCAPES_COLOURS = tuple(CITYSCAPES.values())


# The longest side, in pixels, of a picture that is written as JPEG.
JPEG_SIDE = 65500


def colorize(label: np.ndarray, palette: Palette = CITYSCAPES_COLOURS) -> Image.Image:
    """A label map (H, W) of class ids in the colours of its classes, as an RGB image. Ids that the palette has no
    colour for are black, and so is 255, the label of pixels that do not count.

    Args:
        label: the map.
        palette: colour (R, G, B) of each class, by id; or a model, for the colours of its classes, see
            [`rein_hf.labels.palette_of_model`]. Those of Cityscapes by default.

    Raises:
        ValueError: there are more than 255 colours, or the model's classes or colours are not as they should be.
    """
    table = np.zeros((256, 3), np.uint8)
    colours = colours_of(palette)
    table[: len(colours)] = colours
    return Image.fromarray(table[np.asarray(label)])


def colours_of(palette: Palette) -> list[tuple[int, int, int]]:
    """The colours that a `palette` argument means.

    Raises:
        ValueError: as for [`colorize`].
    """
    if hasattr(palette, "config"):
        palette = palette_of_model(palette.config)
    if len(palette) > MAX_CLASSES:
        raise ValueError(
            f"palette has {len(palette)} colours; expected {MAX_CLASSES} at most: label maps hold 8 bits."
        )
    return list(palette)


def palette_image(label: np.ndarray, palette: Palette = CITYSCAPES_COLOURS) -> Image.Image:
    """A label map (H, W) of class ids as an image of mode P: its values are the ids, and viewers show the colours of
    the classes, which the file holds. `numpy.asarray` of such a PNG, opened by Pillow, is the label map again.

    Args:
        label, palette: as for [`colorize`].

    Raises:
        ValueError: as for [`colorize`].
    """
    picture = Image.fromarray(np.asarray(label, np.uint8)).convert("L")
    # all 256 entries: ids without a colour are black
    picture.putpalette([value for colour in [*colours_of(palette), *[(0, 0, 0)] * 256][:256] for value in colour])
    return picture


def overlay(
    image: Any,
    label: np.ndarray,
    palette: Palette = CITYSCAPES_COLOURS,
    opacity: float = 0.5,
) -> Image.Image:
    """An image (W x H), turned upright as its EXIF says, with the colours of its label map (H, W) over it, `opacity`
    from 0 to 1: `overlay(photo, labels, model)`.

    Args:
        image: a photo as [`rein_hf.segment`] takes it: a path, a Pillow image, an array (H, W, 3), a tensor (3, H, W).
        label: its map.
        palette: as for [`colorize`].

    Raises:
        ValueError: the image cannot be read; the label map is of another size than the upright image; `opacity` is not
            from 0 to 1; as for [`colorize`].
        TypeError: the image is of another type.
    """
    if not 0 <= opacity <= 1:  # nor NaN
        raise ValueError(f"opacity is {opacity}; expected 0 (the image alone) to 1 (the colours alone).")
    image = to_photo(image)
    colours = colorize(np.asarray(label), palette)
    if image.size != colours.size:
        raise ValueError(
            f"label is a map of {colours.width}x{colours.height} pixels; expected {image.width}x{image.height}, the "
            "size of the upright image."
        )
    return Image.blend(image, colours, opacity)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]],
    titles: Sequence[str],
    width: int = 320,
    legend: Legend = (),
) -> Image.Image:
    """A table of pictures.

    Args:
        rows: name of each row, and its pictures, one for each title.
        titles: titles of the columns.
        width (`int`): width of each picture in pixels.
        legend: name and colour (R, G, B) of each class, drawn below the table.
    """
    bar, strip = 24, draw_legend(legend, width * len(titles))
    heights = [max(round(picture.height * width / picture.width) for picture in pictures) for _, pictures in rows]
    table_height = bar + sum(heights) + bar * len(rows)
    sheet = Image.new("RGB", (width * len(titles), table_height + strip.height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * width + 6, 3), title, fill="black", font=font_for(title, 15))
    top = bar
    for (name, pictures), height in zip(rows, heights, strict=True):
        draw.text((6, top + 3), name, fill=(90, 90, 90), font=font_for(name, 15))
        for column, picture in enumerate(pictures):
            size = (width, round(picture.height * width / picture.width))
            sheet.paste(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), (column * width, top + bar))
        top += bar + height
    sheet.paste(strip, (0, table_height))
    return sheet


def explanation_sheet(
    photo: Image.Image, views: Sequence[BlockView], num_tokens: int = 4, side: int = 200
) -> Image.Image:
    """A picture of what Rein does, with a row for each block: the features before and after Rein in colours, the
    relative length of the refinement, and the attention that tokens get: the sink, and the tokens whose attention
    varies most over the photo.

    Args:
        photo: the photo as the model saw it.
        views: from [`rein_hf.block_views`], one at least.
        num_tokens (`int`): number of tokens, the sink included.
        side (`int`): longer side of each small picture in pixels.
    """
    size = tuple(max(round(length * side / max(photo.size)), 1) for length in photo.size)
    photo = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    rows = []
    for view in views:
        before, after = (Image.fromarray(colours).resize(size, Image.Resampling.NEAREST) for colours in view.colours)
        row = [(f"block {view.block}, before Rein", before), ("after Rein", after)]
        row.append((f"change: {_mean_and_range(view.change, True)}", _heatmap_overlay(photo, view.change)))
        for token in view.busiest_tokens(num_tokens):
            attention = view.attention[token]
            name = f"token {token}" if token else "sink"
            caption = f"{name}: {_mean_and_range(attention, view.use_softmax)}"
            row.append((caption, _heatmap_overlay(photo, attention)))
        rows.append(row)
    if views[0].use_softmax:
        meaning = f"a token's share of the attention that each patch gives to all {len(views[0].attention)}"
    else:
        meaning = "dot products with each patch, no shares, for want of a softmax"
    legend = (
        "Before and after Rein: the first three principal components of a block's patch features as red, green, blue.",
        "Both in one basis and on one scale, so that equal features have equal colours; each row has its own.",
        "Change: the refinement's length by that of the features, |after - before| / |before|.",
        f"Sink and tokens: {meaning}. The sink refines nothing; the others vary most over the photo.",
        "Heat maps: mean (smallest to largest) over the photo; in each map the smallest is dark, the largest yellow.",
    )
    font, bar, gap = font_for("", 13), 20, 4
    width = gap + max(size[0], *(math.ceil(font.getlength(caption)) for row in rows for caption, _ in row))
    top = bar * len(legend) + gap
    sheet = Image.new("RGB", (width * max(map(len, rows)) - gap, top + (bar + size[1]) * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    small = photo.copy()
    small.thumbnail((size[0], bar * len(legend)))
    sheet.paste(small, (0, 0))
    for number, text in enumerate(legend):
        draw.text((small.width + 8, bar * number + 2), text, fill="black", font=font)
    for row in rows:
        for column, (caption, picture) in enumerate(row):
            draw.text((column * width, top + 1), caption, fill="black", font=font)
            sheet.paste(picture, (column * width, top + bar))
        top += bar + size[1]
    return sheet


def _heatmap_overlay(photo: Image.Image, values: torch.Tensor) -> Image.Image:
    """A map (h, w) in colours over a darkened photo. Where the map is smallest the photo is seen, where it is largest
    the colour."""
    from matplotlib import colormaps

    low, high = values.min(), values.max()
    heat = ((values - low) / (high - low).clamp(min=1e-12)).cpu().numpy()
    colours = Image.fromarray(colormaps["inferno"](heat, bytes=True)[..., :3])
    mask = Image.fromarray((255 * heat).astype(np.uint8))
    colours, mask = (picture.resize(photo.size, Image.Resampling.NEAREST) for picture in (colours, mask))
    dark = Image.blend(photo.convert("L").convert("RGB"), Image.new("RGB", photo.size), 0.5)
    return Image.composite(colours, dark, mask)


def _mean_and_range(values: torch.Tensor, percent: bool) -> str:
    """The caption "mean (smallest to largest)", in percent or as it is."""
    mean, low, high = (
        f"{value * (100 if percent else 1):.3g}" for value in (values.mean(), values.min(), values.max())
    )
    return f"{mean}{' %' if percent else ''} ({low} to {high})"


def save_picture(picture: Image.Image, path: Path, comment: str | None = None) -> None:
    """Write a picture in the format that the path ends in. After an error no part of the file is left.

    Args:
        picture: the picture.
        path: of the file, a PNG or a JPEG.
        comment (`str`, *optional*): to be written into the file as well, see [`comment_of`].

    Raises:
        OSError: it cannot be written.
        ValueError: it is larger than JPEG allows.
    """
    if path.suffix.lower() in (".jpg", ".jpeg") and max(picture.size) > JPEG_SIDE:
        raise ValueError(f"{path} would be {picture.width}x{picture.height} pixels; JPEG holds sides of {JPEG_SIDE}.")
    options = {}
    if comment is not None and path.suffix.lower() == ".png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text("Comment", comment)
    elif comment is not None:
        options["comment"] = comment
    with atomic_write(path) as partial:
        picture.save(partial, quality=90, **options)


def comment_of(path: Path) -> str | None:
    """What [`save_picture`] wrote into a file beside the picture; None if there is no such file, or nothing in it."""
    try:
        with Image.open(path) as picture:
            comment = picture.info.get("Comment", picture.info.get("comment"))
    except (OSError, ValueError, Image.DecompressionBombError):  # ValueError: a text of PNG that is too large
        return None
    return comment.decode("utf-8", "replace") if isinstance(comment, bytes) else comment
