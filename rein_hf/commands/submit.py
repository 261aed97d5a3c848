"""Label maps for the server of a benchmark: for each image a PNG of Cityscapes' label ids, of the image's size, and a
zip of them.

    rein-hf submit --model OUT/rein --domains "acdc:DATA/acdc@test" --output_dir OUT/submission

A PNG has the file name of its image. Maps that an earlier run has written into `--output_dir` are kept. Runs under
`accelerate launch` too.
"""

from __future__ import annotations

import sys
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

import rein_hf

from ..data import Domain, load_domain
from ..evaluation import accelerator_for, move_to, predict_sample
from ..files import atomic_write
from ..inference import requested_size
from ..labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from ..views import save_picture
from .cli import run


@dataclass
class SubmissionArguments:
    model: str = field(metadata={"help": "Adapter or whole segmenter: folder or Hub id."})
    domains: str = field(
        metadata={"help": "One, described as in rein_hf.data, e.g. acdc:DATA/acdc@test.", "aliases": ["--domain"]}
    )
    output_dir: str = field(metadata={"help": "Where the PNGs and submission.zip go."})
    backbone: str | None = field(default=None, metadata={"help": "Backbone instead of the one the adapter names."})
    crop: int | None = field(default=None, metadata={"help": "Window in pixels; default: the model's training crop."})
    stride: int | None = field(default=None, metadata={"help": "Step between windows; default: 2/3 of the window."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16."})
    size: str | None = field(
        default=None, metadata={"help": "WxH: the model sees images resized to fit into it; default: the protocol's."}
    )
    short_side: int | None = field(default=None, metadata={"help": "Or resized so that their short side is this."})


def main(args: SubmissionArguments) -> Path:
    """Returns the path of the zip."""
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    requested_size((1, 1), args.size, args.short_side)  # raises before anything is loaded
    domain = load_domain(args.domains)
    if domain.classes != CITYSCAPES_CLASSES:
        raise ValueError(f"--domains {args.domains} has the classes {domain.classes}; expected the 19 of Cityscapes.")
    model = move_to(accelerator, rein_hf.from_pretrained(args.model, backbone=args.backbone))
    processor = AutoImageProcessor.from_pretrained(args.model)
    targets = label_map_paths(domain, Path(args.output_dir))
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    mine = range(accelerator.process_index, len(targets), accelerator.num_processes)
    for index in tqdm(mine, desc=domain.name, disable=not accelerator.is_main_process):
        if not targets[index].is_file():
            with accelerator.autocast():
                image = domain.dataset[index]["image"]
                size = requested_size(image.size, args.size, args.short_side) or domain.size
                label = predict_sample(model, processor, replace(domain, size=size), image, args.crop, args.stride)
            save_picture(Image.fromarray(to_label_ids(label)), targets[index])
    accelerator.wait_for_everyone()
    archive = Path(args.output_dir) / "submission.zip"
    if accelerator.is_main_process:
        with atomic_write(archive) as partial, zipfile.ZipFile(partial, "w") as file:
            for path in targets:
                file.write(path, path.name)
        print(f"{len(targets)} label maps in {archive}")
    return archive


def label_map_paths(domain: Domain, folder: Path) -> list[Path]:
    """The file that the map of each image is written to.

    Raises:
        ValueError: two images have the same file name.
    """
    files = [Path(file["path"]).with_suffix(".png").name for file in domain.dataset.with_format(None)["image"]]
    if len(set(files)) < len(files):
        raise ValueError(f"{domain.name} holds images of the same file name; their maps would replace each other.")
    return [folder / file for file in files]


def to_label_ids(label: np.ndarray) -> np.ndarray:
    """A map (H, W) of Cityscapes' label ids from one of train ids."""
    table = np.zeros(len(CITYSCAPES_IDS), np.uint8)
    table[list(CITYSCAPES_IDS.values())] = list(CITYSCAPES_IDS)
    return table[label]


if __name__ == "__main__":
    sys.exit(run("submit"))
