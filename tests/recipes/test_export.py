"""recipes/export.py: files that run without the package and give what the model gives."""

import numpy as np
import pytest
import torch
from PIL import Image

import rein_hf
from recipes import export


@pytest.fixture
def adapter(rein_model, tmp_path) -> str:
    rein_model.save_pretrained(tmp_path / "adapter")
    rein_hf.build_image_processor().save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


def photos(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def assert_as_the_model(adapter: str, images: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> None:
    """Against the image processor and one window of the model."""
    model, processor = rein_hf.from_pretrained(adapter), rein_hf.build_image_processor()
    pixel_values = processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    expected = rein_hf.slide_inference(model, pixel_values, crop=max(images.shape[1:3]))
    assert expected.std() > 0.1
    torch.testing.assert_close(torch.from_numpy(scores), expected, rtol=0, atol=1e-4)
    assert labels.dtype == np.uint8 and np.array_equal(labels, scores.argmax(axis=1))


@pytest.mark.slow
def test_one_size_as_pt2(adapter, tmp_path):
    file, images = tmp_path / "segmenter.pt2", photos(2, 64, 64)
    export.main(export.ExportArguments(model=adapter, output=str(file), batch_size=2, scores=True))
    labels, scores = torch.export.load(file).module()(torch.from_numpy(images))
    assert_as_the_model(adapter, images, labels.numpy(), scores.numpy())


@pytest.mark.slow
def test_many_sizes_as_onnx(adapter, tmp_path):
    """One file for the trained size, whose positions are used as they are, and for others."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'export'")
    pytest.importorskip("onnxscript", reason="needs the extra 'export'")
    file = tmp_path / "new" / "segmenter.onnx"
    arguments = export.ExportArguments(model=adapter, output=str(file), dynamic=True, scores=True, largest=256)
    found = export.main(arguments)
    assert found["equal_labels"] > 0.999 and found["score_difference"] < 1e-4
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for height, width in ((64, 64), (160, 96), (96, 224)):
        images = photos(1, height, width)
        assert_as_the_model(adapter, images, *session.run(["labels", "scores"], {"images": images}))


def test_labels_alone(rein_model):
    graph = export.SegmenterGraph(rein_model, rein_hf.build_image_processor(), scores=False)
    (labels,) = graph(export.coloured_noise(1, (64, 96)))
    assert labels.shape == (1, 64, 96) and labels.dtype == torch.uint8


def test_a_file_that_gives_something_else_is_refused(rein_model):
    graph = export.SegmenterGraph(rein_model, rein_hf.build_image_processor(), scores=True)
    images = export.coloured_noise(1, (64, 64))
    with torch.no_grad():
        labels, scores = graph(images)
    assert export.compare_with_model(graph, lambda _: [labels, scores], images) == {
        "equal_labels": 1.0,
        "score_difference": 0.0,
    }
    with pytest.raises(RuntimeError, match="does not give what the model gives.*'score_difference'"):
        export.compare_with_model(graph, lambda _: [labels, scores + 0.01], images)
    with pytest.raises(RuntimeError, match="does not give what the model gives.* labels are wrong"):
        export.compare_with_model(graph, lambda _: [(labels + 1) % 3], images)


@pytest.mark.slow
def test_a_file_that_is_refused_does_not_replace_a_good_one(adapter, tmp_path, monkeypatch):
    file = tmp_path / "segmenter.pt2"
    file.write_text("good")
    monkeypatch.setattr(
        export, "load_exported", lambda path: lambda images: [torch.zeros(images.shape[:3], dtype=torch.uint8)]
    )
    with pytest.raises(RuntimeError, match="does not give what the model gives"):
        export.main(export.ExportArguments(model=adapter, output=str(file)))
    assert file.read_text() == "good" and {path.name for path in tmp_path.iterdir()} >= {"segmenter.pt2", "adapter"}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "segmenter.bin"}, "ending in .onnx or .pt2"),
        ({"dynamic": True, "largest": 64}, "96 pixels at least"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        export.main(export.ExportArguments(**{"model": "nowhere", "output": "segmenter.onnx"} | arguments))
