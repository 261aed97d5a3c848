"""Input of any kind ends in a result or in an error that names the file, never in a traceback through torch."""

import io
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import rein_hf
from rein_hf.commands import train
from rein_hf.data import load_folder


# the same examples in each run, as they are drawn; the folders of fixtures are used again on purpose
bounded = settings(
    max_examples=60,
    derandomize=True,
    phases=[Phase.generate],
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 40) | st.floats() | st.text("ab/.é\n0-[", max_size=6)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=4,
)
SUFFIXES = st.sampled_from(["", ".png", ".PNG", ".jpg", ".tif", ".heic", ".txt"])
CELLS = st.sampled_from(["stem", "split", "0", "../0", "train", "", '"', "é"])
INDEX = st.lists(st.lists(CELLS, max_size=4), max_size=4)
CLASSES = st.fixed_dictionaries({"names": VALUES, "ignore_id": VALUES}, optional={"train_id_to_class": VALUES})
RECIPE = st.dictionaries(
    st.sampled_from(
        """backbone train evaluate tuning rein lora head num_queries crop out_indices total_batch_size eval_limit
        per_device_train_batch_size learning_rate max_steps lr_scheduler_kwargs save_strategy optim report_to seed
        use_cpu weights no_such_key""".split()
    ),
    VALUES,
    max_size=5,
)
OVERRIDES = st.lists(
    st.tuples(
        st.sampled_from(["--crop", "--rein.r", "--rein.a.b", "--backbone.a", "--", "--.", "x"]),
        st.text("[{!:a1é", max_size=4),
    ),
    max_size=2,
)


# Formats in which Pillow writes each mode, and those that can note EXIF.
KINDS = {
    "L": ["PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM"],
    "1": ["PNG", "TIFF", "PPM"],
    "P": ["PNG", "TIFF", "GIF", "BMP"],
    "RGB": ["PNG", "JPEG", "WEBP", "TIFF"],
    "CMYK": ["JPEG", "TIFF"],
    "I;16": ["PNG", "TIFF", "PPM"],
    "I": ["TIFF", "PPM"],
    "F": ["TIFF"],
    "LAB": ["TIFF"],
}
WITH_EXIF = ("PNG", "JPEG", "WEBP", "TIFF")


def encoded(mode: str, kind: str, size: int, **options) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 5, (size, size), np.uint8)
    image = Image.merge("LAB", [Image.fromarray(noise)] * 3) if mode == "LAB" else Image.fromarray(noise).convert(mode)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@st.composite
def exif(draw) -> bytes:
    """EXIF that notes an orientation, often damaged."""
    noted = Image.Exif()
    noted[0x0112] = draw(st.integers(0, 9))
    content = bytearray(noted.tobytes())
    for _ in range(draw(st.integers(0, 3))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@st.composite
def files(draw, *modes: str) -> bytes:
    """An image, often damaged, or no image at all."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.binary(max_size=64))
    mode = draw(st.sampled_from(modes))
    kind = draw(st.sampled_from(KINDS.get(mode, ["PNG"])))
    options = {"exif": draw(exif())} if kind in WITH_EXIF and draw(st.booleans()) else {}
    if kind == "TIFF" and options:  # written as tags of the file itself
        options = {"tiffinfo": {0x0112: draw(st.integers(0, 9))}}
    content = bytearray(encoded(mode, kind, draw(st.sampled_from([12, 13])), **options))
    for _ in range(draw(st.integers(0, 4))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(encoded("L", "PNG", 12))
    return tmp_path


@bounded
@given(image=files("RGB", "L", "1", "P", "RGBA", "LA", "I;16", "I", "F", "CMYK", "LAB"))
def test_images(folder, image):
    path = folder / "images" / "0.png"
    path.write_bytes(image)
    try:
        sample = load_folder(folder).dataset[0]
    except ValueError as error:
        assert str(folder) in str(error)
    else:
        assert sample["image"].mode == "RGB" and sample["image"].size == sample["label"].size


@bounded
@given(label=files("L", "P", "1", "RGB", "RGBA", "LA", "I;16", "I", "F"))
def test_labels(folder, label):
    (folder / "labels" / "0.png").write_bytes(label)
    try:
        sample = load_folder(folder).dataset[0]
    except ValueError as error:
        assert str(folder / "labels") in str(error)
    else:
        assert sample["label"].mode == "L" and sample["label"].size == (12, 12)


@bounded
@given(names=st.lists(st.tuples(st.text("ae\u0301é.", max_size=3), SUFFIXES), max_size=4), images=st.booleans())
def test_names_of_files(tmp_path_factory, names, images):
    """Every file is used, or is named in an error or a warning, or is hidden."""
    root = tmp_path_factory.mktemp("names")
    for name in ("images", "labels"):
        (root / name).mkdir()
        (root / name / "0.png").write_bytes(encoded("L", "PNG", 12))
    written = {f"{stem}~{suffix}" for stem, suffix in names}
    for name in written:
        (root / ("images" if images else "labels") / name).write_bytes(b"x")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = load_folder(root).dataset.with_format(None)
        except (ValueError, FileNotFoundError) as error:
            assert str(root) in str(error)
            return
    told = "".join(str(warning.message) for warning in caught)
    used = {Path(file["path"]).name for file in [*rows["image"], *rows["label"]]}
    assert all(name in used or name in told or name.startswith(".") for name in written)


@bounded
@given(content=st.binary(max_size=40) | INDEX)
def test_index(folder, content):
    if isinstance(content, list):
        content = "\n".join(",".join(row) for row in content).encode()
    (folder / "index.csv").write_bytes(content)
    try:
        rows = load_folder(folder).dataset.with_format(None)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)
    else:
        assert set(rows["name"]) == {"0"}


@bounded
@given(content=st.binary(max_size=20) | VALUES | CLASSES)
def test_classes(folder, content):
    (folder / "classes.json").write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    try:
        domain = load_folder(folder)
    except ValueError as error:
        assert str(folder / "classes.json") in str(error)
    else:
        assert 0 < len(domain.classes) < 256


@bounded
@given(content=st.binary(max_size=30) | VALUES | RECIPE, overrides=OVERRIDES)
def test_recipes(tmp_path, content, overrides):
    path = tmp_path / "recipe.yaml"
    if isinstance(content, dict):
        content = {"backbone": "a", "train": ["b"], **content}
    path.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    try:
        recipe, args = train.parse([str(path), *(text for pair in overrides for text in pair)])
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert type(recipe.crop) is int and all(type(spec) is str for spec in recipe.train)
        assert type(args.max_steps) is int and type(args.learning_rate) is float


@pytest.fixture
def adapter(rein_model, tmp_path) -> Path:
    rein_model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def places(values: dict, *outer: str):
    """The keys of a nested dictionary, as paths."""
    for key, value in values.items():
        yield (*outer, key)
        if isinstance(value, dict):
            yield from places(value, *outer, key)


@settings(bounded, max_examples=30)
@given(data=st.data())
def test_configurations_of_adapters(adapter, tmp_path, data):
    content = json.loads((adapter / "adapter_config.json").read_text())
    *outer, key = data.draw(st.sampled_from(sorted(places(content))))
    place = content
    for name in outer:
        place = place[name]
    if data.draw(st.booleans()):
        place[key] = data.draw(VALUES)
    else:
        del place[key]
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed, dirs_exist_ok=True)
    (changed / "adapter_config.json").write_text(json.dumps(content))
    try:
        model = rein_hf.from_pretrained(changed)
    except (ValueError, OSError) as error:
        assert str(changed) in str(error)
    else:
        assert model.active_adapters == ["default"]


@settings(bounded, max_examples=20)
@given(data=st.data())
def test_weights_of_adapters(adapter, tmp_path, data):
    changed = tmp_path / "changed"
    shutil.copytree(adapter, changed, dirs_exist_ok=True)
    path = changed / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["cut", "header", "missing", "unknown", "shape", "type"]))
    if how == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif how == "header":
        content[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
    else:
        tensors = load_file(path)
        name = data.draw(st.sampled_from(sorted(tensors)))
        tensor = tensors.pop(name)
        if how == "shape":
            tensors[name] = tensor[None].clone()
        elif how == "type":
            tensors[name] = tensor.to(torch.float16)
        elif how == "unknown":
            tensors[name + "x"] = tensor
        save_file(tensors, path)
    try:
        rein_hf.from_pretrained(changed)
    except (ValueError, OSError) as error:
        assert str(changed) in str(error)
    else:
        assert how in ("header", "type")
