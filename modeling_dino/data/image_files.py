# SPDX-License-Identifier: Apache-2.0
"""Sources of images in files of their own: folders, patterns, single files."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from .decoding import ARRAY_SUFFIX, IMAGE_SUFFIXES, as_text
from .image_source import ImageRecord, IndexedSource, files_fingerprint, is_hidden, natural_key


# names of sub-folders that are parts of a data set, and not classes
SPLITS = ("train", "val", "valid", "validation", "test")


class ImageFiles(IndexedSource):
    """
    A source of image files.

    Args:
        name: what the user has called the source.
        root: the folder the files were found in; if each lies in a sub-folder, these are the classes, as in ImageNet.
    """

    def __init__(self, name: str, paths: Iterable[str], root: str | None = None):
        self.name, self.paths = name, list(paths)
        self.num_images = len(self.paths)
        self.root = root
        self.has_classes = root is not None and self.num_images > 0 and all(map(self._class_of, self.paths))
        self.columns = {"path": "string", "label": "string"} if self.has_classes else {"path": "string"}
        if not self.num_images:
            self.notes = {name: f"no images there (looked for {', '.join(sorted(IMAGE_SUFFIXES))})"}

    def record(self, index: int) -> ImageRecord:
        path = self.paths[index]
        columns = {"path": as_text(path)}
        if self.has_classes:
            columns["label"] = as_text(self._class_of(path))
        return ImageRecord(columns["path"], columns, path)

    def fingerprint(self) -> str:
        return files_fingerprint(self.paths)

    def in_natural_order(self) -> "ImageFiles":
        return ImageFiles(self.name, sorted(self.paths, key=natural_key), self.root)

    def _class_of(self, path: str) -> str:
        """Returns the sub-folder of the root that a file lies in; empty if it lies in none."""
        return os.path.relpath(path, self.root).rpartition(os.sep)[0].partition(os.sep)[0]


def images_of_folder(folder: str) -> ImageFiles:
    """
    Searches a folder for images, to any depth, in the order of their paths.

    Arrays, `.npy`, are images only where there are no others: beside images they are features or labels, mostly.
    """
    by_kind: dict[bool, list[str]] = {True: [], False: []}
    for path in walk(folder):
        suffix = Path(path).suffix.lower()
        if suffix in IMAGE_SUFFIXES or suffix == ARRAY_SUFFIX:
            by_kind[suffix == ARRAY_SUFFIX].append(path)
    return ImageFiles(folder, by_kind[False] or by_kind[True], root=folder)


def split_folders(folder: str) -> list[str]:
    """Returns the names of a folder's sub-folders if all of them are splits, and there is no image beside them."""
    names = sorted(name for name in os.listdir(folder) if not is_hidden(name))
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return []
    folders = [name for name in names if os.path.isdir(os.path.join(folder, name))]
    return folders if all(name in SPLITS for name in folders) else []


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    """
    Lists the files below a folder, in the order of their paths; follows links, but not in circles.

    What is hidden is left out: see [`is_hidden`].
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        entries = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    for entry in entries:
        if not os.path.isdir(entry.path):  # entry.is_dir() fails on a link to itself
            yield entry.path
        elif os.path.realpath(entry.path) not in above:
            yield from walk(entry.path, above)
