"""Every recipe and assessment in the repository, shrunk but with its own flags, from its file to its scores."""

from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from rein_hf.commands import assess, train
from rein_hf.files import read_yaml
from tests.support.runs import adapter_weights
from tests.support.shipped import SMALL, write_workplace


pytestmark = pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")

RECIPES = sorted([*Path("recipes/configs").glob("*.yaml"), *Path("recipes/demo").glob("*.yaml")])
ASSESSMENTS = sorted(Path("recipes/assessments").glob("*.yaml"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return write_workplace(tmp_path_factory.mktemp("shipped"))


@pytest.fixture(autouse=True)
def in_workplace(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_there_are_some():
    assert len(RECIPES) == 11 and len(ASSESSMENTS) == 2


# tests/recipes/test_train_own.py runs own.yaml, which has no data of its own
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "own"], ids=lambda path: path.stem)
def test_recipe(path, tmp_path, vit_folder):
    file = read_yaml(path)
    # at their own size, of 72x96: the protocol's would take hundreds of windows
    targets = [spec if "#" in spec else f"{spec}#size=native" for spec in file["evaluate"]]
    small = {**SMALL, "evaluate": targets, "eval_strategy": "steps", "eval_steps": 2, "eval_limit": 1}
    if file["backbone"].startswith("facebook/"):
        small["backbone"] = vit_folder
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


@pytest.mark.parametrize(("path", "backbone"), zip(ASSESSMENTS, ["demo-vit", "hiera-tiny"], strict=True))
def test_assessment(path, backbone, tmp_path):
    """All of its tunings with one seed, and one of the two backbones that both assessments have."""
    plan = read_yaml(path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**read_yaml(plan["recipe"]), **SMALL}))
    plan["recipe"], plan["seeds"] = str(tmp_path / "recipe.yaml"), plan["seeds"][:1]
    plan["backbones"] = {backbone: plan["backbones"][backbone]}
    for tuning in plan["tunings"].values():
        if isinstance(tuning, dict) and "max_steps" in tuning:
            tuning["max_steps"] = SMALL["max_steps"]
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    cells = assess.main(assess.AssessmentArguments(str(tmp_path / "plan.yaml"), str(tmp_path / "out")))
    assert [cell["tuning"] for cell in cells] == list(plan["tunings"])
    assert all(cell["scores"].keys() == {"streets", "camvid"} for cell in cells)
    trained = {cell["tuning"]: cell["trained"] for cell in cells}
    assert 0 == trained["frozen"] < trained["rein-unlinked"] <= trained["rein"] < trained["full"]
