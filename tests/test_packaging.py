"""What is installed: built as for the index, installed elsewhere, used from there."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from processes import run_python

from modeling_dino import DinoConfig
from modeling_dino.training.recipes import recipes


# what is set up once takes long, so all of it runs in one process
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("packaging")]

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """A folder with the source distribution and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "-q", "--no-isolation", "-o", folder, ROOT], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory) -> Path:
    """A folder with the wheel unpacked as pip does it, without what it depends on."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = distributions.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*pip, folder, wheel], check=True)
    return folder


def run_installed(code: str, folder: Path, installed: Path):
    return run_python(f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}", folder)


def test_the_wheel_has_two_packages_and_the_presets(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {
        "modeling_dino",
        "conversion_scripts",
        "dino_command.py",
    }
    presets = {name.removeprefix("modeling_dino/configuration/") for name in names if name.endswith(".json")}
    assert presets == {f"{name}.json" for name in DinoConfig.presets()}
    packed = {name.removeprefix("modeling_dino/configuration/") for name in names if name.endswith(".yaml")}
    assert packed == {f"recipes/{name}.yaml" for name in recipes()}
    assert {f"modeling_dino/report/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert {"modeling_dino/py.typed", "conversion_scripts/py.typed"} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_distribution_has_the_presets_and_tests(distributions):
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {f"configuration/{name}.json" for name in DinoConfig.presets()} <= names
    assert {f"configuration/recipes/{name}.yaml" for name in recipes()} <= names
    assert {"tests/conftest.py", "tests/golden/vit.safetensors", "README.md", "LICENSE", "Makefile"} <= names


def test_recipes_are_found_in_an_installed_wheel(tmp_path, installed):
    code = """
from modeling_dino.training.recipes import load_recipe, recipes
load_recipe("vit_small_100")
print(*recipes())
"""
    assert run_installed(code, tmp_path, installed).stdout.split() == recipes()


@pytest.mark.parametrize("where", ["wheel", "checkout"])
def test_presets_are_found(tmp_path, installed, where):
    path = installed if where == "wheel" else ROOT
    code = f"""
from pathlib import Path
import modeling_dino
assert Path(modeling_dino.__file__).is_relative_to({str(path)!r}), modeling_dino.__file__
print(*modeling_dino.DinoConfig.presets())
assert modeling_dino.DinoConfig.from_preset("dino_vits8").patch_size == 8
"""
    assert run_installed(code, tmp_path, path).stdout.split() == DinoConfig.presets()


def test_the_command_of_an_installed_wheel(tmp_path, installed):
    code = """
import runpy
sys.argv = ["dino", "info", "dino_vits16"]
runpy.run_module("modeling_dino", run_name="__main__")
"""
    assert "21,665,664" in run_installed(code, tmp_path, installed).stdout


def test_code_for_the_hub_comes_from_an_installed_wheel_too(tmp_path, installed):
    code = """
from modeling_dino import DinoConfig, DinoModel
config = DinoConfig(backbone="vit_tiny", num_hidden_layers=1, image_size=32, head_type=None)
DinoModel(config).save_pretrained("model", with_code=True)
"""
    run_installed(code, tmp_path, installed)
    load = 'from transformers import AutoModel; AutoModel.from_pretrained("model", trust_remote_code=True)'
    run_python(load, tmp_path, blocked=("modeling_dino",))
