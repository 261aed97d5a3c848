"""`rein-hf benchmark_data` in a clone; the code is in `rein_hf/commands/benchmark_data.py`."""

import sys

from rein_hf.commands.cli import run


if __name__ == "__main__":
    sys.exit(run("benchmark_data"))
