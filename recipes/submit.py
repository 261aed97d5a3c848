"""`rein-hf submit` in a clone; the code is in `rein_hf/commands/submit.py`."""

import sys

from rein_hf.commands.cli import run


if __name__ == "__main__":
    sys.exit(run("submit"))
