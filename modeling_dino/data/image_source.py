# SPDX-License-Identifier: Apache-2.0
"""Defines a source of images: it has a fixed order, and parts that are read on their own.

A source gives records, whose images are still encoded; worker processes decode them.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileRange:
    """An image file that lies within a larger file."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Reads the image file; raises ValueError if the larger file ends before it does."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError(f"{self.path} ends within it")
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
        num_images: None where only reading the images tells.
        notes: remarks on the source as a whole: name -> text.
    """

    columns: dict[str, str]
    num_images: int | None = None
    notes: dict[str, str] = {}

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


def files_fingerprint(paths: Iterable[str]) -> str:
    """Returns a hash of the paths and sizes of files."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:
            size = None
        digest.update(os.fsencode(path) + f"\0{size}\0".encode())
    return digest.hexdigest()


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
