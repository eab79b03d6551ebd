"""What `modeling_dino` offers: the same to Python, to `dir`, to a star import and to type checkers."""

import ast
from pathlib import Path

import pytest

import modeling_dino


NAMES = sorted(modeling_dino.__all__)


def test_dir_and_a_star_import_show_the_public_names_alone():
    listed = dir(modeling_dino)
    assert [name for name in listed if not name.startswith("__")] == NAMES
    assert "__version__" in listed
    namespace = {}
    exec("from modeling_dino import *", namespace)
    assert sorted(name for name in namespace if not name.startswith("__")) == NAMES


def test_type_checkers_read_where_python_finds_the_lazy_names():
    tree = ast.parse(Path(modeling_dino.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    read = {
        alias.name: f"modeling_dino.{node.module}" if node.level else node.module
        for node in block.body
        for alias in node.names
    }
    assert read == modeling_dino._LAZY


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there_and_says_what_it_is(name):
    assert getattr(modeling_dino, name).__doc__
    with pytest.raises(AttributeError, match=f"no attribute '{name}s'"):
        getattr(modeling_dino, f"{name}s")
