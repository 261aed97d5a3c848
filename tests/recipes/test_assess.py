"""recipes/assess.py: a grid of tiny runs, its table and figure; finished cells are not run again."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import HfArgumentParser

import rein_hf
from rein_hf.commands import assess, train
from rein_hf.training import TUNINGS
from tests.support.miniatures import write_miniature
from tests.support.runs import HEAD


pytestmark = pytest.mark.filterwarnings("ignore:.* holds .* of the .* images")


@pytest.fixture(autouse=True)
def own_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def plan(vit_folder, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        maps = [rng.integers(0, 19, (6, 8)).repeat(12, 0).repeat(12, 1) for _ in range(count)]
        write_miniature("bdd100k", tmp_path / "bdd", maps, split)
    recipe = {
        "backbone": "to be replaced",
        "train": [f"bdd100k:{tmp_path / 'bdd'}@train"],
        "crop": 64,
        "num_queries": 8,
        "head": HEAD,
        "max_steps": 1,
        "total_batch_size": 2,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    values = {
        "recipe": str(tmp_path / "recipe.yaml"),
        "backbones": {"tiny": vit_folder},
        "tunings": {"frozen": "frozen", "rein of rank 2": {"tuning": "rein", "rein": {"r": 2}}},
        "seeds": [0, 1],
        "targets": [f"seen=bdd100k:{tmp_path / 'bdd'}@train", f"unseen=bdd100k:{tmp_path / 'bdd'}@val"],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run(plan, out):
    parser = HfArgumentParser(assess.AssessmentArguments)
    return assess.main(*parser.parse_args_into_dataclasses(["--assessment", str(plan), "--output_dir", str(out)]))


def test_a_grid_its_table_and_figure(plan, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    cells = run(plan, out)
    assert [(cell["tuning"], cell["seed"]) for cell in cells] == [
        *(("frozen", 0), ("rein of rank 2", 0), ("frozen", 1), ("rein of rank 2", 1))
    ]
    assert {path.stem for path in (out / "cells").iterdir()} == {
        f"tiny_{tuning}_seed{seed}" for tuning in ("frozen", "rein of rank 2") for seed in (0, 1)
    }
    written = json.loads((out / "cells" / "tiny_frozen_seed0.json").read_text())
    assert written.keys() == {"of", "trained", "scores"} and written["scores"].keys() == {"seen", "unseen"}
    model = rein_hf.from_pretrained(out / "runs" / "tiny_rein of rank 2_seed0")
    of_rein = [p for name, p in model.named_parameters() if ".rein_" in name and "rein_query_content" not in name]
    assert [cell["trained"] for cell in cells] == [0, sum(p.numel() for p in of_rein)] * 2
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == "| backbone | tuning | trained in it | seen | unseen | average |" and len(lines) == 4
    own = [np.mean(list(cell["scores"].values())) * 100 for cell in cells[1::2]]
    assert lines[3].endswith(f"| {np.mean(own):.1f} ({own[0]:.1f}, {own[1]:.1f}) |")
    assert Image.open(out / "figure.png").width > 300
    monkeypatch.setattr(train, "main", lambda *args: pytest.fail("a cell was run again"))
    assert run(plan, out) == cells
    other = yaml.safe_load(plan.read_text())
    other["tunings"]["rein of rank 2"]["rein"]["r"] = 3
    other["targets"].pop()
    plan.with_name("other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match=r"tiny_frozen_seed0.json is of another cell: targets was '\[\"seen="):
        run(plan.with_name("other.yaml"), out)
    other["targets"] = yaml.safe_load(plan.read_text())["targets"]
    plan.with_name("other.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(ValueError, match=r"rank 2_seed0.json is of another cell: rein was '{.r.: 2}', is"):
        run(plan.with_name("other.yaml"), out)
    (out / "cells" / "tiny_frozen_seed1.json").unlink()
    with pytest.raises(pytest.fail.Exception, match="a cell was run again"):
        run(plan, out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": [0]}, r"plan.yaml has \[.*'seed'.*\]; expected the keys \['backbones', 'recipe'"),
        ({"seeds": 0}, "plan.yaml: seeds is 0; expected a list that is not empty"),
        ({"tunings": {}}, "plan.yaml: tunings is {}; expected a dict that is not empty"),
        ({"only": {}}, "plan.yaml: only is {}; expected a dict that is not empty"),
        ({"only": {"vpt": ["tiny"]}}, r"plan.yaml: only names the tuning 'vpt'; expected one of \['frozen', 'rein"),
        ({"only": {"frozen": ["large"]}}, r"only.frozen is \['large'\]; expected some of \['tiny'\]"),
    ],
)
def test_mistakes_in_an_assessment(plan, change, message):
    plan.write_text(yaml.safe_dump({**yaml.safe_load(plan.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        assess.read_plan(str(plan))


def test_targets_of_one_name_are_refused_before_hours_of_training(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "main", lambda *args: pytest.fail("a cell was trained"))
    values = yaml.safe_load(plan.read_text())
    values["targets"] = [values["targets"][0], f"seen={values['targets'][1].partition('=')[2]}"]
    plan.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="targets has several domains of the name 'seen'"):
        run(plan, tmp_path / "out")


def test_tunings_of_some_backbones_alone():
    plan = {"backbones": {"s": 1, "l": 2}, "tunings": {"rein": 1, "lora": 2}, "only": {"lora": ["l"]}}
    assert assess.cells_of(plan) == [("s", "rein"), ("l", "rein"), ("l", "lora")]


def test_every_assessment_in_the_repository_can_be_read():
    files = sorted(Path("recipes/assessments").glob("*.yaml"))
    assert files
    for path in files:
        plan = assess.read_plan(str(path))
        for backbone, tuning in assess.cells_of(plan):
            if path.stem == "after" and "soma" not in TUNINGS:  # nor is there a moving average then
                continue
            recipe, args = assess.cell_recipe(plan, backbone, tuning, plan["seeds"][0], Path("run"))
            assert recipe.tuning == tuning.partition("-")[0] and args.output_dir == "run", (path, tuning)
