"""hub_cards/space: the page as a Space, rendered, published, and run offline from a folder."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi, RepoCard, constants
from PIL import Image

import rein_hf
from rein_hf.commands import publish
from rein_hf.hub import read_facts, render_space
from rein_hf.hub.space import GRADIO
from rein_hf.page import launch_page
from tests.support.hub_api import TOKEN
from tests.support.pages import PageClient, free_port


ROOT = Path(__file__).parents[2]
FACTS = {
    "title": 'A "tiny" one',
    "summary": "For tests.",
    "recipe": "none",
    "backbone": {"id": "user/vit", "license": "apache-2.0"},
    "license": "cc-by-4.0",
    "license_note": "Take it.",
    "training_data": [{"name": "noise", "description": "Six pictures.", "license": "CC0"}],
    "limits": ["Knows nothing.", "Sees little."],
    "domains": {},
}


@pytest.fixture
def arguments(adapter_folder, tmp_path):
    """Of `rein-hf publish`: an adapter, facts, a picture, and a Space with one example photo."""
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(FACTS))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.radial_gradient("L").convert("RGB").save(tmp_path / "photo.jpg", exif=exif)
    paths = {"adapter": adapter_folder, "facts": tmp_path / "facts.yaml", "sample": tmp_path / "photo.jpg"}
    space = {"space": "user/page", "space_examples": [str(tmp_path / "photo.jpg")]}
    return {**{key: str(path) for key, path in paths.items()}, "repo": "user/tiny", **space}


def render(folder: Path, adapter: Path, facts: Path, examples: dict[str, bytes]) -> dict[str, bytes]:
    about = rein_hf.describe(adapter)
    files = render_space(ROOT / "hub_cards" / "space", "user/tiny", read_facts(facts), about, "1.2.3", examples)
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def test_a_space_is_rendered_from_the_facts(arguments, tmp_path):
    files = render(tmp_path / "space", Path(arguments["adapter"]), Path(arguments["facts"]), {"street": b"jpeg"})
    assert set(files) == {"README.md", "app.py", "requirements.txt", "examples/street.jpg"}
    card = RepoCard.load(tmp_path / "space" / "README.md")
    assert (card.data.sdk, card.data.sdk_version, card.data.app_file) == ("gradio", GRADIO, "app.py")
    assert (card.data.title, card.data.license, card.data.models) == (
        'A "tiny" one',
        "cc-by-4.0",
        ["user/tiny", "user/vit"],
    )
    for text in ("For tests.", "- Knows nothing.", "- Sees little.", "Take it.", "rein-hf demo --model user/tiny"):
        assert text in card.text
    compile(files["app.py"], "app.py", "exec")
    assert 'REPO = "user/tiny"' in files["app.py"].decode()
    assert "rein-hf[corruptions,page]==1.2.3" in files["requirements.txt"].decode().splitlines()
    assert not re.search(rb"\{\{|\{%", b"".join(files.values()))


def test_every_requirement_is_pinned_to_what_is_tested():
    text = (ROOT / "hub_cards" / "space" / "requirements.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?==(\S.*)$", text, re.MULTILINE))
    tested = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert len(pins) == sum(not line.startswith("#") for line in text.splitlines())
    assert tested["gradio"] == GRADIO
    tested |= {"rein-hf": "{{ version }}", "gradio": "{{ gradio }}"}
    assert pins == {name: tested.get(name) for name in pins}


@pytest.mark.parametrize("name", ["", ".hidden", "../up", "a/b", "a\\b"])
def test_names_of_examples_are_names_of_files(arguments, tmp_path, name):
    with pytest.raises(ValueError, match="is the name of an example photo"):
        render(tmp_path, Path(arguments["adapter"]), Path(arguments["facts"]), {name: b""})


def test_a_space_is_published_beside_its_adapter(arguments, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(publish, "HfApi", lambda: HfApi(hub.endpoint, TOKEN))
    for _ in range(2):  # the second time it is there
        publish.main(publish.PublishArguments(**arguments, push=True))
    output = capsys.readouterr().out
    assert f"Space: {hub.endpoint}" in output and "app.py, to the Space user/page" in output
    files = hub.files("spaces/user/page")
    assert set(files) - {".gitattributes"} == {"README.md", "app.py", "requirements.txt", "examples/photo.jpg"}
    assert b"taken at home" not in files["examples/photo.jpg"]
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert "adapter_config.json" in hub.files("user/tiny")


def test_nothing_is_uploaded_unless_asked(arguments, capsys):
    publish.main(publish.PublishArguments(**arguments))
    output = capsys.readouterr().out
    assert "requirements.txt, to the Space user/page" in output and "Nothing uploaded" in output


def test_a_wrong_space_is_refused(arguments):
    with pytest.raises(ValueError, match="--space_examples has photos for a Space; found no --space"):
        publish.main(publish.PublishArguments(**{**arguments, "space": None}))
    with pytest.raises(ValueError, match="Repo id must"):
        publish.main(publish.PublishArguments(**{**arguments, "space": "user/pa ge"}))
    with pytest.raises(ValueError, match="several photos of one name"):
        publish.main(publish.PublishArguments(**{**arguments, "space_examples": 2 * arguments["space_examples"]}))


def test_a_space_runs_offline_from_a_folder(arguments, rein_model, vit_folder, tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason='the page is served by Gradio: pip install "rein-hf[page]"')
    folder, photo = tmp_path / "space", tmp_path / "photo.jpg"
    render(folder, Path(arguments["adapter"]), Path(arguments["facts"]), {"gradient": photo.read_bytes()})
    rein_model.peft_config["default"].base_model_name_or_path = vit_folder
    rein_model.save_pretrained(folder / "adapter", with_backbone=True)
    rein_hf.build_image_processor().save_pretrained(folder / "adapter")
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setenv("GRADIO_SERVER_PORT", str(free_port()))
    served = []
    # the Space itself waits until it is stopped
    monkeypatch.setattr(
        "rein_hf.page.launch_page", lambda *args, **kwargs: served.append(launch_page(*args, **kwargs, wait=False))
    )
    runpy.run_path(str(folder / "app.py"))
    [(page, address)] = served
    try:
        answer = PageClient(address).ask("segment", {"photo": "example:0", "adapter": "adapter", "detail": "fast"})
        assert answer["size"] == [256, 256] and page.title == "Segment a photo with tiny"
    finally:
        page.close()
