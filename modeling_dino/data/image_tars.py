# SPDX-License-Identifier: Apache-2.0
"""Sources of images in tars, those of WebDataset (https://github.com/webdataset/webdataset) and any others."""

import io
import os
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from itertools import groupby, islice

from .decoding import IMAGE_SUFFIXES, as_text
from .image_source import FileRange, ImageRecord, ImageSource, IndexedSource, Unreadable, files_fingerprint


TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIX = ".cls"
SAMPLES_WITH_LABEL = 100  # among so many a label must be seen


class ImageTars(ImageSource):
    """
    A source of the images in tars, in the order in which they lie there.

    Members that follow each other and share their name up to its first dot belong together; `.cls` is their label.
    """

    def __init__(self, tars: Sequence[str]):
        self.tars = list(tars)
        has_labels = any("label" in record.columns for record in islice(self.read(self.tars[0]), SAMPLES_WITH_LABEL))
        self.columns = {"path": "string", "label": "string"} if has_labels else {"path": "string"}

    def parts(self, rows: int) -> list[str]:
        return self.tars

    def read(self, part: str) -> Iterator[ImageRecord]:
        """Reads a tar; a damaged one gives the images before the damage, and then a record that says so."""
        try:
            with tarfile.open(part) as tar:
                for _, files in groupby(contents(tar), key=lambda file: sample_key(file[0])):
                    yield from records_of_sample(part, dict(files))
        except (tarfile.TarError, OSError, EOFError) as error:
            name = as_text(part)
            yield ImageRecord(name, {"path": name}, Unreadable(f"the tar is damaged: {error}"))

    def fingerprint(self) -> str:
        return files_fingerprint(self.tars)

    def indexed(self) -> "IndexedTars":
        return IndexedTars(self)


class IndexedTars(IndexedSource):
    """
    A source of the images in tars, in any order, without labels; it reads the tars' headers once.

    Raises:
        ValueError: if a tar is compressed.
    """

    def __init__(self, source: ImageTars):
        self.columns, self.notes = {"path": "string"}, {}
        self.tars, self.fingerprint = source.tars, source.fingerprint
        self._tar, self._offset, self._size = array("L"), array("Q"), array("Q")
        self.paths = list(self._locate_images(source))
        self.num_images = len(self.paths)

    def record(self, index: int) -> ImageRecord:
        path = self.paths[index]
        place = FileRange(self.tars[self._tar[index]], self._offset[index], self._size[index])
        return ImageRecord(path, {"path": path}, place)

    def _locate_images(self, source: ImageTars) -> Iterator[str]:
        """Stores where each image lies, and returns the paths."""
        for number, tar in enumerate(self.tars):
            for record in source.read(tar):
                if isinstance(record.content, Unreadable):
                    self.notes[record.name] = record.content.reason
                    continue
                if isinstance(record.content, bytes):
                    raise ValueError(f"{tar} is compressed, so its images cannot be read in any order: decompress it")
                self._tar.append(number)
                self._offset.append(record.content.offset)
                self._size.append(record.content.size)
                yield record.name


def contents(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes | FileRange]]:
    """Returns names and contents of the images and labels in a tar; of an uncompressed one, where images lie."""
    is_plain = isinstance(tar.fileobj, io.BufferedReader)
    while (member := tar.next()) is not None:
        tar.members = []  # tarfile would keep all of them
        suffix = os.path.splitext(member.name)[1].lower()
        if not member.isreg() or (suffix not in IMAGE_SUFFIXES and suffix != LABEL_SUFFIX):
            continue
        if is_plain and suffix != LABEL_SUFFIX:
            yield member.name, FileRange(tar.name, member.offset_data, member.size)
        else:
            yield member.name, tar.extractfile(member).read()
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops at damage without a word
        raise tarfile.ReadError("no end mark after the last member")


def sample_key(name: str) -> str:
    """Returns the name of a member up to the first dot of its last part."""
    folder, file = os.path.split(name)
    return os.path.join(folder, file.partition(".")[0])


def records_of_sample(tar: str, files: dict[str, bytes | FileRange]) -> Iterator[ImageRecord]:
    """Returns records of the images among the files of a sample."""
    label = {}
    for name in [name for name in files if name.lower().endswith(LABEL_SUFFIX)]:
        label["label"] = files.pop(name).decode("utf-8", "replace").strip()
    for name, content in files.items():
        path = as_text(os.path.join(tar, name))
        yield ImageRecord(path, {"path": path, **label}, content)
