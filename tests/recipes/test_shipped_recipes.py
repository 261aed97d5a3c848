"""Every recipe and assessment in the repository, shrunk but with its own flags, from its file to its scores."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from rein_hf.commands import assess, train
from rein_hf.files import read_yaml
from rein_hf.training import TUNINGS
from tests.support.runs import adapter_weights
from tests.support.shipped import SMALL, write_workplace
from tests.support.vision_encoders import write_encoder


pytestmark = pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")

RECIPES = sorted([*Path("recipes/configs").glob("*.yaml"), *Path("recipes/demo").glob("*.yaml")])
ASSESSMENTS = sorted(Path("recipes/assessments").glob("*.yaml"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return write_workplace(tmp_path_factory.mktemp("shipped"))


# mean and deviation
IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
SATELLITE = [[0.430, 0.411, 0.296], [0.213, 0.156, 0.143]]


@pytest.fixture(scope="module")
def dinov3_folder(tmp_path_factory) -> Path:
    """A tiny DINOv3 with the image processor of the checkpoints that were trained on satellite images."""
    folder = tmp_path_factory.mktemp("dinov3")
    write_encoder("dinov3", folder)
    values = {"image_processor_type": "DINOv3ViTImageProcessor", "size": {"height": 224, "width": 224}}
    values |= dict(zip(("image_mean", "image_std"), SATELLITE, strict=True))
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(autouse=True)
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_there_are_some():
    assert len(RECIPES) == 24 and len(ASSESSMENTS) == 4


# tests/recipes/test_train_own.py runs own.yaml, which has no data of its own
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "own"], ids=lambda path: path.stem)
def test_recipe(path, tmp_path, vit_folder, dinov3_folder):
    file = read_yaml(path)
    # at their own size, of 72x96: the protocol's would take hundreds of windows
    targets = [spec if "#" in spec else f"{spec}#size=native" for spec in file["evaluate"]]
    small = {**SMALL, "evaluate": targets, "eval_strategy": "steps", "eval_steps": 2, "eval_limit": 1}
    if file["backbone"].startswith("facebook/"):
        small["backbone"] = str(dinov3_folder) if "dinov3" in file["backbone"] else vit_folder
    small["output_dir"] = str(tmp_path / "out")
    recipe, args = train.parse(
        [str(path), *(part for key in small for part in (f"--{key}", yaml.safe_dump(small[key])))]
    )
    kept = {key: value for key, value in file.items() if key not in small}
    found = {**vars(recipe), **args.to_dict()}
    assert kept.items() <= found.items()
    trainer = train.main(recipe, args)
    assert trainer.state.global_step == 2 and trainer.accelerator.mixed_precision == ("bf16" if args.bf16 else "no")
    names = {domain.name for domain in trainer.domains}
    assert len(names) == len(file["evaluate"])
    (scores,) = (entry for entry in trainer.state.log_history if "eval_miou" in entry)
    assert {f"eval_{name}_miou" for name in names} < scores.keys()
    assert all(tensor.isfinite().all() for tensor in adapter_weights(tmp_path / "out").values())
    normalization = [list(getattr(trainer.processing_class, name)) for name in ("image_mean", "image_std")]
    assert normalization == (SATELLITE if "dinov3" in file["backbone"] else IMAGENET)


# one backbone of each assessment
BACKBONES = {"after": "dinov3-large", "paper": "dinov2-large", "streets": "demo-vit", "streets_long": "hiera-tiny"}


@pytest.mark.parametrize("path", ASSESSMENTS, ids=lambda path: path.stem)
def test_assessment(path, tmp_path, vit_folder, dinov3_folder):
    """All of its tunings with one seed, and one of its backbones; of the paper's those that streets.yaml lacks."""
    plan, backbone = read_yaml(path), BACKBONES[path.stem]
    if path.stem == "after" and "soma" not in TUNINGS:
        pytest.skip("needs the tuning soma and the moving average")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**read_yaml(plan["recipe"]), **SMALL}))
    plan["recipe"], plan["seeds"] = str(tmp_path / "recipe.yaml"), plan["seeds"][:1]
    tiny = {"dinov2-large": vit_folder, "dinov3-large": str(dinov3_folder)}
    plan["backbones"] = {backbone: tiny.get(backbone, plan["backbones"][backbone])}
    if path.stem == "paper":
        plan["tunings"] = {name: plan["tunings"][name] for name in ("frozen", "adaptformer", "vpt")}
        del plan["only"]["lora"]
    # at their own size, as in the recipes' tests
    plan["targets"] = [spec if ":" not in spec else f"{spec}#size=native" for spec in plan["targets"]]
    for tuning in plan["tunings"].values():
        if isinstance(tuning, dict) and "max_steps" in tuning:
            tuning["max_steps"] = SMALL["max_steps"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    cells = assess.main(assess.AssessmentArguments(str(tmp_path / "plan.yaml"), str(tmp_path / "out")))
    assert [cell["tuning"] for cell in cells] == list(plan["tunings"])
    names = {spec.partition("@")[0].partition("=")[0].partition(":")[0] for spec in plan["targets"]}
    assert all(cell["scores"].keys() == names for cell in cells)
    trained = {cell["tuning"]: cell["trained"] for cell in cells}
    assert trained.get("frozen", 0) == 0 < trained.get("adaptformer", 1) and 0 < trained.get("vpt", 1)
    if path.stem.startswith("streets"):
        assert trained["frozen"] < trained["rein-unlinked"] <= trained["rein"] < trained["full"]
