# SPDX-License-Identifier: Apache-2.0
"""How an image file is read."""

import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..runtime.extras import require
from .damage import load_whole
from .image_source import FileRange, ImageRecord, Unreadable


if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset(
    [
        ".avif",
        ".bmp",
        ".gif",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tga",
        ".tif",
        ".tiff",
        ".webp",
    ]
)
# Those of the suffixes. Pillow knows others, some of which it hands to other programs, as EPS to Ghostscript. TGA has
# no signature, and is tried last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
MAX_FILE_BYTES = 2**30  # 6 a pixel of the largest image that Pillow reads
MODES = {1: "L", 3: "RGB"}  # channels -> mode
MODES_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "F")
_PILLOW, _SILENCE = threading.Lock(), logging.NullHandler()

ON_ERROR = ("skip", "fail")


def as_text(path: str) -> str:
    """A path that can be stored: bytes of a name that are no UTF-8 appear as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def encoded_image(record: ImageRecord) -> str | bytes:
    """
    What [`read_image`] takes.

    Raises:
        ValueError, OSError: if there is nothing to read.
    """
    content = record.content
    if isinstance(content, Unreadable):
        raise ValueError(content.reason)
    if isinstance(content, FileRange):
        return content.read()
    if isinstance(content, str) and "://" in content:  # as streamed data sets give
        with require("fsspec").open(content, "rb") as file:
            return file.read()
    return content


def read_image(source: str | bytes, num_channels: int = 3) -> "tuple[Image.Image, str | None]":
    """
    An image file in RGB, or in grey for a model of one channel, as the original's loader reads it: rotations noted in
    EXIF are not applied. Of several frames or pages it is the first.

    Args:
        source: path or content of the file.

    Returns:
        the image, and a note on what was lost in reading it, if anything.

    Raises:
        ValueError: if it cannot be read whole, or has more pixels than Pillow allows (twice `Image.MAX_IMAGE_PIXELS`);
            the message says why, without the path.
    """
    if num_channels not in MODES:
        raise ValueError(f"image files have 1 or 3 channels, the model has {num_channels}: pass it tensors")
    content = source if isinstance(source, bytes) else _read_file(source)
    if not content:
        raise ValueError("empty")
    Image = require("PIL.Image")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with strict_pillow(), Image.open(io.BytesIO(content), formats=formats) as image:
            load_whole(image, content)
            return image.convert(MODES[num_channels]), _note(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"no image in a known format ({', '.join(formats)}), or damaged") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def check_resized(image: "Image.Image", shorter_side: int):
    """
    Raises:
        ValueError: if an image is so thin that it would take gigabytes when its shorter side is resized to this.
    """
    limit = require("PIL.Image").MAX_IMAGE_PIXELS
    longer_side = shorter_side * max(image.size) // min(image.size)
    if limit is not None and shorter_side * longer_side > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels are too thin: with a shorter side of {shorter_side}, the longer "
            f"one has {longer_side}"
        )


@contextmanager
def strict_pillow() -> Iterator[None]:
    """
    Pillow, silent, and refusing images that are cut off, whatever the program has set.

    These are settings of the whole process, so only one thread reads at a time.
    """
    ImageFile, log = require("PIL.ImageFile"), logging.getLogger("PIL")
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.addHandler(_SILENCE)
        load_truncated, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = load_truncated
            log.removeHandler(_SILENCE)


def _read_file(path: str) -> bytes:
    """
    Raises:
        ValueError: if it cannot be read, or is too large for an image.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe, say, which would never end
            raise ValueError("not a file")
        if status.st_size > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError("no such file" if isinstance(error, FileNotFoundError) else error.strerror) from error


def _note(image: "Image.Image") -> str | None:
    """What is lost of an image."""
    if image.mode in MODES_OF_16_BITS:
        return f"mode {image.mode}: values above 255 are clipped, as in the original; convert it to 8 bits"
    # nearly every camera's MPO has a preview behind its photograph
    if image.format != "MPO" and _has_more_frames(image):
        return "the first of several frames or pages"
    return None


def _has_more_frames(image: "Image.Image") -> bool:
    try:
        return getattr(image, "is_animated", False)
    except Exception:  # there are more, but damaged
        return True
