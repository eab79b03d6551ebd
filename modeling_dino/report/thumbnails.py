# SPDX-License-Identifier: Apache-2.0
"""Reads the images of features again, makes them small, and puts many of these thumbnails into one JPEG file."""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from ..data.image_source import ImageRecord, ImageSource
from ..data.reader import Batch, ImageReader, all_records, batched, read_batches
from ..runtime.extras import PilImage, require
from ..runtime.processes import reading_processes


# Multiples of 16: JPEG codes blocks of 8 x 8 pixels, and colours in 16 x 16. So a picture changes the one beside it
# only in the pixels at the border, over which decoders smooth colours; the page leaves these out.
SIDES = (160, 112, 80, 64, 48, 32)
MAX_PIXELS = 20_000 * 64**2  # of all pictures together
MAX_IMAGES = MAX_PIXELS // SIDES[-1] ** 2
COLUMNS, ROWS = 16, 16  # of an atlas, which is one JPEG file of many pictures
QUALITIES = (82, 60, 40, 20)
BYTES_PER_PIXEL = 0.5  # of an atlas, at most; 39 MiB for all pictures
RECORDS_AT_ONCE = 32


def side_for(num_images: int) -> int:
    """Returns the side of the pictures in pixels, which is smaller for more images."""
    return next(side for side in SIDES if num_images * side**2 <= MAX_PIXELS or side == SIDES[-1])


def central_square(image: PilImage, side: int) -> torch.Tensor:
    """Crops the central square, most of which the model sees too, and resizes it: (side, side, 3) in bytes."""
    left, top = ((length - min(image.size)) / 2 for length in image.size)
    box = (left, top, left + min(image.size), top + min(image.size))
    square = image.resize((side, side), require("PIL.Image").Resampling.BICUBIC, box, reducing_gap=3)
    return torch.from_numpy(np.array(square))


def image_key(name: str | int, source_name: str) -> str:
    """Returns the path of an image within its source, or its index there; the same after the source has moved."""
    path, source = os.path.normpath(str(name)), os.path.normpath(source_name)
    for root in (source, os.path.dirname(source)):
        if root and path.startswith(os.path.join(root, "")):
            return os.path.relpath(path, root)
    return path


def read_thumbnails(
    source: ImageSource,
    source_name: str,
    places: dict[str, list[int]],
    side: int,
    num_workers: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, dict[int, str]]:
    """
    Args:
        source: see [`open_source`], and the name it was opened by.
        places: by [`image_key`], in which places of the result an image belongs.
        side: of a picture, in pixels.
        num_workers: processes that read images; by default one a spare core, none for few images.

    Returns:
        (number of places, side, side, 3), in bytes; and why there is no picture in a place.
    """
    num_images = sum(map(len, places.values()))
    pictures = np.zeros((num_images, side, side, 3), np.uint8)
    missing = dict.fromkeys(range(num_images), "not among the images any more")
    reader = ImageReader(partial(central_square, side=side), num_channels=None)
    batches = map(Batch, batched(wanted_records(source, source_name, places), RECORDS_AT_ONCE))
    with tqdm(desc="thumbnails", total=num_images, disable=not progress) as bar:
        for images in read_batches(reader, batches, reading_processes(num_workers, num_images)):
            for name, reason in images.skipped.items():
                missing |= dict.fromkeys(places[image_key(name, source_name)], reason)
            for row, picture in zip(images.rows, () if images.pixels is None else images.pixels):
                pictures[row["place"]] = picture
                del missing[row["place"]]
            bar.update(len(images.rows) + len(images.skipped))
    return pictures, missing


def wanted_records(source: ImageSource, source_name: str, places: dict[str, list[int]]) -> Iterator[ImageRecord]:
    """Returns the records that belong in a place, with `place` as their only column."""
    left = {key: list(of_key) for key, of_key in places.items()}
    for record in all_records(source):
        # once each: an image that a list names twice has two places, and comes twice
        if wanted := left.get(image_key(record.name, source_name)):
            yield replace(record, columns={"place": wanted.pop(0)})


def atlases(pictures: np.ndarray) -> Iterator[bytes]:
    """Yields JPEG files of 16 x 16 pictures each, row by row, from (N, side, side, 3); their size is bounded."""
    Image = require("PIL.Image")
    side = pictures.shape[1]
    for start in range(0, len(pictures), COLUMNS * ROWS):
        chunk = pictures[start : start + COLUMNS * ROWS]
        rows = -(-len(chunk) // COLUMNS)
        grid = np.zeros((rows * COLUMNS, side, side, 3), np.uint8)
        grid[: len(chunk)] = chunk
        grid = grid.reshape(rows, COLUMNS, side, side, 3).swapaxes(1, 2).reshape(rows * side, COLUMNS * side, 3)
        yield jpeg(Image.fromarray(grid), int(BYTES_PER_PIXEL * grid.shape[0] * grid.shape[1]))


def jpeg(image: PilImage, max_bytes: int) -> bytes:
    """Encodes a JPEG file at the highest quality at which it fits into so many bytes, or at the lowest."""
    for quality in QUALITIES:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= max_bytes:
            break
    return file.getvalue()
