# SPDX-License-Identifier: Apache-2.0
"""
Makes options of commands: each is a field of a dataclass, which the command line and the Python function share.

    @dataclass(frozen=True, kw_only=True)
    class PaintOptions:
        summary: ClassVar[str] = "Paints an image."

        image: StrPath = option("Image to paint.")
        size: int = option("Shorter side in pixels.", 480)

    @takes_options(PaintOptions, command="paint")
    def paint(options: PaintOptions) -> Painting: ...

    paint(image="photograph.png", size=224)
"""

import difflib
import functools
import inspect
import os
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, field, fields, replace
from types import UnionType
from typing import Any, ParamSpec, Protocol, TypeVar, get_args, get_origin, get_type_hints, overload

from .extras import check_extra


StrPath = str | os.PathLike[str]  # commands get it as a str
DOC_WIDTH = 100

P = ParamSpec("P")
Options = TypeVar("Options", contravariant=True)
Result = TypeVar("Result", covariant=True)


def option(
    help: str,
    default: Any = MISSING,
    *,
    flag: str | None = None,
    argument: bool = False,
    minimum: int | None = None,
    python_only: bool = False,
) -> Any:
    """
    Makes a field of a dataclass of options.

    Args:
        help: the text that the command line and `help` show.
        default: the option is required if this is left out.
        flag: the spelling on the command line, if it is not `--name`; the placeholder of an argument in the help.
        argument: the command line takes it by its position, without a name.
        minimum: the least number that the command line takes.
        python_only: the command line does not have it.
    """
    metadata = {"help": help, "flag": flag, "argument": argument, "minimum": minimum, "python_only": python_only}
    return field(default=default, metadata=metadata)


class OptionsFunction(Protocol[P, Options, Result]):
    """A function that takes its options as keywords, or as one object."""

    __name__: str
    options_class: type
    command: str

    @overload
    def __call__(self, options: Options, /) -> Result: ...

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Result: ...


def takes_options(
    options_class: Callable[P, Options], command: str
) -> Callable[[Callable[[Options], Result]], "OptionsFunction[P, Options, Result]"]:
    """
    Makes a function of one dataclass of options a function of keywords, which takes the dataclass as well.

    Before anything else it checks that the extra is installed that the command of this name needs.

    Its signature and its docstring show the options, after the `summary` of the dataclass. The function gets paths as
    texts, and several values as a tuple or a list.

    The new function raises ImportError if the extra is missing; TypeError, in one line, if an option is misspelt,
    missing or has no name; and what the dataclass and the function raise.
    """

    def decorate(function: Callable[[Options], Result]) -> OptionsFunction[P, Options, Result]:
        @functools.wraps(function)
        def call(*arguments: Any, **values: Any) -> Result:
            check_extra(command)
            return function(_gathered(function.__name__, options_class, arguments, values))

        parameters = inspect.signature(options_class).parameters
        returned = inspect.signature(function).return_annotation
        shown = [parameters[field.name] for field in required_first(options_class)]
        call.__signature__ = inspect.Signature(shown, return_annotation=returned)
        call.__doc__ = _docstring(options_class, inspect.getdoc(function) or "")
        call.options_class, call.command = options_class, command
        return call

    return decorate


def required_first(options_class: type) -> list[Field]:
    """Returns the fields of a dataclass of options, those without a default first."""
    return sorted(fields(options_class), key=lambda field: field.default is not MISSING)


def item_type(kind: Any) -> Any | None:
    """Returns the type of the items of `Sequence[item]` or `list[item]`, also if it is optional; else None."""
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (Sequence, list)), None)


def is_list(kind: Any) -> bool:
    """Returns whether a type is `list[item]`, also if it is optional."""
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def _gathered(name: str, options_class: Any, arguments: tuple, values: dict[str, Any]) -> Any:
    """Returns the options that a function was called with, in plain values."""
    if not arguments:
        _check_names(name, options_class, values)
        options = options_class(**values)
    else:
        options = arguments[0]
        if not isinstance(options, options_class) or len(arguments) > 1:
            first = required_first(options_class)[0].name
            raise TypeError(f"{name}() takes its options by their names, such as {first}=…, not {arguments[-1]!r}")
        if values:
            raise TypeError(f"{name}() takes a {options_class.__name__} or keywords, not both")
    kinds = get_type_hints(options_class)
    given = {field.name: getattr(options, field.name) for field in fields(options_class)}
    plain = {name: _plain(value, kinds[name]) for name, value in given.items()}
    changed = {name: value for name, value in plain.items() if value is not given[name]}
    return replace(options, **changed) if changed else options


def _check_names(name: str, options_class: Any, values: dict[str, Any]):
    """Raises TypeError if an option is misspelt or missing."""
    known = {field.name: field for field in required_first(options_class)}
    for unknown in values.keys() - known.keys():
        nearest = difflib.get_close_matches(unknown, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(known)}"
        raise TypeError(f"{name}() has no option {unknown!r}: {hint}")
    for needed in known.values():
        if needed.default is MISSING and needed.name not in values:
            raise TypeError(f"{name}() needs {needed.name}: {needed.metadata['help']}")


def _plain(value: Any, kind: Any) -> Any:
    """
    Returns a value as functions work with it: a path as a text; several values as a tuple or a list, by their type,
    and so is a single one where there may be several.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or (item := item_type(kind)) is None:
        return value
    several = list if is_list(kind) else tuple
    items = (value,) if isinstance(value, (str, int, float)) else value
    if type(items) is several and not any(isinstance(item, os.PathLike) for item in items):
        return items
    return several(_plain(part, item) for part in items)


def _docstring(options_class: Any, own: str) -> str:
    """Returns the summary, what the function says of itself, and between its text and its sections the options."""
    first_section = re.search(r"^(Returns|Raises|Example):$", own, flags=re.MULTILINE)
    start = first_section.start() if first_section else len(own)
    lines = [
        textwrap.fill(
            f"{field.name}: {field.metadata['help']}", DOC_WIDTH, initial_indent=" " * 4, subsequent_indent=" " * 8
        )
        for field in required_first(options_class)
    ]
    parts = [options_class.summary, own[:start], "\n".join(["Args:", *lines]), own[start:]]
    return "\n\n".join(part.strip() for part in parts if part.strip())
