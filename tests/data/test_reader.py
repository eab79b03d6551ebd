"""Whatever goes wrong in reading one image, the others are read."""

import struct
import zlib

import pytest
from PIL import Image

from modeling_dino.data import reader
from modeling_dino.data.decoding import MAX_FILE_BYTES, read_image
from modeling_dino.data.frames import open_frames
from modeling_dino.data.image_source import FileRange, ImageRecord
from modeling_dino.data.reader import Batch, ImageReader, decode_record
from modeling_dino.data.sources import open_source
from modeling_dino.training.training_data import SourceImages, UnreadableImage


ERRORS = [
    AttributeError("'NoneType' object has no attribute 'read'"),
    EOFError(),
    Image.DecompressionBombError("too many pixels"),
    IndexError("list index out of range"),
    KeyError("color"),
    MemoryError(),
    NotImplementedError("JPEG 12 bits"),
    OSError("broken"),
    OverflowError("int too large"),
    RecursionError("too deep"),
    RuntimeError("codec"),
    SyntaxError("not a TIFF"),
    TypeError("an integer\nis required"),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "ordinal"),
    ZeroDivisionError(),
    struct.error("unpack"),
    zlib.error("-3"),
]


@pytest.fixture
def folder(tmp_path):
    for name in ("1", "2", "3"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    return tmp_path


@pytest.fixture(params=ERRORS, ids=lambda error: type(error).__name__)
def failing_decoder(request, monkeypatch):
    """A decoder that raises an error for the second image."""

    def decode(content, *arguments):
        if str(content).endswith("2.png"):
            raise request.param
        return read_image(content, *arguments)

    monkeypatch.setattr(reader, "read_image", decode)


@pytest.mark.usefixtures("failing_decoder")
def test_whatever_a_decoder_raises_makes_one_image_unreadable(folder):
    source, bad = open_source(str(folder)), str(folder / "2.png")
    images = ImageReader(lambda image: reader.torch.zeros(1))[Batch(list(reader.all_records(source)))]
    assert len(images.rows) == len(images.pixels) == 2
    assert list(images.skipped) == [bad]
    assert images.skipped[bad]
    assert "\n" not in images.skipped[bad]

    frames = open_frames(str(folder), 3, 32)
    assert [frame.name for frame in frames] == ["1", "3"]
    assert frames.skipped == images.skipped

    images = SourceImages(source)
    assert images[0].size == images[2].size == (8, 8)
    with pytest.raises(UnreadableImage, match=r"2\.png: .*\w"):
        images[1]


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (FileRange("{}/1.png", 2**70, 9), "cannot fit|too large"),
        (FileRange("{}/1.png", -1, 9), "nvalid"),
        (FileRange("{}/1.png", 10, 2**60), "ends within|larger than 1024 MiB"),
        (FileRange("{}/nothing.tar", 0, 9), "nothing.tar"),
        (FileRange("{}", 0, 9), "directory"),
        (5, r"\w"),
    ],
)
def test_places_that_are_none(folder, place, reason):
    if isinstance(place, FileRange):
        place = FileRange(place.path.format(folder), place.offset, place.size)
    with pytest.raises(ValueError, match=reason):
        decode_record(ImageRecord("name", {}, place))


def test_what_is_too_large_for_an_image(monkeypatch):
    monkeypatch.setattr("modeling_dino.data.decoding.MAX_FILE_BYTES", 100)
    with pytest.raises(ValueError, match="larger than"):
        decode_record(ImageRecord("name", {}, bytes(101)))
    assert MAX_FILE_BYTES == 2**30
