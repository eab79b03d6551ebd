# SPDX-License-Identifier: Apache-2.0
"""What every source of images has in common: a fixed order, and parts that are read on their own.

What is read are records, whose images are still encoded: decoding is left to worker processes.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileRange:
    """Where in a larger file an image file lies."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """
        Raises:
            ValueError: if the file ends before the range does.
        """
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"{self.path} ends within it")
        return content


@dataclass(frozen=True)
class Unreadable:
    """What stands in the place of an image that cannot be had."""

    reason: str


@dataclass(frozen=True)
class ImageRecord:
    """
    One image, not yet decoded.

    Args:
        name: what it is called in messages and in the manifest.
        columns: its row of the table, but for the features.
        content: path or URL of the image file, its bytes, or where they lie.
    """

    name: str
    columns: dict[str, str | int | None]
    content: str | bytes | FileRange | Unreadable


class ImageSource:
    """
    Images in a fixed order.

    Attributes:
        columns: names of the columns of a row, and their types in Arrow.
        num_images: None where only reading them tells.
        notes: what there is to know about the source as a whole: name -> text.
    """

    columns: dict[str, str]
    num_images: int | None = None
    notes: dict[str, str] = {}

    def parts(self, rows: int) -> Sequence[Any]:
        """The parts the source is divided into: ranges of so many images, or the files they lie in."""
        raise NotImplementedError

    def read(self, part: Any) -> Iterator[ImageRecord]:
        """The images of a part, in order."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """A hash that changes when the images do."""
        raise NotImplementedError

    def indexed(self) -> "IndexedSource":
        """
        The same images, each of which can be read on its own.

        Raises:
            ValueError: if that cannot be.
        """
        raise ValueError("these images can only be read one after the other")


class IndexedSource(ImageSource):
    """Images of which each can be read on its own, as training does; `num_images` is known."""

    def record(self, index: int) -> ImageRecord:
        """One image, by its place in the order, counted from 0."""
        raise NotImplementedError

    def indexed(self) -> "IndexedSource":
        return self


def ranges(length: int, rows: int) -> list[range]:
    """The numbers below `length`, in ranges of so many; one empty range if there are none."""
    return [range(start, min(start + rows, length)) for start in range(0, max(length, 1), rows)]


def files_fingerprint(paths: Iterable[str]) -> str:
    """A hash of the paths and sizes of files."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:
            size = None
        digest.update(os.fsencode(path) + f"\0{size}\0".encode())
    return digest.hexdigest()
