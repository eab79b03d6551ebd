# SPDX-License-Identifier: Apache-2.0
"""Defines a source of images: it has a fixed order, and parts that are read on their own.

A source gives records, whose images are still encoded; worker processes decode them.
"""

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..runtime.extras import require
from .decoding import MAX_FILE_BYTES, check_size


MAX_HASHED_BYTES = 256 * 2**20  # in a source whose files are compared by what is in them
IMAGES_CHANGED = (
    "the images or their labels have changed, or files have moved, or, of more than "
    f"{MAX_HASHED_BYTES // 2**20} MiB, were written again"
)


@dataclass(frozen=True)
class FileRange:
    """An image file that lies within a larger file."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Reads the image file; raises ValueError if it is too large, or the larger file ends before it does."""
        check_size(self.size)
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"{self.path} ends within it")
        return content


@dataclass(frozen=True)
class RemoteFile:
    """A file of a data set on the hub."""

    url: str

    def read(self) -> bytes:
        """Reads the file; raises ValueError if it is too large for an image."""
        with require("fsspec").open(self.url, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        check_size(len(content))
        return content


@dataclass(frozen=True)
class Unreadable:
    """Stands in the place of an image that is missing from its source."""

    reason: str


@dataclass(frozen=True)
class ImageRecord:
    """
    One image, not yet decoded.

    Args:
        name: names the image in messages and in the manifest.
        columns: its row of the table, without the features.
        content: path of the image file, its bytes, or where they lie.
    """

    name: str
    columns: dict[str, str | int | None]
    content: str | bytes | FileRange | RemoteFile | Unreadable


class ImageSource:
    """
    Images in a fixed order.

    Attributes:
        columns: names of the columns of a row, and their types in Arrow.
        num_images: None where only reading the images tells.
        notes: remarks on the source as a whole: name -> text.
        how_to_label: what a user can do whose images have no labels.
    """

    columns: dict[str, str]
    num_images: int | None = None
    notes: dict[str, str] = {}
    how_to_label = "put those of each class into a folder of its own"

    def parts(self, rows: int) -> Sequence[Any]:
        """Returns the parts of the source: ranges of so many images, or the files that the images lie in."""
        raise NotImplementedError

    def read(self, part: Any) -> Iterator[ImageRecord]:
        """Reads the records of a part, in order."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Returns a hash that changes when the images do."""
        raise NotImplementedError

    def indexed(self) -> "IndexedSource":
        """Returns a source of the same images in any order; raises ValueError if they can only be read in turn."""
        raise ValueError("these images can only be read one after the other")

    def in_natural_order(self) -> "ImageSource":
        """Returns a source of the same images in the order of the numbers in their names, if names give the order."""
        return self


class IndexedSource(ImageSource):
    """A source whose images can be read in any order, as training does; `num_images` is known."""

    def record(self, index: int) -> ImageRecord:
        """Returns the record at a place in the order, counted from 0."""
        raise NotImplementedError

    def parts(self, rows: int) -> list[range]:
        """Returns ranges of so many images; one empty range if there are none."""
        starts = range(0, max(self.num_images, 1), rows)
        return [range(start, min(start + rows, self.num_images)) for start in starts]

    def read(self, part: range) -> Iterator[ImageRecord]:
        return map(self.record, part)

    def indexed(self) -> "IndexedSource":
        return self


def files_fingerprint(paths: Sequence[str]) -> str:
    """
    Returns a hash of the paths and sizes of files, and of what is in them.

    Where reading all of them again would take long, it goes by the times of their last changes instead, so that a copy
    whose times are not kept counts as changed.
    """
    names, times, total = hashlib.sha256(), hashlib.sha256(), 0
    for path in paths:
        status = _file_status(path)
        size, time = (None, None) if status is None else (status.st_size, status.st_mtime_ns)
        names.update(os.fsencode(path) + f"\0{size}\0".encode())
        times.update(f"{time}\0".encode())
        total += size or 0
    content = times.hexdigest() if total > MAX_HASHED_BYTES else _content_fingerprint(paths)
    return combined_fingerprint(names.hexdigest(), content)


def _content_fingerprint(paths: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        if _file_status(path) is not None:
            with suppress(OSError), open(path, "rb") as file:
                digest.update(hashlib.sha256(file.read()).digest())
    return digest.hexdigest()


def _file_status(path: str) -> os.stat_result | None:
    """Returns size and times of a file, or None if there is none, or it is none that ends, as a pipe."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a null character
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def natural_key(path: str) -> tuple:
    """Returns what sorts paths by the numbers in their names: `frame2.png` before `frame10.png`."""
    parts = [re.split(r"([0-9]+)", part) for part in path.split(os.sep)]  # text and digits in turns
    return [[int(text) if is_number % 2 else text for is_number, text in enumerate(part)] for part in parts], path


def is_hidden(name: str) -> bool:
    """
    Returns whether a file or folder is hidden, as `.ipynb_checkpoints`, `._x.jpg` and `.DS_Store`; or what macOS puts
    beside files in archives.
    """
    return name.startswith(".") or name == "__MACOSX"


def combined_fingerprint(*fingerprints: str) -> str:
    """Returns a hash of several hashes."""
    return hashlib.sha256("\0".join(fingerprints).encode()).hexdigest()


def remarks_on_images(skipped: Mapping[str, str], notes: Mapping[str, str] | None = None) -> list[str]:
    """Returns a line for each skipped image, and for each note about an image."""
    lines = [f"skipped {name}: {reason}" for name, reason in skipped.items()]
    return lines + [f"note {name}: {text}" for name, text in (notes or {}).items()]


def why_no_images(name: str, notes: Mapping[str, str], skipped: Mapping[str, str] | None = None) -> str:
    """
    Returns the reason why there is no image to work with.

    Args:
        name: what the user has called the source.
        notes: remarks on the source as a whole.
        skipped: images that cannot be read, with the reasons.
    """
    if not skipped:
        return "; ".join(f"{name}: {note}" for name, note in notes.items()) or f"{name} has no images"
    first, reason = next(iter(skipped.items()))
    if len(skipped) == 1:
        return f"cannot read {first}: {reason}"
    return f"none of the {len(skipped)} images can be read; the first: {first}: {reason}"
