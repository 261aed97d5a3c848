"""Paints street scenes with exact segmentation labels: an offline stand-in for driving data under domain shift.

A seed fixes one street: a camera, a layout in metres and everything standing in it. It is painted far to near by a
pinhole camera on a canvas that keeps, next to the colours, the class, the depth, the light source and the snow cover
of every pixel. The weather of a domain is then computed from those maps, so the labels of a seed are the same in all
domains. Only numpy and Pillow paint; nothing is downloaded.

One random generator paints a whole street, in a fixed order: a draw more or less anywhere changes every street.

    python -m recipes.demo.paint_streets --output_dir data/streets --domains day night --seeds 0 200
    python -m recipes.demo.paint_streets --sheet streets.png --seeds 0 6
"""

from .dataset import contact_sheet, write_dataset
from .scenes import DOMAINS, paint


__all__ = ["DOMAINS", "contact_sheet", "paint", "write_dataset"]
