# SPDX-License-Identifier: Apache-2.0
"""Sources of images in tars, those of WebDataset (https://github.com/webdataset/webdataset) and any others."""

import hashlib
import io
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from .decoding import IMAGE_SUFFIXES, as_text, one_line
from .image_source import FileRange, ImageRecord, ImageSource, IndexedSource, Unreadable, files_fingerprint, is_hidden


TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
LABEL_SUFFIX = ".cls"
SAMPLES_WITH_LABEL = 100  # among so many a label must be seen
FILES_OF_SAMPLE = 100  # at most; more that share their name up to a dot are no sample
MAX_LABEL_BYTES = 2**16
# types of further headers, with names that do not fit the first and the like
HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
HEADERS += (tarfile.SOLARIS_XHDTYPE,)
MAX_HEADER_BYTES = 2**20
MAX_HELD_BYTES = 2**28  # of an image in a compressed tar, which waits in memory until it is decoded
Content = bytes | FileRange | Unreadable


class ImageTars(ImageSource):
    """
    A source of the images in tars, in the order in which they lie there.

    Members that follow each other and share their name up to its first dot belong together; `.cls` is their label.
    Where several have the same name, as after `tar --append`, the later ones get a number: `a.png`, `a.png#2`.
    """

    def __init__(self, tars: Sequence[str]):
        self.tars = list(tars)
        readable = (
            record for tar in self.tars for record in self.read(tar) if not isinstance(record.content, Unreadable)
        )
        has_labels = any("label" in record.columns for record in islice(readable, SAMPLES_WITH_LABEL))
        self.columns = {"path": "string", "label": "string"} if has_labels else {"path": "string"}

    def parts(self, rows: int) -> list[str]:
        return self.tars

    def read(self, part: str) -> Iterator[ImageRecord]:
        """Reads a tar; a damaged one gives the images before the damage, and then a record that says so."""
        counts: dict[bytes, int] = {}  # hashes of the names so far -> how often they came
        try:
            with tarfile.open(part, tarinfo=BoundedHeader) as tar:
                for files in samples(contents(tar)):
                    for record in records_of_sample(part, files):
                        yield numbered(record, counts)
        except Exception as error:  # tarfile and the decompressors raise nearly anything on damaged files
            name = as_text(part)
            yield ImageRecord(name, {"path": name}, Unreadable(f"the tar is damaged: {one_line(error)}"))

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


class BoundedHeader(tarfile.TarInfo):
    """A header of a tar, which is refused if tarfile would read too much for it."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size // 2**20} MiB")
        return super()._proc_member(tar)


def contents(tar: tarfile.TarFile) -> Iterator[tuple[str, Content]]:
    """Returns names and contents of the images and labels in a tar; of an uncompressed one, where images lie."""
    is_plain = isinstance(tar.fileobj, io.BufferedReader)
    while (member := tar.next()) is not None:
        tar.members = []  # tarfile would keep all of them
        suffix = os.path.splitext(member.name)[1].lower()
        is_label = suffix == LABEL_SUFFIX
        if not member.isreg() or not (is_label or suffix in IMAGE_SUFFIXES) or is_hidden_member(member.name):
            continue
        limit = MAX_LABEL_BYTES if is_label else MAX_HELD_BYTES
        if member.issparse():
            yield member.name, Unreadable("stored with holes, as a sparse file")
        elif is_plain and not is_label:
            yield member.name, FileRange(tar.name, member.offset_data, member.size)
        elif member.size > limit:
            yield member.name, Unreadable(f"larger than {limit / 2**20:g} MiB")
        else:
            yield member.name, tar.extractfile(member).read()
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops at damage without a word
        raise tarfile.ReadError("no end mark after the last member")


def is_hidden_member(name: str) -> bool:
    """Returns whether a member or a folder that it lies in is hidden."""
    return any(is_hidden(part) for part in name.split("/") if part not in (os.curdir, os.pardir))


def samples(files: Iterable[tuple[str, Content]]) -> Iterator[dict[str, Content]]:
    """Puts the files that follow each other and belong together into samples, in which no name comes twice."""
    sample: dict[str, Content] = {}
    key = None
    for name, content in files:
        if sample and (sample_key(name) != key or name in sample or len(sample) == FILES_OF_SAMPLE):
            yield sample
            sample = {}
        key = sample_key(name)
        sample[name] = content
    yield sample


def sample_key(name: str) -> str:
    """Returns the name of a member up to the first dot of its last part."""
    folder, file = os.path.split(name)
    return os.path.join(folder, file.partition(".")[0])


def records_of_sample(tar: str, files: dict[str, Content]) -> Iterator[ImageRecord]:
    """Returns records of the images among the files of a sample."""
    label, reason = {}, None
    for name in [name for name in files if name.lower().endswith(LABEL_SUFFIX)]:
        content = files.pop(name)
        if isinstance(content, Unreadable):
            label, reason = {"label": None}, Unreadable(f"its label is {content.reason}")
        else:
            label = {"label": content.decode("utf-8", "replace").strip()}
    for name, content in files.items():
        path = as_text(os.path.join(tar, name))
        yield ImageRecord(path, {"path": path, **label}, reason or content)


def numbered(record: ImageRecord, counts: dict[bytes, int]) -> ImageRecord:
    """Returns the record under a name of its own: with a number, where the same name has come before."""
    key = hashlib.blake2b(record.name.encode(), digest_size=8).digest()
    counts[key] = counts.get(key, 0) + 1
    if counts[key] == 1:
        return record
    name = f"{record.name}#{counts[key]}"
    return replace(record, name=name, columns={**record.columns, "path": name})
