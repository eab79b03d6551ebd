# SPDX-License-Identifier: Apache-2.0
"""The command line, `dino`."""

from .app import main


__all__ = ["main"]
