"""`rein-hf convert` in a clone; the code is in `rein_hf/commands/convert.py`."""

import sys

from rein_hf.commands.cli import run


if __name__ == "__main__":
    sys.exit(run("convert"))
