# SPDX-License-Identifier: Apache-2.0
"""
Starts `dino`. Importing the package takes seconds, in which Ctrl-C is quiet; before, it says what needs no import.
"""

import os
import signal
import sys


def main():
    """Runs the command line."""
    keep_interrupts_quiet()
    answer_without_import(sys.argv[1:])
    from modeling_dino.cli import main

    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        keep_interrupts_quiet()  # while Python ends


def keep_interrupts_quiet():
    """Makes Ctrl-C end the process at once, without a traceback."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))


def answer_without_import(arguments: list[str]):
    """Shows the versions, if they are asked for, or says that the command needs an extra, and exits then."""
    from importlib.util import find_spec  # here, where Ctrl-C is quiet already
    from runpy import run_path

    package = os.path.dirname(find_spec("modeling_dino").origin)
    extras = run_path(os.path.join(package, "runtime", "extras.py"))
    if arguments == ["--version"]:
        print(extras["versions"]())
        sys.exit()
    if "--help" in arguments:
        return
    try:
        extras["check_extra"](next((argument for argument in arguments if not argument.startswith("-")), ""))
    except ImportError as error:
        print(f"dino: {error}", file=sys.stderr)
        sys.exit(2)
