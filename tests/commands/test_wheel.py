"""What `pip install rein-hf` gives: a wheel of the package and its files, which runs in an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rein_hf.files import shipped


ROOT = Path.cwd()


def test_every_room_is_in_the_package():
    tomllib = pytest.importorskip("tomllib")
    setuptools = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {f"rein_hf.{path.parent.name}" for path in Path("rein_hf").glob("*/__init__.py")}
    folders = {f"rein_hf.{kind}": folder for kind, folder in shipped.FOLDERS.items()}
    assert setuptools["package-dir"] == folders
    assert set(setuptools["packages"]) == {"rein_hf"} | rooms | set(folders)
    assert len(setuptools["packages"]) == 1 + len(rooms) + len(folders)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the repository, since a build leaves files in its source."""
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source")
    names = "rein_hf recipes hub_cards pyproject.toml README.md LICENSE".split()
    subprocess.run(["cp", "-r", *names, str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(source / "dist"), str(source)], check=True)
    return next((source / "dist").glob("rein_hf-*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_what_comes_with_it(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        entry_points = file.read(next(name for name in file.namelist() if name.endswith("entry_points.txt"))).decode()
    assert {name.partition("/")[0] for name in names} == {"rein_hf"}
    assert "rein-hf = rein_hf.commands.cli:main" in entry_points
    expected = {path.as_posix() for path in Path("rein_hf").rglob("*.py")} | {"rein_hf/py.typed"}
    for kind, folder in shipped.FOLDERS.items():
        files = [path.name for path in Path(folder).glob("*.yaml")]
        if kind == "hub_cards":
            files = ["template.md", *(f"space/{path.name}" for path in Path(folder, "space").iterdir())]
        expected |= {f"rein_hf/{kind}/{name}" for name in files}
    expected |= {path.as_posix() for path in Path("rein_hf/page/client").iterdir()}
    assert names == expected


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(wheel, recipe, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def rein_hf(*words: str, module: str = "rein_hf.commands.cli") -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)

    listed = rein_hf("train", "--list")
    assert listed.returncode == 0 and str(site / "rein_hf" / "accelerate" / "gpus.yaml") in listed.stdout
    assert "\n  gtav_dinov2-large_512\n" in listed.stdout
    values = rein_hf("train", "gtav_dinov2-large_512", "--help")
    assert "(default: facebook/dinov2-large)" in values.stdout and not values.stderr
    refused = rein_hf("gtav_dinov2-large_512", "--train", "gta5:DATA", "--use-cpu", module="rein_hf.commands.train")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].startswith("rein-hf train: ")
    assert "DATA" in refused.stderr and "Traceback" not in refused.stderr
    trained = rein_hf("train", str(recipe), "--steps", "1", "--output-dir", "run", "--use-cpu")
    assert trained.returncode == 0, trained.stderr
    described = rein_hf("describe", "--model", "run")
    assert described.returncode == 0 and "rank 4" in described.stdout, described.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in Path("recipes").glob("*.py")))
def test_the_scripts_of_a_clone_hand_on(name):
    verb = {"inspect_data": "inspect", "convert_rein_to_hf": "convert"}.get(name, name)
    text = (ROOT / "recipes" / f"{name}.py").read_text(encoding="utf-8")
    assert f'sys.exit(run("{verb}"))' in text and (ROOT / "rein_hf" / "commands" / f"{verb}.py").is_file()
