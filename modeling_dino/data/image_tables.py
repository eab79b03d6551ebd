# SPDX-License-Identifier: Apache-2.0
"""Images in tables: Parquet, and data sets of `datasets`, in memory or streamed."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..runtime.extras import require
from .image_source import ImageRecord, ImageSource, IndexedSource, Unreadable, files_fingerprint, ranges


if TYPE_CHECKING:
    import datasets

LABEL_COLUMNS = ("label", "labels", "cls", "class")
ROWS_AT_ONCE = 64


class TableColumns:
    """
    Which column of a table has the images, and which the labels.

    Args:
        name: of the source, for messages.
        features: columns and their types.
        image, label: names of the columns; found by their types and names if None.

    Raises:
        ValueError: if there is no such column, or not one alone that has images.
    """

    def __init__(self, name: str, features: "datasets.Features", image: str | None, label: str | None):
        for wanted in (image, label):
            if wanted is not None and wanted not in features:
                raise ValueError(f"{name} has no column {wanted!r}; its columns are {', '.join(features)}")
        self.image = image or _image_column(name, features)
        self.label = label or _label_column(features)
        self.class_names = getattr(features.get(self.label), "names", None)
        is_integer = getattr(features.get(self.label), "dtype", "").startswith(("int", "uint"))
        self.label_type = "int64" if is_integer and self.class_names is None else "string"

    @property
    def names(self) -> list[str]:
        """The columns that are read."""
        return [self.image] if self.label is None else [self.image, self.label]

    @property
    def types(self) -> dict[str, str]:
        """The columns of the rows that are written, but for the place in the table."""
        return {} if self.label is None else {"label": self.label_type}

    def record(self, row: dict[str, Any], **place: int) -> ImageRecord:
        """The image in a row."""
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
    Images in Parquet files: columns of bytes, or as `datasets` stores images.

    Args:
        name: of the source, for messages.
        files: in order.
        image, label: see [`TableColumns`].

    Raises:
        ValueError: if a file is no Parquet, or see [`TableColumns`].
    """

    def __init__(self, name: str, files: Sequence[str], image: str | None = None, label: str | None = None):
        self.name = name
        datasets, pq = require("datasets"), require("pyarrow.parquet")
        self.files, rows = list(files), []
        for file in self.files:
            try:
                rows.append(pq.read_metadata(file).num_rows)
            except (ValueError, OSError) as error:
                raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
        features = datasets.Features.from_arrow_schema(pq.read_schema(self.files[0]))
        self.table = TableColumns(name, features, image, label)
        self.columns = {"index": "int64", **self.table.types}
        self.starts = [0, *itertools.accumulate(rows)]
        self.num_images = self.starts[-1]

    def parts(self, rows: int) -> range:
        return range(len(self.files))

    def read(self, part: int) -> Iterator[ImageRecord]:
        """
        Raises:
            ValueError: if the file lacks a column that the first one has, or is damaged.
        """
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
        As a data set that `datasets` keeps in its cache, since Parquet gives no less than hundreds of rows at once.

        Raises:
            ValueError: if the files cannot be read.
            OSError: if there is no room for it.
        """
        datasets = require("datasets")
        try:
            dataset = datasets.Dataset.from_parquet(self.files, columns=self.table.names)
        except datasets.exceptions.DatasetsError as error:
            raise ValueError(f"{self.name} cannot be read as Parquet: {error}") from error
        return DatasetImages(self.name, dataset, self.table.image, self.table.label)


class DatasetImages(IndexedSource):
    """Images in a column of a `datasets.Dataset`; arguments and errors as of [`TableColumns`]."""

    def __init__(self, name: str, dataset: "datasets.Dataset", image: str | None = None, label: str | None = None):
        self.table = TableColumns(name, dataset.features, image, label)
        self.dataset = _encoded(dataset, self.table)
        self.columns = {"index": "int64", **self.table.types}
        self.num_images = len(dataset)
        self._fingerprint = dataset._fingerprint

    def parts(self, rows: int) -> list[range]:
        return ranges(self.num_images, rows)

    def read(self, part: range) -> Iterator[ImageRecord]:
        for index, row in zip(part, self.dataset.select(part)):
            yield self.table.record(row, index=index)

    def record(self, index: int) -> ImageRecord:
        return self.table.record(self.dataset[index], index=index)

    def fingerprint(self) -> str:
        return self._fingerprint


class StreamedImages(ImageSource):
    """
    Images in a column of a `datasets.IterableDataset`, whose parts are its shards (files, mostly).

    Arguments and errors as of [`TableColumns`].
    """

    def __init__(
        self, name: str, dataset: "datasets.IterableDataset", image: str | None = None, label: str | None = None
    ):
        if dataset.features is None:  # they are seen in the first rows alone
            dataset = dataset._resolve_features()
        self.table = TableColumns(name, dataset.features, image, label)
        self.dataset = _encoded(dataset, self.table)
        self.columns = {"shard": "int64", "index": "int64", **self.table.types}

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
    """The columns that are read, with images as the bytes of their files."""
    return dataset.select_columns(table.names).cast_column(table.image, require("datasets").Image(decode=False))


def open_dataset(
    name: str, split: str | None, streaming: bool, image: str | None, label: str | None
) -> DatasetImages | StreamedImages:
    """
    A data set on the hub.

    Args:
        name: `user/name`, or `user/name/subset`.
        split: may be left out if there is one alone.

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
    return from_dataset(name, dataset, split, image, label)


def from_dataset(
    name: str, dataset: Any, split: str | None, image: str | None, label: str | None
) -> DatasetImages | StreamedImages:
    """The images of what `datasets` has loaded; errors as of [`TableColumns`] and [`choose_split`]."""
    if isinstance(dataset, dict):
        dataset = dataset[choose_split(name, split, dataset)]
    is_streamed = isinstance(dataset, require("datasets").IterableDataset)
    return (StreamedImages if is_streamed else DatasetImages)(name, dataset, image, label)


def choose_split(name: str, split: str | None, splits: Sequence[str]) -> str:
    """
    The split that is asked for, or the only one there is.

    Raises:
        ValueError: if there is no such split, or there are several.
    """
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split not in splits:
        asked = f"no split {split!r}" if split else "several splits"
        raise ValueError(f"{name} has {asked}: choose one of {', '.join(f'{name}:{known}' for known in splits)}")
    return split
