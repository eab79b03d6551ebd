# SPDX-License-Identifier: Apache-2.0
"""Imports libraries that only some commands need."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
else:
    PilImage = Any  # for annotations, which Pillow is not imported for


def require(module: str, extra: str = "cli") -> ModuleType:
    """
    Imports a module that the model itself does not need. Raises ImportError if it is not installed; the message has
    the command that installs the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: run `pip install 'modeling-dino[{extra}]'`") from error
