# SPDX-License-Identifier: Apache-2.0
"""Pictures into a folder: as PNGs, or as the frames of videos."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.frames import Frames
from ..data.video import write_video
from ..runtime.whole_files import whole_file


if TYPE_CHECKING:
    from PIL import Image

MAX_FPS = 1000


def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """
    A folder to write pictures to. It is not made yet: who finds nothing to write leaves nothing behind.

    Args:
        overwrite: allow files there, of which those of the same names are replaced.

    Raises:
        ValueError: if it is there, and not empty; or is a file.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"{path} is not empty: name a new folder, or pass --overwrite")
    return path


def frame_rate(frames: Frames, fps: float | None) -> Fraction | float | None:
    """
    Frames a second of the video to make of them, which is its own if they are a video; None if there is none to make.

    Raises:
        ValueError: if it cannot be.
    """
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ValueError(f"fps={fps} must be above 0 and at most {MAX_FPS}")
    return fps or frames.fps


def save_picture(picture: "Image.Image", file: Path):
    """Writes a PNG, and the folder it is in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        picture.save(partial, format="PNG")


def save_pictures(folder: Path, name: str, pictures: "Mapping[str, Image.Image]") -> list[Path]:
    """Writes `NAME-KIND.png` of each kind."""
    files = [folder / f"{name}-{kind}.png" for kind in pictures]
    for file, picture in zip(files, pictures.values()):
        save_picture(picture, file)
    return files


@contextmanager
def picture_files(
    folder: Path, frames: Frames, fps: Fraction | float | None, video_kinds: tuple[str, ...]
) -> Iterator[Callable[[str, "Mapping[str, Image.Image]"], list[Path]]]:
    """
    A function that takes the name of a frame and its pictures by kind, and returns the files they are in.

    Without `fps` it is `save_pictures`. Else it appends those of some kinds to a video of each, which are whole at the
    end: `VIDEO-KIND.mp4`.
    """
    with ExitStack() as stack:
        videos = {}

        def append(name: str, pictures: "Mapping[str, Image.Image]") -> list[Path]:
            if not videos:
                folder.mkdir(parents=True, exist_ok=True)
                for kind in [kind for kind in pictures if kind in video_kinds]:
                    file = folder / f"{Path(frames.name).stem}-{kind}.mp4"
                    videos[kind] = file, stack.enter_context(write_video(file, fps))
            for kind, (_, append_frame) in videos.items():
                append_frame(pictures[kind])
            return [file for file, _ in videos.values()]

        def save(name: str, pictures: "Mapping[str, Image.Image]") -> list[Path]:
            return save_pictures(folder, name, pictures)

        yield append if fps else save


__all__ = ["frame_rate", "new_folder", "picture_files", "save_picture", "save_pictures"]
