# SPDX-License-Identifier: Apache-2.0
"""Decodes image files, by Pillow where it reads all of them, and raises ValueError for those that are not whole.

Pillow refuses files that end too soon. But where zeros stand in the place of the rest, as after a download that was
broken off, libjpeg fills what is missing with grey, and Pillow drops its warning; and Pillow does not compare the
checksums of a PNG's pixels. Both are checked here.

Other damage goes unnoticed: wrong bytes in the middle of a JPEG; zeros in the place of pixels in formats without
checksums (AVIF, BMP, JPEG 2000, PPM, TGA, TIFF and WebP); a PNG that was written with too few rows.
"""

import io
import logging
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..runtime.extras import PilImage, require
from .array_files import NPY_SIGNATURE, TIFF_SIGNATURES, read_npy, read_tiff
from .image_values import EIGHT_BITS, Decoded, as_model_takes, as_picture, is_8_bit, is_wide, size_of


_SUFFIXES = ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp"
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())
ARRAY_SUFFIX = ".npy"
# The formats of these suffixes. Pillow knows others, some of which it hands to other programs, as EPS to Ghostscript.
# TGA has no signature, and is tried last.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "TGA")
MAX_FILE_BYTES = 2**30  # 6 a pixel of the largest image that Pillow reads
SAMPLES_PER_PIXEL, BITS_PER_SAMPLE = 277, 258  # tags of a TIFF
# JPEG markers: https://www.w3.org/Graphics/JPEG/itu-t81.pdf, table B.1
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MAX_SCANS = 100  # encoders make about 10; each is a pass over the whole image, however few bytes it takes
MORE_FRAMES = "the first of several frames or pages"
ON_ERROR = ("skip", "fail")
_PILLOW, _SILENCE = threading.Lock(), logging.NullHandler()


def as_text(path: str) -> str:
    """Returns a path as text that can be stored: bytes of a name that are not UTF-8 become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(error: BaseException) -> str:
    """Returns the message of an error in one line, or its kind if it has none."""
    text = repr(error) if isinstance(error, KeyError) else str(error)  # whose text is the key alone
    return " ".join(text.split()) or type(error).__name__


def check_size(num_bytes: int):
    """Raises ValueError if a file is too large for an image."""
    if num_bytes > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES // 2**20} MiB")


def check_on_error(on_error: str):
    """Raises ValueError for an unknown `on_error`."""
    if on_error not in ON_ERROR:
        raise ValueError(f"unknown on_error {on_error!r}: allowed are {', '.join(ON_ERROR)}")


def read_image(
    source: str | bytes, num_channels: int | None = 3, rescale_factor: float = EIGHT_BITS
) -> tuple[Decoded, str | None]:
    """
    Reads an image file as a model takes it: by default in RGB of 8 bits, as the original's loader does.

    Rotations noted in EXIF are not applied. Of several frames or pages the first is read. The last axis of an array in
    a `.npy` file has the channels.

    Args:
        source: path or content of the file.
        num_channels: channels of the model; None for a picture to look at, in RGB, of any image.
        rescale_factor: states the range of the values; see [`as_model_takes`].

    Returns:
        the image, by Pillow in 8 bits or an array (H, W, C) of float32; and a note on what was lost in reading it, if
        anything.

    Raises:
        ValueError: if the image cannot be read whole, has more pixels than Pillow allows (twice
            `Image.MAX_IMAGE_PIXELS`), or other channels or values than the model takes; the message gives the reason,
            without the path.
    """
    content = source if isinstance(source, bytes) else _read_file(source)
    with one_line_reasons(), _decoded(content, num_channels, rescale_factor) as (image, note):
        if num_channels is None:
            return _shown(image), None
        image, clipped = as_model_takes(image, num_channels, rescale_factor)
        return image, clipped or note


@contextmanager
def _decoded(content: bytes, num_channels: int | None, rescale_factor: float) -> Iterator[tuple[Decoded, str | None]]:
    """Gives an image with all that its file has of what the model takes, and a note on what else is in the file."""
    if content.startswith(NPY_SIGNATURE):
        yield read_npy(content), None
    elif content.startswith(TIFF_SIGNATURES) and not _pillow_reads_tiff(content, num_channels, rescale_factor):
        image, has_more = read_tiff(content, num_channels)
        yield image, MORE_FRAMES if has_more else None
    else:
        with opened_image(content) as image:
            yield image, _note(image)


def _shown(image: Decoded) -> PilImage:
    """Returns a picture in RGB to look at; of 8 bits it is what a model of three channels gets."""
    if not is_wide(image) and (not isinstance(image, np.ndarray) or image.ndim == 2 or image.shape[2] <= 4):
        return as_model_takes(image)[0]
    return as_picture(as_model_takes(image, None, None)[0]).convert("RGB")


def _pillow_reads_tiff(content: bytes, num_channels: int | None, rescale_factor: float) -> bool:
    """
    Returns whether Pillow reads a TIFF as the model takes it, or refuses it for good.

    It does not read many bands, drops a fourth that is not transparency, gives colours of 16 bits in 8, whole numbers
    of 32 bits as signed ones, and channels that lie in pages as frames.
    """
    Image = require("PIL.Image")
    try:
        with strict_pillow(), Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            samples, bits = image.tag_v2.get(SAMPLES_PER_PIXEL, 1), max(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))
            if samples > 4 or is_8_bit(num_channels, rescale_factor):
                return samples <= 4
            is_whole = bits <= 8 or image.mode.startswith(("I;16", "F"))
            return is_whole and samples == len(image.getbands()) and (num_channels == 1 or image.n_frames == 1)
    except Image.UnidentifiedImageError:
        return False
    except Exception:  # which Pillow raises again when it reads the pixels
        return True


@contextmanager
def one_line_reasons() -> Iterator[None]:
    """Turns whatever a decoder raises, which is nearly anything on damaged files, into a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(one_line(error)) from error


@contextmanager
def opened_image(source: str | bytes) -> Iterator[PilImage]:
    """Opens an image file, of which all pixels are loaded; raises ValueError as [`read_image`] does."""
    content = source if isinstance(source, bytes) else _read_file(source)
    check_size(len(content))
    if not content:
        raise ValueError("empty")
    Image = require("PIL.Image")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with one_line_reasons(), strict_pillow(), Image.open(io.BytesIO(content), formats=formats) as image:
            _load(image, content)
            yield image
    except ValueError as error:
        if isinstance(error.__cause__, Image.UnidentifiedImageError):
            raise ValueError(f"no image in a known format ({', '.join(formats)}), or damaged") from error
        raise


def check_resized(image: Decoded, shorter_side: int):
    """Raises ValueError if an image is so thin that resizing its shorter side to this would take gigabytes."""
    limit = require("PIL.Image").MAX_IMAGE_PIXELS
    width, height = size_of(image)
    longer_side = shorter_side * max(width, height) // min(width, height)
    if limit is not None and shorter_side * longer_side > limit:
        raise ValueError(
            f"{width} x {height} pixels are too thin: with a shorter side of {shorter_side}, the longer "
            f"one has {longer_side}"
        )


@contextmanager
def strict_pillow() -> Iterator[None]:
    """
    Makes Pillow silent, and lets it refuse images that are cut off, whatever the program has set.

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
    """Raises ValueError if the file cannot be read, or is too large for an image."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe, say, which would never end
            raise ValueError("not a file")
        check_size(status.st_size)
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError("no such file" if isinstance(error, FileNotFoundError) else error.strerror) from error


def _load(image: PilImage, content: bytes):
    """Loads the pixels of an image that Pillow has opened; raises nearly any exception if they are not whole."""
    if image.format in ("JPEG", "MPO"):
        _check_jpeg(image, content)
    if image.format == "TIFF":
        with _quiet_stderr():  # libtiff writes there what Pillow raises
            image.load()
    else:
        image.load()
    if image.format == "PNG":
        _check_png(content)


def _check_jpeg(image: PilImage, content: bytes):
    """Raises ValueError if the end of the image is missing, or its scans are so many that they would take hours."""
    scan = 2  # where the first scan begins, behind the other segments; thumbnails in these have ends of their own
    while scan >= 0 and content[scan : scan + 2] != START_OF_SCAN:
        is_padding = content[scan + 1 : scan + 2] in b"\0\xff"
        length = 1 if is_padding else 2 + int.from_bytes(content[scan + 2 : scan + 4], "big")
        scan = content.find(b"\xff", scan + length)
    end = content.rfind(END_OF_IMAGE, scan)
    if min(scan, end) < 0:
        raise ValueError("the end of the image is missing")
    is_one_scan = content[scan + 4] == len(image.getbands()) and not image.info.get("progressive")
    if not is_one_scan and content.count(START_OF_SCAN, scan, end) > MAX_SCANS:
        raise ValueError(f"more than {MAX_SCANS} scans")


def _check_png(content: bytes):
    """
    Raises ValueError if a checksum of the pixels is wrong.

    Each chunk is its length, its name, its data and a checksum: https://www.w3.org/TR/png-3/#5Chunk-layout.
    """
    view, name, has_pixels = memoryview(content), 12, False  # the first chunk follows a signature of 8 bytes
    while not has_pixels or view[name : name + 4] == b"IDAT":
        has_pixels = view[name : name + 4] == b"IDAT"
        end = name + 4 + int.from_bytes(view[name - 4 : name], "big")
        if zlib.crc32(view[name:end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError("the checksum of the pixels is wrong")
        name = end + 8


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


def _note(image: PilImage) -> str | None:
    """Returns a note on what is lost of an image, if anything."""
    try:
        has_more_frames = getattr(image, "is_animated", False)
    except Exception:  # there are more, but damaged
        has_more_frames = True
    # nearly every camera's MPO has a preview behind its photograph
    return MORE_FRAMES if has_more_frames and image.format != "MPO" else None
