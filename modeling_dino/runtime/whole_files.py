# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """
    A place beside a file to write to; it takes the file's place at the end, when it is on the disk.

    Of several that write the same file at a time the last one stays, whole.

    Raises:
        OSError: if it cannot be written; what was there before still is.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{PARTIAL}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(error.errno, f"cannot write {path}: {reason}; what was there is kept") from error
    finally:
        with suppress(OSError):  # where nothing can be written, nothing can be removed
            partial.unlink(missing_ok=True)


def is_partial(path: Path) -> bool:
    """Whether it is what was not finished writing when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(PARTIAL)
