"""rein-hf publish --init: a file of facts with what is known, which a person completes."""

import json

import pytest
import yaml
from PIL import Image

from rein_hf.commands import cli, publish
from rein_hf.hub import read_facts


RECIPE = {
    **{"tuning": "soma", "backbone": "user/vit", "max_steps": 4000, "total_batch_size": 4, "crop": 512, "seed": 7},
    **{"learning_rate": 1e-4, "load_best_model_at_end": False, "images": {"day": 160, "stream": None}},
}
RESULT = {"mean_iou": 0.5, "overall_accuracy": 0.75, "per_class_iou": {"road": 0.5}}


@pytest.fixture
def run(adapter_folder):
    """An adapter among what a run and an evaluation leave."""
    (adapter_folder / "recipe.json").write_text(json.dumps(RECIPE))
    (adapter_folder / "evaluation").mkdir()
    results = {str(adapter_folder): {"fog": RESULT, "fog/scene": RESULT}, "another": {"rain": RESULT}}
    (adapter_folder / "evaluation" / "results.json").write_text(json.dumps(results))
    return adapter_folder


def test_what_is_known_is_written_and_what_is_not_is_asked(run, tmp_path, capsys):
    facts = tmp_path / "new" / "facts.yaml"
    assert cli.main(["publish", "--init", "--model", str(run), "--facts", str(facts)]) == 0
    printed = capsys.readouterr().out
    assert "Still empty: license, license_note, limits, backbone.license, training_data.day.license, " in printed
    assert "domains.fog.description." in printed and str(run / "evaluation" / "results.json") in printed
    values = yaml.safe_load(facts.read_text())
    assert values["title"] == "SoMA on vit, day, stream" and values["backbone"] == {"id": "user/vit", "license": ""}
    assert values["recipe"].startswith(
        "rein-hf train, tuning soma, 4,000 steps of 4 crops of 512x512 pixels, learning"
    )
    assert values["training_data"][0] == {"name": "day", "description": "160 images.", "license": ""}
    assert values["domains"] == {"fog": {"name": "fog", "description": ""}}
    with pytest.raises(ValueError, match="backbone has no license"):
        read_facts(facts)
    # completed, it is what publish takes
    values["backbone"]["license"] = values["license"] = values["license_note"] = "mit"
    values |= {"limits": ["None known."], "domains": {"fog": {"name": "Fog", "description": "ten photos"}}}
    for source in values["training_data"]:
        source["license"] = "CC0"
    facts.write_text(yaml.safe_dump(values))
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    command = [
        "publish",
        "--model",
        str(run),
        "--facts",
        str(facts),
        "--repo",
        "user/tiny",
        "--card",
        str(tmp_path / "c"),
    ]
    command += ["--evaluation", str(run / "evaluation" / "results.json"), "--sample", str(tmp_path / "photo.png")]
    assert cli.main(command) == 0 and "| Fog | ten photos | 50.00 | 75.00 |" in (tmp_path / "c").read_text()


def test_results_of_another_adapter_are_not_taken(run, tmp_path):
    (run / "evaluation" / "results.json").write_text(json.dumps({"another": {"rain": RESULT}}))
    publish.main(publish.PublishArguments(model=str(run), facts=str(tmp_path / "facts.yaml"), init=True))
    assert yaml.safe_load((tmp_path / "facts.yaml").read_text())["domains"] == {}


def test_a_backbone_that_is_a_folder_is_asked_for(run, rein_model, vit_folder, tmp_path):
    rein_model.peft_config["default"].base_model_name_or_path = vit_folder
    (run / "recipe.json").unlink()
    rein_model.save_pretrained(run)
    publish.main(publish.PublishArguments(model=str(run), facts=str(tmp_path / "facts.yaml"), init=True))
    assert yaml.safe_load((tmp_path / "facts.yaml").read_text())["backbone"] == {"id": "", "license": ""}
    assert str(tmp_path) not in (tmp_path / "facts.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--init"], "these keys are required: --model, --facts"),
        ([], "these keys are required: --model, --facts, --repo, --sample"),
        (["--init", "--model", "m", "--facts", "f", "--push"], "--push would have no effect beside --init"),
        (["--init", "--model", "m", "--facts", __file__], "test_publish_init.py is there already, and perhaps has"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line(words, message, capsys):
    assert cli.main(["publish", *words]) == 2
    printed = capsys.readouterr().err.strip()
    assert message in printed and "\n" not in printed
