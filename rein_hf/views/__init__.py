"""Pictures for people: label maps in colour, contact sheets, what Rein does inside a model, and plots
(`rein_hf.views.plots`, not imported here because it needs matplotlib)."""

from .explain import BlockView, block_views, block_views_of_photo, rein_layers
from .legend import draw_legend, legend_of, merge_legends, with_legend
from .pictures import (
    JPEG_SIDE,
    colorize,
    comment_of,
    contact_sheet,
    explanation_sheet,
    overlay,
    palette_image,
    save_picture,
)


__all__ = [
    "BlockView",
    "JPEG_SIDE",
    "block_views",
    "block_views_of_photo",
    "colorize",
    "comment_of",
    "contact_sheet",
    "draw_legend",
    "explanation_sheet",
    "legend_of",
    "merge_legends",
    "overlay",
    "palette_image",
    "rein_layers",
    "save_picture",
    "with_legend",
]
