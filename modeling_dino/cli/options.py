# SPDX-License-Identifier: Apache-2.0
"""Makes commands of functions: the fields of the dataclass that a function takes are the options of its command.

What a function returns is printed. Its `remarks`, if it has any, go to standard error before it.
"""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ..runtime.printing import printable
from .help import LongHelpCommand


def add_command(app: typer.Typer, function: Callable):
    """
    Adds a function to the command line, under its own name, with the first paragraph of its docstring as help.

    Args:
        function: takes `options`, a dataclass whose fields are made by `option`.
    """
    options_class = get_type_hints(function)["options"]
    types = get_type_hints(options_class)
    shown = [field for field in fields(options_class) if "help" in field.metadata]
    shown.sort(key=lambda field: field.default is not MISSING)  # what is required comes first in the help

    def run(**values: Any):
        values = {name: _parse(name, value, types[name]) for name, value in values.items()}
        _show(function(options_class(**values)))

    parameters = [_parameter(field, types[field.name]) for field in shown]
    run.__signature__ = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app.command(function.__name__, cls=LongHelpCommand, help=inspect.getdoc(function).partition("\n\n")[0])(run)


def _parameter(field: Field, kind: Any) -> inspect.Parameter:
    """Returns the parameter of which typer makes an option or an argument."""
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    item = _item_type(kind)
    if item is not None and field.metadata["argument"]:  # takes all that follow
        annotation = list[item] if field.default is MISSING else list[item] | None
        default = default if field.default is MISSING else None
    elif item is not None:  # with commas between them
        annotation = str | None if default is None else str
        default = ",".join(map(str, default)) if isinstance(default, tuple) else default
    else:
        annotation = kind
    flags = [field.metadata["flag"] or f"--{field.name.replace('_', '-')}"]
    if field.metadata["argument"]:
        info = typer.Argument(help=field.metadata["help"], metavar=field.metadata["flag"])
    else:
        info = typer.Option(*flags[0].split(), help=field.metadata["help"], min=field.metadata["minimum"])
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[annotation, info]
    )


def _item_type(kind: Any) -> type | None:
    """Returns the type of the items of `tuple[item, ...]`, also if it is optional; None for all other types."""
    if isinstance(kind, UnionType):
        (kind,) = [part for part in get_args(kind) if part is not NoneType][:1]
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _parse(name: str, value: Any, kind: Any) -> Any:
    """
    Converts the value of an option into that of the field. Raises ValueError if it should be numbers with commas
    between them, and is something else.
    """
    item = _item_type(kind)
    if item is None or (value is None and kind != tuple[item, ...]):
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
