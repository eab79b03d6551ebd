"""transformers' own common model tests, from the source distribution of the installed version.

They are not in its wheel. `python tests/helpers/transformers_common.py` downloads them once into `.cache/`; `load`
gives them. Three of their imports are missing from the source distribution too, and stand in here.
"""

import importlib
import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import version
from pathlib import Path


TRANSFORMERS_VERSION = version("transformers")
PACKAGE = Path(__file__).parents[2] / ".cache" / f"transformers-{TRANSFORMERS_VERSION}" / "transformers_tests"
MODULES = ("test_modeling_common", "test_backbone_common", "test_configuration_common")

# Every common argument of a configuration, with a value other than its default.
CONFIG_COMMON_KWARGS = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["DinoModel"],
    "id2label": {0: "label"},
    "label2id": {"label": "0"},
    "problem_type": "regression",
}


def fetch():
    """Downloads the source distribution and keeps the three modules; they appear together or not at all."""
    if PACKAGE.is_dir():
        return
    PACKAGE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PACKAGE.parent) as folder:
        download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "transformers"]
        subprocess.run([*download, "-d", folder, f"transformers=={TRANSFORMERS_VERSION}"], check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        package = Path(folder) / PACKAGE.name
        package.mkdir()
        (package / "__init__.py").touch()
        with tarfile.open(archive) as files:
            for module in MODULES:
                member = f"transformers-{TRANSFORMERS_VERSION}/tests/{module}.py"
                (package / f"{module}.py").write_bytes(files.extractfile(member).read())
        package.rename(PACKAGE)


def _install_stubs():
    for name, attribute, value in (
        ("exporters.test_export", "ExportTesterMixin", type("ExportTesterMixin", (), {})),
        ("generation.test_utils", "GenerationTesterMixin", type("GenerationTesterMixin", (), {})),
        ("utils.test_configuration_utils", "config_common_kwargs", CONFIG_COMMON_KWARGS),
    ):
        parent, _, _ = name.partition(".")
        sys.modules[f"transformers_tests.{parent}"] = types.ModuleType(f"transformers_tests.{parent}")
        sys.modules[f"transformers_tests.{name}"] = module = types.ModuleType(f"transformers_tests.{name}")
        setattr(module, attribute, value)


def load():
    """The modules `test_modeling_common`, `test_backbone_common` and `test_configuration_common`, once fetched."""
    if str(PACKAGE.parent) not in sys.path:
        sys.path.insert(0, str(PACKAGE.parent))
        _install_stubs()
    return [importlib.import_module(f"{PACKAGE.name}.{module}") for module in MODULES]


if __name__ == "__main__":
    fetch()
