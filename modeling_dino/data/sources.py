# SPDX-License-Identifier: Apache-2.0
"""Opens what a user names as the source of images, of whatever kind it is."""

import glob
import os
import re
from pathlib import Path

from ..runtime.extras import require
from .decoding import ARRAY_SUFFIX, IMAGE_SUFFIXES
from .image_files import SPLITS, ImageFiles, images_of_folder, split_folders, walk
from .image_lists import images_of_list
from .image_source import ImageSource, is_hidden
from .image_tables import SAVED_DATASETS, ParquetImages, choose_split, open_dataset, open_saved_dataset
from .image_tars import TAR_SUFFIXES, ImageTars
from .options import TableOptions


DATASET_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+(/[\w.-]+)?")


def open_source(
    name: str,
    *,
    streaming: bool = False,
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | None = None,
) -> ImageSource:
    """
    Opens the source of images that a name stands for.

    Args:
        name: a folder of images, searched to any depth, or of tars, Parquet files or a saved data set; a tar, Parquet
            or image file; a text file with a path a line; a pattern such as `"shards/*.tar"`; the id of a data set on
            the hub, `user/name` or `user/name/subset`. The split follows after a colon, where there are several; the
            folders `train`, `val`, `valid`, `validation` and `test` are splits, not classes.
        streaming: read a data set of the hub without storing it.
        image_column, label_column: columns of a table or list, where they cannot be told from types and names.
        image_root: folder where the paths in a table or list start, and below which they must stay; by default that
            of the table. Absolute paths in a table are opened below this folder alone; in a list, which is the user's
            own, any are opened if it is None.

    Raises:
        ValueError: if there is no such source, or it is not clear what to read of it.
    """
    path, split = name, None
    if not os.path.exists(name) and re.search(r":[\w.-]+$", name):
        path, _, split = name.rpartition(":")
    if image_root is not None and not os.path.isdir(image_root):
        raise ValueError(f"the image root {image_root} is no folder")
    columns = TableOptions(image_column=image_column, label_column=label_column, image_root=image_root)
    if os.path.isdir(path):
        return _open_folder(path, split, columns)
    if split is None and os.path.isfile(path):
        return _open_files(path, [path], columns)
    if split is None and (files := _files_of_pattern(path)):
        return _open_files(path, files, columns)
    if DATASET_ID.fullmatch(path) and not os.path.exists(path):
        return open_dataset(path, split, streaming, columns)
    raise ValueError(
        f"{name} is neither a folder, nor an image, nor a tar, nor a Parquet file, nor a text file of paths, nor the "
        "id of a data set (user/name)"
    )


def _files_of_pattern(pattern: str) -> list[str]:
    """Returns the files that a pattern stands for, without hidden ones that it does not name."""
    parts = pattern.split(os.sep)
    files = sorted(glob.glob(pattern, recursive=True))
    return [file for file in files if not any(is_hidden(part) and part not in parts for part in file.split(os.sep))]


def _open_folder(folder: str, split: str | None, columns: TableOptions) -> ImageSource:
    if any(Path(folder, file).is_file() for file in SAVED_DATASETS):
        return open_saved_dataset(folder, split, columns)
    is_folder = split in SPLITS and os.path.isdir(os.path.join(folder, split))
    if folders := [split] if is_folder else split_folders(folder):
        return _open_folder(os.path.join(folder, choose_split(folder, split, folders)), None, columns)
    images = images_of_folder(folder)
    if images.num_images and split is None:
        return images
    splits = _splits_of_folder(folder)
    if not splits and split is None:
        return images
    if not splits and os.path.isdir(os.path.join(folder, split)):
        raise ValueError(f"{folder} has no split {split!r}, but a folder of this name: write {folder}/{split}")
    if not splits:
        raise ValueError(f"{folder} has no split {split!r}, as it has no splits: write {folder}")
    return _open_files(folder, splits[choose_split(folder, split, splits)], columns)


def _splits_of_folder(folder: str) -> dict[str, list[str]]:
    """
    Returns the tars or Parquet files of a folder, by the splits that `datasets` reads in their names.

    It does not read what a README configures, which may name files that lie anywhere else.
    """
    suffixes = (*TAR_SUFFIXES, ".parquet")
    if not any(file.endswith(suffixes) for file in walk(folder)):
        return {}
    data_files, base = require("datasets.data_files"), os.path.realpath(folder)
    found = data_files.DataFilesDict.from_patterns(data_files.get_data_patterns(base), base)
    splits = {str(split): [file for file in files if file.endswith(suffixes)] for split, files in found.items()}
    return {split: files for split, files in splits.items() if files}


def _open_files(name: str, files: list[str], columns: TableOptions) -> ImageSource:
    """Opens files; raises ValueError if they are of several kinds."""
    if all(Path(file).suffix.lower() in (*IMAGE_SUFFIXES, ARRAY_SUFFIX) for file in files):
        return ImageFiles(name, files)
    for file in files:
        is_other = os.path.exists(file) and not os.path.isfile(file)  # a pipe, say, which would be waited for
        if is_other and (len(files) == 1 or not os.path.isdir(file)):
            raise ValueError(f"{file} is no file of images, nor a list of them")
    if all(file.lower().endswith(TAR_SUFFIXES) for file in files):
        return ImageTars(files)
    if all(file.lower().endswith(".parquet") for file in files):
        return ParquetImages(name, files, columns)
    if len(files) == 1:
        return images_of_list(files[0], columns)
    raise ValueError(f"{name} stands for files of several kinds, such as {files[0]} and {files[-1]}: name one kind")
