# SPDX-License-Identifier: Apache-2.0
"""What only some commands need is imported when it is used."""

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str = "cli") -> ModuleType:
    """
    Imports a module that the model itself does without.

    Raises:
        ImportError: if it is not installed; says which extra brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{error.name} is not installed: run `pip install 'modeling-dino[{extra}]'`") from error
