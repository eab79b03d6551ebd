# SPDX-License-Identifier: Apache-2.0
"""Files and folders that appear whole or not at all, written under temporary names that nobody else uses."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    Gives a place beside a file to write to; it takes the file's place at the end, when it is on the disk.

    Of several that write the same file at a time the last one stays, whole.

    Raises:
        OSError: if it cannot be written; what was there before still is.
    """
    with _partial_beside(path) as partial:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)


@contextmanager
def whole_output(path: Path) -> Iterator[Path]:
    """
    Gives a place beside a new file or folder to write to; it takes the path at the end, and is gone if anything fails.

    Raises:
        ValueError: if the path is taken, as by `check_is_free`.
        OSError: if it cannot be written.
    """
    check_is_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _partial_beside(path) as partial:
        yield partial
        if path.is_dir():  # an empty one
            path.rmdir()
        partial.rename(path)


def check_is_free(path: Path):
    """Raises ValueError if there is a file, or a folder that is not empty."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists already: choose another place, or remove it")


@contextmanager
def _partial_beside(path: Path) -> Iterator[Path]:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(error.errno, f"cannot write {path}: {reason}; what was there is kept") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Returns whether a path is what a process was still writing when it was killed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)
