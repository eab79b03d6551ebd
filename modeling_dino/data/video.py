# SPDX-License-Identifier: Apache-2.0
"""Reads and writes videos, through PyAV (https://pyav.basswood-io.com), which brings FFmpeg with it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

from transformers.utils import logging

from ..runtime.extras import PilImage, require
from ..runtime.marked_files import MARK, marked_file
from .decoding import one_line


logger = logging.get_logger(__name__)

VIDEO_SUFFIXES = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"])
CODEC, OPTIONS = "libx264", {"crf": "18"}  # without visible loss
PIXEL_FORMAT = "yuv420p"  # the only one that every browser plays; it needs even sides
VIDEO_MARK = f"{MARK} video"
BT601 = 5  # how FFmpeg converts RGB unless told otherwise; players that are not told assume another for large frames


class Video:
    """
    Gives the frames of a video file, in RGB and upright, as often as it is iterated over.

    A video that is cut off gives the frames before the cut, and a warning. FFmpeg fills in damage within a frame
    without saying so.

    Attributes:
        num_frames: None where the file does not say.
        fps: frames a second, on average; None where the file does not say.

    Raises:
        ValueError: if the file cannot be read; when iterating, if it cannot be decoded.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = str(path)
        with self._open() as stream:
            self.num_frames: int | None = stream.frames or None
            self.fps: Fraction | None = stream.average_rate

    def __iter__(self) -> Iterator[PilImage]:
        count = 0
        with self._open() as stream:
            for frame in stream.container.decode(stream):
                count += 1
                image = frame.to_image()
                yield image.rotate(frame.rotation, expand=True) if frame.rotation else image
        if not count:
            raise ValueError(f"cannot read {self.path}: there is no frame in it")
        if self.num_frames is not None and count < self.num_frames:
            logger.warning(f"{self.path} is cut off: {count} of {self.num_frames} frames are there")

    @contextmanager
    def _open(self) -> Iterator:
        """Opens the first stream of pictures."""
        av = require("av", "video")
        try:
            with av.open(os.path.abspath(self.path)) as container:  # a name alone may look like a URL to FFmpeg
                if not container.streams.video:
                    raise ValueError("there is no video in it")
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                yield stream
        except Exception as error:  # PyAV raises many kinds on damaged files
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ValueError(f"cannot read {self.path}: {reason}") from error


def is_video(path: str | os.PathLike) -> bool:
    """Returns whether this is a file with the name of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES and os.path.isfile(path)


@contextmanager
def write_video(path: Path, fps: Fraction | float) -> Iterator[Callable[[PilImage], None]]:
    """
    Gives a function that appends a frame to an MP4 file; the file appears at the end, whole.

    The last row of an odd height and the last column of an odd width are left out.

    Raises:
        ValueError: if a frame has another size than the first, or there is none; or if there is a file that was not
            written by this function.
        OSError: if the file cannot be written.
    """
    av = require("av", "video")
    with marked_file(path, VIDEO_MARK) as partial, av.open(str(partial), "w", format="mp4") as container:
        container.metadata["comment"] = VIDEO_MARK
        stream = container.add_stream(CODEC, Fraction(fps).limit_denominator(1001), options=OPTIONS)
        stream.pix_fmt, stream.codec_context.colorspace = PIXEL_FORMAT, BT601
        size = None

        def append(image: PilImage):
            nonlocal size
            if size is None:
                size = image.size
                stream.width, stream.height = (side - side % 2 for side in size)
            if image.size != size:
                raise ValueError(f"frames of different sizes make no video: {size} and {image.size}")
            frame = image.convert("RGB").crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))

        yield append
        if size is None:
            raise ValueError(f"no frames for {path}")
        container.mux(stream.encode())  # what waits in the encoder
