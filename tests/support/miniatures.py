"""Miniature copies of the official downloads, in their real folder layouts and file formats."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


# The 66 classes of Mapillary Vistas v1.2, by id.
MAPILLARY_CLASSES = """
animal--bird animal--ground-animal construction--barrier--curb construction--barrier--fence
construction--barrier--guard-rail construction--barrier--other-barrier construction--barrier--wall
construction--flat--bike-lane construction--flat--crosswalk-plain construction--flat--curb-cut
construction--flat--parking construction--flat--pedestrian-area construction--flat--rail-track
construction--flat--road construction--flat--service-lane construction--flat--sidewalk
construction--structure--bridge construction--structure--building construction--structure--tunnel human--person
human--rider--bicyclist human--rider--motorcyclist human--rider--other-rider marking--crosswalk-zebra marking--general
nature--mountain nature--sand nature--sky nature--snow nature--terrain nature--vegetation nature--water object--banner
object--bench object--bike-rack object--billboard object--catch-basin object--cctv-camera object--fire-hydrant
object--junction-box object--mailbox object--manhole object--phone-booth object--pothole object--street-light
object--support--pole object--support--traffic-sign-frame object--support--utility-pole object--traffic-light
object--traffic-sign--back object--traffic-sign--front object--trash-can object--vehicle--bicycle object--vehicle--boat
object--vehicle--bus object--vehicle--car object--vehicle--caravan object--vehicle--motorcycle
object--vehicle--on-rails object--vehicle--other-vehicle object--vehicle--trailer object--vehicle--truck
object--vehicle--wheeled-slow void--car-mount void--ego-vehicle void--unlabeled
""".split()

# CamVid's 32 kinds of objects and their colours.
CAMVID_COLOURS = """
64 128 64 Animal
192 0 128 Archway
0 128 192 Bicyclist
0 128 64 Bridge
128 0 0 Building
64 0 128 Car
64 0 192 CartLuggagePram
192 128 64 Child
192 192 128 Column_Pole
64 64 128 Fence
128 0 192 LaneMkgsDriv
192 0 64 LaneMkgsNonDriv
128 128 64 Misc_Text
192 0 192 MotorcycleScooter
128 64 64 OtherMoving
64 192 128 ParkingBlock
64 64 0 Pedestrian
128 64 128 Road
128 128 192 RoadShoulder
0 0 192 Sidewalk
192 128 128 SignSymbol
128 128 128 Sky
64 128 192 SUVPickupTruck
0 0 64 TrafficCone
0 64 64 TrafficLight
192 64 128 Train
128 128 0 Tree
192 128 192 Truck_Bus
64 0 64 Tunnel
192 192 0 VegetationMisc
0 0 0 Void
64 192 0 Wall
""".strip().splitlines()
CAMVID_KINDS = [line.split()[3] for line in CAMVID_COLOURS]

# Where image and label of one picture lie in each download: split -> (image, label).
PATHS = {
    "gta5": {"": ("images/{n:05}.png", "labels/{n:05}.png")},
    "synthia": {"": ("RGB/{n:07}.png", "GT/LABELS/{n:07}.png")},
    "urbansyn": {"": ("rgb/rgb_{n:04}.png", "ss/ss_{n:04}.png")},
    "cityscapes": {
        split: (
            f"leftImg8bit/{split}/{city}/{city}_{{n:06}}_000019_leftImg8bit.png",
            f"gtFine/{split}/{city}/{city}_{{n:06}}_000019_gtFine_labelIds.png",
        )
        for split, city in (("train", "aachen"), ("val", "frankfurt"), ("test", "berlin"))
    },
    "bdd100k": {
        split: (f"images/10k/{split}/{{n:08x}}.jpg", f"labels/sem_seg/masks/{split}/{{n:08x}}.png")
        for split in ("train", "val", "test")
    },
    "mapillary": {
        split: (f"{split}/images/{{n:022}}.jpg", f"{split}/labels/{{n:022}}.png")
        for split in ("training", "validation", "testing")
    },
    "acdc": {
        split: (
            f"rgb_anon/{{group}}/{split}/GOPR0475/GOPR0475_frame_{{n:06}}_rgb_anon.png",
            f"gt/{{group}}/{split}/GOPR0475/GOPR0475_frame_{{n:06}}_gt_labelTrainIds.png",
        )
        for split in ("train", "val", "test")
    },
    "camvid": {"": ("701_StillsRaw_full/{group}_{n:05}.png", "LabeledApproved_full/{group}_{n:05}_L.png")},
    "camvid_segnet": {
        split: (f"{split}/{{group}}_{{n:05}}.png", f"{split}annot/{{group}}_{{n:05}}.png")
        for split in ("train", "val", "test")
    },
}
GROUPS = {"acdc": ["fog", "night", "rain", "snow"], "camvid": ["0001TP", "Seq05VD"], "camvid_segnet": ["0001TP"]}


def write_miniature(
    layout: str, root: Path, labels: list[np.ndarray], split: str = "", images: list[np.ndarray] | None = None
) -> list[tuple[Path, Path]]:
    """Files of one split: label maps (H, W) of the data set's own ids, and for each an image; the pairs of paths.
    Without `images`, each shows its ids as grey. Files that the real downloads have beside them are there too."""
    pairs, groups = [], GROUPS.get(layout, [""])
    for index, ids in enumerate(labels):
        paths = [root / path.format(n=index, group=groups[index % len(groups)]) for path in PATHS[layout][split]]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        image = np.repeat(ids[..., None], 3, axis=-1) if images is None else images[index]
        Image.fromarray(image.astype(np.uint8)).save(paths[0], quality=100)
        write_label(layout, ids, paths[1])
        pairs.append(tuple(paths))
    if layout == "mapillary":
        config = {"version": 1.1, "labels": [{"name": name, "evaluate": True} for name in MAPILLARY_CLASSES]}
        (root / "config.json").write_text(json.dumps(config))
    if layout == "camvid":
        lines = (line.split() for line in CAMVID_COLOURS)
        (root / "label_colors.txt").write_text("".join(f"{r} {g} {b}\t\t{kind}\n" for r, g, b, kind in lines))
    if layout == "cityscapes":
        for _, label in pairs:
            stem = label.name.removesuffix("_labelIds.png")
            (label.parent / f"{stem}_polygons.json").write_text("{}")
            Image.new("RGBA", (4, 4)).save(label.parent / f"{stem}_color.png")
            Image.new("I;16", (4, 4)).save(label.parent / f"{stem}_instanceIds.png")
    return pairs


def write_label(layout: str, ids: np.ndarray, path: Path) -> None:
    if layout == "synthia":
        height, width = ids.shape
        pixels = np.zeros((height, width, 3), ">u2")
        pixels[..., 0], pixels[..., 1] = ids, 300  # class and instance
        path.write_bytes(sixteen_bit_png(pixels))
    elif layout == "camvid":
        colours = np.array([[int(part) for part in line.split()[:3]] for line in CAMVID_COLOURS], np.uint8)
        Image.fromarray(colours[ids]).save(path)
    elif layout in ("gta5", "mapillary"):
        label = Image.fromarray(ids.astype(np.uint8), "P")
        label.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
        label.save(path)
    else:
        Image.fromarray(ids.astype(np.uint8)).save(path)


def sixteen_bit_png(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) big-endian 16-bit values, its rows in the filters 0 (none), 1 (sub) and 2 (up) by turns."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(height, -1)
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, 6:], above[1:] = rows[:, :-6], rows[:-1]
    filtered = b"".join(
        bytes([index % 3]) + (rows[index] - (0, left[index], above[index])[index % 3]).astype(np.uint8).tobytes()
        for index in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = [(b"IHDR", header), (b"IDAT", zlib.compress(filtered)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in data)
