# SPDX-License-Identifier: Apache-2.0
"""Starts `dino`. Importing the package takes seconds, in which Ctrl-C is quiet, too."""

import os
import signal


def main():
    """Runs the command line."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
    from modeling_dino.cli import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
