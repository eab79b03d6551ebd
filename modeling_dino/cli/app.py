# SPDX-License-Identifier: Apache-2.0
"""Runs the command line, `dino`, and says in one line what a user can mend."""

import sys

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from transformers.utils import logging

from .commands import COMMANDS
from .options import add_command


app = typer.Typer(
    help="Every DINO as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in COMMANDS:
    add_command(app, command)


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line, without the frame that strict configurations put around it."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def run(app: typer.Typer, **kwargs):
    """Runs a command line; an error that a user can mend is printed in one line, and exits with 2."""
    logging.disable_progress_bar()
    try:
        app(**kwargs)
    except (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError, HTTPError) as error:
        print(f"dino: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def main():
    """Runs `dino`."""
    run(app, prog_name="dino")
