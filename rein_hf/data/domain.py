"""A domain: labelled images of one kind and what their labels mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np

from ..labels import CITYSCAPES, CITYSCAPES_CLASSES, check_class_names, check_palette, palette_of
from .hub_datasets import Stream


def check_different_names(domains: Sequence[Domain], key: str, specs: Sequence[str] = ()) -> None:
    """
    Raises:
        ValueError: two domains have the same name. Whatever is kept by name would be the last one's.
    """
    names = [domain.name for domain in domains]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        found = f": {', '.join(specs)}" if specs else ""
        raise ValueError(
            f"{key} has several domains of the name {twice[0]!r}{found}. Expected different names; give them by NAME= "
            "in NAME=FOLDER@SPLIT."
        )


@dataclass(frozen=True)
class Domain:
    """
    Labelled images of one kind, and the classes of their labels.

    Args:
        name (`str`): e.g. "camvid".
        dataset (`datasets.Dataset` or [`~rein_hf.data.Stream`]): columns `name`, `image` (RGB), `label` (L: class
            ids, 255 where there is none; of the image's size; `None` where labels are not public) and `domain`: the
            name, followed by "/" and the group if there is one.
        classes (`tuple[str, ...]`): name of each class of the labels, by id; 1 to 255 different ones.
        class_of_train_id (`tuple[int, ...]`, *optional*): for data of other classes than Cityscapes, the class that a
            prediction of each train id means.
        size (`(int, int)`, *optional*): width and height that images are fitted into for evaluation; their own size by
            default. Labels keep theirs.
        scored (`tuple[str, ...]`, *optional*): the classes that count in the mean; all of them by default.
        assumption (`str`, *optional*): a sentence on what was assumed about the ids of the labels, where the data do
            not say it.
        palette (`list[tuple[int, int, int]]`, *optional*): colour (R, G, B) of each class. By default that of its
            name; where `class_of_train_id` is set, that of the first class of Cityscapes which it is, and black for a
            class which is none of them.

    Raises:
        ValueError: classes, `class_of_train_id`, `scored` or `palette` are not as described.
    """

    name: str
    dataset: datasets.Dataset | Stream
    classes: tuple[str, ...] = CITYSCAPES_CLASSES
    class_of_train_id: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    scored: tuple[str, ...] | None = None
    assumption: str | None = None
    palette: list[tuple[int, int, int]] | None = None

    def __post_init__(self):
        check_class_names(self.classes, f"Domain {self.name}")
        classes, scored = self.class_of_train_id, self.scored
        if classes is not None and (
            len(classes) != len(CITYSCAPES_CLASSES) or not all(0 <= index < len(self.classes) for index in classes)
        ):
            raise ValueError(
                f"Domain {self.name}: class_of_train_id is {classes}; expected one of the {len(self.classes)} classes "
                f"for each of the {len(CITYSCAPES_CLASSES)} classes of Cityscapes."
            )
        if scored is not None and (not scored or len(set(scored)) < len(scored) or set(scored) - set(self.classes)):
            raise ValueError(f"Domain {self.name}: scored is {scored}; expected different ones of its classes.")
        palette = self._default_palette() if self.palette is None else self.palette
        palette = check_palette(palette, len(self.classes), f"Domain {self.name}: palette")
        object.__setattr__(self, "palette", palette)  # the class is frozen

    @property
    def is_streamed(self) -> bool:
        """Whether samples come one after the other, their number unknown."""
        return isinstance(self.dataset, Stream)

    def predictions(self, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Class ids (H, W) that a model of `classes` predicted, as class ids of this domain. The model has the classes
        of this domain, or those of Cityscapes.

        Raises:
            ValueError: it has others, or this domain does not say which of its classes Cityscapes' are.
        """
        if tuple(classes) == self.classes:
            return labels
        if tuple(classes) == CITYSCAPES_CLASSES and self.class_of_train_id is not None:
            return np.asarray(self.class_of_train_id, np.uint8)[labels]
        raise ValueError(
            f"{self.name} has the classes {', '.join(self.classes)}; found a model of {', '.join(classes)}. Expected "
            "the same, or a model of Cityscapes' 19 and train_id_to_class in classes.json."
        )

    def _default_palette(self) -> list[tuple[int, int, int]]:
        if self.class_of_train_id is None:
            return palette_of(self.classes)
        colours = CITYSCAPES.values()
        first = {index: colour for index, colour in reversed([*zip(self.class_of_train_id, colours, strict=True)])}
        return [first.get(index, (0, 0, 0)) for index in range(len(self.classes))]
