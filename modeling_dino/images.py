# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Image files: which there are, and how each is read."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .extras import require


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
MODES_OF_16_BITS = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class ImageList:
    """
    Paths of images in a fixed order.

    Args:
        source: where they were found.
        paths: as they can be opened.
        labels: the class of each, where the source has them.
    """

    source: str
    paths: list[str]
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)


def find_images(source: str) -> ImageList:
    """
    The images of a folder (searched to any depth, in the order of their paths), of a text file with a path a line
    (relative ones to the file's folder), or a single image.

    In a folder where every image lies in a sub-folder, the sub-folders are the classes, as in ImageNet.

    Raises:
        ValueError: if there is no such source, or it has no images.
    """
    path = Path(source)
    if path.is_dir():
        images = _images_of_folder(path)
    elif path.is_file():
        images = ImageList(source, [source]) if path.suffix.lower() in IMAGE_SUFFIXES else _images_of_list(path)
    else:
        raise ValueError(f"{source} is neither a folder, nor a text file of paths, nor an image")
    if not len(images):
        raise ValueError(f"no images in {source} (looked for {', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def _images_of_folder(folder: Path) -> ImageList:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    relative = [path.relative_to(folder) for path in found]
    has_classes = all(len(path.parts) > 1 for path in relative)
    return ImageList(str(folder), list(map(str, found)), [path.parts[0] for path in relative] if has_classes else None)


def _images_of_list(file: Path) -> ImageList:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is neither an image nor a text file of paths") from error
    return ImageList(str(file), [str(file.parent / line.strip()) for line in lines if line.strip()])


def as_text(path: str) -> str:
    """A path that can be stored: bytes of a name that are no UTF-8 appear as escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(path: str, num_channels: int = 3) -> "tuple[Image.Image, str | None]":
    """
    An image file in RGB, or in grey for a model of one channel, as the original's loader reads it: rotations noted in
    EXIF are not applied.

    Returns:
        the image, and a note on what was lost in reading it, if anything.

    Raises:
        ValueError: if it cannot be read whole; the message says why, without the path.
    """
    Image = require("PIL.Image")
    modes = {1: "L", 3: "RGB"}
    if num_channels not in modes:
        raise ValueError(f"image files have 1 or 3 channels, the model has {num_channels}: pass it tensors")
    if not os.path.exists(path):
        raise ValueError("no such file")
    if not os.path.isfile(path):  # a pipe, say, which would never end
        raise ValueError("not a file")
    try:
        with Image.open(path) as image:
            note = None
            if image.mode in MODES_OF_16_BITS:
                note = f"mode {image.mode}: values above 255 are clipped, as in the original; convert it to 8 bits"
            return image.convert(modes[num_channels]), note
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        reason = str(error).replace(repr(path), "").replace(path, "").strip() or type(error).__name__
        raise ValueError(" ".join(reason.split())) from error
