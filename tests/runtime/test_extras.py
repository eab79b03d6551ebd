import sys
from pathlib import Path

import pytest
import typer
from processes import run_python

import dino_command
from modeling_dino.cli.app import app
from modeling_dino.runtime import extras


ROOT = Path(__file__).parents[2]


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
    assert set(declared) == {*extras.EXTRAS, "test"}
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
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for arguments in (["extract", "--help"], ["--help"], ["info"], ["convert", "a", "b"], []):
        dino_command.answer_without_import(arguments)
    with pytest.raises(SystemExit):
        dino_command.answer_without_import(["extract"])
