"""What `rein-hf predict` says while it works and at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..inference import is_out_of_memory
from ..inference.photos import printable, skipped_files


# Above so many windows for a photo there is a hint, and a bar that counts them.
MANY_WINDOWS = 30


class WindowProgress:
    """A bar over the windows of each photo that has many, and a hint at the first one of them."""

    def __init__(self, shown: bool) -> None:
        self.shown, self.hinted = shown, False

    @contextmanager
    def of(self, file: Path) -> Iterator[Callable[[int, int], None]]:
        """What is to be called with the number of windows that are done, and of all."""
        bar = None

        def count(done: int, windows: int) -> None:
            nonlocal bar
            if windows <= MANY_WINDOWS:
                return
            if not self.hinted:
                self.hinted = True
                tell(
                    f"{file} is cut into {windows} windows, each of which shows little of it. If objects are not "
                    "recognised, let the model see a smaller copy: --short_side N or --size WxH."
                )
            if bar is None:
                bar = tqdm(total=windows, desc="windows", leave=False, disable=not self.shown)
            bar.update(done - bar.n)

        try:
            yield count
        finally:
            if bar is not None:
                bar.close()


def closing_line(done: int, failed: int, skipped: list[Path], output_dir: Path) -> str:
    text = f"{done} photo{'' if done == 1 else 's'} -> {output_dir}"
    return text + (f"; {failed} could not be segmented, see above" if failed else "") + skipped_files(skipped)


def left_out(file: Path, error: Exception, while_read: bool) -> str:
    """That a photo is left out, and why; a smaller copy needs less memory in the model, not where it is read."""
    reason, hint = str(error), ""
    if is_out_of_memory(error):
        if not isinstance(error, torch.OutOfMemoryError):  # others say nothing, or where torch's code lies
            reason = "there is not enough memory."
        if not while_read:
            hint = " A smaller copy needs less memory: --short_side N or --size WxH."
    return f"{'' if str(file) in reason else f'{file}: '}{reason} It is left out.{hint}"


def tell(text: str) -> None:
    """A line on stderr that leaves the bars whole."""
    tqdm.write(printable(text), file=sys.stderr)
