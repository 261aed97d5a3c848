"""Loading a domain: by its one-line description, from a download, from a folder of your own, or from the Hub."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from .classes import read_classes
from .decoding import LabelDecoder, decode_batch, ids_from_channel, make_dataset
from .domain import Domain, check_different_names
from .folders import find_rows, normalize_name
from .hub_datasets import Stream, load_hub_columns
from .layouts import LABEL_IDS, LAYOUTS, TRAIN_IDS
from .spec import parse_spec


def load_domains(specs: Sequence[str], key: str) -> list[Domain]:
    """Several domains, each as by [`load_domain`].

    Args:
        specs: their descriptions.
        key: the argument that they were given as, for errors.

    Raises:
        ValueError: two of them have the same name, by which results are kept and reported.
    """
    domains = [load_domain(spec) for spec in specs]
    check_different_names(domains, key, specs)
    return domains


def load_domain(spec: str) -> Domain:
    """A domain by its description `[NAME=][LAYOUT:]PATH[@SPLIT][#OPTION=VALUE...]`, see `rein_hf.data.spec`.

    Options: `every=N` takes each N-th image in the order of names, `skip_every=N` all others, `exclude=NAME+NAME`
    leaves images out, `size=WxH` (or `native`) replaces the size at which the layout is evaluated; `hub:` takes the
    arguments of [`load_hub`].

    Raises:
        ValueError: the description is not of that form; it names an unknown layout or option.
        FileNotFoundError, ValueError: as for the loader of its kind.

    Example:

    ```py
    load_domain("camvid=../shared/data/camvid@test").dataset[0]["image"]
    ```
    """
    parts = parse_spec(spec)
    layout, path, split, name, options = parts.layout, parts.path, parts.split, parts.name, dict(parts.options)
    every, skip_every, exclude, size = (options.pop(key, None) for key in ("every", "skip_every", "exclude", "size"))
    for key, value, least in (("every", every, 1), ("skip_every", skip_every, 2)):
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise ValueError(f"Domain {spec!r}: {key} is {value!r}; expected a number of at least {least}.")
    if size and not re.fullmatch(r"native|[1-9][0-9]*x[1-9][0-9]*", size):
        raise ValueError(f"Domain {spec!r}: size is {size!r}; expected WIDTHxHEIGHT in pixels, or native.")
    known = HUB_OPTIONS if layout == "hub" else ()
    if unknown := options.keys() - set(known):
        raise ValueError(
            f"Domain {spec!r} has the unknown option(s) {sorted(unknown)}; known here: "
            f"{', '.join(('every', 'skip_every', 'exclude', 'size', *known))}."
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
    if domain.is_streamed and (every or skip_every or exclude):
        raise ValueError(f"Domain {spec!r} is streamed; every, skip_every and exclude need streaming=false.")
    if exclude:
        names = [normalize_name(name) for name in domain.dataset.with_format(None)["name"]]
        excluded = set(normalize_name(exclude).split("+"))
        if lacking := excluded - set(names):
            raise ValueError(f"Domain {spec!r} excludes {sorted(lacking)}, which are no images of it.")
        kept = [index for index, name in enumerate(names) if name not in excluded]
        domain = replace(domain, dataset=domain.dataset.select(kept))
    if every or skip_every:
        names = domain.dataset.with_format(None)["name"]
        kept = sorted(range(len(names)), key=names.__getitem__)
        if skip_every:
            kept = [index for place, index in enumerate(kept) if place % int(skip_every)]
        kept = kept[:: int(every or 1)]
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
    decoder = entry.decoder if isinstance(entry.decoder, LabelDecoder) else entry.decoder(root)
    return Domain(
        name,
        make_dataset(rows, name, decoder, halved=entry.halved),
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
    name = name or root.name or root.absolute().name
    rows, classes = find_rows(root, split), read_classes(root)
    return Domain(
        name,
        make_dataset(rows, name, classes.decoder),
        classes.names,
        classes.class_of_train_id,
        assumption=classes.assumption,
        palette=classes.palette,
    )


# Ids that labels of a data set of the Hub can hold: train ids, or Cityscapes' own.
HUB_IDS = {"train_ids": TRAIN_IDS, "label_ids": LABEL_IDS}
HUB_OPTIONS = ("image", "label", "ids", "config", "streaming")


def load_hub(
    path: str,
    split: str = "train",
    name: str | None = None,
    image: str = "image",
    label: str = "label",
    ids: str | None = None,
    config: str | None = None,
    streaming: bool = False,
) -> Domain:
    """A data set of the Hub, or a local folder of parquet files, with an image and a label column.

    Args:
        path (`str`): Hub id or folder.
        split (`str`): e.g. "train".
        name (`str`, *optional*): name of the domain, the last part of the path by default.
        image, label (`str`): names of the columns.
        ids (`str`, *optional*): what labels hold, "train_ids" or "label_ids" (of Cityscapes); the former is assumed by
            default.
        config (`str`, *optional*): configuration of the data set.
        streaming (`bool`): read it as it comes instead of downloading it first.

    Raises:
        ValueError: a column is missing; `ids` is unknown; reading an item as for [`load_layout`].
    """
    assumption = None
    if ids is None:
        ids = "train_ids"
        assumption = (
            f"{path}: the ids in its labels are taken for the train ids of Cityscapes (0 road, 1 sidewalk, ... 18 "
            "bicycle; 255 is ignored). #ids=train_ids says so, #ids=label_ids that they are the ids of its files."
        )
    if ids not in HUB_IDS:
        raise ValueError(f"{path}: ids is {ids!r}; expected one of {', '.join(HUB_IDS)}.")
    name = name or Path(path).name
    dataset = load_hub_columns(path, split, name, image, label, config, streaming)
    decode = partial(decode_batch, decoder=LabelDecoder(ids_from_channel, HUB_IDS[ids]))
    dataset = Stream(dataset, decode) if streaming else dataset.with_transform(decode)
    return Domain(name, dataset, assumption=assumption)
