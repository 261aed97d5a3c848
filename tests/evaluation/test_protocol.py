"""The paper's protocol on miniatures of the data sets: training on two sources, evaluation on three targets, and a
submission; then the numbers of a predictor whose confusion matrix is known."""

import json
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import HfArgumentParser

import rein_hf
from rein_hf.commands import evaluate, submit, train
from rein_hf.data import load_domain
from rein_hf.evaluation import MeanIoU, evaluate_domain
from rein_hf.inference import ahead
from rein_hf.labels import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from rein_hf.views import comment_of, save_picture
from tests.support.miniatures import MAPILLARY_CLASSES, write_miniature
from tests.support.runs import HEAD


# Ids of road, building, sky and car, and one that does not count, in the files of each data set.
IDS = {
    "gta5": {0: 7, 2: 11, 10: 23, 13: 26, 255: 0},
    "cityscapes": {0: 7, 2: 11, 10: 23, 13: 26, 255: 3},
    "synthia": {0: 3, 2: 2, 10: 1, 13: 8, 255: 0},
    "bdd100k": {0: 0, 2: 2, 10: 10, 13: 13, 255: 255},
    "mapillary": {
        train_id: MAPILLARY_CLASSES.index(name)
        for train_id, name in {
            0: "construction--flat--road",
            2: "construction--structure--building",
            10: "nature--sky",
            13: "object--vehicle--car",
            255: "void--car-mount",
        }.items()
    },
}
TARGETS = {"cityscapes": "val", "bdd100k": "val", "mapillary": "validation"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def write(layout: str, root, split: str, maps: list[np.ndarray]) -> None:
    """Images whose grey is 10 times the train id (250 where there is none), with labels in the data set's ids."""
    images = [np.repeat(np.where(ids == 255, 25, ids)[..., None] * 10, 3, axis=-1).astype(np.uint8) for ids in maps]
    write_miniature(layout, root / layout, [np.vectorize(IDS[layout].get)(ids) for ids in maps], split, images)


def halves(left: int, right: int, size=(64, 128)) -> np.ndarray:
    ids = np.full(size, left)
    ids[:, size[1] // 2 :] = right
    return ids


@pytest.fixture
def folders(tmp_path):
    rng = np.random.default_rng(0)
    for layout in ("gta5", "synthia"):
        write(layout, tmp_path, "", [rng.choice([0, 2, 10, 13, 255], (8, 12)).repeat(9, 0).repeat(9, 1)] * 3)
    maps = [halves(0, 2), halves(0, 10), halves(13, 255)]
    write("cityscapes", tmp_path, "val", maps)
    write("cityscapes", tmp_path, "test", maps)
    write("bdd100k", tmp_path, "val", maps)
    write("mapillary", tmp_path, "validation", maps)
    return tmp_path


def spec(folders, layout: str, split: str = "", options: str = "") -> str:
    return f"{layout}:{folders / layout}{'@' + split if split else ''}{options}"


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
def test_train_evaluate_submit(folders, vit_folder, tmp_path):
    recipe = tmp_path / "tiny.yaml"
    values = {
        "backbone": vit_folder,
        "train": [spec(folders, "gta5"), spec(folders, "synthia")],
        "weights": {"gta5": 2, "synthia": 1},
        "evaluate": [spec(folders, layout, split, "#size=native") for layout, split in TARGETS.items()],
        "crop": 64,
        "num_queries": 8,
        "head": HEAD,
        "rein": {"r": 4},
        "max_steps": 4,
        "total_batch_size": 2,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "use_cpu": True,
        "disable_tqdm": True,
        "output_dir": str(tmp_path / "out"),
    }
    recipe.write_text(yaml.safe_dump(values))
    trainer = train.main(*train.parse([str(recipe)]))
    (while_training,) = [entry for entry in trainer.state.log_history if "eval_miou" in entry]
    arguments = ["--models", str(tmp_path / "out"), "--output_dir", str(tmp_path / "evaluation"), "--sheet_rows", "1"]
    AcceleratorState._reset_state(reset_partial_state=True)
    report = run(*arguments, "--domains", *values["evaluate"])[str(tmp_path / "out")]
    assert list(report) == list(TARGETS)
    scores = [100 * report[layout]["mean_iou"] for layout in TARGETS]
    assert while_training["eval_miou"] == pytest.approx(np.mean(scores))  # the unweighted mean of the domains
    for layout, score in zip(TARGETS, scores, strict=True):
        assert while_training[f"eval_{layout}_miou"] == pytest.approx(score)
        half = 4 if layout == "mapillary" else 1  # a quarter of the pixels
        assert np.sum(report[layout]["confusion"]) == 5 * 64 * 64 // half
    archive = submit.main(
        submit.SubmissionArguments(
            str(tmp_path / "out"), spec(folders, "cityscapes", "test", "#size=native"), str(tmp_path / "submission")
        )
    )
    with zipfile.ZipFile(archive) as file:
        names = file.namelist()
        assert names == [f"berlin_{n:06}_000019_leftImg8bit.png" for n in range(3)]
        for name in names:
            label = Image.open(file.open(name))
            assert label.size == (128, 64) and label.mode == "L"
            assert set(np.unique(label)) <= set(CITYSCAPES_IDS)


def run(*arguments: str) -> dict:
    return evaluate.main(*HfArgumentParser(evaluate.EvaluationArguments).parse_args_into_dataclasses(list(arguments)))


class Predictor(torch.nn.Module):
    """Finds the class whose grey is nearest to a pixel's, but calls buildings sky. It answers like a Mask2Former
    that has a query for each class."""

    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        vit = SimpleNamespace(image_size=64, patch_size=16)
        id2label = dict(enumerate(CITYSCAPES_CLASSES))
        self.eval()
        self.config = SimpleNamespace(
            model_type="mask2former", backbone_config=SimpleNamespace(backbone_config=vit), id2label=id2label
        )
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append(tuple(pixel_values.shape))
        mean, std = torch.tensor(0.485), torch.tensor(0.229)
        grey, known = 25.5 * (pixel_values[:, 0] * std + mean), torch.tensor([0, 2, 10, 13, 25])
        found = known[(grey[..., None] - known).abs().argmin(dim=-1)]
        found = torch.where(found == 2, 10, found).clamp(max=18)
        masks = torch.stack([torch.where(found == index, 20.0, -20.0) for index in range(19)], dim=1)
        classes = 40 * torch.eye(20)[:19].expand(len(pixel_values), 19, 20)
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
def test_numbers_of_a_known_predictor(folders, tmp_path, monkeypatch, capsys):
    """Three images: road and building, road and sky, car and what does not count; building is taken for sky."""
    predictor = Predictor()
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: predictor)
    monkeypatch.setattr(evaluate.AutoImageProcessor, "from_pretrained", lambda path: rein_hf.build_image_processor())
    domains = [spec(folders, layout, split) for layout, split in TARGETS.items()]
    arguments = ("--models", "known", "--sheet_rows", "0", "--output_dir", str(tmp_path / "out"))
    report = run(*arguments, "--domains", *domains)["known"]
    for layout in TARGETS:
        pixels = 64 * 64 // (4 if layout == "mapillary" else 1)
        expected = np.zeros((19, 19), int)
        for truth, found, count in ((0, 0, 2), (2, 10, 1), (10, 10, 1), (13, 13, 1)):
            expected[truth, found] = count * pixels
        confusion = np.array(report[layout]["confusion"])
        tolerated = 3 * 32 if layout == "mapillary" else 0  # JPEG, whose edge between the halves is halved with it
        assert np.abs(confusion - expected).sum() <= 2 * tolerated, layout
        if not tolerated:
            iou = report[layout]["per_class_iou"]
            assert (iou["road"], iou["building"], iou["sky"], iou["car"]) == (1, 0, 0.5, 1)
            assert report[layout]["mean_iou"] == pytest.approx(2.5 / 4)
            assert report[layout]["overall_accuracy"] == pytest.approx(4 / 5)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["known"].keys() == report.keys()
    *classes, means = capsys.readouterr().out.strip().split("\n\n")
    assert [table.splitlines()[0].split()[3] for table in classes] == ["cityscapes", "bdd100k", "mapillary"]
    header, _, row = means.splitlines()
    assert header == "| mIoU | cityscapes | bdd100k | mapillary | average |"
    cells = [float(cell) for cell in row.split("|")[2:-1]]
    assert cells[:2] == [62.5, 62.5] and cells[3] == pytest.approx(np.mean(cells[:3]), abs=0.01)
    windows = [shape[0] for shape in predictor.seen]
    # windows of 64 at steps of 43: an image fitted into 1024x512, one of 128x64, one halved and fitted
    per_image = {"cityscapes": 24 * 12, "bdd100k": 3, "mapillary": 24 * 12}
    assert sum(windows) == 3 * sum(per_image.values())
    subset = run(*arguments, "--domains", domains[0], "--scored", "synthia13")["known"]["cityscapes"]
    assert subset["mean_iou"] == pytest.approx(2.5 / 4)


def test_a_limit_is_a_number_of_images(folders):
    with pytest.raises(ValueError, match="limit is 0; expected a number of images, 1 at least, or None for all"):
        evaluate_domain(Predictor(), None, load_domain(spec(folders, "cityscapes", "val")), Accelerator(), limit=0)


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
def test_submission_of_a_known_predictor(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: Predictor())
    monkeypatch.setattr(submit.AutoImageProcessor, "from_pretrained", lambda path: rein_hf.build_image_processor())
    domain = spec(folders, "cityscapes", "test")
    arguments = submit.SubmissionArguments("known", domain, str(tmp_path / "out"))
    submit.main(arguments)
    found = [np.asarray(Image.open(path)) for path in sorted((tmp_path / "out").glob("*.png"))]
    assert [np.unique(label[:, :64]).tolist() for label in found] == [[7], [7], [26]]
    assert [np.unique(label[:, 64:]).tolist() for label in found[:2]] == [[23], [23]]
    first, second, _ = sorted((tmp_path / "out").glob("*.png"))
    save_picture(Image.new("L", (128, 64), 99), first, comment_of(first))  # an earlier run's: it is kept
    save_picture(Image.new("L", (128, 64), 99), second, '{"weights": "0123abcd"}')  # another model's
    submit.main(arguments)
    assert [Image.open(path).getpixel((0, 0)) for path in (first, second)] == [99, 7]
    Image.new("L", (128, 64), 98).save(second)  # nobody knows whose: a photo or a label of the user's
    with pytest.raises(ValueError, match=f"{second} is there and is not a result of rein-hf submit; give another"):
        submit.main(arguments)
    assert Image.open(second).getpixel((0, 0)) == 98
    second.unlink()
    for content in ({"notes.txt": ""}, None):
        archive = tmp_path / "out" / "submission.zip"
        archive.write_text("mine")
        if content is not None:
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr(*next(iter(content.items())))
        before = archive.read_bytes()
        with pytest.raises(
            ValueError, match=f"{archive} is there and does not hold the label maps of --domains alone"
        ):
            submit.main(arguments)
        assert archive.read_bytes() == before
        archive.unlink()
    submit.main(replace(arguments, stride=32))
    assert Image.open(first).getpixel((0, 0)) == 7
    with pytest.raises(ValueError, match="cityscapes: the label of berlin_000000_000019 is not public"):
        run("--models", "known", "--domains", domain, "--output_dir", str(tmp_path / "evaluation"))


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
def test_submission_at_another_size(folders, tmp_path, monkeypatch):
    predictor = Predictor()
    monkeypatch.setattr(rein_hf, "from_pretrained", lambda *args, **kwargs: predictor)
    monkeypatch.setattr(submit.AutoImageProcessor, "from_pretrained", lambda path: rein_hf.build_image_processor())
    domain = spec(folders, "cityscapes", "test", "#size=native")  # of 128x64
    for options, shape in (({}, (64, 64)), ({"size": "64x32"}, (32, 64)), ({"short_side": 48}, (48, 64))):
        predictor.seen.clear()
        out = tmp_path / "-".join(["out", *map(str, options.values())])
        submit.main(submit.SubmissionArguments("known", domain, str(out), **options))
        assert predictor.seen[0][2:] == shape
        assert {Image.open(path).size for path in out.glob("*.png")} == {(128, 64)}
    with pytest.raises(ValueError, match="--size 64x32 and --short_side 48 are both given"):
        submit.main(submit.SubmissionArguments("known", domain, str(out), size="64x32", short_side=48))


def test_submission_into_something_that_is_no_folder(folders, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = submit.SubmissionArguments(
        "known", spec(folders, "cityscapes", "test"), str(tmp_path / "file" / "out")
    )
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match="--output_dir: results would go to .*is not a folder"),
    ):
        submit.main(arguments)


def test_submission_of_other_classes_or_equal_names(folders, tmp_path):
    write_miniature("camvid", tmp_path / "camvid", [np.zeros((4, 6), int)])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="expected the 19 of Cityscapes"):
        submit.main(submit.SubmissionArguments("known", f"camvid:{tmp_path / 'camvid'}", str(tmp_path)))
    domain = load_domain(spec(folders, "bdd100k", "val") + "#every=1")
    twice = domain.dataset.with_format(None).select([0, 0])
    with pytest.raises(ValueError, match="images of the same file name"):
        submit.label_map_paths(SimpleNamespace(name="x", dataset=twice), tmp_path)


def test_errors_in_a_sample_name_it(folders):
    """Of data sets that are made without `rein_hf.data`, which looks at labels as it reads them."""
    samples = [{"name": "one", "domain": "x", "image": Image.new("RGB", (64, 64)), "label": np.full((64, 64), 30)}]
    dataset = SimpleNamespace(share=lambda *args: iter(samples))
    domain = SimpleNamespace(
        name="x", is_streamed=True, dataset=dataset, classes=CITYSCAPES_CLASSES, scored=None, size=None,
        predictions=lambda label, classes: label,
    )  # fmt: skip
    with pytest.raises(ValueError, match="^x: one: reference holds values from 30 to 30; expected 0 to 18 or 255"):
        evaluate_domain(Predictor(), rein_hf.build_image_processor(), domain, Accelerator(cpu=True))
    predictor = Predictor()
    predictor.config.id2label = {1: "road", 2: "sky"}
    with pytest.raises(ValueError, match="id2label of the model has the ids 1, 2; expected 0 to 1"):
        evaluate_domain(predictor, rein_hf.build_image_processor(), domain, Accelerator(cpu=True))


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
@pytest.mark.parametrize(("workers", "together"), [(0, 1), (0, 2), (2, 1), (2, 5)])
def test_workers_and_batches_change_no_count(folders, monkeypatch, workers, together):
    """Images of two sizes, of which the last one stays alone."""
    write("cityscapes", folders, "val", [halves(0, 2), halves(2, 10), halves(10, 13), halves(0, 0, (64, 80))])
    domain = load_domain(spec(folders, "cityscapes", "val", "#size=native"))
    processor = rein_hf.build_image_processor()
    expected = MeanIoU(domain.classes)
    for sample in domain.dataset:
        prediction = rein_hf.segment(Predictor(), processor, sample["image"])
        expected.add(prediction=prediction, reference=sample["label"])
    monkeypatch.setattr(ahead, "default_workers", lambda device: workers)
    monkeypatch.setattr(ahead, "images_at_once", lambda *args: together)
    predictor = Predictor()
    found = evaluate_domain(predictor, processor, domain, Accelerator(cpu=True))["cityscapes"]
    assert found.confusion.sum() == expected.confusion.sum() > 0
    assert np.array_equal(found.confusion, expected.confusion)
    # three images of three windows each, then one of two windows
    assert sum(shape[0] for shape in predictor.seen) == 3 * 3 + 2
    assert max(shape[0] for shape in predictor.seen) == 3 * min(together, 3)


@pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_named_in_one_line(folders, monkeypatch, workers):
    broken = sorted((folders / "cityscapes").rglob("val/**/*000001*leftImg8bit.png"))[0]
    broken.write_bytes(broken.read_bytes()[:99])
    monkeypatch.setattr(ahead, "default_workers", lambda device: workers)
    domain = load_domain(spec(folders, "cityscapes", "val", "#size=native"))
    with pytest.raises(ValueError, match="cannot be read as an image") as error:
        evaluate_domain(Predictor(), rein_hf.build_image_processor(), domain, Accelerator(cpu=True))
    assert broken.name in str(error.value) and "\n" not in str(error.value)
