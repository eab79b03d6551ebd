# SPDX-License-Identifier: Apache-2.0
"""What is around the drawing: opens images or a video for a model, and writes pictures as PNGs or into videos."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from ..backbone import has_initial_weights
from ..data.frames import Frame, Frames, open_frames
from ..data.image_source import remarks_on_images
from ..data.image_values import check_bands, range_of
from ..data.video import write_video
from ..hub.loading import load_image_processor
from ..modeling_dino import DinoModel
from ..runtime.extras import PilImage, require
from ..runtime.marked_files import MARK, marked_file
from ..runtime.processes import processes
from .options import PictureOptions, ViewOptions
from .patch_images import RANDOM_WEIGHTS, PatchTransform


PICTURE_MARK, ARRAYS_MARK = f"{MARK} picture", f"{MARK} arrays"


@dataclass(frozen=True)
class Drawing:
    """
    A model, the frames that it looks at, and where the pictures of them go.

    Args:
        fps: frames a second of the video to make of the pictures; None if they are written as PNGs.
        about: sentences about the model, which are written on the pictures.
    """

    model: DinoModel
    transform: PatchTransform
    frames: Frames
    fps: Fraction | float | None
    folder: Path
    progress: bool
    about: list[str]

    def shown(self, frame: Frame) -> PilImage:
        """Returns the picture of a frame to look at, cropped to whole patches."""
        return self.transform.picture(self.transform.crop(frame.image))

    def iterate(self, description: str | None = None) -> Iterator[Frame]:
        """Yields the frames, with a progress bar beside a description."""
        total = self.frames.num_frames
        yield from tqdm(self.frames, desc=description, total=total, unit=" images", disable=not self.progress)


def open_drawing(
    options: PictureOptions,
    model: DinoModel,
    images: str,
    on_error: str,
    is_video: bool = False,
    **of_tables: str | None,
) -> Drawing:
    """
    Opens images or a video for a model, and moves the model to its device.

    Args:
        images, on_error, of_tables: see [`open_frames`].
        is_video: whether the images are the frames of a video, even if none is made of them.

    Raises:
        ValueError: if the model has no patch tokens, or an option cannot work.
    """
    transform = open_transform(options, model)
    is_video, factor = is_video or options.fps is not None, transform.rescale_factor
    frames = open_frames(images, model.config.num_channels, options.size, on_error, factor, is_video, **of_tables)
    folder = new_folder(options.output, options.overwrite)
    model = model.to(processes().device)
    about = describe_model(options.model, model, options.size)
    return Drawing(model, transform, frames, options.fps or frames.fps, folder, options.progress, about)


def open_transform(options: ViewOptions, model: DinoModel) -> PatchTransform:
    """Opens the transform of whole images for a model; raises ValueError as [`open_drawing`] does."""
    if not model.backbone.has_patch_tokens:
        raise ValueError(f"{model.config.backbone} has no patch tokens: use a ViT")
    processor = load_image_processor(options.model, model.config)
    check_bands(options.bands, model.config.num_channels)
    return PatchTransform(
        model.config.patch_size,
        processor.image_mean,
        processor.image_std,
        options.size,
        range_of(processor),
        options.bands,
    )


def describe_model(name: str, model: DinoModel, size: int) -> list[str]:
    """Returns what pictures say about the model, and about the shorter side of the images that it looks at."""
    config = model.config
    line = f"{name}: {config.backbone}, {model.backbone.describe(config)}. Images: {size} px, the shorter side."
    return [line, *([RANDOM_WEIGHTS] if has_initial_weights(model.backbone) else [])]


def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Path:
    """
    Checks a folder to write to, and returns its path. The folder is made with its first file. Raises ValueError if it
    is a file; or if it is not empty, without `overwrite`.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file: name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise ValueError(f"{path} is not empty: name a new folder, or pass --overwrite")
    return path


@dataclass(frozen=True)
class PictureSummary:
    """
    Says how many images there are pictures of, and why others were skipped.

    Args:
        about: sentences about the model.
    """

    num_frames: int
    skipped: dict[str, str]
    about: list[str]

    @property
    def remarks(self) -> list[str]:
        """Lines about images that were skipped, and about weights that are random."""
        return [line for line in self.about if line == RANDOM_WEIGHTS] + remarks_on_images(self.skipped)

    def __str__(self) -> str:
        images = "1 image" if self.num_frames == 1 else f"{self.num_frames} images"
        return images + (f", {len(self.skipped)} skipped" if self.skipped else "")


@contextmanager
def new_file(file: Path, mark: str) -> Iterator[Path]:
    """Makes the folder of a file, and yields a place to write to as [`marked_file`] does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with marked_file(file, mark) as partial:
        yield partial


def save_tensors(tensors: Mapping[str, torch.Tensor], file: Path):
    """Writes a safetensors file; raises ValueError if there is another than of this function."""
    with new_file(file, ARRAYS_MARK) as partial:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, {"written_by": ARRAYS_MARK})


def save_picture(picture: PilImage, file: Path, mark: str = PICTURE_MARK):
    """Writes a PNG with a mark; raises ValueError if there is a file without it."""
    info = require("PIL.PngImagePlugin").PngInfo()
    info.add_text("Software", mark)
    with new_file(file, mark) as partial:
        picture.save(partial, format="PNG", pnginfo=info)


@contextmanager
def picture_files(
    folder: Path, frames: Frames, fps: Fraction | float | None, video_kinds: tuple[str, ...]
) -> Iterator[Callable[[str, Mapping[str, PilImage]], list[Path]]]:
    """
    Yields a function that takes the name of a frame and its pictures by kind, and returns the files they are in.

    Without `fps` these are `NAME-KIND.png`. Otherwise the pictures of some kinds are appended to a video of each,
    `VIDEO-KIND.mp4`; the videos appear at the end, whole.
    """
    with ExitStack() as stack:
        videos = {}  # by kind: the file, and the function that appends a picture

        def save(name: str, pictures: Mapping[str, PilImage]) -> list[Path]:
            if not fps:
                files = {folder / f"{name}-{kind}.png": picture for kind, picture in pictures.items()}
                for file, picture in files.items():
                    save_picture(picture, file)
                return list(files)
            for kind in [kind for kind in pictures if kind in video_kinds]:
                if kind not in videos:
                    folder.mkdir(parents=True, exist_ok=True)
                    file = folder / f"{Path(frames.name).stem}-{kind}.mp4"
                    videos[kind] = file, stack.enter_context(write_video(file, fps))
                videos[kind][1](pictures[kind])
            return [file for file, _ in videos.values()]

        yield save
