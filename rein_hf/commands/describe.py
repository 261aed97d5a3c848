"""Says what an adapter is: base model, classes, sizes, license, results. Its backbone is not downloaded.

rein-hf describe --model USER/ADAPTER
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import rein_hf

from .cli import run


@dataclass
class DescriptionArguments:
    model: str = field(metadata={"help": "Adapter: folder or Hub id."})


def main(args: DescriptionArguments) -> rein_hf.Description:
    """Prints the description, and returns it."""
    description = rein_hf.describe(args.model)
    print(description)
    return description


if __name__ == "__main__":
    sys.exit(run("describe"))
