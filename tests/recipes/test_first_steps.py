"""recipes/first_steps.ipynb: its cells run one after the other, and it is saved without outputs."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.runs import HEAD


NOTEBOOK = Path(__file__).parents[2] / "recipes" / "first_steps.ipynb"


@pytest.fixture(scope="module")
def notebook() -> dict:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def sources(notebook, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_saved_without_outputs(notebook):
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert notebook["nbformat"] == 4 and len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None} and not any(cell["metadata"] for cell in code)


def test_its_links_and_verbs_are_there(notebook):
    text = "\n".join(sources(notebook, "markdown"))
    assert "](README.md)" in text and (NOTEBOOK.parent / "README.md").is_file()
    for verb in ("predict", "evaluate", "export", "publish"):
        assert f"`rein-hf {verb}" in text


@pytest.mark.slow
def test_all_cells_run_from_an_empty_folder(notebook, vit_folder, tmp_path, monkeypatch, capsys):
    """With a tiny backbone and head, a few steps, and the images that the notebook paints."""
    monkeypatch.chdir(tmp_path)
    head = shlex.quote(yaml.safe_dump(HEAD, default_flow_style=True, width=1000).strip())
    more = f"--head {head} --num_queries 8 --crop 64 --eval_pictures 0 --use_cpu true --dataloader_num_workers 0"
    settings = {"BACKBONE": vit_folder, "STEPS": 2, "MORE": more}
    cells, variables = sources(notebook, "code"), {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), variables)
        if number == 0:
            assert settings.keys() < variables.keys()
            variables |= settings
    model, labels = variables["model"], variables["labels"]
    assert sorted(model.peft_config) == ["default", "second"] and model.active_adapters == ["default"]
    assert labels.shape == (128, 160) and set(np.unique(labels)) <= {0, 1, 2}
    assert len(list((tmp_path / "segmented").glob("*_overlay.*"))) == 20
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert set(results) == {"runs/first", "runs/second"}
    assert "The two agree on " in capsys.readouterr().out
