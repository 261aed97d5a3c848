"""recipes/evaluate.py and recipes/predict.py: from the folder of an adapter to the files that they write."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import HfArgumentParser

import rein_hf
from rein_hf.commands import evaluate, predict
from rein_hf.data import load_folder
from rein_hf.evaluation import evaluate_domain, evenly_spaced_indices, precision
from rein_hf.inference import ahead
from rein_hf.labels import palette_of
from rein_hf.views import block_views_of_photo, explanation_sheet
from tests.support.models import make_decided, perturb
from tests.support.recorded_operators import recording_on


NAMES = ["road", "car", "sky"]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps the precision that a process used first, and here one process uses several."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def adapter(rein_model, tmp_path) -> str:
    """A folder as train.py writes it: an adapter and its image processor."""
    make_decided(rein_model)
    return save(rein_model, tmp_path / "runs" / "rein")


def save(model, folder: Path) -> str:
    model.save_pretrained(folder)
    rein_hf.build_image_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(tmp_path) -> Path:
    """Five photos of 80x48 in two scenes, of the tiny model's three classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "data"
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    for stem in "abcde":
        label = rng.choice([0, 1, 2, 255], (6, 10)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        image = np.where(label[..., None] < 3, label[..., None] * 80, rng.integers(0, 255, (48, 80, 3)))
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{stem}.png")
        Image.fromarray(label).save(root / "labels" / f"{stem}.png")
    (root / "classes.json").write_text(json.dumps({"names": NAMES, "ignore_id": 255}))
    (root / "index.csv").write_text("stem,split,scene\na,test,s1\nb,test,s2\nc,test,s1\nd,train,s1\ne,train,s3\n")
    return root


def run(*arguments: str) -> dict:
    return evaluate.main(*HfArgumentParser(evaluate.EvaluationArguments).parse_args_into_dataclasses(list(arguments)))


def read_strict_json(path: Path):
    """A JSON file that must not hold NaN, which the standard does not have."""

    def refuse(constant):
        raise AssertionError(f"{path} holds {constant}")

    return json.loads(path.read_text(), parse_constant=refuse)


def valid_pixels(data: Path, stems: str) -> int:
    return sum(int((np.asarray(Image.open(data / "labels" / f"{stem}.png")) != 255).sum()) for stem in stems)


def test_evaluate_writes_results_and_pictures(adapter, data, tmp_path, capsys):
    out = tmp_path / "evaluation"
    report = run("--models", adapter, "--domains", f"small={data}@test", "--output_dir", str(out))
    assert read_strict_json(out / "results.json") == report
    assert list(report) == [adapter]
    assert list(report[adapter]) == ["small", "small/s1", "small/s2"]
    for group, stems in (("small", "abc"), ("small/s1", "ac"), ("small/s2", "b")):
        scores = report[adapter][group]
        assert scores.keys() == {"mean_iou", "overall_accuracy", "per_class_iou", "confusion"}
        confusion = np.array(scores["confusion"])
        assert confusion.shape == (3, 3) and confusion.sum() == valid_pixels(data, stems)
        assert scores["overall_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
        iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
        assert scores["per_class_iou"] == pytest.approx(dict(zip(NAMES, iou, strict=True)))
        assert scores["mean_iou"] == pytest.approx(iou.mean())
    parts = [np.array(report[adapter][group]["confusion"]) for group in ("small/s1", "small/s2")]
    assert (sum(parts) == report[adapter]["small"]["confusion"]).all()
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "settings.json",
        "confusion_rein_small.png",
        "iou_small.png",
        "contact_sheet.png",
    }
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size == (3 * 320, 24 + 3 * (24 + 192) + 24)  # image, truth, model; three rows; the legend
        colours = {colour for _, colour in sheet.convert("RGB").crop((0, sheet.height - 24, 960, 999)).getcolors()}
        assert {(128, 64, 128), (0, 0, 142), (70, 130, 180)} < colours  # of road, car and sky
    small, s1, s2 = (100 * report[adapter][group]["mean_iou"] for group in report[adapter])
    classes, means = capsys.readouterr().out.strip().split("\n\n")
    assert classes.splitlines()[:2] == ["| IoU on small | pixels |  rein |", "| ------------ | -----: | ----: |"]
    pixels = np.array(report[adapter]["small"]["confusion"]).sum(1)
    for line, name, count in zip(classes.splitlines()[2:5], NAMES, pixels, strict=True):
        iou = 100 * report[adapter]["small"]["per_class_iou"][name]
        assert line == f"| {name:12} | {count / pixels.sum():.2%} | {iou:5.2f} |"
    assert classes.splitlines()[5:] == [f"| **mean**     |        | {small:5.2f} |"]
    assert means == (
        "| mIoU | small | small/s1 | small/s2 |\n|---|---|---|---|\n" + f"| rein | {small:.2f} | {s1:.2f} | {s2:.2f} |"
    )


def test_a_compiled_model_counts_the_same(adapter, data, tmp_path, monkeypatch):
    """`--compile true`, with a backend that needs no compiler."""
    calls = []

    def compile_segmenter(model):
        calls.append(model)
        return rein_hf.inference.compile_segmenter(model, backend="eager")

    monkeypatch.setattr(precision, "compile_segmenter", compile_segmenter)
    found = []
    for words in ((), ("--compile", "true")):
        output = str(tmp_path / f"eval{len(words)}")
        argv = ["--model", adapter, "--domains", str(data), "--output_dir", output, "--sheet_rows", "0", *words]
        (arguments,) = HfArgumentParser(evaluate.EvaluationArguments).parse_args_into_dataclasses(argv)
        found.append(evaluate.main(arguments)[adapter])
    assert len(calls) == 1 and found[0] == found[1]
    torch.compiler.reset()


def test_a_recorded_model_counts_the_same(adapter, data, tmp_path, monkeypatch):
    _, recorded = recording_on("cpu", monkeypatch)
    arguments = ("--models", adapter, "--domains", str(data), "--crop", "64", "--sheet_rows", "0")
    found = [
        run(*arguments, "--bf16", "true", *words, "--output_dir", str(tmp_path / f"eval{len(words)}"))[adapter]
        for words in ((), ("--cuda_graphs", "true"))
    ]
    assert found[0] == found[1] and recorded
    assert '"cuda_graphs": true' in (tmp_path / "eval2" / "settings.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "the model is on cpu; they need a GPU"),
        (("--compile", "true"), "--compile and --cuda_graphs are both true"),
    ],
)
def test_graphs_that_cannot_be_recorded_are_refused(adapter, data, tmp_path, words, message):
    arguments = ("--models", adapter, "--domains", str(data), "--output_dir", str(tmp_path / "out"))
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--cuda_graphs", "true", *words)


def test_evaluate_counts_what_segment_finds(adapter, data, tmp_path):
    report = run("--models", adapter, "--domains", str(data), "--output_dir", str(tmp_path / "out"))
    model, metric = rein_hf.from_pretrained(adapter), rein_hf.MeanIoU(NAMES)
    for sample in load_folder(data).dataset:
        found = rein_hf.segment(model, rein_hf.build_image_processor(), sample["image"])
        metric.add(prediction=found, reference=sample["label"])
    assert report[adapter]["data"]["confusion"] == metric.confusion.tolist()
    assert np.count_nonzero(metric.confusion.sum(0)) > 1  # the model does not see the same everywhere


def test_two_models_side_by_side_on_two_domains(rein_model, adapter, data, tmp_path, capsys):
    perturb(rein_model, seed=5)
    other = save(rein_model, tmp_path / "others" / "rein")
    out = tmp_path / "out"
    domains = [f"seen={data}@train", f"unseen-night={data}@test"]
    report = run("--models", adapter, other, "--domains", *domains, "--output_dir", str(out), "--sheet_rows", "2")
    assert read_strict_json(out / "results.json") == report and list(report) == [adapter, other]
    assert report[adapter]["seen"]["confusion"] != report[other]["seen"]["confusion"]
    assert {path.name for path in out.iterdir()} == {
        "results.json",
        "settings.json",
        *(
            f"confusion_{model}_rein_{domain}.png"
            for model in ("runs", "others")
            for domain in ("seen", "unseen-night")
        ),
        "iou_seen.png",
        "iou_unseen-night.png",
        "contact_sheet.png",
    }
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.size == (4 * 320, 24 + 4 * (24 + 192) + 24)
    *classes, means = capsys.readouterr().out.strip().split("\n\n")
    titles = [table.splitlines()[0].split() for table in classes]
    assert titles == [
        f"| IoU on {name} | pixels | runs/rein | others/rein |".split() for name in ("seen", "unseen-night")
    ]
    lines = means.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| runs/rein", "| others/rein"]


def test_limit_windows_and_no_sheet(adapter, data, tmp_path):
    out = tmp_path / "out"
    report = run(
        *("--models", adapter, "--domains", f"{data}@test", "--output_dir", str(out)),
        *("--limit", "2", "--sheet_rows", "0", "--crop", "48", "--stride", "32"),
    )
    assert np.sum(report[adapter]["data"]["confusion"]) == valid_pixels(data, "ac")  # first and last of three
    model, metric, other = rein_hf.from_pretrained(adapter), rein_hf.MeanIoU(NAMES), rein_hf.MeanIoU(NAMES)
    for sample in load_folder(data, split="test").dataset.select([0, 2]):
        for counted, windows in ((metric, (48, 32)), (other, ())):
            found = rein_hf.segment(model, rein_hf.build_image_processor(), sample["image"], *windows)
            counted.add(prediction=found, reference=sample["label"])
    assert report[adapter]["data"]["confusion"] == metric.confusion.tolist() != other.confusion.tolist()
    assert not (out / "contact_sheet.png").exists()


def test_results_without_a_number_are_null(adapter, data, tmp_path, capsys):
    """A group without any valid pixel: JSON has no NaN."""
    Image.new("L", (80, 48), 255).save(data / "labels" / "b.png")
    out = tmp_path / "out"
    report = run("--models", adapter, "--domains", f"{data}@test", "--output_dir", str(out))
    assert math.isnan(report[adapter]["data/s2"]["mean_iou"])
    written = read_strict_json(out / "results.json")[adapter]
    assert (written["data/s2"]["mean_iou"], written["data/s2"]["overall_accuracy"]) == (None, None)
    assert written["data/s2"]["per_class_iou"] == dict.fromkeys(NAMES)
    assert written["data"]["mean_iou"] == report[adapter]["data"]["mean_iou"] > 0
    assert capsys.readouterr().out.strip().endswith("| nan |")


def test_bf16(adapter, data, tmp_path):
    """Close to float32 in what it finds."""
    arguments = ("--models", adapter, "--domains", f"{data}@test", "--sheet_rows", "1")
    exact = run(*arguments, "--output_dir", str(tmp_path / "exact"))
    AcceleratorState._reset_state(reset_partial_state=True)
    found = run(*arguments, "--output_dir", str(tmp_path / "bf16"), "--bf16")
    difference = np.subtract(exact[adapter]["data"]["confusion"], found[adapter]["data"]["confusion"])
    assert 0 < np.abs(difference).sum() < 0.2 * valid_pixels(data, "abc")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "A", "A", "--domains", "D"], "The same model is given twice"),
        (
            ["--models", "A", "--domains", "D@train", "D@test"],
            "--domains has several domains of the name 'data': .*NAME=",
        ),
        (["--models", "A", "--domains", "D@val"], r"index.csv has no split 'val'; found \['test', 'train'\]"),
        (["--models", "A", "--domains", "D", "--stride", "65"], r"stride is 65; expected 1 to crop \(64\)"),
        (["--models", "A", "--domains", "D", "--limit", "0"], "--limit is 0; expected 1 at least"),
        (["--models", "A", "--domains", "D", "--sheet_rows", "-1"], "--sheet_rows is -1; expected 0 at least"),
        (["--models", "A", "--domains", "D", "--crop", "0"], "--crop is 0; expected 1 at least"),
        (["--models", "A", "--domains", "D", "--severities", "1"], "--severities has no effect without --corruptions"),
        (["--models", "A", "--domains", "D", "--seed", "0"], "--seed has no effect without --corruptions"),
    ],
)
def test_mistakes_are_refused(adapter, data, tmp_path, arguments, message):
    named = {"A": adapter, "D": str(data)}
    arguments = [named.get(text, text.replace("D@", f"{data}@")) for text in arguments]
    with pytest.raises(ValueError, match=message):
        run(*arguments, "--output_dir", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_model_of_other_classes_is_refused(adapter, data, tmp_path):
    """Without classes.json the ids would be Cityscapes', of which the model knows none."""
    (data / "classes.json").unlink()
    with pytest.raises(ValueError, match="data has the classes road, sidewalk, .*found a model of road, car, sky"):
        run("--models", adapter, "--domains", str(data), "--output_dir", str(tmp_path / "out"))


def test_predictions_of_cityscapes_classes_are_mapped(build, data):
    """A model of the 19 classes on data of three: what it calls truck is a car there."""
    names = list(rein_hf.labels.CITYSCAPES_CLASSES)
    model = build(id2label=dict(enumerate(names))).eval()
    make_decided(model)
    class_of_train_id = [index % 3 for index in range(19)]
    spec = {"names": NAMES, "ignore_id": 255, "train_id_to_class": class_of_train_id}
    (data / "classes.json").write_text(json.dumps(spec))
    processor, domain = rein_hf.build_image_processor(), load_folder(data)
    found = evaluate_domain(model, processor, domain, Accelerator(cpu=True), limit=1)
    sample = domain.dataset[0]
    prediction = rein_hf.segment(model, processor, sample["image"])
    assert prediction.max() > 2
    expected = rein_hf.MeanIoU(NAMES)
    expected.add(prediction=prediction % 3, reference=sample["label"])
    assert found.keys() == {"data", "data/s1"}
    assert np.array_equal(found["data"].confusion, expected.confusion) and expected.confusion.sum() > 0


def test_evenly_spaced_indices():
    assert [evenly_spaced_indices(10, count) for count in (1, 2, 4, 10, 99, 0)] == [
        *([0], [0, 9], [0, 3, 6, 9], [*range(10)], [*range(10)], [])
    ]
    assert evenly_spaced_indices(1, 5) == [0]


def test_settings_of_an_interrupted_run_are_kept(adapter, data, tmp_path):
    """Numbers of other images or windows would pass for those of this run."""
    out = tmp_path / "Straße"
    arguments = ("--models", adapter, "--domains", f"{data}@test", "--output_dir", str(out), "--sheet_rows", "0")
    first = run(*arguments, "--limit", "1")
    written = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    assert written.pop("models").keys() == {adapter}
    assert written == {"settings": {"limit": 1}, "domains": {"data": {"data": f"{data}@test", "images": 3}}}
    assert run(*arguments, "--limit", "1", "--resume", "true") == first
    with pytest.raises(ValueError, match=r"settings.json says .* made with {'limit': 1}, but this run asks for {}"):
        run(*arguments, "--resume", "true")
    assert run(*arguments) != first  # not resumed: measured anew


def test_results_of_other_data_or_weights_are_not_kept(adapter, data, tmp_path):
    """Under the same names: they would pass for those of what is there now."""
    arguments = ("--models", adapter, "--domains", f"{data}@test", "--output_dir", str(tmp_path / "out"))
    first = run(*arguments, "--sheet_rows", "0")
    assert run(*arguments, "--sheet_rows", "0", "--resume") == first
    for spec in (f"{data}@train", f"{data}@test#size=64x64", f"{data}@test#every=2"):
        with pytest.raises(ValueError, match="settings.json says .* come from 'data' of its domains as .*Write into"):
            run("--models", adapter, "--domains", spec, "--output_dir", str(tmp_path / "out"), "--resume")
    write_other_weights(adapter)
    with pytest.raises(ValueError, match="settings.json says .* come from .*rein' of its models as .*Write into"):
        run(*arguments, "--resume")


def write_other_weights(adapter):
    """What training an adapter anew in its folder does."""
    path = Path(adapter) / "adapter_model.safetensors"
    weights = load_file(path)
    weights["base_model.model.class_predictor.bias"] = weights["base_model.model.class_predictor.bias"] + 1.0
    save_file(weights, path)


def test_plots_of_one_file_name_are_refused():
    assert evaluate.confusion_files({"x/rein": "rein"}, ["a-b", "c"]) == {
        ("rein", "a-b"): "confusion_rein_a-b.png",
        ("rein", "c"): "confusion_rein_c.png",
    }
    with pytest.raises(
        ValueError, match="plots of a on b_c and a_b on c would have the same file name, confusion_a_b_c"
    ):
        evaluate.confusion_files({"a": "a", "a_b": "a_b"}, ["b_c", "c"])


def test_names_are_the_shortest_ends_that_differ():
    assert evaluate.short_names(["x/a/rein", "x/b/rein", "x/b/frozen"]) == {
        "x/a/rein": "a/rein",
        "x/b/rein": "b/rein",
        "x/b/frozen": "b/frozen",
    }
    assert evaluate.short_names(["runs/rein/"]) == {"runs/rein/": "rein"}


def test_many_groups_are_left_out_of_the_table():
    def report(count):
        return {"m": {"d": {"mean_iou": 0.5}, **{f"d/{index}": {"mean_iou": 0.25} for index in range(count)}}}

    def rows(count):
        return evaluate.results_table(report(count), {"m": "m"}, ["d"]).splitlines()

    assert rows(6)[2] == "| m | 50.00 |" + " 25.00 |" * 6
    assert rows(7) == ["| mIoU | d |", "|---|---|", "| m | 50.00 |"]


def test_predict_writes_overlay_and_label(adapter, data, tmp_path, capsys):
    out = tmp_path / "segmented"
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(1)
    for name, size in (("grey.png", (70, 50)), ("two.JPG", (64, 90))):
        Image.fromarray(rng.integers(0, 255, size[::-1], dtype=np.uint8)).save(photos / name)
    (photos / "notes.txt").write_text("not to be read")
    (photos / "broken.jpg").write_bytes((photos / "two.JPG").read_bytes()[:800])
    (photos / "text.png").write_text("no image")
    inputs = [str(photos), str(data / "images" / "a.png")]
    unreadable = predict.main(predict.PredictionArguments(model=adapter, input=inputs, output_dir=str(out)))
    assert unreadable == 2
    assert {path.name for path in out.iterdir()} == {
        *(f"{stem}_{kind}" for stem in ("grey", "two", "a") for kind in ("label.png", "color.png", "overlay.jpg"))
    }
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "left out" in line]
    assert len(errors) == 2
    assert f"{photos / 'broken.jpg'} cannot be read as an image: " in errors[0]
    assert f"{photos / 'text.png'} cannot be read as an image: " in errors[1]
    assert printed.out == f"3 photos -> {out}; 2 could not be segmented, see above; 1 other file skipped (notes.txt)\n"
    model, processor = rein_hf.from_pretrained(adapter), rein_hf.build_image_processor()
    for path in (photos / "grey.png", photos / "two.JPG", data / "images" / "a.png"):
        photo = Image.open(path).convert("RGB")
        expected = rein_hf.segment(model, processor, photo)
        with Image.open(out / f"{path.stem}_label.png") as label:
            assert label.mode == "L" and np.array_equal(np.asarray(label), expected)
        with Image.open(out / f"{path.stem}_overlay.jpg") as found:
            assert found.size == photo.size
            difference = np.subtract(found, rein_hf.overlay(photo, expected, palette_of(NAMES)), dtype=float)
            assert np.abs(difference).mean() < 20  # JPEG of noise
    assert len(np.unique(expected)) > 1


def test_predict_opacity_and_windows(adapter, data, tmp_path):
    arguments = {"model": adapter, "input": [str(data / "images" / "a.png")], "crop": 48, "stride": 32}
    assert predict.main(predict.PredictionArguments(**arguments, output_dir=str(tmp_path), opacity=1.0)) == 0
    model, photo = rein_hf.from_pretrained(adapter), Image.open(data / "images" / "a.png")
    expected = rein_hf.segment(model, rein_hf.build_image_processor(), photo, 48, 32)
    label = np.asarray(Image.open(tmp_path / "a_label.png"))
    assert np.array_equal(label, expected)
    assert not np.array_equal(label, rein_hf.segment(model, rein_hf.build_image_processor(), photo))
    colours = np.asarray(rein_hf.colorize(label, palette_of(NAMES)), float)
    assert np.abs(np.asarray(Image.open(tmp_path / "a_overlay.jpg"), float) - colours).mean() < 8


def test_workers_open_photos_ahead_and_a_broken_one_has_its_turn(adapter, data, tmp_path, monkeypatch, capsys):
    """As beside a GPU; the same pictures as without workers, also after a photo that cannot be read."""
    (data / "images" / "c.png").write_bytes(b"no image")
    written = []
    for workers in (0, 2):
        monkeypatch.setattr(ahead, "default_workers", lambda device, workers=workers: workers)
        output = tmp_path / str(workers)
        argv = ["--model", adapter, "--input", str(data / "images"), "--output_dir", str(output)]
        (arguments,) = HfArgumentParser(predict.PredictionArguments).parse_args_into_dataclasses(argv)
        assert predict.main(arguments) == 1
        assert "c.png" in capsys.readouterr().err
        written.append({file.name: file.read_bytes() for file in output.iterdir()})
    assert written[0] == written[1] and len(written[0]) == 4 * 3


def test_predict_goes_on_and_leaves_no_half_files(adapter, data, tmp_path, monkeypatch):
    arguments = {"model": adapter, "input": [str(data / "images")], "output_dir": str(tmp_path / "out")}
    names = {
        f"{path.stem}_{kind}"
        for path in (data / "images").iterdir()
        for kind in ("label.png", "color.png", "overlay.jpg")
    }
    saves = []

    def save(self, path, save=Image.Image.save, **kwargs):
        saves.append(path)
        save(self, path, **kwargs)
        if len(saves) == 5:
            raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space"):
        predict.main(predict.PredictionArguments(**arguments))
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(found) == 4 and found < names  # the fifth was written, but not whole
    predict.main(predict.PredictionArguments(**arguments, resume=True))
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert len(saves) == 5 + len(names) - 3  # one photo was done
    predict.main(predict.PredictionArguments(**arguments))
    assert len(saves) == 5 + len(names) - 3 + len(names)
    predict.main(predict.PredictionArguments(**arguments, resume=True))
    assert len(saves) == 5 + len(names) - 3 + len(names)
    predict.main(predict.PredictionArguments(**arguments, resume=True, stride=32))  # results of other options
    assert len(saves) == 5 + len(names) - 3 + 2 * len(names)
    write_other_weights(adapter)
    predict.main(predict.PredictionArguments(**arguments, resume=True, stride=32))  # and of other weights
    assert len(saves) == 5 + len(names) - 3 + 3 * len(names)


def test_a_whole_segmenter_is_read_too(build, data, tmp_path):
    """What --tuning full saves."""
    model = build()
    perturb(model)
    folder = save(model.eval(), tmp_path / "full")
    arguments = predict.PredictionArguments(folder, [str(data / "images" / "b.png")], str(tmp_path / "out"))
    assert predict.main(arguments) == 0
    found = np.asarray(Image.open(tmp_path / "out" / "b_label.png"))
    expected = rein_hf.segment(model, rein_hf.build_image_processor(), Image.open(data / "images" / "b.png"))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("bf16", [False, True])
def test_predict_explains(bf16, adapter, data, tmp_path):
    arguments = {"model": adapter, "input": [str(data / "images" / "a.png")], "bf16": bf16}
    predict.main(predict.PredictionArguments(**arguments, output_dir=str(tmp_path / "plain")))
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"a_label.png", "a_color.png", "a_overlay.jpg"}
    predict.main(predict.PredictionArguments(**arguments, output_dir=str(tmp_path / "out"), explain=True))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "a_label.png",
        "a_color.png",
        "a_overlay.jpg",
        "a_explain.jpg",
    }
    photo, model = Image.open(data / "images" / "a.png"), rein_hf.from_pretrained(adapter)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        seen, views = block_views_of_photo(model, rein_hf.build_image_processor(), photo, predict.BLOCKS)
    assert len(views) == 4  # all there are
    expected, found = explanation_sheet(seen, views), Image.open(tmp_path / "out" / "a_explain.jpg")
    assert found.size == expected.size
    assert np.abs(np.subtract(found, expected, dtype=float)).mean() < 8


def test_only_rein_is_explained(build, data, tmp_path):
    lora = rein_hf.add_adapter(build(), LoraConfig(target_modules=["q_proj"]))
    for model, name, found in ((lora, "lora", "{'default': 'LORA'}"), (build(), "full", "none")):
        folder = save(model, tmp_path / name)
        arguments = {"model": folder, "input": [str(data / "images" / "a.png")], "output_dir": str(tmp_path / "out")}
        with pytest.raises(
            ValueError, match=rf"--explain true of --model .*{name}: expected .* found adapters {found}"
        ):
            predict.main(predict.PredictionArguments(**arguments, explain=True))
    assert not (tmp_path / "out").exists()


def test_robustness_curves_and_resuming(adapter, data, tmp_path, monkeypatch, capsys):
    """Every corruption and severity, seeded by the image's name; a run that goes on measures only what is missing."""
    calls, out = [], tmp_path / "out"

    def counting(model, processor, domain, *args, transform=None):
        calls.append(transform)
        return evaluate_domain(model, processor, domain, *args, transform=transform)

    monkeypatch.setattr(evaluate, "evaluate_domain", counting)
    arguments = ("--models", adapter, "--domains", f"{data}@test", "--output_dir", str(out), "--sheet_rows", "0")
    chosen = ("--corruptions", "fog", "gaussian_noise", "--severities", "1", "5")
    run(*arguments, *chosen)
    assert len(calls) == 1 + 2 * 2
    curves = read_strict_json(out / "robustness.json")[adapter]["data"]
    assert {name: list(curve) for name, curve in curves.items()} == {"fog": ["1", "5"], "gaussian_noise": ["1", "5"]}
    clean = read_strict_json(out / "results.json")[adapter]["data"]["mean_iou"]
    assert all(value != clean for curve in curves.values() for value in curve.values())
    row = capsys.readouterr().out.strip().splitlines()[-1]
    means = [np.mean(list(curve.values())) for curve in curves.values()]
    expected = [clean, np.mean(means), *means]
    assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(
        [100 * value for value in expected], abs=0.01
    )
    with Image.open(out / "robustness_data.png") as picture:
        assert picture.width > 300
    sample = load_folder(data).dataset[0]["image"]
    first, again, other, seeded = (
        np.asarray(evaluate.corruption_transform("gaussian_noise", 3, seed)(sample, name))
        for seed, name in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
    )
    assert np.array_equal(first, again) and (first != other).any() and (first != seeded).any()
    kept = json.loads((out / "robustness.json").read_text())
    del kept[adapter]["data"]["fog"]["5"]
    (out / "robustness.json").write_text(json.dumps(kept))
    calls.clear()
    run(*arguments, *chosen, "--resume", "true")
    assert len(calls) == 1
    assert read_strict_json(out / "robustness.json")[adapter]["data"] == curves
    capsys.readouterr()
    run(*arguments, "--corruptions", "fog", "--severities", "5", "--resume", "true")
    row = capsys.readouterr().out.strip().splitlines()[-1]
    fog = 100 * curves["fog"]["5"]  # neither the other severity nor the other corruption
    assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx([100 * clean, fog, fog], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corruptions", "frogs"], r"--corruptions has \['frogs'\]; expected all, or some of gaussian_noise"),
        (["--corruptions", "fog", "--severities", "0"], r"--severities is \[0\]; expected numbers from 1 to 5"),
        (["--scored", "synthia"], "--scored is 'synthia'; expected one of synthia16, synthia13"),
        (["--scored", "synthia13"], "--scored synthia13 has the classes .*; data has not"),
    ],
)
def test_mistakes_in_corruptions_and_subsets(adapter, data, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        run("--models", adapter, "--domains", str(data), "--output_dir", str(tmp_path / "out"), *arguments)


def test_results_that_are_no_json(adapter, data, tmp_path):
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match="results.json is no JSON"):
        run("--models", adapter, "--domains", str(data), "--output_dir", str(tmp_path), "--resume", "true")
