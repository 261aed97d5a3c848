"""`rein-hf evaluate` in a clone; the code is in `rein_hf/commands/evaluate.py`."""

import sys

from rein_hf.commands.cli import run


if __name__ == "__main__":
    sys.exit(run("evaluate"))
