"""rein_hf.data: folders as data sets, ids mapped once, samples that depend on seed and position only, batches.

The errors of a wrong folder are in test_bad_input.py, but for the few here.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, SizeDict

import rein_hf
from rein_hf.data import Augmentation, Collator, Domain, TrainingSamples, class_masks, load_domain, load_folder
from rein_hf.labels import CITYSCAPES, CITYSCAPES_CLASSES


# CamVid's 11 classes, which do not begin where Cityscapes' do
NAMES = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"]
CLASS_OF_TRAIN_ID = [3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10]


def write(root: Path, labels: dict[str, np.ndarray], suffixes=(".png",), index=None, classes=None) -> Path:
    """A folder of data whose images hold 3 * id + channel."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for position, (stem, label) in enumerate(labels.items()):
        image = (3 * label[..., None].astype(int) + range(3)).clip(max=255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / (stem + suffixes[position % len(suffixes)]))
        Image.fromarray(label).save(root / "labels" / f"{stem}.png")
    if index is not None:
        (root / "index.csv").write_text("\n".join(index) + "\n")
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes))
    return root


def label_map(*ids: int) -> np.ndarray:
    """Columns of each id, 12 x 16."""
    return np.resize(np.repeat(np.array(ids, np.uint8), 16 // len(ids)), (12, 16))


def test_columns_and_modes_of_a_folder_without_index_and_classes(tmp_path):
    labels = {"b": label_map(0, 18), "a": label_map(5, 255), "c": label_map(10)}
    domain = load_folder(write(tmp_path / "streets", labels, suffixes=(".png", ".jpg", ".JPEG")))
    assert (domain.name, domain.classes, domain.class_of_train_id) == ("streets", CITYSCAPES_CLASSES, None)
    assert domain.dataset.column_names == ["name", "image", "label", "domain"]
    assert domain.dataset.with_format(None)["name"] == ["a", "b", "c"]
    for sample in domain.dataset:
        assert sample["domain"] == "streets"
        assert (sample["image"].mode, sample["label"].mode) == ("RGB", "L")
        assert sample["image"].size == sample["label"].size == (16, 12)
        assert np.array_equal(np.asarray(sample["label"]), labels[sample["name"]])
    assert domain.dataset[1]["image"].getpixel((15, 0)) == (54, 55, 56)  # b: class 18


def test_grey_and_transparent_images_become_rgb(tmp_path):
    root = write(tmp_path / "d", {"grey": label_map(1), "alpha": label_map(2)})
    Image.new("L", (16, 12), 77).save(root / "images" / "grey.png")
    Image.new("RGBA", (16, 12), (1, 2, 3, 0)).save(root / "images" / "alpha.png")
    samples = {sample["name"]: sample["image"] for sample in load_folder(root).dataset}
    assert {name: (image.mode, image.getpixel((0, 0))) for name, image in samples.items()} == {
        "grey": ("RGB", (77, 77, 77)),
        "alpha": ("RGB", (1, 2, 3)),
    }


def test_index_chooses_the_split_and_names_the_group(tmp_path):
    index = ["stem,split,sequence", "c,test,s2", "a,train,s1", "b,test,", "d,train,s1"]
    root = write(tmp_path / "camvid", {stem: label_map(1) for stem in "abcde"}, index=index)

    def rows(spec):
        columns = load_domain(spec).dataset.with_format(None)
        return list(zip(columns["name"], columns["domain"], strict=True))

    assert rows(f"{root}@test") == [("c", "camvid/s2"), ("b", "camvid")]
    assert rows(f"night={root}@train") == [("a", "night/s1"), ("d", "night/s1")]
    assert [name for name, _ in rows(f"{root}")] == ["c", "a", "b", "d"]  # e is in no split
    assert load_domain(f"night={root}").name == "night"
    (root / "index.csv").write_text("stem,split\ne,test\n")
    assert rows(f"{root}@test") == [("e", "camvid")]
    (root / "index.csv").unlink()
    assert [name for name, _ in rows(f"{root}")] == list("abcde")


def test_ids_are_mapped_by_the_table_exactly_once(tmp_path):
    """The id to ignore becomes 255, ids of classes stay; read again, cached or sliced, the same."""
    classes = {"names": NAMES, "ignore_id": 11, "train_id_to_class": CLASS_OF_TRAIN_ID}
    stored = {"a": label_map(0, 11, 10, 3), "b": label_map(255, 8)}
    domain = load_folder(write(tmp_path / "camvid", stored, classes=classes))
    for _ in range(2):
        assert np.array_equal(np.asarray(domain.dataset[0]["label"]), label_map(0, 255, 10, 3))
        assert np.array_equal(np.asarray(domain.dataset[1]["label"]), label_map(255, 8))
    assert [np.asarray(label)[0, 15] for label in domain.dataset[:2]["label"]] == [3, 8]
    assert (domain.classes, domain.class_of_train_id) == (tuple(NAMES), tuple(CLASS_OF_TRAIN_ID))


def test_the_id_to_ignore_may_lie_inside_the_classes(tmp_path):
    classes = {"names": ["void", "road"], "ignore_id": 0}
    domain = load_folder(write(tmp_path, {"a": label_map(0, 1)}, classes=classes))
    assert np.array_equal(np.asarray(domain.dataset[0]["label"]), label_map(255, 1))


def test_predictions_of_cityscapes_mean_classes_of_the_domain():
    domain = Domain("camvid", None, tuple(NAMES), tuple(CLASS_OF_TRAIN_ID))
    predicted = np.arange(19, dtype=np.uint8).reshape(1, 19)
    found = domain.predictions(predicted, CITYSCAPES_CLASSES)
    assert found.tolist() == [CLASS_OF_TRAIN_ID] and found.dtype == np.uint8


def test_predictions_of_the_domains_own_classes_stay(tmp_path):
    """A model trained on CamVid's 11 classes predicts those, not train ids."""
    predicted = np.arange(11, dtype=np.uint8).reshape(1, 11)
    camvid = Domain("camvid", None, tuple(NAMES), tuple(CLASS_OF_TRAIN_ID))
    assert camvid.predictions(predicted, NAMES).tolist() == predicted.tolist()
    assert Domain("streets", None).predictions(predicted, list(CITYSCAPES_CLASSES)).tolist() == predicted.tolist()


@pytest.mark.parametrize(
    ("domain", "classes"),
    [
        (Domain("camvid", None, tuple(NAMES)), CITYSCAPES_CLASSES),
        (Domain("camvid", None, tuple(NAMES), tuple(CLASS_OF_TRAIN_ID)), NAMES[:5]),
        (Domain("streets", None), NAMES),
    ],
)
def test_predictions_of_other_classes_are_refused(domain, classes):
    with pytest.raises(ValueError, match=f"{domain.name} has the classes .*; found a model of {classes[0]}, .*19"):
        domain.predictions(np.zeros((1, 1), np.uint8), classes)


def test_palette():
    """The first class of Cityscapes with the meaning: CamVid's building is 2, not wall."""
    camvid = Domain("camvid", None, tuple(NAMES), tuple(CLASS_OF_TRAIN_ID)).palette
    assert len(camvid) == 11
    assert [camvid[NAMES.index(name)] for name in ("sky", "building", "road", "car", "bicyclist")] == [
        CITYSCAPES[name] for name in ("sky", "building", "road", "car", "rider")
    ]
    assert Domain("streets", None).palette == list(CITYSCAPES.values())
    animal = Domain("camvid", None, (*NAMES, "animal"), tuple(CLASS_OF_TRAIN_ID)).palette
    assert animal == [*camvid, (0, 0, 0)]


@pytest.mark.parametrize(("kind", "suffix"), [("images", ".jpg"), ("labels", ".png")])
@pytest.mark.parametrize("truncated", [True, False])
def test_unreadable_files_are_named(tmp_path, kind, suffix, truncated):
    root = write(tmp_path, {"a": np.tile(label_map(1, 2), (20, 20))}, suffixes=(".jpg",))
    path = root / kind / f"a{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if truncated else b"stem,split\n")
    reason = "truncated|broken" if truncated else "cannot identify image file"
    with pytest.raises(ValueError, match=f"{kind}/a{suffix} cannot be read as an image: .*({reason})"):
        load_folder(root).dataset[0]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"ignore_id": 255}, r"classes.json lacks \['names'\]"),
        ({}, r"classes.json lacks \['ignore_id', 'names'\]"),
        (
            {"names": NAMES, "ignore_id": 11, "train_id_to_class": [*CLASS_OF_TRAIN_ID[:-1], 11]},
            r"classes.json: train_id_to_class is .* 11\]; expected one of the 11 classes for each of the 19",
        ),
    ],
)
def test_wrong_classes(tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        load_folder(write(tmp_path, {"a": label_map(1)}, classes=classes))


def test_several_missing_files_are_counted(tmp_path):
    root = write(tmp_path, {str(index): label_map(1) for index in range(9)})
    for index in range(7):
        (root / "labels" / f"{index}.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"7 of 9 images have no label: \[(.*png'(, )?){5}\] missing"):
        load_folder(root)


def noisy(image, label, rng):
    """An augmentation whose result shows what it drew."""
    return image, int(rng.integers(0, 2**31))


@pytest.fixture
def sources(tmp_path):
    return [
        load_folder(write(tmp_path / name, {f"{name}{index}": label_map(index) for index in range(count)})).dataset
        for name, count in (("x", 4), ("y", 7))
    ]


def seen(samples, positions) -> list[tuple[str, int]]:
    return [(samples[k]["name"], samples[k]["label"]) for k in positions]


def test_a_sample_depends_on_seed_and_position_only(sources):
    samples = TrainingSamples(sources, 40, noisy, seed=3)
    expected = seen(samples, range(40))
    assert seen(TrainingSamples(sources, 40, noisy, seed=3), reversed(range(40))) == expected[::-1]
    assert seen(TrainingSamples(sources, 40, noisy, seed=3), range(17, 40)) == expected[17:]  # resumed
    assert seen(TrainingSamples(sources, 80, noisy, seed=3), range(1, 40, 2)) == expected[1::2]  # second of two
    workers = DataLoader(samples, batch_size=None, num_workers=2)
    assert [(sample["name"], sample["label"]) for sample in workers] == expected
    assert len({drawn for _, drawn in expected}) == 40
    other = seen(TrainingSamples(sources, 40, noisy, seed=4), range(40))
    assert [name for name, _ in other] != [name for name, _ in expected]
    assert not {drawn for _, drawn in other} & {drawn for _, drawn in expected}


def test_every_epoch_is_another_permutation_of_all_sources(sources):
    names = [name for name, _ in seen(TrainingSamples(sources, 33, noisy, seed=0), range(33))]
    everything = {f"x{index}" for index in range(4)} | {f"y{index}" for index in range(7)}
    epochs = [names[start : start + 11] for start in (0, 11, 22)]
    assert all(len(set(epoch)) == 11 and set(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_a_run_has_a_length(sources):
    samples = TrainingSamples(sources, 13, noisy)
    for k in (13, -1):
        with pytest.raises(IndexError, match=f"sample {k} of a run of 13"):
            samples[k]
    assert len(samples) == 13 == len(list(samples))


def test_a_sample_keeps_name_and_domain(sources):
    sample = TrainingSamples(sources, 4, Augmentation(64), seed=0)[2]
    assert sample["domain"] == sample["name"][0] and sample["label"].size == (64, 64)


@pytest.fixture
def batch():
    """A full crop and a smaller image, whose label is padded with 255, both of crop 32."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 32), (20, 24))]
    labels = [np.full((32, 32), 255, np.uint8) for _ in images]
    labels[0][:, :] = 7
    labels[0][4:9] = [2] * 16 + [255] * 16
    labels[0][30] = 0
    labels[1][:20, :24] = rng.choice([13, 18, 255], (20, 24))
    samples = [
        {"image": Image.fromarray(image), "label": Image.fromarray(label), "name": "x", "domain": "y"}
        for image, label in zip(images, labels, strict=True)
    ]
    return images, labels, Collator(rein_hf.build_image_processor(), 32)(samples)


def test_a_batch_is_the_models_arguments(batch):
    _, labels, found = batch
    assert found.keys() == {"pixel_values", "mask_labels", "class_labels", "samples"}
    assert found["samples"] == ["y/x", "y/x"]
    assert (found["pixel_values"].shape, found["pixel_values"].dtype) == ((2, 3, 32, 32), torch.float32)
    assert [classes.tolist() for classes in found["class_labels"]] == [[0, 2, 7], [13, 18]]
    assert {classes.dtype for classes in found["class_labels"]} == {torch.int64}
    for masks, classes, label in zip(found["mask_labels"], found["class_labels"], labels, strict=True):
        assert masks.dtype == torch.float32
        assert np.array_equal(masks.numpy(), np.stack([label == index for index in classes.numpy()]))


def test_pixels_are_normalised_then_padded_with_zeros(batch):
    images, _, found = batch
    mean, std = np.array(IMAGENET_DEFAULT_MEAN), np.array(IMAGENET_DEFAULT_STD)
    for image, values in zip(images, found["pixel_values"].numpy(), strict=True):
        height, width = image.shape[:2]
        expected = ((image / 255 - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(values[:, :height, :width], expected, atol=1e-5)
        assert not values[:, height:].any() and not values[:, :, width:].any()
    assert found["pixel_values"][1, :, 20:].numel() > 0


def test_padded_pixels_are_in_no_mask(batch):
    masks = batch[2]["mask_labels"][1]
    assert masks.unique().tolist() == [0, 1]
    assert not masks[:, 20:].any() and not masks[:, :, 24:].any()


def test_the_trap_of_padding_labels_with_the_processor():
    """Padded by the processor, pixels would have the value 255 in every mask; the collator refuses such labels."""
    small = {"image": Image.new("RGB", (24, 20)), "label": Image.new("L", (24, 20), 3)}
    processor = rein_hf.build_image_processor()
    stock = processor(
        images=[small["image"]],
        segmentation_maps=[np.asarray(small["label"])],
        pad_size=SizeDict(height=32, width=32),
        return_tensors="pt",
    )
    assert stock["mask_labels"][0].unique().tolist() == [1, 255]
    with pytest.raises(ValueError, match="label is 24x20 pixels; expected 32x32"):
        Collator(processor, 32)([small])


@pytest.mark.parametrize("side", [32, 28])
def test_batches_are_those_of_the_processor(side):
    """Bit for bit, with masks made at once or later."""
    rng = np.random.default_rng(3)
    sizes = [(side, side), (20, 24), (1, 1)]
    samples = [
        {
            "image": Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)),
            "label": Image.fromarray(rng.choice([0, 7, 18, 255], (side, side)).astype(np.uint8)),
            "name": str(size),
            "domain": "d",
        }
        for size in sizes
    ]
    processor = rein_hf.build_image_processor(patch_size=14)
    expected = processor(
        images=[sample["image"] for sample in samples],
        segmentation_maps=[np.asarray(sample["label"]) for sample in samples],
        pad_size=SizeDict(height=side, width=side),
        return_tensors="pt",
    )
    found = Collator(processor, side)(samples)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    for key in ("mask_labels", "class_labels"):
        for one, other in zip(found[key], expected[key], strict=True):
            assert one.dtype == other.dtype and torch.equal(one, other)
    deferred = Collator(processor, side, defer_masks=True)(samples)
    assert deferred.keys() == {"pixel_values", "label_maps", "class_labels", "samples"}
    assert deferred["label_maps"].dtype == torch.uint8
    later = class_masks(deferred["label_maps"], deferred["class_labels"])
    assert all(map(torch.equal, later, found["mask_labels"]))
    pixels = Collator(processor, side, masks=False)(samples)
    assert torch.equal(pixels["labels"], deferred["label_maps"].long()) and "class_labels" not in pixels


def test_images_that_are_larger_than_the_crop_are_refused():
    sample = {"image": Image.new("RGB", (33, 20)), "label": Image.new("L", (32, 32)), "name": "x", "domain": "y"}
    with pytest.raises(ValueError, match="image is 33x20 pixels; expected 32x32 at most"):
        Collator(rein_hf.build_image_processor(), 32)([sample])


def test_an_image_without_any_class_has_no_masks():
    sample = {"image": Image.new("RGB", (32, 32)), "label": Image.new("L", (32, 32), 255), "name": "x", "domain": "y"}
    found = Collator(rein_hf.build_image_processor(), 32)([sample])
    assert found["mask_labels"][0].shape == (0, 32, 32) and found["class_labels"][0].shape == (0,)


def test_augmented_samples_make_batches(sources):
    """From folders to arguments: only 0 and 1 in masks, ascending classes, whatever was padded."""
    samples = TrainingSamples(sources, 8, Augmentation(32), seed=1)
    found = Collator(rein_hf.build_image_processor(), 32)([samples[k] for k in range(8)])
    assert found["pixel_values"].shape == (8, 3, 32, 32)
    for masks, classes in zip(found["mask_labels"], found["class_labels"], strict=True):
        assert masks.shape[1:] == (32, 32) and masks.unique().tolist() in ([0, 1], [1])
        assert (classes.diff() > 0).all() and (masks.sum(0) <= 1).all()


def test_weights_share_the_samples_of_a_mixture(sources):
    """Each source by its weight, in epochs of its own; the shares of a prefix of the run are those of the run."""
    samples = TrainingSamples(sources, 4000, noisy, seed=1, weights=[3, 1])
    names = [sources[samples.choices[k]].with_format(None)["name"][0][0] for k in range(4000)]
    assert names.count("x") / 4000 == pytest.approx(0.75, abs=0.02)
    found = [name for name, _ in seen(samples, range(200))]
    for source, size in (("x", 4), ("y", 7)):
        own = [name for name in found if name.startswith(source)]
        epochs = [own[start : start + size] for start in range(0, len(own) - size + 1, size)]
        assert len(epochs) > 4 and all(len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    longer = TrainingSamples(sources, 8000, noisy, seed=1, weights=[0.75, 0.25])
    assert seen(longer, range(50, 80)) == seen(samples, range(50, 80))


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, 2, 3]])
def test_wrong_weights(sources, weights):
    with pytest.raises(ValueError, match=r"weights are \[.*\]; expected a positive number for each of 2 sources"):
        TrainingSamples(sources, 10, noisy, weights=weights)
