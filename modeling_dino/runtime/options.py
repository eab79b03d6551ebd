# SPDX-License-Identifier: Apache-2.0
"""
Makes options of commands: each is a field of a dataclass, which the command line and the Python function share.

    @dataclass(frozen=True, kw_only=True)
    class PaintOptions:
        image: str = option("Image to paint.")
        size: int = option("Shorter side in pixels.", 480)

A field without a help text is for Python alone.
"""

from dataclasses import MISSING, field
from typing import Any


def option(
    help: str, default: Any = MISSING, *, flag: str | None = None, argument: bool = False, minimum: int | None = None
) -> Any:
    """
    Makes a field of a dataclass of options.

    Args:
        help: the text that the command line shows.
        default: the option is required if this is left out.
        flag: the spelling on the command line, if it is not `--name`; the placeholder of an argument in the help.
        argument: the command line takes it by its position, without a name.
        minimum: the least number that the command line takes.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "argument": argument, "minimum": minimum})
