"""Two adapters on one backbone: one photo segmented by each, without loading the backbone twice.

python -m recipes.demo.switch --model OUT/rein recipes/demo/long --input PHOTO --output OUT/switch.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from PIL import Image
from transformers import AutoImageProcessor

import rein_hf
from rein_hf.views import contact_sheet, save_picture


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs=2, required=True, help="Two adapters of the same backbone and classes.")
    parser.add_argument("--input", required=True, help="A photo.")
    parser.add_argument("--output", required=True, help="The picture to write.")
    args = parser.parse_args(argv)
    first, second = args.model
    model = rein_hf.from_pretrained(first)
    begun = time.perf_counter()
    model.load_adapter(second, "second")
    print(f"{second} was loaded beside {first} in {1000 * (time.perf_counter() - begun):.0f} ms; one backbone.")
    processor, photo = AutoImageProcessor.from_pretrained(first), Image.open(args.input).convert("RGB")
    cells = [photo]
    for name, adapter in ((first, "default"), (second, "second")):
        begun = time.perf_counter()
        model.set_adapter(adapter)
        switched = time.perf_counter()
        labels = rein_hf.segment(model, processor, photo)
        cells.append(rein_hf.overlay(photo, labels, model))
        print(
            f"{name}: switched to in {1000 * (switched - begun):.1f} ms, "
            f"segmented in {1000 * (time.perf_counter() - switched):.0f} ms"
        )
    save_picture(contact_sheet([(Path(args.input).stem, cells)], ["photo", first, second]), Path(args.output))
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()
