import importlib.util
import sys
from pathlib import Path

import pytest
import typer
from PIL import Image
from processes import run_python
from tiny_models import tiny_config

import dino_command
from modeling_dino import DinoModel
from modeling_dino.cli.app import app
from modeling_dino.runtime import extras


ROOT = Path(__file__).parents[2]
PACKAGE = "modeling_dino"


def test_the_extras_are_those_that_are_installed():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = project["optional-dependencies"]

    def libraries(extra: str) -> set[str]:
        found = set()
        for requirement in declared[extra]:
            name, _, rest = requirement.partition(">=")
            inner = name.removeprefix("modeling-dino[").removesuffix("]").split(",") if not rest else []
            found |= set().union(*map(libraries, inner)) if inner else {name}
        return found

    for extra, modules in extras.EXTRAS.items():
        assert {extras._name_to_install(module).lower() for module in modules} == libraries(extra), extra
    assert set(declared) == {*extras.EXTRAS, "docs", "test"}
    assert any(name.startswith("pillow") for name in project["dependencies"])


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda module: False)


@pytest.mark.parametrize("command", extras.NEEDED)
def test_each_command_says_first_what_is_missing(dino, nothing_installed, command):
    """Before it looks for models and images, which are not there."""
    parameters = typer.main.get_command(app).commands[command].params
    words = []
    for parameter in [parameter for parameter in parameters if parameter.required]:
        value = "small_data" if parameter.name == "recipe" else "nowhere"
        words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    code, _, err = dino(command, *words)
    assert code == 2
    assert err.startswith(f"dino: `dino {command}` needs accelerate, datasets, ")
    assert err.count("\n") == 1
    assert f"[{extras.NEEDED[command]}]" in err


def test_what_is_missing_is_said_before_anything_is_imported(tmp_path):
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
import dino_command
sys.argv = ["dino", "--traceback", "extract", "--model", "x"]
try:
    dino_command.main()
finally:
    print("torch" in sys.modules, "modeling_dino" in sys.modules)
"""
    done = run_python(code, tmp_path, blocked=("pyarrow", "datasets"), check=False)
    assert done.returncode == 2
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == f"dino: `dino extract` needs datasets, pyarrow, not installed here: run `{hint('cli')}`\n"


def hint(extra: str) -> str:
    return f'pip install -e "{ROOT}[{extra}]"'


def test_the_versions_need_no_import(tmp_path):
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
import dino_command
sys.argv = ["dino", "--version"]
try:
    dino_command.main()
finally:
    assert "torch" not in sys.modules
"""
    assert run_python(code, tmp_path).stdout == extras.versions() + "\n"


def test_the_versions_of_python_m(dino):
    code, out, _ = dino("--traceback", "--version")
    assert code == 0
    assert out == extras.versions() + "\n"
    assert out.startswith("modeling-dino ")
    assert all(f"{name} " in out for name in ("torch", "transformers"))


@pytest.mark.parametrize(
    ("url", "editable", "command"),
    [
        (None, False, 'pip install "modeling-dino[train]"'),
        (
            "git+https://example.org/dino.git",
            False,
            'pip install "modeling-dino[train] @ git+https://example.org/dino.git"',
        ),
        ("FOLDER", False, 'pip install "PATH[train]"'),
        ("FOLDER", True, 'pip install -e "PATH[train]"'),
        ("FOLDER/dino.whl", False, 'pip install "modeling-dino[train] @ FOLDER/dino.whl"'),
        ("FOLDER/gone", False, "pip install torchvision pyyaml"),
    ],
)
def test_the_command_that_installs_an_extra(monkeypatch, tmp_path, url, editable, command):
    folder = tmp_path / "a folder"
    folder.mkdir()
    (folder / "dino.whl").touch()
    url = url and url.replace("FOLDER", folder.as_uri())
    monkeypatch.setattr(extras, "_origin", lambda: (url, editable))
    monkeypatch.setattr(extras, "_is_installed", lambda module: module in extras.CLI)
    assert extras.install_command("train") == command.replace("FOLDER", folder.as_uri()).replace("PATH", str(folder))


@pytest.mark.parametrize(
    ("record", "origin"),
    [
        (None, (None, False)),
        ('{"url": "file:///built", "dir_info": {}}', ("file:///built", False)),
        (
            '{"url": "https://example.org/d.git", "vcs_info": {"vcs": "git", "commit_id": "1"}}',
            ("git+https://example.org/d.git", False),
        ),
    ],
)
def test_where_an_installed_package_comes_from(monkeypatch, tmp_path, record, origin):
    """As pip records it: https://packaging.python.org/en/latest/specifications/direct-url/."""
    information = tmp_path / "modeling_dino-0.1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: modeling-dino\nVersion: 0.1.0\n")
    if record is not None:
        (information / "direct_url.json").write_text(record)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "modeling_dino" / "runtime" / "extras.py"))
    assert extras._origin() == origin


def test_help_and_other_commands_need_no_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find_spec(name) if name == PACKAGE else None)
    for arguments in (["extract", "--help"], ["--help"], ["info"], ["convert", "a", "b"], []):
        dino_command.answer_without_import(arguments)
    with pytest.raises(SystemExit):
        dino_command.answer_without_import(["extract"])


def test_a_benchmark_of_extraction_says_first_what_is_missing(dino, nothing_installed):
    code, _, err = dino("bench", "--what", "features,extraction", "--models", "nowhere")
    assert code == 2
    assert err.startswith("dino: `dino bench --what extraction` needs accelerate, datasets, ")
    assert "[demo]" in err


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a `model` and labelled `images`."""
    folder = tmp_path_factory.mktemp("extras")
    DinoModel(tiny_config()).save_pretrained(folder / "model")
    for i in range(8):
        (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((40, 36), 90).convert("RGB").save(folder / "images" / "ab"[i % 2] / f"{i}.png")
    mask = Image.new("P", (40, 36), 1)
    mask.putpalette([0, 0, 0, 255, 0, 0])
    mask.save(folder / "mask.png")
    return folder


MODEL, IMAGES, SIDES = "--model model", "--images images", "--train images --test images"
SMALL = "batch_size=4 model.backbone=vit_tiny model.hidden_size=24 model.num_attention_heads=3 model.image_size=32"
SMALL += " model.num_hidden_layers=1 model.projection_dim=16 crops.global_crop_size=32 crops.local_crop_size=16"
WITH_EXTRA = {
    "": ["info model", "convert model converted", "bench --models model --rounds 1 --against timm"],
    "cli": [
        f"extract {MODEL} {IMAGES} --output features",
        f"attention {MODEL} {IMAGES} --output attention --size 32",
        f"pca {MODEL} {IMAGES} --output pca --size 32",
        f"match images/a/0.png images/b/1.png {MODEL} --output matches.png --size 32",
        f"segment {MODEL} --video images/a --mask mask.png --output masks --size 32",
        f"knn {MODEL} {SIDES} --k 1",
        f"linear {MODEL} {SIDES} --output linear",
        f"retrieve {MODEL} --index images --queries images",
    ],
    "report": [f"extract {MODEL} {IMAGES} --output reported", "report reported --k 2"],
    "train": [
        f"pretrain small_data {SMALL} training.max_steps=1 --data images --output run",
        f"finetune {MODEL} {SIDES} --epochs 1 --batch-size 4 --output tuned",
    ],
}
OTHERS = {*extras.EXTRAS["demo"], *extras.EXTRAS["video"], *extras.EXTRAS["tiff"], "faiss", "pandas", "timm"}


@pytest.mark.slow
@pytest.mark.parametrize("extra", WITH_EXTRA)
def test_each_command_needs_its_extra_alone(folder, extra):
    # PyYAML comes with the hub's client, and pandas with `datasets`
    brought = {"yaml", *extras.EXTRAS.get(extra, ()), *(["pandas"] if extra else [])}
    code = f"""
sys.path.insert(0, {str(ROOT)!r})
from modeling_dino.cli import main
for line in {WITH_EXTRA[extra]!r}:
    sys.argv = ["dino", *line.split()]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, line
"""
    run_python(code, folder, blocked=tuple(OTHERS - brought))
