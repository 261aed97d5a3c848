"""recipes/publish.py and hub_cards/: the card as the library reads it, what is uploaded and what never is."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

import rein_hf
from rein_hf.commands import publish, train
from rein_hf.hub import read_facts, render_card
from tests.support.hub_api import TOKEN


ROOT = Path(__file__).parents[2]
WEIGHTS = "adapter_model.safetensors"
FACTS = {
    "title": "A tiny one",
    "summary": "For tests.",
    "recipe": "none",
    "backbone": {"id": "user/vit", "license": "apache-2.0"},
    "license": "cc-by-4.0",
    "license_note": "Take it.",
    "training_data": [{"name": "noise", "description": "Six pictures.", "license": "CC0", "url": "https://noise.org"}],
    "limits": ["Knows nothing."],
    "domains": {
        "fog": {"name": "Fog", "description": "ten photos", "split": "val", "hub_id": "user/fog"},
        "rain": {"name": "Rain", "description": "two photos", "url": "https://rain.org"},
    },
}


def scores(mean_iou, **per_class):
    return {"mean_iou": mean_iou, "overall_accuracy": 0.5, "per_class_iou": per_class, "confusion": [[1]], "more": 1}


@pytest.fixture
def arguments(adapter_folder, tmp_path):
    """Of publish.py, as a dictionary: an adapter among what train.py leaves, facts, results, a picture."""
    (adapter_folder / "training_args.bin").write_bytes(b"pickled")
    (adapter_folder / "checkpoint-2").mkdir()
    (adapter_folder / "checkpoint-2" / "optimizer.pt").write_bytes(b"pickled")
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(FACTS))
    fog = scores(0.123456, road=0.25, car=None, sky=0.0)
    fog |= {"split": "an unknown key"}
    report = {
        str(adapter_folder): {"fog": fog, "fog/scene": scores(0.9), "notes": "text"},
        "other": {"fog": scores(1.0)},
    }
    (tmp_path / "fog.json").write_text(json.dumps(report))
    (tmp_path / "rain.json").write_text(
        json.dumps({str(adapter_folder): {"rain": scores(0.5, road=0.5, puddle=0.75)}})
    )
    noise = np.random.default_rng(0).integers(0, 256, (90, 2000, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.fromarray(noise).save(tmp_path / "photo.jpg", exif=exif)
    evaluation = [str(tmp_path / "fog.json"), str(tmp_path / "rain.json")]
    paths = {"adapter": adapter_folder, "facts": tmp_path / "facts.yaml", "sample": tmp_path / "photo.jpg"}
    return {**{key: str(path) for key, path in paths.items()}, "repo": "user/tiny", "evaluation": evaluation}


def run(arguments, **changes):
    return publish.main(publish.PublishArguments(**{**arguments, **changes}))


def change_facts(arguments, **changes):
    Path(arguments["facts"]).write_text(yaml.safe_dump({**FACTS, **changes}))


def test_the_card_says_what_was_measured_and_what_was_not(arguments, tmp_path):
    run(arguments, card=str(tmp_path / "card.md"))
    card = ModelCard.load(tmp_path / "card.md")
    data = card.data
    assert (data.base_model, data.library_name, data.license) == ("user/vit", "peft", "cc-by-4.0")
    assert (data.pipeline_tag, data.datasets, data.model_name) == ("image-segmentation", ["user/fog"], "tiny")
    found = [
        (r.dataset_type, r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in data.eval_results
    ]
    assert found == [
        ("user/fog", "Fog", "val", "mean_iou", 12.35),
        ("user/fog", "Fog", "val", "overall_accuracy", 50.0),
        ("rain", "Rain", None, "mean_iou", 50.0),
        ("rain", "Rain", None, "overall_accuracy", 50.0),
    ]
    assert [r.source_url for r in data.eval_results] == [None, None, "https://rain.org", "https://rain.org"]
    for line in (
        "| Fog | ten photos | 12.35 | 50.00 |",
        "| IoU | Fog | Rain |",
        "| road | 25.00 | 50.00 |",
        "| sky | 0.00 |  |",  # counted and never found
        "| puddle |  | 75.00 |",  # a class that only the data set has
        "- noise: Six pictures. Licence: CC0 ([source](https://noise.org))",
        "- Knows nothing.",
        "pip install rein-hf",
        'model = rein_hf.from_pretrained("user/tiny")',
        "| classes | road, car, sky |",
        "Take it.",
    ):
        assert f"\n{line}\n" in card.content, line
    assert "| car |" not in card.content and "fog/scene" not in card.content and "None" not in card.content
    usage = card.text[card.text.index("```python") : card.text.index("```", card.text.index("```python") + 3)]
    assert len(usage.strip().splitlines()) - 1 <= 10 and usage.index("import rein_hf") < usage.index("from PIL")


def test_the_card_says_in_what_an_evaluation_differs_from_the_protocol(arguments, tmp_path):
    """Else a reader takes one image, or the mean over some classes, for the paper's."""
    settings = {"limit": 1, "crop": 32, "stride": 16, "bf16": True, "scored": "synthia13"}
    domains = {"fog": {"data": "/home/me/fog", "images": 10, "size": "64x48"}, "rain": {"data": "rain", "images": 1}}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": settings, "domains": domains}))
    run(arguments, card=str(tmp_path / "card.md"))
    card = ModelCard.load(tmp_path / "card.md")
    how = "windows of 32 every 16 pixels; seen at 64x48; mean over the 13 classes of synthia13"
    assert f"\n| Fog | ten photos (1 of 10 images; {how}) | 12.35 | 50.00 |\n" in card.content
    assert "windows of 32 every 16 pixels; mean over the 13" in card.content and "/home/me" not in card.content
    assert "1 of 1 images" not in card.content  # which is all of them
    assert card.data.eval_results[0].dataset_args == {"evaluated": f"(1 of 10 images; {how})"}
    (tmp_path / "settings.json").write_text(json.dumps({"settings": {"bf16": True}, "domains": domains}))
    run(arguments, card=str(tmp_path / "card.md"))
    card = ModelCard.load(tmp_path / "card.md")
    assert "| Fog | ten photos (seen at 64x48) |" in card.content and "| Rain | two photos |" in card.content
    assert card.data.eval_results[-1].dataset_args is None


def test_without_results_the_card_says_so(arguments, tmp_path):
    run(arguments, evaluation=[], card=str(tmp_path / "card.md"))
    card = ModelCard.load(tmp_path / "card.md")
    assert card.data.eval_results is None and "Not measured yet." in card.content and "| IoU |" not in card.content


@pytest.mark.parametrize("path", sorted((ROOT / "hub_cards").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_facts_file_makes_a_card(path, adapter_folder):
    facts = read_facts(path)
    results = {domain: scores(0.5, road=0.5) for domain in facts.domains}
    card = render_card(publish.TEMPLATE, f"user/{path.stem}", facts, results, rein_hf.describe(adapter_folder))
    assert len(card.data.eval_results) == 2 * len(results) and card.data.base_model == facts.backbone["id"]
    named = re.search(r"recipes/configs/[\w.-]+\.yaml", facts.recipe)[0]
    assert (ROOT / named).is_file()


def test_only_three_files_a_card_and_a_picture_are_published(arguments, capsys):
    sizes = run(arguments)
    assert set(sizes) == {"adapter_config.json", WEIGHTS, "preprocessor_config.json", "README.md", "sample.jpg"}
    assert sizes[WEIGHTS] == Path(arguments["adapter"], WEIGHTS).stat().st_size
    printed = capsys.readouterr().out
    assert f"{sizes[WEIGHTS]:,} bytes  {WEIGHTS}" in printed and f"{sum(sizes.values()):,} bytes  in all" in printed
    assert "Stays here: checkpoint-2/, training_args.bin." in printed and "Nothing uploaded" in printed


def test_local_paths_and_what_cameras_note_stay_here(arguments, vit_folder):
    facts = read_facts(Path(arguments["facts"]))
    before = publish.adapter_files(Path(arguments["adapter"]))["adapter_config.json"]
    config = json.loads(before)
    config["base_model_name_or_path"] = vit_folder
    config["base_config"]["backbone_config"]["_name_or_path"] = vit_folder  # as earlier versions wrote it
    published = publish.published_config(json.dumps(config).encode(), facts)
    assert vit_folder not in published.decode() and json.loads(published)["base_model_name_or_path"] == "user/vit"
    picture = publish.sample_picture(Path(arguments["sample"]))
    assert b"taken at home" in Path(arguments["sample"]).read_bytes() and b"taken at home" not in picture


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"Stra\xdfe": {}}', "fog.json is no JSON in UTF-8 .*expected a results.json of rein-hf evaluate"),
        (b"[1]", "fog.json holds no results by model and domain"),
        (b'{"a": 1}', "fog.json holds no results by model and domain"),
    ],
)
def test_other_files_than_results_are_refused(arguments, tmp_path, content, message):
    (tmp_path / "fog.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        run(arguments)


def test_results_may_begin_with_a_byte_order_mark(arguments, tmp_path):
    (tmp_path / "fog.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "fog.json").read_bytes())
    run(arguments, card=str(tmp_path / "card.md"))
    assert "| Fog | ten photos | 12.35 | 50.00 |" in (tmp_path / "card.md").read_text(encoding="utf-8")


def test_the_picture_is_upright(tmp_path):
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 255, 255), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture.save(tmp_path / "photo.png", exif=exif)
    content = publish.sample_picture(tmp_path / "photo.png")
    found = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert found.shape == (40, 20) and found[:18].min() > 200 and found[-18:].max() < 50


def test_at_the_command_line_an_error_is_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "recipes" / "publish.py"), "--adapter", str(tmp_path), "--repo", "user/tiny"]
    command += ["--facts", str(tmp_path / "none.yaml"), "--sample", "none.jpg"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    lines = ended.stderr.strip().splitlines()
    assert ended.returncode == 2 and lines[-1].startswith("rein-hf publish: ") and "none.yaml" in lines[-1]
    assert "Traceback" not in ended.stderr


def test_what_does_not_belong_is_refused(arguments, adapter_folder, tmp_path):
    with pytest.raises(
        ValueError, match=r"Evaluated on \['rain'\], of which the facts' domains say nothing: \['fog'\]"
    ):
        change_facts(arguments, domains={"fog": FACTS["domains"]["fog"]})
        run(arguments)
    change_facts(arguments)
    with pytest.raises(
        ValueError, match=r"holds \['nowhere', 'other'\]; expected .*adapter. Give the folder as --adapter, its"
    ):
        (tmp_path / "others.json").write_text(json.dumps({"other": {}, "nowhere": {}}))
        run(arguments, evaluation=[str(tmp_path / "others.json")])
    with pytest.raises(ValueError, match="fog is in another --evaluation as well"):
        run(arguments, evaluation=arguments["evaluation"][:1] * 2)
    with pytest.raises(ValueError, match="fog: mean_iou is None; nothing was counted"):
        (tmp_path / "nothing.json").write_text(json.dumps({str(adapter_folder): {"fog": scores(None)}}))
        run(arguments, evaluation=[str(tmp_path / "nothing.json")])
    with pytest.raises(ValueError, match="Repo id must"):
        run(arguments, repo="user/tiny/one")
    rein_hf.inference.image_processing.Mask2FormerImageProcessorPil().save_pretrained(adapter_folder)
    with pytest.raises(
        ValueError, match=r"preprocessor_config.json is a Mask2FormerImageProcessor\w*, which squeezes"
    ):
        run(arguments)
    (adapter_folder / WEIGHTS).rename(tmp_path / WEIGHTS)
    with pytest.raises(FileNotFoundError, match=f"adapter has no {WEIGHTS}; expected what rein-hf train leaves"):
        run(arguments)
    (adapter_folder / WEIGHTS).symlink_to(tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS} is a link to .*, outside the folder; copy the file instead"):
        run(arguments)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"license": None}, "facts.yaml: license is empty"),
        ({"limits": []}, "facts.yaml: limits is empty"),
        ({"licence": "mit"}, r"missing \[\], unknown \['licence'\]"),
        ({"training_data": [{"name": "noise", "description": "Six."}]}, "training_data has no license; found"),
        ({"backbone": {"id": "/data/vit", "license": "mit"}}, "Repo id must"),
    ],
)
def test_facts_have_to_be_whole(arguments, changes, message):
    change_facts(arguments, **changes)
    with pytest.raises(ValueError, match=message):
        run(arguments)


def command_line(arguments) -> list[str]:
    evaluation = ["--evaluation", *arguments["evaluation"]]
    others = [word for key, value in arguments.items() if key != "evaluation" for word in (f"--{key}", value)]
    return [sys.executable, "-m", "recipes.publish", *others, *evaluation, "--push", "true"]


def test_published_and_used_from_the_hub_as_the_card_says(arguments, hub, rein_model, tmp_path):
    environment = {**hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    anonymous = subprocess.run(command_line(arguments), env=environment, capture_output=True, text=True, cwd=ROOT)
    assert anonymous.returncode and "401" in anonymous.stderr and "user/tiny" not in hub.repos
    with_token = {**environment, "HF_TOKEN": TOKEN}
    result = subprocess.run(command_line(arguments), env=with_token, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    files = hub.files("user/tiny")
    names = {".gitattributes", "adapter_config.json", WEIGHTS, "preprocessor_config.json", "README.md", "sample.jpg"}
    assert set(files) == names
    assert files[WEIGHTS] == Path(arguments["adapter"], WEIGHTS).read_bytes()
    assert not [name for name, body in files.items() if TOKEN.encode() in body or str(tmp_path).encode() in body]
    # in another folder, with an empty cache, without a token: the ten lines of the card
    text = ModelCard(files["README.md"].decode()).text
    usage = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    (tmp_path / "work").mkdir()
    photo = Image.open(arguments["sample"]).crop((0, 0, 100, 90))
    photo.save(tmp_path / "work" / "street.png")
    usage = usage.replace("street.jpg", "street.png")
    elsewhere = {**hub.environment(tmp_path / "empty"), "PYTHONPATH": str(ROOT)}
    used = subprocess.run(
        [sys.executable, "-c", usage], env=elsewhere, capture_output=True, text=True, cwd=tmp_path / "work"
    )
    assert used.returncode == 0, used.stderr
    expected = rein_hf.segment(rein_model, rein_hf.ReinImageProcessor(), photo)
    palette = rein_hf.labels.palette_of(["road", "car", "sky"])
    overlay = np.asarray(Image.open(tmp_path / "work" / "overlay.png"))
    assert np.array_equal(overlay, np.asarray(rein_hf.overlay(photo, expected, palette)))


def test_a_backbone_that_is_not_on_the_hub_is_not_named_on_a_card(arguments, hub, tmp_path):
    change_facts(arguments, backbone={"id": "user/elsewhere", "license": "mit"})
    environment = {**hub.environment(tmp_path / "home", HF_TOKEN=TOKEN), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command_line(arguments), env=environment, capture_output=True, text=True, cwd=ROOT)
    assert "the backbone user/elsewhere is not on the Hub; upload it first" in result.stderr
    assert "user/tiny" not in hub.repos


# transformers' own ways to upload, in one process
PUSH = """
import sys, rein_hf
from rein_hf.commands import train

model = rein_hf.from_pretrained("user/adapter")
model.push_to_hub("user/pushed")
rein_hf.build_image_processor().push_to_hub("user/pushed")
train.main(*train.parse([sys.argv[1], "--push_to_hub", "true", "--hub_model_id", "user/trained"]))
"""


def test_push_to_hub_of_model_and_trainer(hub, client, recipe, tmp_path):
    environment = {**hub.environment(tmp_path / "home", HF_TOKEN=TOKEN), "PYTHONPATH": str(ROOT)}
    values = yaml.safe_load(recipe.read_text())
    recipe.write_text(yaml.safe_dump({**values, "backbone": "user/vit", "max_steps": 2, "evaluate": []}))
    command = [sys.executable, "-c", PUSH, str(recipe)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    ours = {"adapter_config.json", WEIGHTS, "preprocessor_config.json", "README.md"}
    assert set(hub.files("user/pushed")) == {".gitattributes", *ours}
    assert set(hub.files("user/trained")) == {".gitattributes", *ours, "trainer_state.json", "recipe.json"}
    for repo in ("user/pushed", "user/trained"):
        seen = client.load(pretrained=repo, cache_dir=str(tmp_path / "cache"))
        assert seen.error is None, seen.error
        assert not [name for name, body in hub.files(repo).items() if TOKEN.encode() in body]
    assert TOKEN not in result.stdout + result.stderr


def test_a_recipe_takes_no_token(recipe):
    """It would be in shell histories and in the files that a run leaves."""
    with pytest.raises(ValueError, match="a token does not belong in a recipe") as refusal:
        train.parse([str(recipe), "--hub_token", TOKEN])
    assert TOKEN not in str(refusal.value)
