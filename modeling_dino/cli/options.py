# SPDX-License-Identifier: Apache-2.0
"""Makes commands of functions: the fields of the dataclass that a function takes are the options of its command.

What a function returns is printed. Its `remarks`, if it has any, go to standard error before it.
"""

import inspect
import os
from dataclasses import MISSING, Field
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..runtime.options import is_list, item_type, required_first
from ..runtime.printing import printable
from .commands import Command
from .help import LongHelpCommand


def add_command(app: typer.Typer, command: Command):
    """Adds a command to the command line; its help starts with the summary of its options."""
    types = get_type_hints(command.options_class)
    shown = [field for field in required_first(command.options_class) if not field.metadata["python_only"]]

    def run(**values: Any):
        values = {name: _parse(name, value, types[name]) for name, value in values.items()}
        _show(command.load()(**values))

    parameters = [_parameter(field, types[field.name]) for field in shown]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(command.name, cls=LongHelpCommand, help=command.options_class.summary)(run)


def _parameter(field: Field, kind: Any) -> inspect.Parameter:
    """Returns the parameter of which typer makes an option or an argument."""
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    item = _of_text(item_type(kind))
    if item is not None and field.metadata["argument"]:  # takes all that follow
        annotation = list[item] if field.default is MISSING else list[item] | None
        default = default if field.default is MISSING else None
    elif item is not None and not is_list(kind):  # with commas between them
        annotation = str | None if default is None else str
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
    else:
        annotation = _of_text(kind)
    flags = [field.metadata["flag"] or f"--{field.name.replace('_', '-')}"]
    if field.metadata["argument"]:
        info = typer.Argument(help=field.metadata["help"], metavar=field.metadata["flag"])
    else:
        info = typer.Option(*flags[0].split(), help=field.metadata["help"], min=field.metadata["minimum"])
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _of_text(kind: Any) -> Any:
    """Returns the type of a value on the command line, where a path is a text."""
    if isinstance(kind, UnionType):
        return reduce(or_, [_of_text(part) for part in get_args(kind) if get_origin(part) is not os.PathLike])
    return list[_of_text(get_args(kind)[0])] if get_origin(kind) is list else kind


def _parse(name: str, value: Any, kind: Any) -> Any:
    """
    Converts the value of an option into that of the field. Raises ValueError if it should be numbers with commas
    between them, and is something else.
    """
    item = _of_text(item_type(kind))
    if item is None or is_list(kind) or (value is None and isinstance(kind, UnionType)):
        return value
    if not isinstance(value, str):
        return tuple(value or ())
    try:
        return tuple(item(part.strip()) for part in value.split(",") if part.strip() or item is not str)
    except ValueError:
        numbers = "whole numbers" if item is int else "numbers"
        raise ValueError(f"--{name.replace('_', '-')} {value} must be {numbers} with commas between them") from None


def _show(result: Any):
    if result is None:  # on processes other than the main one
        return
    for remark in getattr(result, "remarks", ()):
        typer.echo(printable(remark), err=True)
    typer.echo(printable(result))
