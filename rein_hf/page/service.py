"""What the page asks its server for: the map of a photo, the overlay to download, what Rein does inside.

Photos and results live in the browser. A request brings the photo along, and its answer brings all results, so that
nothing of a visitor stays here and no two visitors can meet.
"""

from __future__ import annotations

import base64
import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from PIL import Image

from ..data.corruptions import CORRUPTIONS, SEVERITIES
from ..images import FORMATS, fitted_size
from ..inference import is_out_of_memory, segment_with_confidence
from ..labels import IGNORE
from ..views import block_views_of_photo, explanation_sheet, legend_of, overlay, with_legend
from .adapters import Adapters
from .bounds import Bounds, PageError, encode_picture
from .examples import Example
from .requests import (
    DETAILS,
    SHOWN_SIDE,
    has_corruptions,
    hidden_classes,
    label_map_of,
    opacity_of,
    photo_of,
    seen_size,
)
from .turns import Turns


logger = logging.getLogger(__name__)

# How many blocks the explain view shows: the first, the last, and others between.
BLOCKS = 5


class Service:
    """The functions behind a page. Each takes one dictionary and gives one, both of JSON's types; a mistake is
    answered by {"error": a sentence}.

    Args:
        adapters: of which a visitor chooses.
        examples: photos that a visitor may take, from [`find_examples`].
        bounds: of what a visitor may send.
    """

    def __init__(self, adapters: Adapters, examples: Sequence[Example] = (), bounds: Bounds | None = None) -> None:
        self.adapters, self.examples, self.bounds = adapters, tuple(examples), bounds or Bounds()
        self._turns = Turns(self.bounds.waiting)

    def about(self) -> dict[str, Any]:
        """What the page has to know before the first photo."""
        corruptions = list(CORRUPTIONS) if has_corruptions() else []
        return {
            "adapters": [asdict(facts) for facts in self.adapters.facts.values()],
            "classes": [{"name": name, "colour": list(colour)} for name, colour in self.adapters.classes],
            "examples": [{"name": example.name, "thumbnail": example.thumbnail} for example in self.examples],
            "corruptions": [{"name": name, "kind": CORRUPTIONS[name]} for name in corruptions],
            "severities": list(SEVERITIES),
            "details": list(DETAILS),
            "device": self.adapters.device,
            "crop": self.adapters.crop,
            "bounds": asdict(self.bounds),
            "formats": list(FORMATS),
        }

    def segment(self, request: Any) -> dict[str, Any]:
        """The map of a photo.

        Args:
            request: `photo`, a data URI or "example:NUMBER"; `adapter`, a name; `detail`, a key of `DETAILS`;
                `corruption`, a key of `CORRUPTIONS` or ""; `severity`, 1 to 5.

        Returns:
            `photo`: what was segmented, a JPEG for the screen of `width` x `height` pixels; `labels` and `confidence`:
            maps of the same size, a byte for each pixel (confidence: 255 is 1), compressed by zlib, in base64;
            `label_map`: a PNG of class ids, the photo's own size; `size` of the photo and `seen` by the model, in
            pixels; `windows`; `milliseconds` of the model; `adapter`, `corruption`, `severity`, `detail`.
        """
        return self._answer(self._segment, request)

    def draw(self, request: Any) -> dict[str, Any]:
        """The overlay to download, a JPEG of the photo's own size.

        Args:
            request: as for `segment`, and `label_map` of its answer, `opacity`, 0 to 1, `hidden`, ids of classes that
                are switched off.

        Returns:
            `overlay`: a data URI.
        """
        return self._answer(self._draw, request)

    def explain(self, request: Any) -> dict[str, Any]:
        """What Rein does in each block.

        Args:
            request: as for `segment`.

        Returns:
            `sheet`: a data URI, see [`rein_hf.views.explanation_sheet`]; `adapter`.
        """
        return self._answer(self._explain, request)

    def _answer(self, function: Callable[[Mapping[str, Any]], dict[str, Any]], request: Any) -> dict[str, Any]:
        try:
            if not isinstance(request, Mapping):
                raise PageError("The request is none of this page's. Load the page again.")
            with self._turns.turn():
                return function(request)
        except PageError as error:
            return {"error": str(error)}
        except Exception as error:  # its message may name paths of the server; they go into the log alone
            if is_out_of_memory(error):
                text = "The server has not enough memory for this photo. Make it smaller, or ask for less detail."
                return {"error": text}
            logger.exception("a request of the page failed")
            return {"error": "Something went wrong on the server; its log says what. Nothing of the photo was kept."}

    def _segment(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, processor = self._chosen_adapter(request)
        photo = photo_of(request, self.examples, self.bounds)
        size = seen_size(request, photo.size, self.adapters.crop, self.bounds)
        windows = 0

        def count(done: int, of_all: int) -> None:
            nonlocal windows
            windows = of_all

        began = time.perf_counter()
        found = segment_with_confidence(self.adapters.model, processor, photo, size=size, progress=count)
        milliseconds = 1000 * (time.perf_counter() - began)
        shown = photo.copy()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        labels = Image.fromarray(found.labels).resize(shown.size, Image.Resampling.NEAREST)
        confidence = np.asarray(Image.fromarray(found.confidence).resize(shown.size, Image.Resampling.NEAREST))
        return {
            "photo": encode_picture(shown, "JPEG", quality=90),
            "width": shown.width,
            "height": shown.height,
            "labels": _compressed(labels),
            "confidence": _compressed(Image.fromarray((255 * confidence).round().astype(np.uint8))),
            "label_map": encode_picture(Image.fromarray(found.labels), "PNG", compress_level=3),
            "size": list(photo.size),
            "seen": list(photo.size if size is None else fitted_size(photo.size, size)),
            "windows": windows,
            "milliseconds": round(milliseconds),
            "adapter": name,
            **{key: request.get(key) for key in ("corruption", "severity", "detail")},
        }

    def _draw(self, request: Mapping[str, Any]) -> dict[str, Any]:
        photo = photo_of(request, self.examples, self.bounds)
        labels, opacity = label_map_of(request, photo.size), opacity_of(request)
        hidden = hidden_classes(request, len(self.adapters.classes))
        shown = ~np.isin(labels, [*hidden, IGNORE])
        coloured = overlay(photo, labels, self.adapters.model, opacity)
        picture = Image.composite(coloured, photo, Image.fromarray(shown))
        names, palette = zip(*self.adapters.classes, strict=True)
        legend = legend_of([labels[shown]], names, palette)
        picture = with_legend(picture, legend, size=max(15, photo.height // 40))
        return {"overlay": encode_picture(picture, "JPEG", quality=90)}

    def _explain(self, request: Mapping[str, Any]) -> dict[str, Any]:
        name, processor = self._chosen_adapter(request)
        if not self.adapters.facts[name].explains:
            raise PageError(f"{name} is no Rein adapter: there are no tokens whose attention could be shown.")
        views = block_views_of_photo(
            self.adapters.model, processor, photo_of(request, self.examples, self.bounds), BLOCKS
        )
        return {"sheet": encode_picture(explanation_sheet(*views), "JPEG", quality=88), "adapter": name}

    def _chosen_adapter(self, request: Mapping[str, Any]) -> tuple[str, Any]:
        """The adapter of a request, switched to, and its image processor."""
        name = request.get("adapter")
        if name not in self.adapters.names:
            raise PageError(f"There is no such adapter here; there are {', '.join(self.adapters.names)}.")
        return name, self.adapters.use(name)


def _compressed(picture: Image.Image) -> str:
    """The bytes of a picture's pixels, by zlib, in base64. Not as a PNG: browsers that guard against fingerprints give
    scripts other pixels than a picture has."""
    return base64.b64encode(zlib.compress(picture.tobytes(), 6)).decode("ascii")
