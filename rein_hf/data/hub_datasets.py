"""Data sets of the Hub and of parquet files: an image and a label column, downloaded or streamed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import datasets
import numpy as np
from torch.utils.data import get_worker_info


# Number of samples that are kept in memory, to yield one of them at random.
SHUFFLE_BUFFER = 1000


def load_hub_columns(
    path: str, split: str, name: str, image: str, label: str, config: str | None, streaming: bool
) -> datasets.Dataset | datasets.IterableDataset:
    """The columns `name`, `image`, `label` (both undecoded) and `domain` of a data set.

    Raises:
        ValueError: a column is missing.
    """
    dataset = datasets.load_dataset(path, config, split=split, streaming=streaming)
    if missing := {image, label} - set(dataset.column_names):
        raise ValueError(f"{path} has the columns {dataset.column_names}; found no {sorted(missing)}.")
    dataset = dataset.select_columns([image, label])
    for column, role in ((image, "image"), (label, "label")):
        if column != role:
            dataset = dataset.rename_column(column, role)
        dataset = dataset.cast_column(role, datasets.Image(decode=False))
    if streaming:
        return dataset.map(lambda row, index: {"name": str(index), "domain": name}, with_indices=True)
    return dataset.add_column("name", [str(index) for index in range(len(dataset))]).add_column(
        "domain", [name] * len(dataset)
    )


class Stream:
    """
    A data set that is read from front to back while it is downloaded, in the columns of [`rein_hf.data.Domain`].

    Args:
        dataset (`datasets.IterableDataset`): its images and labels are not decoded.
        decode: the transform that opens the files of a batch, see `rein_hf.data.decoding.decode_batch`.
    """

    def __init__(self, dataset: datasets.IterableDataset, decode: Callable[[dict[str, list]], dict[str, list]]):
        self.dataset, self.decode = dataset, decode

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return map(self.decoded, self.dataset)

    def share(self, rank: int, world_size: int, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """The samples `rank`, `rank + world_size`, ... of the first `limit` ones. Only these are decoded."""
        return map(self.decoded, itertools.islice(self.dataset, rank, limit, world_size))

    def shuffled(self, seed: int) -> ShuffledStream:
        """The same samples repeated without an end, in another random order in every epoch."""
        return ShuffledStream(self, seed)

    def decoded(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row of `dataset` with its image and label opened."""
        return {key: values[0] for key, values in self.decode({key: [value] for key, value in row.items()}).items()}


class ShuffledStream:
    """
    A stream repeated without an end and read by position. In every epoch its samples are shuffled in a buffer of
    `SHUFFLE_BUFFER`. Positions should grow: samples that are skipped are read but not decoded, and a smaller position
    than the last one reads the stream again from the start. Files are read in their order. (`IterableDataset.shuffle`
    of datasets 5.2 is not used: it reads files in threads, which deadlock when an iteration is abandoned.)

    Of several worker processes each would have to read the whole stream, and datasets gives each a part of the files:
    one worker at most reads it.
    """

    def __init__(self, stream: Stream, seed: int):
        self.stream, self.seed = stream, seed
        self._rows: Iterator | None = None
        self._position = 0

    def __getitem__(self, position: int) -> dict[str, Any]:
        if (worker := get_worker_info()) is not None and worker.num_workers > 1:
            raise ValueError(
                f"{worker.num_workers} worker processes read a streamed data set, of which each would see a part of "
                "the files; expected one at most: dataloader_num_workers: 1."
            )
        if self._rows is None or position < self._position:
            self._rows, self._position = self._endless(), 0
        rows, self._rows = self._rows, None  # after an error, as of a lost connection, from the start
        row = next(itertools.islice(rows, position - self._position, None))
        self._rows, self._position = rows, position + 1
        return self.stream.decoded(row)

    def _endless(self) -> Iterator[dict[str, Any]]:
        for epoch in itertools.count():
            rng, buffer = np.random.default_rng([self.seed, 3, epoch]), []
            for row in self.stream.dataset:
                buffer.append(row)
                if len(buffer) > SHUFFLE_BUFFER:
                    yield buffer.pop(int(rng.integers(len(buffer))))
            if not buffer:
                raise ValueError("A streamed data set holds no sample.")
            yield from (buffer[place] for place in rng.permutation(len(buffer)))
