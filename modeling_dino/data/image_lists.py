# SPDX-License-Identifier: Apache-2.0
"""Sources of images in lists: a text file with a path a line, or a CSV or TSV file that may also have their labels.

Such a list is taken for the user's own: relative paths start at its folder, absolute ones and `..` may lead anywhere;
unless the user names a folder (`--image-root`), where all paths start, and which none may leave.
"""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .decoding import MAX_FILE_BYTES, as_text
from .image_source import ImageRecord, IndexedSource, combined_fingerprint, files_fingerprint
from .image_tables import LABEL_COLUMNS, PATH_COLUMN, check_column, how_to_label
from .options import TableOptions
from .paths import NO_PATH, URL, PathsBelow, as_unreadable_url


TABLE_SUFFIXES = (".csv", ".tsv")

NO_LIST = "is neither an image, nor a tar, nor Parquet, nor a text file of paths"
DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}  # Excel writes semicolons in half of the world


class ListedImages(IndexedSource):
    """
    A source of the images in a list, in its order; an image that is listed twice comes twice.

    Args:
        file: the list.
        paths: as they stand in the list.
        labels: one for each path, None for an image without a label; None if the list has no labels.
        image_root: see the text above.
    """

    def __init__(
        self,
        file: str,
        paths: Sequence[str],
        labels: Sequence[str | None] | None = None,
        image_root: str | None = None,
    ):
        self.file, self.labels = file, labels
        folder = Path(file).parent if image_root is None else Path(image_root)
        self.paths = [str(folder / path) if path and not URL.match(path) else path for path in paths]
        self.below = None if image_root is None else PathsBelow(os.path.abspath(image_root), is_named=True)
        self.num_images = len(self.paths)
        self.columns = {"path": "string"} if labels is None else {"path": "string", "label": "string"}
        if not self.num_images:
            self.notes = {file: "no images there"}

    def record(self, index: int) -> ImageRecord:
        path = self.paths[index]
        columns = {"path": as_text(path or f"{self.file}: image {index + 1}")}
        if self.labels is not None:
            columns["label"] = self.labels[index]
        if not path:
            content = NO_PATH
        elif URL.match(path):
            content = as_unreadable_url(path)
        else:
            content = path if self.below is None else self.below.content(os.path.abspath(path))
        return ImageRecord(columns["path"], columns, content)

    def fingerprint(self) -> str:
        return combined_fingerprint(files_fingerprint(self.paths), *map(repr, self.labels or ()))


def images_of_list(file: str, options: TableOptions) -> ListedImages:
    """
    Reads a list: a CSV or TSV file with a header if its name says so, else a path a line.

    Raises:
        ValueError: if the file is not text in UTF-8, or a table has no column of paths or is damaged.
    """
    if file.lower().endswith(TABLE_SUFFIXES):
        return _images_of_table(file, options)
    lines = (line.strip() for line in _read_text(file).split("\n"))
    return ListedImages(file, [line for line in lines if line], image_root=options.image_root)


def _read_text(file: str) -> str:
    """Reads a text file; raises ValueError if it is not in UTF-8."""
    is_table = file.lower().endswith(TABLE_SUFFIXES)
    if os.path.getsize(file) > MAX_FILE_BYTES:
        raise ValueError(f"{file} is larger than {MAX_FILE_BYTES // 2**20} MiB, too large for a list of images")
    content = Path(file).read_bytes()
    if _is_utf16(content[:200]):
        raise ValueError(f"{file} is in UTF-16: save it in UTF-8 (in Excel as `CSV UTF-8`)")
    try:
        text = content.decode("utf-8-sig")  # Windows writes a mark of its encoding
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        reason = f"is not in UTF-8 (line {line}): save it in UTF-8 (in Excel as `CSV UTF-8`)"
        raise ValueError(f"{file} {reason if is_table else NO_LIST}") from error
    if "\0" in text:
        raise ValueError(f"{file} {'has null characters, so it is no CSV file' if is_table else NO_LIST}")
    return text


def _is_utf16(start: bytes) -> bool:
    """Returns whether a text begins with the mark of UTF-16, or has a null in every other byte."""
    return start[:2] in (b"\xff\xfe", b"\xfe\xff") or (len(start) > 3 and not (any(start[::2]) and any(start[1::2])))


def _images_of_table(file: str, options: TableOptions) -> ListedImages:
    """Reads a CSV or TSV file, whose delimiter is the one by which the header has the column of paths."""
    text, wanted = _read_text(file), options.image_column or PATH_COLUMN
    headers = {delimiter: _header(text, delimiter) for delimiter in DELIMITERS[Path(file).suffix.lower()]}
    delimiter = max(headers, key=lambda known: (wanted in headers[known], len(headers[known])))
    header = headers[delimiter]
    if options.image_column is None and wanted not in header:
        raise ValueError(
            f"{file} has no column {wanted!r}; its columns are {', '.join(header)}: name that of the paths with "
            "--image-column (a list without a header has another suffix, such as .txt)"
        )
    label = options.label_column or next((column for column in LABEL_COLUMNS if column in header), None)
    for column in (wanted, label):
        check_column(file, column, header)
        if header.count(column) > 1:
            raise ValueError(f"{file} has several columns {column!r}: name each differently")
    rows = list(_rows(file, text, delimiter))
    paths = [row[header.index(wanted)] for row in rows]
    labels = None if label is None else [row[header.index(label)] or None for row in rows]
    source = ListedImages(file, paths, labels, options.image_root)
    source.how_to_label = how_to_label([column for column in header if column != wanted])
    return source


def _header(text: str, delimiter: str) -> list[str]:
    """Returns the names of the columns, if the delimiter is the right one."""
    try:
        _, header = next(_parse(text, delimiter), (0, []))
    except csv.Error:
        return []
    return header


def _rows(file: str, text: str, delimiter: str) -> Iterator[list[str]]:
    """Returns the rows below the header; raises ValueError for one of another length, or with a quote out of place."""
    rows = _parse(text, delimiter)
    _, header = next(rows)
    line = 1
    try:
        for line, row in rows:
            if len(row) != len(header):
                raise ValueError(
                    f"{file}, line {line}: {len(row)} fields for {len(header)} columns (what has {delimiter!r} in it "
                    "stands in quotes)"
                )
            yield row
    except csv.Error as error:
        raise ValueError(f"{file}, after line {line}: {error}") from error


def _parse(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the line and the fields of each row that is not blank; raises `csv.Error` for a quote out of place."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    for row in rows:
        fields = [field.strip() for field in row]
        if any(fields):
            yield rows.line_num, fields
