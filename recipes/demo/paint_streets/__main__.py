"""Writes data sets of painted streets: DOMAIN/images and DOMAIN/labels for every domain."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import DOMAINS, write_dataset


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m recipes.demo.paint_streets", description=__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--domains", choices=DOMAINS, nargs="+", default=["day"])
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 8), metavar=("FIRST", "END"), help="END is excluded")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 256), metavar=("WIDTH", "HEIGHT"))
    args = parser.parse_args(argv)
    for domain in args.domains:
        write_dataset(args.output_dir / domain, domain, range(*args.seeds), tuple(args.size))


if __name__ == "__main__":
    main()
