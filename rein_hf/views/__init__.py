"""Pictures for people: label maps in colour, contact sheets, what Rein does inside a model, and plots
(`rein_hf.views.plots`, not imported here because it needs matplotlib)."""

from .explain import BlockView, block_views, block_views_of_photo, rein_layers
from .pictures import JPEG_SIDE, colorize, contact_sheet, explanation_sheet, overlay, save_picture


__all__ = [
    "BlockView",
    "JPEG_SIDE",
    "block_views",
    "block_views_of_photo",
    "colorize",
    "contact_sheet",
    "explanation_sheet",
    "overlay",
    "rein_layers",
    "save_picture",
]
