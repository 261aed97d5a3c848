"""What a user should hear about labels before a long run: they are readable, but hardly what was meant."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..labels import IGNORE
from .domain import Domain


def label_warnings(domain: Domain, images: int = 16) -> list[str]:
    """
    Sentences for a user, none if all seems right: what was assumed about ids, and what is odd about the labels of some
    images.

    Args:
        domain ([`Domain`]): not read if it is streamed.
        images (`int`): how many labels are read, evenly spread over the data set. Those that cannot be read are passed
            over: whoever trains on them gets their error.
    """
    found = [domain.assumption] if domain.assumption else []
    if domain.is_streamed:
        return found
    labels, ids = domain.dataset.select_columns(["name", "label"]), set()
    read = 0
    for index in np.unique(np.linspace(0, len(labels) - 1, min(images, len(labels))).round().astype(int)):
        try:
            label = labels[int(index)]["label"]
        except ValueError:
            continue
        if label is not None:
            read += 1
            ids.update(value for value, count in enumerate(label.histogram()) if count)
    problem = describe_odd_ids(ids, domain.classes)
    return [*found, f"{domain.name}: {problem} (in {read} of {len(labels)} labels)."] if problem else found


def describe_odd_ids(ids: Iterable[int], classes: Sequence[str]) -> str | None:
    """What is odd about a data set whose labels hold these class ids and no others, without a full stop; `None` if
    nothing is."""
    ids = set(ids)
    if ids == {IGNORE}:
        return f"no pixel has a class, since the labels hold nothing but {IGNORE} or the ignored id"
    if ids == {0, IGNORE}:
        return (
            f"the labels hold nothing but 0 ({classes[0]}) and {IGNORE}, and {IGNORE} means ignored pixels. For masks "
            f"drawn in 0 and {IGNORE}: write the id of a class, such as 1, in the place of {IGNORE}"
        )
    return None
