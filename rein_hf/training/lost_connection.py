"""What a run of several processes says when one of the others is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed


@contextmanager
def explain_lost_connection(rank: int, processes: int) -> Iterator[None]:
    """Turns what torch raises in the remaining processes, when another one or its machine has ended, into an error
    that says what to do.

    Args:
        rank (`int`): number of this process, from 0.
        processes (`int`): of the run. For a single one nothing is changed.

    Raises:
        ConnectionError: in the place of the errors of torch's communication between processes.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not is_lost_connection(error):
            raise
        raise ConnectionError(
            f"Process {rank} of {processes} has lost the connection to another one, which has ended, with its machine "
            f"perhaps ({str(error).splitlines()[0]}). Nothing that was saved is lost: start the same command on every "
            "machine again, and the run goes on from the last whole checkpoint."
        ) from error


def is_lost_connection(error: Exception) -> bool:
    """Whether an error is one of torch's communication between processes. Those of gloo have no class of their own."""
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
