"""Public data sets in the folder layout of their downloads: where images and labels lie, what the ids mean, and how
they are evaluated. A further data set takes one more entry of `LAYOUTS`.

Files are not converted beforehand; ids are turned into classes when an image is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..files import read_text
from ..images import is_hidden
from ..labels import (
    CAMVID,
    CAMVID_CLASSES,
    CAMVID_OF_TRAIN_ID,
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    IGNORE,
    MAPILLARY_NAMES,
    SUBSETS,
    SYNTHIA_IDS,
    id_table,
)
from .decoding import UNKNOWN_COLOUR, LabelDecoder, Row, ids_from_16_bit_red, ids_from_channel, ids_from_colours


TRAIN_IDS = id_table({index: index for index in range(19)}, known=[IGNORE])
LABEL_IDS = id_table(CITYSCAPES_IDS, known=range(35))


@dataclass(frozen=True)
class Layout:
    """
    A data set as its owners pack it.

    Args:
        images (`str`): pattern of the images' paths below the root. Each `{field}` stands for a part of one folder's
            or file's name; `{split}` and `{name}` are known fields.
        labels (`str` or `tuple[str, ...]`): pattern of the label's path, with the same fields; the first one that is
            there counts.
        decoder: how labels are decoded, or a function that reads this from files below the root.
        splits (`dict[str, int]`): the splits and how many images each has in a complete download; the key "" where
            there are none.
        unlabelled (`tuple[str, ...]`): splits whose labels are not public.
        size (`(int, int)`, *optional*): width and height that images are fitted into, keeping their ratio, before they
            are evaluated; at their own size by default.
        halved (`bool`): the sides of images and labels are halved when they are read; evaluation counts the pixels of
            the halved labels.
        group (`str`, *optional*): expression whose group 1 is an image's group, searched in the path below the root.
        classes, class_of_train_id: of [`rein_hf.data.Domain`].
        scored (`tuple[str, ...]`, *optional*): the classes that the data set has, where it lacks some.
    """

    images: str
    labels: str | tuple[str, ...]
    decoder: LabelDecoder | Callable[[Path], LabelDecoder] = LabelDecoder(ids_from_channel, TRAIN_IDS)
    splits: dict[str, int] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    halved: bool = False
    group: str | None = None
    classes: tuple[str, ...] = CITYSCAPES_CLASSES
    class_of_train_id: tuple[int, ...] | None = None
    scored: tuple[str, ...] | None = None

    def find(self, root: Path, split: str | None) -> list[Row]:
        """The images of a split ("train+val": of both) and their labels, ordered by path.

        Raises:
            FileNotFoundError: there is no image; labels of images are missing, or images of labels.
            ValueError: the split is none of the data set's, or needed and not given.
        """
        rows = []
        for part in [""] if "" in self.splits else (split or "").split("+"):
            if part not in self.splits or (split and "" in self.splits):
                expected = " or ".join(map(repr, filter(None, self.splits))) or "none"
                raise ValueError(f"{root}: split is {split!r}; expected {expected}.")
            rows += self._find(root, part)
        return rows

    def _find(self, root: Path, split: str) -> list[Row]:
        images = _match_files(root, self.images.replace("{split}", split))
        if not images:
            raise FileNotFoundError(f"{root / self.images.replace('{split}', split or '{split}')}: no such image.")
        if split in self.unlabelled:
            found, key = {}, None
        else:
            patterns = (self.labels,) if isinstance(self.labels, str) else self.labels
            for pattern in (pattern.replace("{split}", split) for pattern in patterns):
                found = {key: path for path, key in _match_files(root, pattern)}
                if found:
                    break
            else:
                raise FileNotFoundError(f"{root / pattern}: no such label for {len(images)} images.")
            keys = {key for _, key in images}
            lacking = [str(path) for path, key in images if key not in found]
            if lacking:
                raise FileNotFoundError(f"{len(lacking)} of {len(images)} images have no label: {lacking[:5]}.")
            lacking = [str(path) for key, path in found.items() if key not in keys]
            if lacking:
                raise FileNotFoundError(f"{len(lacking)} of {len(found)} labels have no image: {lacking[:5]}.")
        rows = []
        for path, key in images:
            group = re.search(self.group, path.relative_to(root).as_posix()) if self.group else None
            rows.append(Row(dict(key)["name"], path, found.get(key), group[1] if group else ""))
        return rows


def _match_files(root: Path, pattern: str) -> list[tuple[Path, tuple]]:
    """The files whose paths match a pattern, hidden ones left out, and the values of the pattern's fields in each."""
    glob = re.sub(r"\{\w+\}", "*", pattern)
    expression = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(pattern)))
    paths = (path for path in sorted(root.glob(glob)) if not is_hidden(path))
    matches = ((path, expression.fullmatch(path.relative_to(root).as_posix())) for path in paths)
    return [(path, tuple(match.groupdict().items())) for path, match in matches if match]


def mapillary_label_decoder(root: Path) -> LabelDecoder:
    """Classes by the names in Mapillary Vistas' config.json.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not Mapillary Vistas', or of a version whose names make other classes.
    """
    file = next((root / name for name in ("config.json", "config_v1.2.json") if (root / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{root / 'config.json'} is missing; it names the classes of Mapillary Vistas.")
    text = read_text(file)
    try:
        names = [str(label["name"]) for label in json.loads(text)["labels"]]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no configuration of Mapillary Vistas: no list of labels with names.") from error
    found = {}
    for index, name in enumerate(names):
        ends = ["--".join(name.split("--")[-depth:]) for depth in (2, 1)]
        own = next((MAPILLARY_NAMES[end] for end in ends if end in MAPILLARY_NAMES), ends[1])
        if own in CITYSCAPES_CLASSES:
            found[index] = CITYSCAPES_CLASSES.index(own)
    lacking = [name for index, name in enumerate(CITYSCAPES_CLASSES) if index not in found.values()]
    if lacking or len(names) > 256:
        raise ValueError(
            f"{file}: none of the {len(names)} classes is {', '.join(lacking)}; expected Mapillary Vistas v1.2."
        )
    return LabelDecoder(ids_from_channel, id_table(found, known=range(len(names))))


def camvid_label_decoder(root: Path) -> LabelDecoder:
    """Classes by the colours in CamVid's label_colors.txt, lines of `R G B NAME`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not CamVid's.
    """
    file = root / "label_colors.txt"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; it names the colours of CamVid's labels.")
    lines = [line.split() for line in read_text(file).splitlines() if line.strip()]
    if not all(len(line) == 4 and all(part.isdecimal() and int(part) < 256 for part in line[:3]) for line in lines):
        raise ValueError(f"{file} has other lines than R G B NAME.")
    kinds = [line[3] for line in lines]
    colours = {int(r) << 16 | int(g) << 8 | int(b): index for index, (r, g, b, _) in enumerate(lines)}
    if len(set(kinds)) < len(kinds) or len(colours) < len(kinds) or len(kinds) > UNKNOWN_COLOUR:
        raise ValueError(f"{file} has {len(kinds)} lines; expected at most {UNKNOWN_COLOUR}, no name or colour twice.")
    lacking = sorted({kind for members in CAMVID.values() for kind in members} - set(kinds))
    if lacking:
        raise ValueError(f"{file} lacks the kinds {lacking} of CamVid.")
    class_of = {kinds.index(kind): index for index, kinds_of in enumerate(CAMVID.values()) for kind in kinds_of}
    return LabelDecoder(partial(ids_from_colours, colours=colours), id_table(class_of, known=range(len(kinds))))


LAYOUTS: dict[str, Layout] = {
    "gta5": Layout(
        images="images/{name}.png",
        labels="labels/{name}.png",
        decoder=LabelDecoder(ids_from_channel, LABEL_IDS),
        splits={"": 24966},
    ),
    "synthia": Layout(
        images="RGB/{name}.png",
        labels="GT/LABELS/{name}.png",
        decoder=LabelDecoder(ids_from_16_bit_red, id_table(SYNTHIA_IDS, known=range(23))),
        splits={"": 9400},
        scored=SUBSETS["synthia16"],
    ),
    "urbansyn": Layout(
        images="rgb/rgb_{name}.png",
        labels="ss/ss_{name}.png",
        decoder=LabelDecoder(ids_from_channel, id_table({index: index for index in range(19)}, known=[19, IGNORE])),
        splits={"": 7539},
    ),
    "cityscapes": Layout(
        images="leftImg8bit/{split}/{city}/{name}_leftImg8bit.png",
        labels="gtFine/{split}/{city}/{name}_gtFine_labelIds.png",
        decoder=LabelDecoder(ids_from_channel, LABEL_IDS),
        splits={"train": 2975, "val": 500, "test": 1525},
        unlabelled=("test",),
        size=(1024, 512),
    ),
    "bdd100k": Layout(
        images="images/10k/{split}/{name}.jpg",
        labels="labels/sem_seg/masks/{split}/{name}.png",
        splits={"train": 7000, "val": 1000, "test": 2000},
        unlabelled=("test",),
    ),
    "mapillary": Layout(
        images="{split}/images/{name}.jpg",
        labels=("{split}/labels/{name}.png", "{split}/v1.2/labels/{name}.png"),
        decoder=mapillary_label_decoder,
        splits={"training": 18000, "validation": 2000, "testing": 5000},
        unlabelled=("testing",),
        size=(1024, 512),
        halved=True,
    ),
    "acdc": Layout(
        images="rgb_anon/{condition}/{split}/{sequence}/{name}_rgb_anon.png",
        labels="gt/{condition}/{split}/{sequence}/{name}_gt_labelTrainIds.png",
        splits={"train": 1600, "val": 406, "test": 2000},
        unlabelled=("test",),
        size=(960, 540),
        group="^rgb_anon/([^/]+)/",
    ),
    "camvid": Layout(
        images="701_StillsRaw_full/{name}.png",
        labels="LabeledApproved_full/{name}_L.png",
        decoder=camvid_label_decoder,
        splits={"": 701},
        group="/([^/_]+)_[^/]*$",
        classes=CAMVID_CLASSES,
        class_of_train_id=CAMVID_OF_TRAIN_ID,
    ),
    "camvid_segnet": Layout(
        images="{split}/{name}.png",
        labels="{split}annot/{name}.png",
        decoder=LabelDecoder(ids_from_channel, id_table({index: index for index in range(11)}, known=[11])),
        splits={"train": 367, "val": 101, "test": 233},
        group="/([^/_]+)_[^/]*$",
        classes=CAMVID_CLASSES,
        class_of_train_id=CAMVID_OF_TRAIN_ID,
    ),
}
