"""The documents say what there is: their links, commands, names, trees and tables, and README's code runs."""

import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml
from PIL import Image

import rein_hf
from rein_hf.commands import cli
from rein_hf.data import LAYOUTS
from rein_hf.tuner.architectures import ARCHITECTURES
from tests.support import documents


NAMES = "README BENCHMARKS CHANGELOG CONTRIBUTING recipes/README recipes/assessments/README hub_cards/README".split()
TEXTS = {f"{name}.md": Path(f"{name}.md").read_text(encoding="utf-8") for name in NAMES}
README, CONTRIBUTING, BENCHMARKS = (TEXTS[f"{name}.md"] for name in ("README", "CONTRIBUTING", "BENCHMARKS"))
# a changelog names what was, too
OF_TODAY = {name: text for name, text in TEXTS.items() if name != "CHANGELOG.md"}
ROOT = Path.cwd()
HEADERS = sorted(Path("recipes").rglob("*.yaml"))
TINY = ["--crop", "64", "--num_queries", "8", "--max_steps", "2", "--use_cpu", "true", "--disable_tqdm", "true"]


def test_readme_is_read_to_the_end():
    assert len(README.splitlines()) <= 200
    assert set(TEXTS) - {"README.md", "hub_cards/README.md"} <= set(re.findall(r"\]\(([^)#]+)", README))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    wrong = []
    for path, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", documents.prose(TEXTS[name])):
        target = (Path(name).parent / path) if path else Path(name)
        if not target.exists() or anchor and anchor not in documents.anchors(target.read_text(encoding="utf-8")):
            wrong.append(f"{path}#{anchor}")
    assert not wrong


@pytest.mark.parametrize("name", OF_TODAY)
def test_prose_fits_an_editor(name):
    lines = documents.prose(TEXTS[name]).splitlines()
    assert [line for line in lines if len(line) > 119 and not line.lstrip().startswith(("|", "!["))] == []


def test_nothing_is_said_twice():
    found = [(sentence, name) for name, text in TEXTS.items() for sentence in documents.sentences(text)]
    by_sentence = {}
    for sentence, name in found:
        by_sentence.setdefault(sentence, []).append(name)
    assert {sentence: names for sentence, names in by_sentence.items() if len(names) > 1} == {}


@pytest.mark.parametrize("name", OF_TODAY)
def test_commands_would_start(name):
    for words in documents.commands(TEXTS[name]):
        documents.check_command(words, whole=True)
    for words in documents.inline_commands(TEXTS[name]):
        documents.check_command(words, whole=False)


@pytest.mark.parametrize("path", HEADERS, ids=str)
def test_commands_of_recipes_would_start(path):
    found = list(documents.header_commands(path))
    assert found
    for words in found:
        documents.check_command(words, whole=True)


@pytest.mark.parametrize(
    "command",
    [
        "python recipes/predict.py --modell x --input x --output_dir x",
        "python recipes/predict.py --model x",
        "python recipes/train.py RECIPE --lerning_rate 1",
        "rein-hf predict --modell x --input x --output_dir x",
        "rein-hf train gtav_dinov2-huge_512",
        "rein-hf trian RECIPE",
        "accelerate launch -m rein_hf.commands.train RECIPE --lerning_rate 1",
        "python -m tests.measure.none",
        "accelerate launch --proceses 2 recipes/train.py RECIPE",
        "make demmo",
    ],
)
def test_a_wrong_command_is_found(command):
    with pytest.raises((AssertionError, OSError, SystemExit, ValueError)):
        documents.check_command(command.split(), whole=True)


def resolve(name: str) -> object:
    """What a dotted name stands for."""
    found = rein_hf
    for depth, part in enumerate(name.split(".")[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(name.split(".")[:depth]))
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", OF_TODAY)
def test_names_and_paths_exist(name):
    for dotted in set(re.findall(r"\brein_hf(?:\.[A-Za-z_]\w*)+", TEXTS[name])):
        resolve(dotted)
    for block in documents.code_blocks(TEXTS[name], "python"):
        compile(block, name, "exec")
    paths = re.findall(r"`((?:rein_hf|recipes|tests|hub_cards)/[\w./*+-]*)`", documents.prose(TEXTS[name]))
    assert [path for path in paths if not list(Path().glob(path.rstrip("/")))] == []


def tree(folder: str) -> list[str]:
    """The entries of a folder in CONTRIBUTING's tree: the lines below its own, indented by two or, in a folder within,
    by four."""
    entries, inner = [], ""
    lines = re.search(rf"^{folder}/\n((?:  .*\n)+)", CONTRIBUTING, re.MULTILINE)[1].splitlines()
    for line in lines:
        name = line.split()[0]
        if not line.startswith("    "):
            inner = name if name.endswith("/") else ""
        entries.append(inner + name if line.startswith("    ") else name)
    return entries


@pytest.mark.parametrize("folder", ["rein_hf", "recipes"])
def test_the_tree_names_every_file(folder):
    entries = tree(folder)
    whole = [entry for entry in entries if entry.endswith("/") and sum(e.startswith(entry) for e in entries) == 1]
    patterns = [entry + "*" if entry in whole else entry for entry in entries]
    files = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    files = [file for file in files if not re.search("__pycache__|/__init__.py$|[.]png$", file)]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []
    assert [entry for entry in entries if not list(Path(folder).glob(entry.removesuffix("/")))] == []


def test_the_floors_are_those_of_the_contract():
    tomllib = pytest.importorskip("tomllib")
    contracts = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = documents.code_blocks(CONTRIBUTING, "")[1].splitlines()
    assert floors == ["recipes", *next(contract["layers"] for contract in contracts if contract.get("containers"))]


def codes(column: int, heads: str, text: str) -> set[str]:
    """What is in `code` in a column of the table with these heads."""
    table = next(table for table in documents.tables(text) if table[0][column] == heads)
    return {code for row in table[1:] for code in re.findall(r"`([^`]+)`", row[column])}


def test_tables_list_what_there_is():
    assert codes(0, "layout", TEXTS["recipes/README.md"]) == {*LAYOUTS, "hub"}
    assert codes(1, "`model_type`", README) == codes(0, "`model_type`", CONTRIBUTING) == set(ARCHITECTURES)
    recipes = {path.name for path in Path("recipes/configs").glob("*.yaml")}
    recipes = {name for name in recipes if "demo" not in name and name != "own.yaml"}  # the papers'
    of_soma, of_dinov3 = (codes(0, f"recipe of {name}", TEXTS["recipes/README.md"]) for name in ("SoMA", "Rein++"))
    assert codes(0, "recipe in `recipes/configs`", README) | of_soma | of_dinov3 == recipes
    launchers = {path.name for path in Path("recipes/accelerate").iterdir()}
    assert codes(0, "`recipes/accelerate/`", TEXTS["recipes/README.md"]) == launchers
    cards = {path.name for path in Path("hub_cards").iterdir()} - {"README.md"}
    assert codes(0, "file", TEXTS["hub_cards/README.md"]) == cards


def test_the_papers_numbers_are_those_of_the_recipes():
    table = next(table for table in documents.tables(README) if table[0][-1] == "paper")
    for recipe, _, numbers in table[1:]:
        header = Path("recipes/configs", recipe.strip("`")).read_text(encoding="utf-8").split("Measured")[0]
        assert re.search(rf"\b{re.escape(numbers)}\b", header), recipe


def test_the_claim_is_the_mean_of_what_was_measured():
    claim = next(table for table in documents.tables(README) if table[0][0] == "the backbone is")
    seeds = next(table for table in documents.tables(BENCHMARKS) if table[0][:2] == ["tuning", "seed"])
    for tuning, _, *means in claim[1:]:
        rows = [row for row in seeds[1:] if tuning.endswith(row[0]) or row[0] == "full" and "full" in tuning]
        assert len(rows) == 2
        for column, mean in enumerate(means, 2):
            # the seeds are rounded too
            assert float(mean.strip("*")) == pytest.approx(sum(float(row[column]) for row in rows) / 2, abs=0.1)


@pytest.mark.parametrize("name", ["BENCHMARKS.md", "recipes/README.md", "recipes/assessments/README.md"])
def test_numbers_stand_beside_their_command(name):
    measured = 0
    for title, text in documents.sections(TEXTS[name]).items():
        if any(re.search(r"\d\.\d", cell) for table in documents.tables(text) for row in table for cell in row):
            measured += 1
            assert documents.code_blocks(text, "bash"), title
    assert measured >= 2


@pytest.fixture
def tiny(rein_model, vit_folder, tmp_path, monkeypatch):
    """What README's words stand for: a tiny adapter, a photo, a data set."""
    folder = str(tmp_path / "adapter")
    rein_model.save_pretrained(folder)
    rein_hf.build_image_processor().save_pretrained(folder)
    (tmp_path / "photos").mkdir()
    Image.radial_gradient("L").convert("RGB").resize((90, 70)).save(tmp_path / "photos" / "fog_01000.png")
    monkeypatch.chdir(tmp_path)
    adapters = dict.fromkeys(["outputs/demo/rein", "USER/my-adapter", "USER/my-night-adapter"], folder)
    photos = {"outputs/demo/data/fog/images": str(tmp_path / "photos")}
    return adapters | photos | {"facebook/dinov2-large": vit_folder}


def test_readmes_python_runs(tiny):
    names = {}
    for block in documents.code_blocks(README, "python"):
        if "onnxruntime" in block:  # tests/recipes/test_export.py runs it
            continue
        for word, meant in tiny.items():
            block = re.sub(rf'"{word}(?=["/])', f'"{meant}', block)
        exec(compile(block, "README.md", "exec"), names)
        if "overlay" in block:
            assert names["labels"].shape == (70, 90) and Image.open("overlay.png").size == (90, 70)
    assert names["model"].active_adapter == "night"
    assert {found["label"] for found in names["pipe"](names["photo"])} <= {"road", "car", "sky"}
    assert Path("my-adapter/adapter_model.safetensors").is_file() and len(names["base"].config.id2label) == 3


def test_readmes_commands_run(tiny, recipe, monkeypatch):
    tiny |= {"DATA": str(recipe.parent / "data")}
    values = yaml.safe_load(recipe.read_text())
    smaller = ["--head", str(values["head"]), "--backbone", values["backbone"], *TINY]
    ran = []
    for program, *words in documents.commands(README):
        if program != "rein-hf" or not set(tiny) & set(words) or words[0] == "export":
            continue
        arguments = [tiny.get(word, word) for word in words]
        assert cli.main([*arguments, *(smaller if words[0] == "train" else [])]) == 0
        ran.append(words[0])
    assert ran == ["predict", "inspect", "train"]
    assert Image.open("outputs/segmented/fog_01000_overlay.jpg").size == (90, 70)
    assert Path("outputs/inspection/contact_sheet.png").is_file()
    assert rein_hf.from_pretrained("outputs/mine").config.id2label[13] == "car"


def test_the_software_can_be_cited_and_is_typed():
    citation = yaml.safe_load(Path("CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == rein_hf.__version__ and citation["cff-version"] == "1.2.0"
    paper = citation["preferred-citation"]
    assert paper["title"].startswith("Stronger, Fewer, & Superior") and len(paper["authors"]) == 9
    assert Path("rein_hf/py.typed").is_file()
    assert 'rein_hf = ["py.typed"]' in Path("pyproject.toml").read_text()
