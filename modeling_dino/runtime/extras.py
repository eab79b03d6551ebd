# SPDX-License-Identifier: Apache-2.0
"""
Says what is installed: libraries that only some commands need, the extras that bring them, and the versions.

It imports nothing but Python's own modules, as `dino` runs it before it imports the package, which takes seconds.
"""

import json
from importlib import import_module
from importlib.metadata import Distribution, PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname


if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
else:
    PilImage = Any  # for annotations, which Pillow is not imported for

DISTRIBUTION = "modeling-dino"
CLI = ("accelerate", "datasets", "matplotlib", "pyarrow")
TRAIN = (*CLI, "torchvision", "yaml")
EXPORT = (*CLI, "nncf", "onnx", "onnxruntime", "onnxscript", "openvino")
REPORT = (*CLI, "openTSNE", "scipy", "sklearn")
# the modules that each extra of pyproject.toml brings beyond the model's own libraries
EXTRAS = {
    "cli": CLI,
    "export": EXPORT,
    "train": TRAIN,
    "report": REPORT,
    "lora": (*TRAIN, "peft"),
    "demo": (*TRAIN, *REPORT, "skimage"),
    "tiff": (*CLI, "tifffile"),
    "video": (*CLI, "av"),
}
OTHER_NAMES = {"yaml": "pyyaml", "skimage": "scikit-image", "sklearn": "scikit-learn", "PIL": "pillow"}  # to install
# the extra that each command needs; the model's own libraries suffice for `info`, `convert`, `push` and `bench`
NEEDED = {
    "export": "export",
    "extract": "cli",
    "attention": "cli",
    "pca": "cli",
    "match": "cli",
    "segment": "cli",
    "knn": "cli",
    "linear": "cli",
    "finetune": "train",
    "retrieve": "cli",
    "report": "report",
    "pretrain": "train",
    "demo": "demo",
}


def require(module: str, extra: str = "cli") -> ModuleType:
    """
    Imports a module that the model itself does not need. Raises ImportError if it is not installed; the message has
    the command that installs the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: run `{install_command(extra)}`") from error


def check_extra(command: str, extra: str | None = None):
    """
    Raises ImportError if a module of the extra that a command needs is not installed; the message has the command that
    installs it. Nothing is imported for that.

    Args:
        command: the name of a command of `dino`.
        extra: by default the one of [`NEEDED`].
    """
    extra = extra or NEEDED.get(command)
    if missing := [module for module in dict.fromkeys(EXTRAS.get(extra, ())) if not _is_installed(module)]:
        names = ", ".join(_name_to_install(module) for module in missing)
        raise ImportError(f"`dino {command}` needs {names}, not installed here: run `{install_command(extra)}`")


def install_command(extra: str) -> str:
    """
    Returns the command that installs an extra, from where this package comes from: a checkout, a file, an address, or
    an index. Where that is gone, it installs what is missing by name.
    """
    url, editable = _origin()
    path = None if url is None or urlsplit(url).scheme != "file" else Path(url2pathname(urlsplit(url).path))
    if path is None:
        requirement = f"{DISTRIBUTION}[{extra}]" + (f" @ {url}" if url else "")
    elif path.is_dir():
        requirement = f"{path}[{extra}]"
    elif path.is_file():
        requirement = f"{DISTRIBUTION}[{extra}] @ {url}"
    else:
        missing = [_name_to_install(module) for module in EXTRAS[extra] if not _is_installed(module)]
        return f"pip install {' '.join(dict.fromkeys(missing))}"
    return f'pip install {"-e " if editable else ""}"{requirement}"'


def versions() -> str:
    """Returns the versions of this package, torch and transformers in one line, without importing them."""
    return ", ".join(f"{name} {installed_version(name)}" for name in (DISTRIBUTION, "torch", "transformers"))


def installed_version(name: str) -> str:
    """Returns the version of a distribution, or "not installed"."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _is_installed(module: str) -> bool:
    return find_spec(module) is not None


def _name_to_install(module: str) -> str:
    return OTHER_NAMES.get(module, module)


def _origin() -> tuple[str | None, bool]:
    """
    Returns the URL that this package was installed from, and whether it is editable. The URL is None if it comes from
    an index. A checkout that is used without having been installed counts as editable.
    """
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout.as_uri(), True
    try:
        text = Distribution.from_name(DISTRIBUTION).read_text("direct_url.json")
    except PackageNotFoundError:
        return None, False
    origin = json.loads(text) if text else {}
    url, vcs = origin.get("url"), origin.get("vcs_info", {}).get("vcs")
    return (f"{vcs}+{url}" if vcs else url), False
