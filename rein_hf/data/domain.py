"""Images with a label per pixel, as `datasets.Dataset`: lazily decoded, ids looked up once, errors that name files.

A domain is described in one line, in a recipe or on a command line:

    [NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE...]

    gta5:data/GTA5                                    a download of `rein_hf.data.layouts`, as it was packed
    cityscapes:data/cityscapes@train#every=16         each 16th image of a split
    acdc:data/acdc@val#size=native                    evaluated at its own size, not the protocol's
    camvid=../shared/data/camvid@test                 a folder of your own, see `rein_hf.data.folders`
    hub:user/dataset@train#image=photo#label=mask     a data set of the Hub or a folder of parquet files
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import datasets
import numpy as np

from ..labels import CITYSCAPES, CITYSCAPES_CLASSES, palette_of
from .decoding import LabelDecoder, decode_batch, ids_from_channel, make_dataset
from .folders import find_rows, read_classes
from .hub_datasets import Stream, load_hub_columns
from .layouts import LABEL_IDS, LAYOUTS, TRAIN_IDS


SPEC = re.compile(
    r"(?:(?P<name>[\w.+-]+)=)?(?:(?P<layout>\w{2,}):)?(?P<path>[^#]+?)(?:@(?P<split>[\w.+-]+))?(?P<options>#.*)?"
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
        classes (`tuple[str, ...]`): name of each class of the labels, by id.
        class_of_train_id (`tuple[int, ...]`, *optional*): for data of other classes than Cityscapes, the class that a
            prediction of each train id means.
        size (`(int, int)`, *optional*): width and height that images are fitted into for evaluation; their own size by
            default. Labels keep theirs.
        scored (`tuple[str, ...]`, *optional*): the classes that count in the mean; all of them by default.
    """

    name: str
    dataset: datasets.Dataset | Stream
    classes: tuple[str, ...] = CITYSCAPES_CLASSES
    class_of_train_id: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None
    scored: tuple[str, ...] | None = None

    @property
    def is_streamed(self) -> bool:
        """Whether samples come one after the other, and nobody knows how many."""
        return isinstance(self.dataset, Stream)

    def predictions(self, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        """Ids (H, W) predicted by a model of `classes`, those of this domain or Cityscapes', as this domain's ids.

        Raises:
            ValueError: the model has other classes, or this domain does not tell what Cityscapes' classes are in it.
        """
        if tuple(classes) == self.classes:
            return labels
        if tuple(classes) == CITYSCAPES_CLASSES and self.class_of_train_id is not None:
            return np.asarray(self.class_of_train_id, np.uint8)[labels]
        raise ValueError(
            f"{self.name} has the classes {', '.join(self.classes)}; found a model of {', '.join(classes)}. Expected "
            "the same, or a model of Cityscapes' 19 and train_id_to_class in classes.json."
        )

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """Colour of each class: that of its name or of the first class of Cityscapes that it stands for; black for a
        class that stands for none."""
        if self.class_of_train_id is None:
            return palette_of(self.classes)
        colours = CITYSCAPES.values()
        first = {index: colour for index, colour in reversed([*zip(self.class_of_train_id, colours, strict=True)])}
        return [first.get(index, (0, 0, 0)) for index in range(len(self.classes))]


def load_domain(spec: str) -> Domain:
    """A domain by its description, as at the top of this file.

    Options: `every=N` takes each N-th image in the order of names, `exclude=NAME+NAME` leaves images out, `size=WxH`
    (or `native`) replaces the size at which the layout is evaluated; `hub:` takes the arguments of [`load_hub`].

    Raises:
        ValueError: the description is not of that form; it names an unknown layout or option.
        FileNotFoundError, ValueError: as for the loader of its kind.

    Example:

    ```py
    load_domain("camvid=../shared/data/camvid@test").dataset[0]["image"]
    ```
    """
    match = SPEC.fullmatch(spec)
    if not match:
        raise ValueError(f"Domain {spec!r} is not of the form [NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE...].")
    layout, path, split, name = (match[part] for part in ("layout", "path", "split", "name"))
    options = {}
    for part in (match["options"] or "").split("#")[1:]:
        key, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"Domain {spec!r} has the option {part!r}; expected OPTION=VALUE.")
        options[key] = value
    every, exclude, size = (options.pop(key, None) for key in ("every", "exclude", "size"))
    if every and not (every.isdigit() and int(every)):
        raise ValueError(f"Domain {spec!r}: every is {every!r}; expected a number of at least 1.")
    if size and not re.fullmatch(r"native|\d+x\d+", size):
        raise ValueError(f"Domain {spec!r}: size is {size!r}; expected WIDTHxHEIGHT in pixels, or native.")
    known = HUB_OPTIONS if layout == "hub" else ()
    if unknown := options.keys() - set(known):
        raise ValueError(
            f"Domain {spec!r} has the unknown option(s) {sorted(unknown)}; known here: "
            f"{', '.join(('every', 'exclude', 'size', *known))}."
        )
    if layout == "hub":
        streaming = options.pop("streaming", "false")
        if streaming not in ("true", "false"):
            raise ValueError(f"Domain {spec!r}: streaming is {streaming!r}; expected true or false.")
        domain = load_hub(path, split or "train", name, streaming=streaming == "true", **options)
    elif layout is None or layout == "folder":
        domain = load_folder(path, split, name)
    elif layout in LAYOUTS:
        domain = load_layout(layout, path, split, name)
    else:
        raise ValueError(f"Domain {spec!r}: unknown layout {layout!r}; expected one of {', '.join(LAYOUTS)}, hub.")
    if domain.is_streamed and (every or exclude):
        raise ValueError(f"Domain {spec!r} is streamed; every and exclude need streaming=false.")
    if exclude:
        names = domain.dataset.with_format(None)["name"]
        if lacking := set(exclude.split("+")) - set(names):
            raise ValueError(f"Domain {spec!r} excludes {sorted(lacking)}, which are no images of it.")
        kept = [index for index, name in enumerate(names) if name not in exclude.split("+")]
        domain = replace(domain, dataset=domain.dataset.select(kept))
    if every:
        names = domain.dataset.with_format(None)["name"]
        kept = sorted(range(len(names)), key=names.__getitem__)[:: int(every)]
        domain = replace(domain, dataset=domain.dataset.select(kept))
    if size:
        domain = replace(domain, size=None if size == "native" else tuple(map(int, size.split("x"))))
    return domain


def load_layout(layout: str, root: str | Path, split: str | None = None, name: str | None = None) -> Domain:
    """A data set as its owners pack it.

    Args:
        layout (`str`): key of [`rein_hf.data.LAYOUTS`].
        root: folder into which the downloads were unpacked.
        split (`str`, *optional*): one of the layout's, or several joined with "+"; needed where it has splits.
        name (`str`, *optional*): name of the domain, the layout's by default.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: the split is unknown. Reading an item raises it as well: a file is no image, a label is not of its
            image's size, of another kind or holds an id that the data set does not have.
    """
    root, entry, name = Path(root), LAYOUTS[layout], name or layout
    rows = entry.find(root, split)
    expected = sum(entry.splits[part] for part in ([""] if "" in entry.splits else split.split("+")))
    if len(rows) < expected:
        warnings.warn(f"{root} holds {len(rows)} of the {expected} images of {layout} {split or ''}.", stacklevel=2)
    reading = entry.reading if isinstance(entry.reading, LabelDecoder) else entry.reading(root)
    return Domain(
        name,
        make_dataset(rows, name, reading, halved=entry.halved),
        classes=entry.classes,
        class_of_train_id=entry.class_of_train_id,
        size=entry.size,
        scored=entry.scored,
    )


def load_folder(root: str | Path, split: str | None = None, name: str | None = None) -> Domain:
    """A folder of your own, in the layout of `rein_hf.data.folders`.

    Args:
        root: the folder.
        split (`str`, *optional*): rows of index.csv to take; all of them by default.
        name (`str`, *optional*): name of the domain, the folder's by default.

    Raises:
        FileNotFoundError: the folder, its images or the label of an image is missing.
        ValueError: index.csv or classes.json is not as described; no image is in the split; as for [`load_layout`].
    """
    root = Path(root)
    name = name or root.name
    rows = find_rows(root, split)
    classes, reading, class_of_train_id = read_classes(root)
    return Domain(name, make_dataset(rows, name, reading), classes, class_of_train_id)


# Ids that labels of a data set of the Hub can hold: train ids, or Cityscapes' own.
HUB_IDS = {"train_ids": TRAIN_IDS, "label_ids": LABEL_IDS}
HUB_OPTIONS = ("image", "label", "ids", "config", "streaming")


def load_hub(
    path: str,
    split: str = "train",
    name: str | None = None,
    image: str = "image",
    label: str = "label",
    ids: str = "train_ids",
    config: str | None = None,
    streaming: bool = False,
) -> Domain:
    """A data set of the Hub, or a local folder of parquet files, with an image and a label column.

    Args:
        path (`str`): Hub id or folder.
        split (`str`): e.g. "train".
        name (`str`, *optional*): name of the domain, the last part of the path by default.
        image, label (`str`): names of the columns.
        ids (`str`): what labels hold, "train_ids" or "label_ids" (of Cityscapes).
        config (`str`, *optional*): configuration of the data set.
        streaming (`bool`): read it as it comes instead of downloading it first.

    Raises:
        ValueError: a column is missing; `ids` is unknown; reading an item as for [`load_layout`].
    """
    if ids not in HUB_IDS:
        raise ValueError(f"{path}: ids is {ids!r}; expected one of {', '.join(HUB_IDS)}.")
    name = name or Path(path).name
    dataset = load_hub_columns(path, split, name, image, label, config, streaming)
    transform = partial(decode_batch, reading=LabelDecoder(ids_from_channel, HUB_IDS[ids]))
    return Domain(name, Stream(dataset, transform) if streaming else dataset.with_transform(transform))
