"""One request at a time, and a bounded number that waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from .bounds import PageError


class Turns:
    """Lets one thread at a time to the model: adapters are switched on one model, and corruptions draw from numpy's
    global generator, so that two requests at once would mix.

    Args:
        waiting (`int`): how many threads may wait.

    Example:

    ```py
    >>> from rein_hf.page.turns import Turns
    >>> with Turns(waiting=2).turn() as before:
    ...     before
    0

    ```
    """

    def __init__(self, waiting: int) -> None:
        self._waiting, self._inside = waiting, 0
        self._count, self._model = Lock(), Lock()

    @contextmanager
    def turn(self) -> Iterator[int]:
        """Waits until the model is free; gives how many came before.

        Raises:
            PageError: too many wait already.
        """
        with self._count:
            before = self._inside
            if before > self._waiting:
                raise PageError(f"{before} requests are before yours. Try again in a moment.")
            self._inside += 1
        try:
            with self._model:
                yield before
        finally:
            with self._count:
                self._inside -= 1
