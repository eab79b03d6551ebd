# SPDX-License-Identifier: Apache-2.0
"""The folders are the architecture: what the model is, and which package may use which."""

import ast
from pathlib import Path

import pytest
from hub_code_files import CODE_FILES


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "modeling_dino"
# each imports only those before it, and the model; conversion_scripts/ lies beside modeling_dino/
PACKAGES = ["runtime", "data", "hub", "export", "extraction", "pictures", "evaluation", "training"]
PACKAGES += ["conversion_scripts", "report", "demo", "benchmark", "cli"]
MODEL = "the model"
# These are imported within a function, and guarded: hub code runs without them.
EXCEPTIONS = {
    ("modeling_dino.modeling_dino", "conversion_scripts.recognition"): "from_pretrained takes others' folders",
    ("modeling_dino.modeling_dino", "modeling_dino.hub.pushing"): "push_to_hub is a method of the model",
}
# These give what the packages have; nothing in the project imports them.
FACADES = {"modeling_dino", "modeling_dino.__main__", "conversion_scripts.__main__"}


def modules(root: Path) -> dict[str, Path]:
    """The modules of both packages by their dotted names."""
    files = [*(root / "modeling_dino").rglob("*.py"), *(root / "conversion_scripts").rglob("*.py")]
    names = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def imports(name: str, file: Path, known: set[str]) -> set[str]:
    """The modules that a module imports, at any place in it."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return found & known - {name}


def graph(root: Path) -> dict[str, set[str]]:
    """Which module imports which, without the exceptions."""
    files = modules(root)
    arrows = {name: imports(name, file, set(files)) for name, file in files.items()}
    return {name: {other for other in others if (name, other) not in EXCEPTIONS} for name, others in arrows.items()}


def room(name: str) -> str:
    """The package that a module is in; the model's for those at the root."""
    top, _, rest = name.partition(".")
    return top if top == "conversion_scripts" else rest.partition(".")[0] if "." in rest or rest in PACKAGES else MODEL


def wrong_arrows(root: Path) -> list[str]:
    """Imports that go against the order."""
    order = [MODEL, *PACKAGES]
    return [
        f"{name} imports {other}"
        for name, others in graph(root).items()
        for other in others
        if name not in FACADES and (other in FACADES or order.index(room(other)) > order.index(room(name)))
    ]


def circle(root: Path) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    arrows = {name: others for name, others in graph(root).items() if name not in FACADES}
    while leaves := [name for name, others in arrows.items() if not others & set(arrows)]:
        for name in leaves:
            del arrows[name]
    return sorted(arrows)


def test_the_root_is_what_hub_code_copies():
    assert {file.name for file in PACKAGE.glob("*.py")} == CODE_FILES | {"__init__.py", "__main__.py"}
    folders = {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert folders == set(PACKAGES) - {"conversion_scripts"}


def test_each_package_imports_only_those_before_it():
    assert wrong_arrows(ROOT) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        (
            "resnet.py",
            "from .runtime import extras",
            "modeling_dino.resnet imports modeling_dino.runtime.extras",
        ),
        ("data/video.py", "from ..hub import info", "modeling_dino.data.video imports modeling_dino.hub.info"),
        ("hub/info.py", "def f():\n    import modeling_dino", "modeling_dino.hub.info imports modeling_dino"),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, file, line, wrong):
    for folder in ("modeling_dino", "conversion_scripts"):
        for source in (ROOT / folder).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    with open(tmp_path / "modeling_dino" / file, "a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    assert wrong in wrong_arrows(tmp_path)


def test_a_circle_is_seen(tmp_path):
    for name, text in (("a", "from . import b"), ("b", "def f():\n    from .a import g")):
        (tmp_path / "modeling_dino").mkdir(exist_ok=True)
        (tmp_path / "modeling_dino" / f"{name}.py").write_text(text)
    assert circle(tmp_path) == ["modeling_dino.a", "modeling_dino.b"]
