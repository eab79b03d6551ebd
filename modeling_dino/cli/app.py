# SPDX-License-Identifier: Apache-2.0
"""Runs the command line, `dino`: whatever goes wrong ends as one line.

| ended by | exit code |
|---|---|
| what a user can mend: an option, a file, an extra that is not installed, a full disk, a killed reader | 2 |
| what nobody foresaw; `dino --traceback …` shows where | 1 |
| Ctrl-C, SIGTERM | 130, 143 |
"""

import logging
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from ..runtime.extras import versions
from ..runtime.printing import printable
from ..runtime.processes import leave_processes
from ..runtime.signals import ENDED, ended_by_signals
from .commands import COMMANDS
from .help import WholeHelpGroup
from .options import add_command


USERS_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError, HTTPError)
TRACEBACK = "--traceback"
ENDED_READER = re.compile(r"DataLoader worker .*? (?:is killed by signal: (\w*)|exited unexpectedly)")

app = typer.Typer(
    cls=WholeHelpGroup,
    help="Every DINO as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in COMMANDS:
    add_command(app, command)


def show_versions(is_asked_for: bool):
    """Prints the versions and exits, if they are asked for."""
    if is_asked_for:
        print(versions())
        raise typer.Exit()


@app.callback()
def of_all_commands(
    traceback: Annotated[bool, typer.Option(TRACEBACK, help="Show where in the code an error arises.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the versions of this package, torch and transformers.",
            callback=show_versions,
            is_eager=True,
        ),
    ] = False,
):
    """Every DINO as one Hugging Face model."""  # `run` looks for the option, before typer has read any


class WarningLines(logging.Handler):
    """Prints each warning of the package on a line of its own, also while a progress bar is shown."""

    def emit(self, record: logging.LogRecord):
        tqdm.write(printable(self.format(record)), file=sys.stderr)


@contextmanager
def clean_terminal() -> Iterator[None]:
    """Prints warnings by [`WarningLines`], and closes progress bars that an error has left open."""
    handler, logger = WarningLines(logging.WARNING), logging.getLogger(__package__.partition(".")[0])
    logger.addHandler(handler)
    disable_progress_bar()  # transformers'
    try:
        yield
    finally:
        logger.removeHandler(handler)
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line, without the frame that strict configurations put around it."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    message = printable(" ".join(str(error).split())) or type(error).__name__
    return f"memory does not suffice, take smaller batches or images: {message}" if lacks_memory(error) else message


def lacks_memory(error: BaseException) -> bool:
    """Returns whether memory does not suffice; PyTorch says so of a CPU's by a RuntimeError."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def is_users(error: Exception) -> bool:
    """Returns whether a user can mend what an error is about."""
    return isinstance(error, USERS_ERRORS) or lacks_memory(error)


def ended_reader(error: Exception) -> re.Match | None:
    """Finds in an error, or its cause, that a process that reads images was ended from outside, by which signal."""
    return ENDED_READER.search(f"{error.__cause__ or ''} {error}")


def exit_code(error: Exception) -> int:
    """Returns what the table above says of an error."""
    reader = ended_reader(error)
    if reader and reader[1] == "Terminated":  # SIGTERM went to all processes, and the readers were the first to end
        return ENDED
    return 2 if reader or is_users(error) else 1


def message_of(error: Exception, arguments: list[str]) -> str:
    """Returns what the user is told of an error."""
    if is_users(error):
        return f"dino: {one_line(error)}"
    if ended_reader(error):
        return "dino: a process that reads images was killed, perhaps as memory did not suffice: lower --num-workers"
    again = printable(shlex.join(["dino", TRACEBACK, *arguments]))
    return f"dino: unforeseen {type(error).__name__}: {one_line(error)}; please report it with what `{again}` shows"


def run(app: typer.Typer, **kwargs: Any):
    """Runs a command line, by the table above."""
    arguments = sys.argv[1:]
    try:
        with ended_by_signals(), clean_terminal():
            app(**kwargs)
    except Exception as error:
        if TRACEBACK in arguments[:1]:
            raise
        code = exit_code(error)
        if code != ENDED:
            print(message_of(error, arguments), file=sys.stderr)
        sys.exit(code)


def main():
    """Runs `dino`, and ends the group of processes that it is part of, if it has not failed."""
    try:
        run(app, prog_name="dino")
    except SystemExit as stop:  # typer's, too, when a command is done
        if not stop.code:
            leave_processes()
        raise
