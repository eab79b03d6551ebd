# SPDX-License-Identifier: Apache-2.0
"""Files that a command writes with a mark in them, so that it replaces its own files, and nobody else's.

A mark is text that stands near the beginning or the end of a file, where every format keeps what it says about itself:
the generator of a page, a text chunk of a PNG, the metadata of a video, the `format` of JSON.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .whole_files import check_replaceable, whole_file


MARK = "modeling-dino"  # begins the marks of all commands
ENDS = 2**16  # bytes at the beginning and at the end of a file that may hold a mark


def has_mark(path: Path, mark: str) -> bool:
    """Returns whether a file has a mark; raises OSError if it may not be read."""
    with open(path, "rb") as file:
        begin = file.read(ENDS)
        file.seek(max(0, os.fstat(file.fileno()).st_size - ENDS))
        return mark.encode() in begin or mark.encode() in file.read()


def check_marked(path: str | os.PathLike | None, mark: str):
    """Raises ValueError if there is a file without the mark where a command will write; None is nowhere."""
    if path is not None:
        check_replaceable(Path(path), partial(has_mark, mark=mark))


@contextmanager
def marked_file(path: Path, mark: str) -> Iterator[Path]:
    """
    Gives a place to write to, as [`whole_file`] does.

    Raises:
        ValueError: if there is a file without the mark.
        OSError: if it cannot be written; what was there before still is.
    """
    check_marked(path, mark)
    with whole_file(path) as partial_file:
        yield partial_file
