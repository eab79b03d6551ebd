"""Tars as people and accidents make them."""

import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from source_files import encoded, write_tar

from modeling_dino.data import image_tars
from modeling_dino.data.reader import all_records, decode_record
from modeling_dino.data.sources import open_source


def rows(source) -> list[tuple[str, str | None]]:
    """Names within the tar, and labels or reasons."""
    found = []
    for record in all_records(source):
        name = record.name.removeprefix(str(Path(record.name).parents[0]) + "/")
        try:
            decode_record(record)
            found.append((name, record.columns.get("label")))
        except ValueError as error:
            found.append((name, str(error)))
    return found


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_members_of_the_same_name_are_rows_of_their_own(tmp_path, suffix):
    """One after the other, as two samples; or apart, as `tar --append` leaves a file that was changed."""
    members = [("a.png", encoded(0)), ("a.cls", b"x"), ("a.png", encoded(1)), ("a.cls", b"y"), ("b.png", encoded(2))]
    members += [("b.jpg", encoded(3)), ("c.png", encoded(4)), ("b.png", encoded(5)), ("a.png", encoded(6))]
    tar = write_tar(tmp_path / f"t{suffix}", members, "w:gz" if suffix == ".tar.gz" else "w")
    source = open_source(str(tar))
    names = ["a.png", "a.png#2", "b.png", "b.jpg", "c.png", "b.png#2", "a.png#3"]
    assert rows(source) == list(zip(names, ["x", "y", *[None] * 5]))
    assert [decode_record(r)[0].tobytes() for r in all_records(source)][1:3] == [picture_bytes(1), picture_bytes(2)]
    if suffix == ".tar":
        assert [name for name, _ in rows(source.indexed())] == names


def picture_bytes(number: int) -> bytes:
    from PIL import Image

    return Image.open(io.BytesIO(encoded(number))).tobytes()


def test_what_is_hidden_is_no_image(tmp_path):
    hidden = [
        "._a.png",
        ".b.png",
        "x/.ipynb_checkpoints/c.png",
        "__MACOSX/d.png",
        "./.git/e.png",
        "a/__MACOSX/._f.png",
    ]
    members = [(name, encoded(0)) for name in [*hidden, "./shown.png", "x/y.png", "../z.png"]]
    members += [("x/._y.cls", b"mac"), ("._g.cls", b"mac")]
    source = open_source(str(write_tar(tmp_path / "a.tar", members)))
    assert [record.name for record in all_records(source)] == [
        f"{tmp_path}/a.tar/{name}" for name in ("./shown.png", "x/y.png", "../z.png")
    ]
    assert source.columns == {"path": "string"}


def write_bomb(file: Path, name: str, size: int):
    """A compressed tar of a member that is much larger, between two images."""
    info = tarfile.TarInfo(name)
    info.size = size
    with gzip.open(file, "wb", compresslevel=1) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for member, content in (("a.png", encoded(0)), (None, None), ("z.png", encoded(1))):
            if member is None:
                tar.addfile(info, Zeros(size))
            else:
                small = tarfile.TarInfo(member)
                small.size = len(content)
                tar.addfile(small, io.BytesIO(content))


class Zeros:
    def __init__(self, left: int):
        self.left = left

    def read(self, size: int) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


@pytest.mark.parametrize(
    ("name", "expected"), [("huge.png", "larger than 16 MiB"), ("z.cls", "its label is larger than")]
)
def test_a_member_that_is_too_large_is_not_read(tmp_path, name, expected, monkeypatch):
    monkeypatch.setattr(image_tars, "MAX_HELD_BYTES", 2**24)
    write_bomb(tmp_path / "a.tar.gz", name, 2**26)
    assert (tmp_path / "a.tar.gz").stat().st_size < 2**19
    tracemalloc.start()
    found = rows(open_source(str(tmp_path / "a.tar.gz")))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert found[0] == ("a.png", None)
    assert expected in found[1][1]
    assert len(found) == (3 if name == "huge.png" else 2)


def test_a_large_member_of_a_tar_that_is_not_compressed(tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = 2**31
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(info.tobuf())
        file.truncate(2**31 + 2048)
    assert rows(open_source(str(tmp_path / "a.tar")))[0] == ("huge.png", "larger than 1024 MiB")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_is_too_large_is_not_read(tmp_path, kind):
    """Headers hold names, which tarfile reads whole."""
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 2**26
    with gzip.open(tmp_path / "a.tar.gz", "wb", compresslevel=1) as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(64):
            file.write(bytes(2**20))
        file.write(bytes(1024))
    tracemalloc.start()
    ((_, reason),) = rows(open_source(str(tmp_path / "a.tar.gz")))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    assert "the tar is damaged: " in reason
    assert "a header of 64 MiB" in reason


def test_a_sparse_member_is_not_where_it_seems(tmp_path):
    info = tarfile.TarInfo("sparse.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (4096, 512)
    header[483:495] = b"%011o\0" % 8192
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(512) + bytes(1024))
    assert rows(open_source(str(tmp_path / "a.tar"))) == [("sparse.png", "stored with holes, as a sparse file")]


@pytest.mark.parametrize(
    "content", [b"", b"text" * 200, bytes(2000), b"\x1f\x8b" + bytes(600), b"\xfd7zXZ\0" + bytes(99)]
)
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_what_is_no_tar_says_so_in_one_line(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    found = rows(open_source(str(tmp_path / f"a{suffix}")))
    assert len(found) <= 1
    for _, reason in found:
        assert "the tar is damaged" in reason
        assert "\n" not in reason
    if content[:4] != bytes(4):
        assert found
