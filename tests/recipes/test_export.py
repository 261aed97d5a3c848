"""recipes/export.py: files that run without the package and give what the model gives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import rein_hf
from rein_hf.commands import export
from rein_hf.labels import palette_of
from tests.support.models import perturb


@pytest.fixture
def balanced_model(rein_model, pixel_values):
    """Finds other classes in other photos: with random weights it would be the same everywhere."""
    classifier = {
        name.rpartition(".")[2]: parameter
        for name, parameter in rein_model.named_parameters()
        if parameter.requires_grad and "class_predictor" in name
    }
    with torch.no_grad():
        logits = rein_model(pixel_values=pixel_values).class_queries_logits
        classifier["bias"].sub_(logits.mean(dim=(0, 1))).mul_(5)
        classifier["weight"].mul_(5)
    return rein_model


@pytest.fixture
def adapter(balanced_model, tmp_path) -> str:
    balanced_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def photos(batch: int, height: int, width: int) -> np.ndarray:
    """Smooth ones, in which labels are not all ties."""
    noise = np.random.default_rng(height).integers(0, 256, (batch, 6, 8, 3), dtype=np.uint8)
    smooth = [Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC) for image in noise]
    return np.stack([np.asarray(image) for image in smooth])


def assert_as_segment(model, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    """Labels are those of `segment`, except where scores tie."""
    crop = max(images.shape[1:3])
    processor = rein_hf.build_image_processor()
    assert labels.dtype == np.uint8 and labels.shape == images.shape[:3]
    assert np.array_equal(labels, scores.argmax(axis=1))
    second, best = np.sort(scores, axis=1)[:, -2:].swapaxes(0, 1)
    for image, label, tie in zip(images, labels, best - second < 1e-5, strict=True):
        expected = rein_hf.segment(model, processor, Image.fromarray(image), crop=crop)
        assert np.array_equal(label[~tie], expected[~tie]) and tie.mean() < 0.05
    pixel_values = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    expected = rein_hf.slide_inference(model, pixel_values[..., : images.shape[1], : images.shape[2]], crop=crop)
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_one_size_as_pt2(adapter, tmp_path):
    file, images = tmp_path / "segmenter.pt2", photos(2, 64, 64)
    export.main(export.ExportArguments(model=adapter, output_dir=str(file), batch_size=2, scores=True))
    extra = {"metadata.json": ""}
    labels, scores = torch.export.load(file, extra_files=extra).module()(torch.from_numpy(images))
    metadata = json.loads(extra["metadata.json"])
    assert json.loads(metadata["sizes"])["height"] == 64 and json.loads(metadata["sizes"])["batch"] == 2
    assert json.loads(metadata["normalization"])["mean"] == list(rein_hf.build_image_processor().image_mean)
    assert_as_segment(rein_hf.from_pretrained(adapter), images, labels.numpy(), scores.numpy())


def run_the_readmes_program(file: Path, adapter: str, folder: Path) -> None:
    """README's program, as it stands there, beside an exported file and a photo."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    program = next(code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in code)
    assert len(program.strip().splitlines()) <= 12 and "rein_hf" not in program and "torch" not in program
    work = folder / "work"
    (work / "outputs").mkdir(parents=True)
    (work / "outputs" / "segmenter.onnx").symlink_to(file)
    photo = Image.fromarray(photos(1, 70, 90)[0])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # as phones store what was taken upright
    photo.transpose(Image.Transpose.ROTATE_90).save(work / "street.jpg", "PNG", exif=exif)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=work)
    assert ended.returncode == 0, ended.stderr
    model = rein_hf.from_pretrained(adapter)
    labels = rein_hf.segment(model, rein_hf.build_image_processor(), photo, crop=90)
    expected = np.asarray(rein_hf.overlay(photo, labels, model)).astype(int)
    found = np.asarray(Image.open(work / "overlay.png")).astype(int)
    assert (np.abs(found - expected).max(axis=-1) <= 1).mean() > 0.99
    names = {name for name in ("road", "car", "sky") if name in ended.stdout}
    assert names == {model.config.id2label[label] for label in np.unique(labels)}


# One patch more or less, sides that patches do not fill, odd numbers of patches, the trained size (whose positions are
# used as they are), one image and several.
SHAPES = [(1, 64, 64), (3, 150, 200), (2, 200, 150), (1, 49, 81), (1, 65, 63), (2, 97, 224)]


@pytest.mark.slow
def test_any_size_and_any_batch_as_onnx(adapter, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    file = tmp_path / "new" / "segmenter.onnx"
    arguments = export.ExportArguments(model=adapter, output_dir=str(file), dynamic=True, scores=True, largest=256)
    found = export.main(arguments)
    assert found["equal_labels"] > 0.999 and found["score_difference"] < 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]
    assert [output.shape for output in session.get_outputs()] == [
        ["batch", "height", "width"],
        ["batch", 3, "height", "width"],
    ]
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["names"]) == ["road", "car", "sky"]
    assert json.loads(metadata["colors"]) == [list(colour) for colour in palette_of(["road", "car", "sky"])]
    sizes = json.loads(metadata["sizes"])
    assert sizes["height"] == sizes["width"] == [49, 256] and sizes["batch"] == "any" and sizes["multiple_of"] == 1
    assert metadata["version"] == f"rein-hf {rein_hf.__version__}" and metadata["model"] == "adapter"
    assert not [text for text in metadata.values() if str(tmp_path) in text]
    printed = capsys.readouterr().out
    assert "1/4 traces the model for any size ... " in printed and "4/4 compares it" in printed
    run_the_readmes_program(file, adapter, tmp_path)
    model, classes = rein_hf.from_pretrained(adapter), set()
    for shape in SHAPES:
        images = photos(*shape)
        labels, scores = session.run(["labels", "scores"], {"images": images})
        assert_as_segment(model, images, labels, scores)
        classes |= set(np.unique(labels))
    assert classes == {0, 1, 2}


@pytest.mark.slow
def test_any_size_of_a_head_that_classifies_pixels_as_pt2(build, tmp_path):
    model = rein_hf.add_rein(build(head={"model_type": "upernet"}), rein_hf.ReinConfig(r=4, num_tokens=8))
    perturb(model)
    model.eval().save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    file = tmp_path / "segmenter.pt2"
    export.main(export.ExportArguments(str(tmp_path / "adapter"), str(file), dynamic=True, scores=True, largest=256))
    run = torch.export.load(file).module()
    for shape in SHAPES:
        images = photos(*shape)
        assert_as_segment(model, images, *(tensor.numpy() for tensor in run(torch.from_numpy(images))))
    with pytest.raises(AssertionError, match="Guard failed"):  # below the smallest size
        run(torch.from_numpy(photos(1, 48, 64)))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_graph_gives_what_segment_gives(balanced_model, shape):
    """Before it is traced."""
    graph = export.SegmenterGraph(balanced_model, rein_hf.build_image_processor(), scores=True, any_size=True)
    images = photos(*shape)
    with torch.no_grad():
        labels, scores = graph(torch.from_numpy(images))
    assert_as_segment(balanced_model, images, labels.numpy(), scores.numpy())


def test_labels_alone(rein_model):
    graph = export.SegmenterGraph(rein_model, rein_hf.build_image_processor(), scores=False)
    (labels,) = graph(export.coloured_noise(1, 64, 96))
    assert labels.shape == (1, 64, 96) and labels.dtype == torch.uint8


def test_a_file_that_gives_something_else_is_refused(rein_model):
    processor = rein_hf.build_image_processor()
    graph = export.SegmenterGraph(rein_model, processor, scores=True, any_size=True)
    images = export.coloured_noise(2, 70, 90)
    with torch.no_grad():
        labels, scores = graph(images)

    def compare(*outputs):
        return export.compare_with_model(rein_model, processor, lambda _: list(outputs), images)

    found = compare(labels, scores)
    assert found["equal_labels"] > 0.999 and found["score_difference"] < 1e-4
    assert compare(labels) == {"equal_labels": found["equal_labels"]}
    with pytest.raises(RuntimeError, match="model gives for 2 images of 90x70: .*'score_difference'"):
        compare(labels, scores + 0.01)
    with pytest.raises(RuntimeError, match="does not give what the model gives.* labels are wrong"):
        compare((labels + 1) % 3)


def test_a_file_that_is_refused_does_not_replace_a_good_one(adapter, tmp_path, monkeypatch):
    file = tmp_path / "segmenter.pt2"
    file.write_text("good")
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "save_exported", lambda program, output, *_: output.write_text("bad"))
    monkeypatch.setattr(
        export, "load_exported", lambda path: lambda images: [torch.full(images.shape[:3], 77, dtype=torch.uint8)]
    )
    with pytest.raises(RuntimeError, match="does not give what the model gives"):
        export.main(export.ExportArguments(model=adapter, output_dir=str(file)))
    assert file.read_text() == "good" and {path.name for path in tmp_path.iterdir()} >= {"segmenter.pt2", "adapter"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_dir": "segmenter.bin"}, "ending in .onnx or .pt2"),
        ({"dynamic": True, "largest": 64}, "--largest is 64; expected 65 pixels at least"),
        ({"dynamic": True, "largest": 0}, "--largest is 0; expected 1 at least"),
        ({"largest": 512}, "--largest 512 has no effect without --dynamic true"),
        ({"batch_size": 0}, "--batch_size is 0; expected 1 at least"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(adapter, arguments, message):
    with pytest.raises(ValueError, match=message):
        export.main(export.ExportArguments(**{"model": adapter, "output_dir": "segmenter.onnx"} | arguments))


def test_more_classes_than_labels_of_8_bits_hold(build, tmp_path, monkeypatch):
    """A file made before such segmenters were refused."""
    model = build()
    model.config.id2label = {index: str(index) for index in range(300)}
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: model)
    with pytest.raises(ValueError, match="--model old: id2label: there are 300 classes; expected 1 to 255"):
        export.main(export.ExportArguments("old", str(tmp_path / "segmenter.pt2")))


@pytest.mark.parametrize(("given", "written"), [("out", "out/segmenter.onnx"), ("v1.0", "v1.0/segmenter.onnx")])
def test_a_folder_gets_a_file_of_its_own(adapter, tmp_path, monkeypatch, given, written):
    (tmp_path / "v1.0").mkdir()
    monkeypatch.setattr(export, "trace", lambda *_: None)
    monkeypatch.setattr(export, "save_exported", lambda program, output, *_: output.write_bytes(b"ONNX"))
    monkeypatch.setattr(export, "load_exported", lambda output: None)
    monkeypatch.setattr(export, "compare_with_model", lambda *_: {"equal_labels": 1.0})
    export.main(export.ExportArguments(model=adapter, output_dir=str(tmp_path / given)))
    assert (tmp_path / written).read_bytes() == b"ONNX"
