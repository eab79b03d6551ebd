# SPDX-License-Identifier: Apache-2.0
"""Reads the image files that Pillow does not: TIFFs of any bands and depth by tifffile, and NumPy's `.npy`.

What a header says is checked against the size of the file before pixels are read.
"""

import io
import logging
import math
import zlib
from typing import TYPE_CHECKING

import numpy as np

from ..runtime.extras import require


if TYPE_CHECKING:
    import tifffile

NPY_SIGNATURE = b"\x93NUMPY"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MAX_VALUES = 2**28  # of an image, which are 1 GiB in float32
DEFLATE, LZMA = (8, 32946), 34925  # https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
MAX_UNCHECKED = 2**20  # bytes of deflated pixels, which cannot become more than 1 GiB
ALPHA = (1, 2)  # kinds of extra samples

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # it logs what it raises, too


def read_npy(content: bytes) -> np.ndarray:
    """
    Reads an array (H, W) or (H, W, C) of numbers; pickled objects are never read.

    Raises:
        ValueError: if it is none, or damaged; the message gives the reason.
    """
    file = io.BytesIO(content)
    major, _ = np.lib.format.read_magic(file)
    if major not in (1, 2):
        raise ValueError(f"version {major} of .npy is unknown")
    read_header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read_header(file)
    if dtype.kind not in "buif":
        raise ValueError(f"an array of {dtype} is no image: numbers are needed")
    if len(shape) not in (2, 3):
        raise ValueError(f"an array of shape {shape} is no image: (H, W) or (H, W, C) is")
    _check_number(shape)
    if len(content) - file.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"the file has other than the {math.prod(shape) * dtype.itemsize} bytes of {shape} {dtype}")
    values = np.frombuffer(content, dtype, offset=file.tell()).reshape(shape, order="F" if is_fortran else "C")
    return np.ascontiguousarray(values.astype(dtype.newbyteorder("=")))


def read_tiff(content: bytes, num_channels: int | None) -> tuple[np.ndarray, bool]:
    """
    Reads the first page of a TIFF, or, where the file says that its pages are channels, all of them.

    Args:
        num_channels: channels of the model; None for any number.

    Returns:
        the values (H, W, C), and whether there are further pages.

    Raises:
        ValueError: if the image is damaged, or a fourth or second sample is no transparency and does not fit. tifffile
            raises nearly anything else.
    """
    with require("tifffile", "tiff").TiffFile(io.BytesIO(content)) as tiff:
        if (first := _page(tiff, 0)) is None:
            raise ValueError("truncated, or damaged: there is no page in it")
        pages, has_more = [first], _page(tiff, 1) is not None
        if has_more and num_channels != 1 and first.samplesperpixel == 1 and tiff.series[0].axes == "CYX":
            pages, has_more = list(tiff.series[0].pages), False
            if any(page is None for page in pages):
                raise ValueError("a channel lies in another file")
        _check_number((len(pages), *first.shape))
        values = np.concatenate([_read_page(page, content) for page in pages], axis=2)
        _check_samples(values.shape[2], num_channels, first.extrasamples)
        return values, has_more


def _page(tiff: "tifffile.TiffFile", number: int) -> "tifffile.TiffPage | None":
    """Returns a page; None if there is none, or it is damaged."""
    try:
        return tiff.pages[number]
    except Exception:
        return None


def _check_number(shape: tuple[int, ...]):
    """Raises ValueError if there are no values, or too many."""
    if min(shape) < 1:
        raise ValueError(f"{shape} is empty")
    if math.prod(shape) > MAX_VALUES:
        raise ValueError(f"{' x '.join(map(str, shape))} are more than {MAX_VALUES} values")


def _read_page(page: "tifffile.TiffPage", content: bytes) -> np.ndarray:
    """Reads a page as (H, W, C). Raises ValueError if the file ends before its pixels do."""
    page = page.aspage()
    _check_number(page.shape)
    if page.dtype is None or page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"a TIFF of axes {page.axes} and {page.dtype} is no image")
    if page.compression == LZMA:
        raise ValueError("compressed by LZMA")
    size = math.prod(page.shape) * page.dtype.itemsize
    for start, count in zip(page.dataoffsets, page.databytecounts):
        if start < 1 or count < 1 or start + count > len(content):
            raise ValueError("truncated: pixels are missing")
        if page.compression in DEFLATE and count > MAX_UNCHECKED:
            inflated = zlib.decompressobj().decompress(content[start : start + count], size + 1)
            if len(inflated) > size:
                raise ValueError("compressed pixels are more than the image has")
    values = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, 2)
    return values[..., None] if values.ndim == 2 else values


def _check_samples(found: int, num_channels: int | None, extra: tuple[int, ...]):
    """Raises ValueError if a model of 1 or 3 channels would lose a band that is no transparency."""
    if num_channels in (1, 3) and found in (2, 4) and not (extra and extra[-1] in ALPHA):
        raise ValueError(f"{found} channels, but the model takes {num_channels}")
