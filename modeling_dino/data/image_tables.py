# SPDX-License-Identifier: Apache-2.0
"""Sources of images in tables: Parquet files, and data sets of `datasets`, in memory or streamed."""

import bisect
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.extras import require
from .decoding import MAX_FILE_BYTES, one_line
from .image_source import (
    ImageRecord,
    ImageSource,
    IndexedSource,
    RemoteFile,
    Unreadable,
    combined_fingerprint,
    files_fingerprint,
)
from .options import TableOptions
from .paths import NO_PATH, PathsBelow, PathsOfHub


if TYPE_CHECKING:
    import datasets

PATH_COLUMN = "path"
LABEL_COLUMNS = ("label", "labels", "cls", "class")
ROWS_AT_ONCE = 64
Paths = PathsBelow | PathsOfHub


class TableColumns:
    """
    Finds the columns of a table that have the images and the labels.

    Args:
        name: names the source in messages.
        features: columns and their types.
        options: names of the columns, which are found by their types and names where these are None.

    Raises:
        ValueError: if there is no such column, or several that may have the images, or it has neither images nor
            paths.
    """

    def __init__(self, name: str, features: "datasets.Features", options: TableOptions):
        for wanted in (options.image_column, options.label_column):
            check_column(name, wanted, features)
        self.name, self.options = name, options
        self.image = options.image_column or _image_column(name, features)
        if not _may_have_images(features[self.image]):
            raise ValueError(f"the column {self.image} of {name} has neither images nor paths: {features[self.image]}")
        self.path_field = _path_field(self.image, features[self.image])
        self.label = options.label_column or _label_column(features)
        self.class_names = getattr(features.get(self.label), "names", None)
        is_integer = getattr(features.get(self.label), "dtype", "").startswith(("int", "uint"))
        self.label_type = "int64" if is_integer and self.class_names is None else "string"
        self.names = [self.image] if self.label is None else [self.image, self.label]
        self.label_types = {} if self.label is None else {"label": self.label_type}
        self.how_to_label = how_to_label([known for known in features if known != self.image], _classes(features))

    def record(self, row: dict[str, Any], paths: Paths, **place: int) -> ImageRecord:
        """
        Returns the record of a row.

        Args:
            paths: which paths in the row are opened.
            place: where in the table the row lies.

        Raises:
            ValueError: if it has a class that is not among those of the table.
        """
        name = "/".join(map(str, place.values()))
        label = {} if self.label is None else {"label": self._label(name, row[self.label])}
        return ImageRecord(name, {**place, **label}, _content(row[self.image], paths))

    def _label(self, row: str, value: Any) -> str | int | None:
        if value is None or value != value:  # NaN
            return None
        if self.class_names is None:
            return int(value) if self.label_type == "int64" else str(value)
        if value >= len(self.class_names):
            raise ValueError(
                f"{self.name} has class {value} in row {row}, and names for {len(self.class_names)} alone"
            )
        return self.class_names[value] if value >= 0 else None  # -1: the class is not known


def check_column(name: str, wanted: str | None, columns: Sequence[str]):
    """Raises ValueError if a column that is asked for is missing."""
    if wanted is not None and wanted not in columns:
        raise ValueError(f"{name} has no column {wanted!r}; its columns are {', '.join(columns)}")


def how_to_label(columns: Sequence[str], classes: Sequence[str] = ()) -> str:
    """
    Returns what a user can do, none of whose columns is called as labels are.

    Args:
        columns: that have no images.
        classes: those of them that have names for their values.
    """
    likely = [column for column in columns if column in classes or "label" in column.lower()]
    choice = " or ".join(likely or columns)
    return f"name their column with --label-column: {choice}" if choice else "add a column `label`"


def _image_column(name: str, features: "datasets.Features") -> str:
    datasets = require("datasets")
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    images = images or [column for column, kind in features.items() if _has(kind, "bytes", "binary")]
    images = images or [
        column
        for column, kind in features.items()
        if (isinstance(kind, dict) or column == PATH_COLUMN) and _may_have_images(kind)
    ]
    if len(images) == 1:
        return images[0]
    if images:
        raise ValueError(f"{name} has several columns of images: choose one of {', '.join(images)} by --image-column")
    raise ValueError(f"{name} has no column of images; its columns are {', '.join(features)}")


def _has(kind: Any, part: str, dtype: str) -> bool:
    """Returns whether a type, or a part of it, is of strings or of bytes."""
    kind = kind.get(part) if isinstance(kind, dict) else kind
    return getattr(kind, "dtype", None) in (dtype, f"large_{dtype}")


def _may_have_images(kind: Any) -> bool:
    is_image = isinstance(kind, require("datasets").Image)
    return is_image or _has(kind, "bytes", "binary") or _has(kind, "path", "string")


def _path_field(column: str, kind: Any) -> str | None:
    """Returns where in a column of images paths may stand."""
    if isinstance(kind, require("datasets").Image) or (isinstance(kind, dict) and "path" in kind):
        return f"{column}.path"
    return column if _has(kind, "", "string") and not isinstance(kind, dict) else None


def _classes(features: "datasets.Features") -> list[str]:
    return [column for column, kind in features.items() if hasattr(kind, "names")]


def _label_column(features: "datasets.Features") -> str | None:
    classes = _classes(features)
    named = [column for column in LABEL_COLUMNS if column in features]
    return next(iter(named or (classes if len(classes) == 1 else [])), None)


def _content(value: Any, paths: Paths) -> str | bytes | RemoteFile | Unreadable:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    return paths.content(value) if isinstance(value, str) else (value or NO_PATH)


def paths_below(folder: str, options: TableOptions) -> PathsBelow:
    """Returns which paths in a table of a folder are opened."""
    return PathsBelow(folder) if options.image_root is None else PathsBelow(options.image_root, is_named=True)


@dataclass(frozen=True)
class PathsOfRows:
    """
    Says which paths are opened, where tables of several folders follow each other.

    Args:
        starts: the first row of each table.
        paths: of each table.
    """

    starts: Sequence[int]
    paths: Sequence[Paths]

    def __getitem__(self, row: int) -> Paths:
        return self.paths[bisect.bisect_right(self.starts, row) - 1]


@contextmanager
def rows_of(table: str) -> Iterator[None]:
    """Raises ValueError, instead of what pyarrow and `datasets` raise, if a table is damaged."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{table} is damaged, or has other columns than it says: {one_line(error)}") from error


class ParquetImages(ImageSource):
    """
    A source of images in Parquet files, in columns of bytes, of paths, or as `datasets` stores images.

    Raises:
        ValueError: if a file is not Parquet, or the columns cannot be found (see [`TableColumns`]).
    """

    def __init__(self, name: str, files: Sequence[str], columns: TableOptions):
        self.name, self.files = name, list(files)
        metadata = [_parquet_metadata(file) for file in self.files]
        try:
            features = require("datasets").Features.from_arrow_schema(metadata[0].schema.to_arrow_schema())
        except Exception as error:  # of what `datasets` has written into the schema
            raise ValueError(f"{self.files[0]} cannot be read as Parquet: {one_line(error)}") from error
        self.table = TableColumns(name, features, columns)
        for file, found in zip(self.files, metadata):
            _check_sizes(file, found, self.table.image)
        self.how_to_label = self.table.how_to_label
        self.columns = {"index": "int64", **self.table.label_types}
        self.starts = [0, *itertools.accumulate(found.num_rows for found in metadata)]
        self.num_images = self.starts[-1]
        folders = [os.path.dirname(file) or os.curdir for file in self.files]
        self.paths = PathsOfRows(self.starts[:-1], [paths_below(folder, columns) for folder in folders])

    def parts(self, rows: int) -> range:
        return range(len(self.files))

    def read(self, part: int) -> Iterator[ImageRecord]:
        """Reads a file; raises ValueError if it lacks a column that the first one has, or is damaged."""
        pq = require("pyarrow.parquet")
        index, paths = itertools.count(self.starts[part]), self.paths.paths[part]
        with rows_of(self.files[part]), pq.ParquetFile(self.files[part]) as file:
            for batch in file.iter_batches(_rows_at_once(file.metadata, self.table.image), columns=self.table.names):
                for row in batch.to_pylist():
                    yield self.table.record(row, paths, index=next(index))

    def fingerprint(self) -> str:
        named = itertools.chain.from_iterable(map(self._named_files, self.files, self.paths.paths))
        return combined_fingerprint(files_fingerprint(self.files), files_fingerprint(list(named)))

    def _named_files(self, file: str, paths: Paths) -> Iterator[str]:
        """Returns the image files that the rows of a Parquet file name, where they do not have the images in them."""
        pq, metadata = require("pyarrow.parquet"), _parquet_metadata(file)
        field = self.table.path_field
        if field is None or (field != self.table.image and _has_no_nulls(metadata, f"{self.table.image}.bytes")):
            return
        with rows_of(file):
            (values,) = pq.read_table(file, columns=[field]).flatten().columns
        contents = (paths.content(path or "") for path in values.to_pylist())
        yield from (content for content in contents if isinstance(content, str))

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
            raise ValueError(f"{self.name} cannot be read as Parquet: {one_line(error)}") from error
        images = DatasetImages(self.name, dataset, self.table.options, self.paths, self.fingerprint())
        images.how_to_label = self.how_to_label  # with the columns that are not read
        return images


def _parquet_metadata(file: str) -> Any:
    """Reads the metadata of a Parquet file; raises ValueError if it has none."""
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    try:
        return pq.read_metadata(file)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {one_line(error)}") from error


def _row_groups(metadata: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yields the metadata of the row groups of a Parquet file, and those of their columns."""
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        yield group, [group.column(i) for i in range(group.num_columns)]


def _has_no_nulls(metadata: Any, field: str) -> bool:
    """Returns whether all rows have a value, as far as the metadata tells."""
    columns = itertools.chain.from_iterable(columns for _, columns in _row_groups(metadata))
    found = [column.statistics for column in columns if column.path_in_schema == field]
    return all(known is not None and known.has_null_count and not known.null_count for known in found)


def _image_bytes(columns: Sequence[Any], image: str) -> int:
    """Returns the bytes that the column of images takes in a row group, not compressed; equal images count once."""
    return sum(column.total_uncompressed_size for column in columns if column.path_in_schema.split(".")[0] == image)


def _rows_at_once(metadata: Any, image: str) -> int:
    """Returns how many rows fit into memory, even if each has the largest image that there may be."""
    largest = max((_image_bytes(columns, image) for _, columns in _row_groups(metadata)), default=0)
    return max(1, min(ROWS_AT_ONCE, MAX_FILE_BYTES // max(largest, 1)))


def _check_sizes(file: str, metadata: Any, image: str):
    """Raises ValueError if the images of a row group are on average too large, as Parquet reads many at once."""
    for group, columns in _row_groups(metadata):
        if _image_bytes(columns, image) > MAX_FILE_BYTES * group.num_rows:
            raise ValueError(f"the images in {file} are larger than {MAX_FILE_BYTES // 2**20} MiB")


class DatasetImages(IndexedSource):
    """
    A source of images in a column of a `datasets.Dataset`; raises the errors of [`TableColumns`].

    Args:
        paths: which paths in the rows are opened.
        fingerprint: changes when the images do.
    """

    def __init__(
        self, name: str, dataset: "datasets.Dataset", columns: TableOptions, paths: PathsOfRows, fingerprint: str
    ):
        self.name, self.paths, self._fingerprint = name, paths, fingerprint
        self.table = TableColumns(name, dataset.features, columns)
        self.dataset = _encoded(dataset, self.table)
        self.how_to_label = self.table.how_to_label
        self.columns = {"index": "int64", **self.table.label_types}
        self.num_images = len(dataset)

    def read(self, part: range) -> Iterator[ImageRecord]:
        with rows_of(self.name):
            for index, row in zip(part, self.dataset.select(part)):
                yield self.table.record(row, self.paths[index], index=index)

    def record(self, index: int) -> ImageRecord:
        with rows_of(self.name):
            return self.table.record(self.dataset[index], self.paths[index], index=index)

    def fingerprint(self) -> str:
        return self._fingerprint


class StreamedImages(ImageSource):
    """
    A source of images in a column of a `datasets.IterableDataset`, whose parts are its shards (files, mostly).

    It raises the errors of [`TableColumns`].

    Args:
        paths: which paths in the rows are opened.
        revision: of the data set.
    """

    def __init__(
        self, name: str, dataset: "datasets.IterableDataset", columns: TableOptions, paths: Paths, revision: str
    ):
        if dataset.features is None:  # they are seen in the first rows alone
            dataset = dataset._resolve_features()
        self.paths, self.revision = paths, revision
        self.table = TableColumns(name, dataset.features, columns)
        self.dataset = _encoded(dataset, self.table)
        self.how_to_label = self.table.how_to_label
        self.columns = {"shard": "int64", "index": "int64", **self.table.label_types}

    def parts(self, rows: int) -> range:
        return range(self.dataset.num_shards)

    def read(self, part: int) -> Iterator[ImageRecord]:
        for index, row in enumerate(self.dataset.shard(self.dataset.num_shards, part)):
            yield self.table.record(row, self.paths, shard=part, index=index)

    def fingerprint(self) -> str:
        info = [asdict(self.dataset.info), str(self.dataset.split), self.revision]
        return hashlib.sha256(json.dumps(info, sort_keys=True, default=str).encode()).hexdigest()


def _encoded(
    dataset: "datasets.Dataset | datasets.IterableDataset", table: TableColumns
) -> "datasets.Dataset | datasets.IterableDataset":
    """Selects the columns that are read, with images as the bytes of their files or their paths."""
    dataset = dataset.with_format(None).select_columns(table.names)
    return dataset.cast_column(table.image, require("datasets").Image(decode=False))


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
        builder = datasets.load_dataset_builder(repository, subset)
        known = builder.info.splits or {}
    except Exception as error:  # of `datasets`, the hub's client or the network
        raise _not_to_be_had(name, error) from error
    split = choose_split(name, split, known) if known else split
    try:
        dataset = datasets.load_dataset(repository, subset, split=split, streaming=streaming)
    except Exception as error:
        raise _not_to_be_had(name, error) from error
    paths = PathsOfHub(repository) if columns.image_root is None else None
    return from_dataset(name, dataset, split, columns, paths, str(builder.hash))


def from_dataset(
    name: str, dataset: Any, split: str | None, columns: TableOptions, paths: Paths | None = None, revision: str = ""
) -> DatasetImages | StreamedImages:
    """
    Returns the source of what `datasets` has loaded; raises the errors of [`TableColumns`] and [`choose_split`].

    Args:
        paths: which paths in the rows are opened; by default those below the working directory.
        revision: of a streamed data set.
    """
    if isinstance(dataset, dict):
        dataset = dataset[choose_split(name, split, dataset)]
    paths = paths or paths_below(os.curdir, columns)
    if isinstance(dataset, require("datasets").IterableDataset):
        return StreamedImages(name, dataset, columns, paths, revision)
    return DatasetImages(name, dataset, columns, PathsOfRows([0], [paths]), dataset._fingerprint)


def _not_to_be_had(name: str, error: Exception) -> ValueError:
    return ValueError(f"{name} is no file or folder here, and cannot be had as a data set: {one_line(error)}")


def open_saved_dataset(folder: str, split: str | None, columns: TableOptions) -> DatasetImages:
    """
    Opens what `save_to_disk` of `datasets` has written.

    Raises:
        ValueError: if it is damaged, or names files elsewhere; and the errors of [`TableColumns`] and
            [`choose_split`].
    """
    try:
        _check_saved_dataset(Path(folder))
        dataset = require("datasets").load_from_disk(folder)
    except Exception as error:  # of `datasets`, on what it has not written
        raise ValueError(f"{folder} cannot be read as a saved data set: {one_line(error)}") from error
    if isinstance(dataset, dict):
        split = choose_split(folder, split, dataset)
        folder, dataset = os.path.join(folder, split), dataset[split]
    files = [file["filename"] for file in dataset.cache_files]
    fingerprint = combined_fingerprint(dataset._fingerprint, files_fingerprint(files))
    return DatasetImages(folder, dataset, columns, PathsOfRows([0], [paths_below(folder, columns)]), fingerprint)


def _check_saved_dataset(folder: Path):
    """Raises an error if the files of a saved data set are not plain names in it, or their list is damaged."""
    for file, list_names in SAVED_DATASETS.items():
        if (folder / file).is_file():
            for name in list_names(json.loads((folder / file).read_text(encoding="utf-8"))):
                if name != os.path.basename(name) or name in ("", os.curdir, os.pardir):
                    raise ValueError(f"{name} lies outside of it")
                if (folder / name).is_dir():
                    _check_saved_dataset(folder / name)


# what `save_to_disk` of `datasets` leaves, and the names in it
SAVED_DATASETS = {
    "dataset_dict.json": lambda content: content["splits"],
    "state.json": lambda content: [file["filename"] for file in content["_data_files"]],
}


def choose_split(name: str, split: str | None, splits: Sequence[str]) -> str:
    """Returns the split that is asked for, or the only one; raises ValueError if it is missing or not unique."""
    if split is None and len(splits) == 1:
        return next(iter(splits))
    if split not in splits:
        asked = f"no split {split!r}" if split else "several splits"
        raise ValueError(f"{name} has {asked}: choose one of {', '.join(f'{name}:{known}' for known in splits)}")
    return split
