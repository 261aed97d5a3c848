"""Writes a data set of painted streets, or a sheet to look at."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import DOMAINS, contact_sheet, write_dataset


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; `argv` in place of the process's arguments."""
    parser = argparse.ArgumentParser("python -m recipes.demo.paint_streets", description=__doc__)
    parser.add_argument("--output_dir", type=Path, help="folder that gets DOMAIN/images and DOMAIN/labels")
    parser.add_argument("--domains", choices=DOMAINS, nargs="+", default=["day"])
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 8), metavar=("FIRST", "END"), help="END is excluded")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 256), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--sheet", type=Path, help="writes a contact sheet of all domains to this file")
    args = parser.parse_args(argv)
    if args.output_dir is None and args.sheet is None:
        parser.error("Nothing to do: give --output_dir or --sheet.")
    if args.output_dir is not None:
        for domain in args.domains:
            write_dataset(args.output_dir / domain, domain, range(*args.seeds), tuple(args.size))
    if args.sheet is not None:
        contact_sheet(range(*args.seeds), tuple(args.size)).save(args.sheet)


if __name__ == "__main__":
    main()
