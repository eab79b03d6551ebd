# SPDX-License-Identifier: Apache-2.0
"""Loading images whole: damage that Pillow does not tell.

Pillow refuses files that end too soon. But where the end is there, or zeros stand in its place, as after a download
that was broken off, libjpeg fills what is missing with grey and only warns, which Pillow drops; and of PNG files it
leaves the checksums of the pixels aside.

Not noticed are a progressive JPEG cut within its last scan, which refines its lower part; some holes of zeros in JPEGs
with tables of their own, as progressive ones have, and most other wrong bytes in any; zeros in the place of pixels in
formats without checksums, AVIF, BMP, JPEG 2000, PPM, TGA, TIFF and WebP; and a PNG that was written with too few rows.
"""

import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..runtime.extras import require


if TYPE_CHECKING:
    from PIL import Image

# JPEG markers: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1. In coded data, 0xff stands only before 0 and
# restart markers.
HUFFMAN_TABLES, START_OF_SCAN = 0xC4, 0xDA
SCAN = re.compile(b"\xff\xda")
SEGMENT_END = re.compile(b"\xff[^\x00\xff]")
END_OF_IMAGE = b"\xff\xd9"
MAX_SCANS = 100  # encoders make about 10; each is a pass over the whole image, however few bytes it takes
END_OF_BLOCK = 0  # the symbol for: the other coefficients are 0
HOLE = bytes(256)
MIDDLE_GREY = {127, 128}  # all coefficients 0; 127 where CMYK is inverted
DATA = bytes(range(0xFF))  # any but markers


def load_whole(image: "Image.Image", content: bytes):
    """
    Loads an image that Pillow has opened.

    Args:
        content: of its file.

    Raises:
        ValueError: if some of it is missing.
        Exception: nearly any, by Pillow, on other damage.
    """
    if image.format in ("JPEG", "MPO"):
        _load_jpeg(image, content)
    elif image.format == "PNG":
        _load_png(image, content)
    elif image.format == "TIFF":
        with _quiet_stderr():  # libtiff writes there what Pillow raises
            image.load()
    else:
        image.load()


def _load_png(image: "Image.Image", content: bytes):
    """Each chunk is its length, its name, its data and a checksum: https://www.w3.org/TR/png-3/#5Chunk-layout."""
    image.load()
    view, name, has_pixels = memoryview(content), 12, False  # the first follows a signature of 8 bytes
    while not has_pixels or view[name : name + 4] == b"IDAT":
        has_pixels = view[name : name + 4] == b"IDAT"
        end = name + 4 + int.from_bytes(view[name - 4 : name], "big")
        if zlib.crc32(view[name:end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("the checksum of the pixels is wrong")
        name = end + 8


def _load_jpeg(image: "Image.Image", content: bytes):
    start, ac_tables = _first_scan(content)
    if content.rfind(END_OF_IMAGE, start) < 0:
        raise ValueError("the end of the image is missing")
    num_components = len(image.getbands())
    in_one_scan = len(ac_tables) == num_components and not image.info.get("progressive")
    if not in_one_scan:
        _check_scans(content, start, num_components)
    image.load()
    hole, corner = content.find(HOLE, start), image.getpixel((image.width - 1, image.height - 1))
    is_grey = MIDDLE_GREY.issuperset(corner if isinstance(corner, tuple) else [corner])
    if hole < 0 and not is_grey:
        return
    end = content.index(END_OF_IMAGE, start)
    if 0 <= hole < end:
        # Zeros are the first code of a table. A large flat image may have many, if that code ends blocks.
        if in_one_scan and any(symbol != END_OF_BLOCK for symbol in ac_tables):
            raise ValueError("zeros in the place of some of the image")
        end = SEGMENT_END.search(content, hole).start()
    if _ends_early(image, content, end):
        raise ValueError("some of the image is missing")


def _first_scan(content: bytes) -> tuple[int, list[int]]:
    """Where the first scan of a JPEG begins, behind thumbnails; and of each component's AC table the first symbol."""
    first_symbols: dict[int, int] = {}
    at = 2
    while True:
        at = content.index(b"\xff", at)
        marker, data, end = content[at + 1], at + 4, at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        if marker in (0, 0xFF):  # padding
            at += 1
            continue
        if marker == START_OF_SCAN:
            tables = content[data + 2 : data + 1 + 2 * content[data] : 2]
            return at, [first_symbols.get(table & 15, END_OF_BLOCK) for table in tables]
        while marker == HUFFMAN_TABLES and data < end:
            kind, counts = content[data], content[data + 1 : data + 17]
            if kind >> 4:  # AC
                first_symbols[kind & 15] = content[data + 17]
            data += 17 + sum(counts)
        at = end


def _check_scans(content: bytes, start: int, num_components: int):
    """
    Raises:
        ValueError: if scans are missing, or there are so many that they would take hours.
    """
    whole: dict[int, int] = {}  # component -> a bit for each coefficient
    for count, scan in enumerate(SCAN.finditer(content, start), 1):
        if count > MAX_SCANS:
            raise ValueError(f"more than {MAX_SCANS} scans")
        components = scan.end() + 3
        spectrum = components + 2 * content[components - 1]
        first, last, bits = content[spectrum : spectrum + 3]
        if not bits & 15:  # none are left to later scans
            for component in content[components:spectrum:2]:
                whole[component] = whole.get(component, 0) | (2 << last) - (1 << first)
    if list(whole.values()) != [2**64 - 1] * num_components:
        raise ValueError("the last scans are missing")


def _ends_early(image: "Image.Image", content: bytes, end: int) -> bool:
    """Whether a decoder that comes to the end of the data still wants some: then what is put there shows."""
    with require("PIL.Image").open(io.BytesIO(content[:end] + DATA + content[end:]), formats=["JPEG"]) as longer:
        return longer.tobytes() != image.tobytes()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Drops what libraries write to the stderr of the process."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


__all__ = ["load_whole"]
