"""The card that an adapter has as soon as it is saved."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig

import rein_hf
from rein_hf.commands import train
from rein_hf.hub import describe, known_facts
from rein_hf.training import TUNINGS, tuning_config
from tests.support.runs import run_recipe


def test_a_saved_adapter_has_a_filled_card(adapter_folder):
    card = ModelCard.load(adapter_folder / "README.md")
    assert (card.data.base_model, card.data.library_name, card.data.license) == ("user/vit", "peft", None)
    assert card.data.tags[:4] == ["rein", "rein-hf", "dinov2", "mask2former"]
    for line in (
        "# Rein on vit",
        "Semantic segmentation in 3 classes: road, car, sky.",
        'model = rein_hf.from_pretrained("path/to/adapter")',
        'rein_hf.overlay(photo, labels, model).save("overlay.png")',
        "| classes | road, car, sky |",
        "| Rein | 8 tokens per block, rank 4, linked to the queries |",
        "Not measured yet.",
        "[user/vit](https://huggingface.co/user/vit), is downloaded from its own.",
    ):
        assert f"\n{line}\n" in card.content, line
    assert "More Information Needed" not in card.content and "None" not in card.content
    assert "sample.jpg" not in card.content and "Training data" not in card.content


def test_a_persons_card_stays_and_our_own_is_renewed(rein_model, tmp_path):
    rein_model.save_pretrained(tmp_path)
    own = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(own.replace("# Rein on", "# Something about"))
    rein_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == own
    (tmp_path / "README.md").write_text("# Mine\n")
    rein_model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("tuning", [name for name in TUNINGS if tuning_config(name, 8) is not None])
def test_every_tuning_that_leaves_an_adapter_is_described_and_has_a_card(segmenter, tmp_path, tuning):
    config = tuning_config(tuning, 8, {"r": 4} if tuning in ("rein", "lora", "soma") else {})
    model = (rein_hf.add_rein if tuning == "rein" else rein_hf.add_adapter)(segmenter, config)
    model.save_pretrained(tmp_path)
    method = {"rein": "Rein", "adaptformer": "AdaptFormer", "vpt": "VPT"}.get(tuning, "LoRA")
    found = describe(tmp_path)
    assert found.method == method and found.classes == ("road", "car", "sky") and found.rein_parameters > 0
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if tuning != "soma":  # which is saved with twice the rank that is trained
        assert found.rein_parameters + found.head_parameters == trained
    content = (tmp_path / "README.md").read_text()
    assert f"\n# {method} on " in content and f"{found.rein_parameters:,} of {method}" in content


def test_a_lora_in_numbers(segmenter, tmp_path):
    """4 blocks of 32 channels, queries and values: two matrices of rank 2 each."""
    config = LoraConfig(
        r=2, lora_alpha=6, target_modules=r".*\.vit\..*\.(query|value|q_proj|v_proj)", bias="lora_only"
    )
    rein_hf.add_adapter(segmenter, config).save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert (found.rein_parameters, found.rank) == (4 * 2 * (2 * 2 * 32 + 32), 2)
    assert "LoRA:        rank 2, scale 3, biases too" in str(found)


def test_another_method_of_peft(segmenter, tmp_path):
    from peft import LoHaConfig

    rein_hf.add_adapter(segmenter, LoHaConfig(r=2, target_modules=["fc1"])).save_pretrained(tmp_path)
    found = describe(tmp_path)
    assert (found.method, found.settings, found.rank) == ("LoHa", "a LoHaConfig of peft", None)
    assert "LoHa is a method of [peft]" in (tmp_path / "README.md").read_text()


@pytest.fixture
def run(recipe) -> Path:
    """The folder of a finished run, with a checkpoint."""
    run_recipe(recipe)
    return recipe.parent / "out"


def test_what_train_leaves_has_a_card_of_its_run_and_no_absolute_path(run, tmp_path, vit_folder):
    content = (run / "README.md").read_text()
    assert f"# Rein on {Path(vit_folder).name}, data\n" in content and "base_model:" not in content
    assert "- data: 6 images. Licence: not stated" in content
    assert "| recipe | rein-hf train, tuning rein, 4 steps of 2 crops of 64x64 pixels, " in content
    checkpoint = sorted(run.glob("checkpoint-*"))[0]
    step = int(checkpoint.name.rpartition("-")[2])
    of = "" if step == 4 else f" (the weights are of step {step})"
    assert f"tuning rein, 4 steps{of} of 2 crops" in (checkpoint / "README.md").read_text()
    for folder in (run, checkpoint):
        for name in ("README.md", "adapter_config.json", "recipe.json"):
            text = (folder / name).read_text() if (folder / name).exists() else ""
            assert str(tmp_path) not in text and str(vit_folder) not in text, (folder, name)
        assert rein_hf.from_pretrained(folder).config.num_queries == 8
    recorded = json.loads((run / "recipe.json").read_text())
    assert recorded["train"] == ["../data"] and (run / recorded["backbone"]).is_dir()


def test_known_facts_of_a_run(run):
    facts = known_facts(run, describe(run), domains=("fog",))
    assert facts.training_data == [{"name": "data", "description": "6 images.", "license": ""}]
    assert facts.domains == {"fog": {"name": "fog", "description": ""}}
    assert (facts.license, facts.limits) == ("", [])


def test_a_finished_run_is_found_again_by_a_recipe_json_with_absolute_paths(run, recipe, capsys):
    """One that an earlier version wrote."""
    path = run / "recipe.json"
    values = json.loads(path.read_text())
    values |= {"train": [str(recipe.parent / "data")], "backbone": str((run / values["backbone"]).resolve())}
    path.write_text(json.dumps(values))
    assert train.main(*train.parse([str(recipe)])) is None
    assert "nothing to do" in capsys.readouterr().out
