# SPDX-License-Identifier: Apache-2.0
"""Decides which of the paths that stand in data are opened, as data from elsewhere may name anything.

A path in a table is relative to the table's folder, and must stay below it, wherever links and `..` lead; it is never
a URL. The paths of other folders are opened if the user names the folder (`--image-root`).
"""

import os
import re
from dataclasses import dataclass

from ..runtime.extras import require
from .image_source import RemoteFile, Unreadable


URL = re.compile(r"[A-Za-z][\w+.-]*:(//|:)")  # also fsspec's chains, as in `simplecache::…`
NO_PATH = Unreadable("no image in this row")


@dataclass(frozen=True)
class PathsBelow:
    """
    Allows the paths below a folder.

    Args:
        folder: where relative paths start.
        is_named: whether the user has named the folder; then absolute paths below it are allowed, too.
    """

    folder: str
    is_named: bool = False

    def content(self, path: str) -> str | Unreadable:
        """Returns the file that a path stands for, or says why it is not opened."""
        if not path:
            return NO_PATH
        if URL.match(path):
            return as_unreadable_url(path)
        if os.path.isabs(path) and not self.is_named:
            return Unreadable(f"{path} is absolute: only --image-root, with a folder above it, allows that")
        try:
            root, file = os.path.realpath(self.folder), os.path.realpath(os.path.join(self.folder, path))
        except ValueError as error:  # a null character
            return Unreadable(str(error))
        if os.path.commonpath([root, file]) != root:
            return Unreadable(f"{path} leaves {self.folder}: only --image-root, with a folder above it, allows that")
        return file


@dataclass(frozen=True)
class PathsOfHub:
    """
    Allows the files of a data set on the hub: those that are streamed, and those that were downloaded.

    Args:
        repository: `user/name`.
    """

    repository: str

    def content(self, path: str) -> str | RemoteFile | Unreadable:
        """Returns the file that a path stands for, or says why it is not opened."""
        if not path:
            return NO_PATH
        if URL.match(path):
            within = rf"(zip://[^:]*::)?hf://datasets/{re.escape(self.repository)}(@[^/:]+)?/[^:]*"
            is_within = re.fullmatch(within, path) and ".." not in path.split("/")
            return RemoteFile(path) if is_within else as_unreadable_url(path)
        if not os.path.isabs(path):
            return Unreadable(f"{path} is not among the files of {self.repository}")
        hub_cache = require("huggingface_hub").constants.HF_HUB_CACHE
        downloads = require("datasets").config.DOWNLOADED_DATASETS_PATH
        for folder in (os.path.join(hub_cache, f"datasets--{self.repository.replace('/', '--')}"), downloads):
            content = PathsBelow(str(folder), is_named=True).content(path)
            if isinstance(content, str):
                return content
        return content


def as_unreadable_url(path: str) -> Unreadable:
    """Returns what stands in the place of an image that is named by a URL."""
    return Unreadable(f"{path} is a URL, and only files are read")
