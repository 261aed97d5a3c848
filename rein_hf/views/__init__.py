"""What people look at: label maps in colour, contact sheets, what Rein does inside, and plots (`rein_hf.views.plots`,
apart because it needs matplotlib)."""

from .explain import BlockView, block_views, block_views_of_photo, rein_layers
from .pictures import colorize, contact_sheet, explanation_sheet, overlay, save_picture


__all__ = [
    "BlockView",
    "block_views",
    "block_views_of_photo",
    "colorize",
    "contact_sheet",
    "explanation_sheet",
    "overlay",
    "rein_layers",
    "save_picture",
]
