# SPDX-License-Identifier: Apache-2.0
"""Options of commands: each is a field of a dataclass, from which the command line and the Python function both come.

    @dataclass(frozen=True, kw_only=True)
    class PaintOptions:
        image: str = option("Image to paint.")
        size: int = option("Shorter side in pixels.", 480)

A field without a help text is for Python alone.
"""

from collections.abc import Mapping
from dataclasses import MISSING, field
from typing import Any


def option(help: str, default: Any = MISSING, *, flag: str | None = None, argument: bool = False) -> Any:
    """
    Makes a field of a dataclass of options.

    Args:
        help: what the option is, in a sentence; the command line shows it.
        default: the option is required where it is left out.
        flag: how the option is spelt on the command line, where that is not `--name`.
        argument: whether the command line takes it by its place, without a name.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "argument": argument})


def remarks_on_images(skipped: Mapping[str, str], notes: Mapping[str, str] | None = None) -> list[str]:
    """Returns the lines that name images which were skipped, and what there is to know about others."""
    lines = [f"skipped {name}: {reason}" for name, reason in skipped.items()]
    return lines + [f"note {name}: {text}" for name, text in (notes or {}).items()]
