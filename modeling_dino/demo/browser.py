# SPDX-License-Identifier: Apache-2.0
"""Opens a page in the browser, where there is one and somebody sees it."""

import os
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path


def open_page(page: Path):
    """Opens a page if standard output is a terminal and there is a browser with windows; else does nothing."""
    has_windows = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.stdout.isatty() and has_windows:  # else a browser might take the terminal
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(page.absolute().as_uri())
