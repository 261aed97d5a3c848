"""Label maps for the server of a benchmark: for each image a PNG of Cityscapes' label ids, of the image's size, and a
zip of them.

    rein-hf submit --model OUT/rein --domains "acdc:DATA/acdc@test" --output_dir OUT/submission

A PNG has the file name of its image. Maps that an earlier run has written into `--output_dir` are kept, if they say
that they are of the same model, data and windows. Runs under `accelerate launch` too.
"""

from __future__ import annotations

import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers import AutoImageProcessor

import rein_hf

from ..data import Domain, load_domain
from ..evaluation import accelerator_for, comment_of_maps, in_classes_of, move_to
from ..files import atomic_write
from ..inference import batched_by_size, label_maps, prepare_image, read_ahead, requested_size, start_copy
from ..inference.ahead import PreparedImage
from ..inference.photos import printable
from ..labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from ..views import comment_of, save_picture
from .cli import require_at_least, run
from .results_folder import check_folders, check_results


ARCHIVE = "submission.zip"


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
    compile: bool = field(default=False, metadata={"help": "torch.compile the model: pays off for many images."})
    cuda_graphs: bool = field(default=False, metadata={"help": "Launch all kernels at once: fast for one image."})
    size: str | None = field(
        default=None, metadata={"help": "WxH: the model sees images resized to fit into it; default: the protocol's."}
    )
    short_side: int | None = field(default=None, metadata={"help": "Or resized so that their short side is this."})


def main(args: SubmissionArguments) -> Path:
    """Returns the path of the zip."""
    accelerator = accelerator_for("bf16" if args.bf16 else "no")
    require_at_least(args, crop=1, stride=1)
    requested_size((1, 1), args.size, args.short_side)  # raises before anything is loaded
    domain = load_domain(args.domains)
    if domain.classes != CITYSCAPES_CLASSES:
        raise ValueError(f"--domains {args.domains} has the classes {domain.classes}; expected the 19 of Cityscapes.")
    targets = label_map_paths(domain, Path(args.output_dir))
    check_folders({Path(args.output_dir)})
    check_results(targets, "submit")
    check_archive(Path(args.output_dir) / ARCHIVE, targets)
    model = rein_hf.from_pretrained(args.model, backbone=args.backbone)
    options = {key: getattr(args, key) for key in ("crop", "stride", "bf16", "size", "short_side")}
    # a server need not know where the data lie
    comment = comment_of_maps(model, {**options, "data": f"{zlib.crc32(args.domains.encode()):08x}"})
    model = move_to(accelerator, model, args.compile, args.cuda_graphs)
    processor = AutoImageProcessor.from_pretrained(args.model)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    mine = range(accelerator.process_index, len(targets), accelerator.num_processes)
    mine = [index for index in mine if comment_of(targets[index]) != comment]
    read = partial(read_image, domain=domain, size=args.size, short_side=args.short_side)
    images = tqdm(
        read_ahead(mine, read, model.device), domain.name, len(mine), disable=not accelerator.is_main_process
    )
    begun = []  # maps that are saved while the device is at the next ones
    for batch in batched_by_size(images, itemgetter(1), model, args.crop, args.stride):
        with accelerator.autocast():
            labels = label_maps(model, processor, [image for _, image in batch], args.crop, args.stride)
        last, begun = begun, []
        for (index, _), label in zip(batch, labels, strict=True):
            begun.append((start_copy(in_classes_of(domain, label, model)), targets[index]))
        save_label_maps(last, comment)
    save_label_maps(begun, comment)
    accelerator.wait_for_everyone()
    archive = Path(args.output_dir) / ARCHIVE
    if accelerator.is_main_process:
        with atomic_write(archive) as unfinished, zipfile.ZipFile(unfinished, "w") as file:
            for path in targets:
                file.write(path, path.name)
        print(f"{len(targets)} label maps in {archive}")
    return archive


def check_archive(archive: Path, targets: list[Path]) -> None:
    """Refuses, before anything is loaded, to replace an archive that holds something else than label maps."""
    if not archive.exists():
        return
    names = None
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            names = set(file.namelist())
    if names is None or not names <= {path.name for path in targets}:
        raise ValueError(
            f"{printable(archive)} is there and does not hold the label maps of --domains alone; give another "
            "--output_dir."
        )


def read_image(index: int, domain: Domain, size: str | None, short_side: int | None) -> tuple[int, PreparedImage]:
    """An image of a domain, ready for the device, after its index."""
    image = domain.dataset[index]["image"]
    return index, prepare_image(image, requested_size(image.size, size, short_side) or domain.size)


def save_label_maps(copies: list[tuple[Callable[[], torch.Tensor], Path]], comment: str) -> None:
    """Writes maps of train ids, given by functions that wait for them, as Cityscapes' label ids."""
    for copied, target in copies:
        save_picture(Image.fromarray(to_label_ids(copied().numpy())), target, comment)


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
