# SPDX-License-Identifier: Apache-2.0
"""Gives pictures to look at, one after another: the images of any source, or the frames of a video."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath

from .decoding import check_on_error
from .image_source import ImageRecord, ImageSource, why_no_images
from .image_values import EIGHT_BITS, MODES, Decoded, as_model_takes
from .reader import all_records, decode_record
from .sources import open_source
from .video import Video, is_video


@dataclass(frozen=True)
class Frame:
    """
    One picture.

    Args:
        name: names the files that are made of it: unique, without a suffix, perhaps with folders.
        source: names it in messages.
    """

    name: str
    source: str
    image: Decoded


class ImageFrames:
    """
    Gives the images of a source, as often as it is iterated over.

    Args:
        name: what the user has called the source.
        num_channels, rescale_factor: see [`read_image`].
        size: to which their shorter sides will be resized, in pixels.
        on_error: `"skip"` unreadable images, or `"fail"` at the first.

    Attributes:
        skipped: images that could not be read: name -> reason.
    """

    fps = None

    def __init__(
        self,
        name: str,
        source: ImageSource,
        num_channels: int,
        size: int,
        on_error: str = "skip",
        rescale_factor: float = EIGHT_BITS,
    ):
        self.name, self._source, self._num_channels = name, source, num_channels
        self._rescale_factor = rescale_factor
        self._size, self._on_error = size, on_error
        self.num_frames = source.num_images
        self.skipped: dict[str, str] = {}

    def __iter__(self) -> Iterator[Frame]:
        """Raises ValueError if an image cannot be read, with `on_error="fail"`; or if none can."""
        used: set[str] = set()
        for record in all_records(self._source):
            try:
                image, _ = decode_record(record, self._num_channels, self._size, self._rescale_factor)
            except ValueError as error:
                if self._on_error == "fail":
                    raise ValueError(f"cannot read {record.name}: {error}") from error
                self.skipped[record.name] = str(error)
                continue
            yield Frame(self._unique_name(record, used), record.name, image)
        if not used:
            raise ValueError(why_no_images(self.name, self._source.notes, self.skipped))

    def _unique_name(self, record: ImageRecord, used: set[str]) -> str:
        """Returns the file's name below the folder; with its suffix, or a number, where that is taken."""
        path = PurePath(record.name)
        root = getattr(self._source, "root", None)
        folder = path.relative_to(root).parent if root and path.is_relative_to(root) else PurePath()
        candidates = itertools.chain([path.stem, path.name], (f"{path.name}-{i}" for i in itertools.count(2)))
        name = next(name for candidate in candidates if (name := str(folder / candidate)) not in used)
        used.add(name)
        return name


class VideoFrames:
    """Gives the frames of a video, which are of 8 bits, as often as it is iterated over."""

    skipped: dict[str, str] = {}

    def __init__(self, path: str, num_channels: int, rescale_factor: float = EIGHT_BITS):
        self.name, self._num_channels, self._rescale_factor = path, num_channels, rescale_factor
        self._video = Video(path)
        self.num_frames, self.fps = self._video.num_frames, self._video.fps

    def __iter__(self) -> Iterator[Frame]:
        for i, image in enumerate(self._video):
            image, _ = as_model_takes(image, self._num_channels, self._rescale_factor)
            yield Frame(f"{i:05}", f"frame {i} of {self.name}", image)


Frames = ImageFrames | VideoFrames


def open_frames(
    name: str,
    num_channels: int,
    size: int,
    on_error: str = "skip",
    rescale_factor: float = EIGHT_BITS,
    in_natural_order: bool = False,
    **of_tables: str | None,
) -> Frames:
    """
    Opens a video, or anything that [`open_source`] takes.

    Args:
        num_channels, size, on_error, rescale_factor: see [`ImageFrames`].
        in_natural_order: take image files in the order of the numbers in their names, as the frames of a video.
        of_tables: options of [`open_source`].

    Raises:
        ValueError: if there is no such source, it has no images, or the model takes none.
    """
    check_on_error(on_error)
    if is_video(name):
        if num_channels not in MODES:
            raise ValueError(f"videos have 3 channels, but the model takes {num_channels}")
        return VideoFrames(name, num_channels, rescale_factor)
    source = open_source(name, **of_tables)
    if in_natural_order:
        source = source.in_natural_order()
    if source.num_images == 0:
        raise ValueError(why_no_images(name, source.notes))
    return ImageFrames(name, source, num_channels, size, on_error, rescale_factor)
