# SPDX-License-Identifier: Apache-2.0
"""Sources of images in tables: Parquet files, and data sets of `datasets`, in memory or streamed."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..runtime.extras import require
from .image_source import ImageRecord, ImageSource, IndexedSource, Unreadable, files_fingerprint
from .options import TableOptions


if TYPE_CHECKING:
    import datasets

LABEL_COLUMNS = ("label", "labels", "cls", "class")
ROWS_AT_ONCE = 64


class TableColumns:
    """
    Finds the columns of a table that have the images and the labels.

    Args:
        name: names the source in messages.
        features: columns and their types.
        options: names of the columns, which are found by their types and names where these are None.

    Raises:
        ValueError: if there is no such column, or several that may have the images.
    """

    def __init__(self, name: str, features: "datasets.Features", options: TableOptions):
        for wanted in (options.image_column, options.label_column):
            if wanted is not None and wanted not in features:
                raise ValueError(f"{name} has no column {wanted!r}; its columns are {', '.join(features)}")
        self.options = options
        self.image = options.image_column or _image_column(name, features)
        self.label = options.label_column or _label_column(features)
        self.class_names = getattr(features.get(self.label), "names", None)
        is_integer = getattr(features.get(self.label), "dtype", "").startswith(("int", "uint"))
        self.label_type = "int64" if is_integer and self.class_names is None else "string"
        self.names = [self.image] if self.label is None else [self.image, self.label]
        self.label_types = {} if self.label is None else {"label": self.label_type}

    def record(self, row: dict[str, Any], **place: int) -> ImageRecord:
        """Returns the record of a row; `place` says where in the table it lies."""
        name = "/".join(map(str, place.values()))
        label = {} if self.label is None else {"label": self._label(row[self.label])}
        return ImageRecord(name, {**place, **label}, _content(row[self.image]))

    def _label(self, value: Any) -> str | int | None:
        if value is None:
            return None
        if self.class_names is not None:
            return self.class_names[value] if value >= 0 else None  # -1: the class is not known
        return int(value) if self.label_type == "int64" else str(value)


def _image_column(name: str, features: "datasets.Features") -> str:
    datasets = require("datasets")
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [column for column, kind in features.items() if _has_bytes(kind)]
    if len(images) == 1:
        return images[0]
    if images:
        raise ValueError(f"{name} has several columns of images: choose one of {', '.join(images)} by --image-column")
    raise ValueError(f"{name} has no column of images; its columns are {', '.join(features)}")


def _has_bytes(kind: Any) -> bool:
    kind = kind.get("bytes") if isinstance(kind, dict) else kind
    return getattr(kind, "dtype", None) in ("binary", "large_binary")


def _label_column(features: "datasets.Features") -> str | None:
    classes = [column for column, kind in features.items() if hasattr(kind, "names")]
    named = [column for column in LABEL_COLUMNS if column in features]
    return next(iter(named or (classes if len(classes) == 1 else [])), None)


def _content(value: Any) -> str | bytes | Unreadable:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return value or Unreadable("no image in this row")


class ParquetImages(ImageSource):
    """
    A source of images in Parquet files, in columns of bytes or as `datasets` stores images.

    Raises:
        ValueError: if a file is not Parquet, or the columns cannot be found (see [`TableColumns`]).
    """

    def __init__(self, name: str, files: Sequence[str], columns: TableOptions):
        self.name = name
        datasets, pq = require("datasets"), require("pyarrow.parquet")
        self.files, rows = list(files), []
        for file in self.files:
            try:
                rows.append(pq.read_metadata(file).num_rows)
            except (ValueError, OSError) as error:
                raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
        features = datasets.Features.from_arrow_schema(pq.read_schema(self.files[0]))
        self.table = TableColumns(name, features, columns)
        self.columns = {"index": "int64", **self.table.label_types}
        self.starts = [0, *itertools.accumulate(rows)]
        self.num_images = self.starts[-1]

    def parts(self, rows: int) -> range:
        return range(len(self.files))

    def read(self, part: int) -> Iterator[ImageRecord]:
        """Reads a file; raises ValueError if it lacks a column that the first one has, or is damaged."""
        pq = require("pyarrow.parquet")
        index = itertools.count(self.starts[part])
        try:
            with pq.ParquetFile(self.files[part]) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=self.table.names):
                    for row in batch.to_pylist():
                        yield self.table.record(row, index=next(index))
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"{self.files[part]} is damaged, or has other columns than {self.files[0]}: {error}"
            ) from error

    def fingerprint(self) -> str:
        return files_fingerprint(self.files)

    def indexed(self) -> "DatasetImages":
        """
        Returns a data set that `datasets` keeps in its cache, since Parquet gives hundreds of rows at once.

        Raises:
            ValueError: if the files cannot be read.
            OSError: if there is no room for the data set.
        """
        datasets = require("datasets")
        try:
            dataset = datasets.Dataset.from_parquet(self.files, columns=self.table.names)
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(f"{self.name} cannot be read as Parquet: {error}") from error
        return DatasetImages(self.name, dataset, self.table.options)


class DatasetImages(IndexedSource):
    """A source of images in a column of a `datasets.Dataset`; raises the errors of [`TableColumns`]."""

    def __init__(self, name: str, dataset: "datasets.Dataset", columns: TableOptions):
        self.table = TableColumns(name, dataset.features, columns)
        self.dataset = _encoded(dataset, self.table)
        self.columns = {"index": "int64", **self.table.label_types}
        self.num_images = len(dataset)
        self._fingerprint = dataset._fingerprint

    def read(self, part: range) -> Iterator[ImageRecord]:
        for index, row in zip(part, self.dataset.select(part)):
            yield self.table.record(row, index=index)

    def record(self, index: int) -> ImageRecord:
        return self.table.record(self.dataset[index], index=index)

    def fingerprint(self) -> str:
        return self._fingerprint


class StreamedImages(ImageSource):
    """
    A source of images in a column of a `datasets.IterableDataset`, whose parts are its shards (files, mostly).

    It raises the errors of [`TableColumns`].
    """

    def __init__(self, name: str, dataset: "datasets.IterableDataset", columns: TableOptions):
        if dataset.features is None:  # they are seen in the first rows alone
            dataset = dataset._resolve_features()
        self.table = TableColumns(name, dataset.features, columns)
        self.dataset = _encoded(dataset, self.table)
        self.columns = {"shard": "int64", "index": "int64", **self.table.label_types}

    def parts(self, rows: int) -> range:
        return range(self.dataset.num_shards)

    def read(self, part: int) -> Iterator[ImageRecord]:
        for index, row in enumerate(self.dataset.shard(self.dataset.num_shards, part)):
            yield self.table.record(row, shard=part, index=index)

    def fingerprint(self) -> str:
        info = json.dumps([asdict(self.dataset.info), str(self.dataset.split)], sort_keys=True, default=str)
        return hashlib.sha256(info.encode()).hexdigest()


def _encoded(
    dataset: "datasets.Dataset | datasets.IterableDataset", table: TableColumns
) -> "datasets.Dataset | datasets.IterableDataset":
    """Selects the columns that are read, with images as the bytes of their files."""
    return dataset.select_columns(table.names).cast_column(table.image, require("datasets").Image(decode=False))


def open_dataset(
    name: str, split: str | None, streaming: bool, columns: TableOptions
) -> DatasetImages | StreamedImages:
    """
    Opens a data set on the hub.

    Args:
        name: `user/name`, or `user/name/subset`.
        split: may be left out if there is only one.

    Raises:
        ValueError: if there is no such data set or split, or several to choose from.
    """
    datasets = require("datasets")
    repository, subset = "/".join(name.split("/")[:2]), (name.split("/")[2:] or [None])[0]
    try:
        known = datasets.load_dataset_builder(repository, subset).info.splits or {}
        split = choose_split(name, split, known) if known else split
        dataset = datasets.load_dataset(repository, subset, split=split, streaming=streaming)
    except (OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"{name} is no file or folder here, and cannot be had as a data set: {error}") from error
    return from_dataset(name, dataset, split, columns)


def from_dataset(name: str, dataset: Any, split: str | None, columns: TableOptions) -> DatasetImages | StreamedImages:
    """Returns the source of what `datasets` has loaded; raises the errors of [`TableColumns`] and [`choose_split`]."""
    if isinstance(dataset, dict):
        dataset = dataset[choose_split(name, split, dataset)]
    is_streamed = isinstance(dataset, require("datasets").IterableDataset)
    return (StreamedImages if is_streamed else DatasetImages)(name, dataset, columns)


def choose_split(name: str, split: str | None, splits: Sequence[str]) -> str:
    """Returns the split that is asked for, or the only one; raises ValueError if it is missing or not unique."""
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split not in splits:
        asked = f"no split {split!r}" if split else "several splits"
        raise ValueError(f"{name} has {asked}: choose one of {', '.join(f'{name}:{known}' for known in splits)}")
    return split
