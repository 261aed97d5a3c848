"""A page in the browser on which people try adapters with photos of their own. Gradio serves it (extra `page`)."""

from .adapters import Adapters
from .app import PAGE_EXTRA, build_page, check_address, launch_page, require_gradio
from .bounds import Bounds, PageError
from .examples import find_examples
from .service import Service


__all__ = [
    "PAGE_EXTRA",
    "Adapters",
    "Bounds",
    "PageError",
    "Service",
    "build_page",
    "check_address",
    "find_examples",
    "launch_page",
    "require_gradio",
]
