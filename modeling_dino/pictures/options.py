# SPDX-License-Identifier: Apache-2.0
"""The options of the commands that draw: what all of them have in common, and those of `attention`, `pca`, `match`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ..data.options import IMAGES_HELP, ON_ERROR_HELP, PROGRESS_HELP, ImageColumnOptions
from ..extraction.features import check_kind, is_of_patches
from ..hub.loading import MODEL_HELP
from ..runtime.options import StrPath, option


ARRAYS = ("npy", "safetensors")
MAX_FPS = 1000


@dataclass(frozen=True, kw_only=True)
class ViewOptions:
    """Says which ViT looks at images, and how they are resized and shown."""

    model: StrPath = option(MODEL_HELP)
    size: int = option("Shorter side of the resized image in pixels.", 480)
    bands: Sequence[int] | None = option(
        "Channels to show in red, green and blue, or one in grey, counted from 1, such as 3,2,1; by default the first "
        "three.",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class PictureOptions(ViewOptions):
    """
    Says what looks at images or at a video, and where the pictures of them are written.

    Raises:
        ValueError: if a value cannot work.
    """

    output: StrPath = option("Folder to write to; it must be new or empty.")
    fps: float | None = option("Make a video of the images, in their order, at so many frames a second.", None)
    overwrite: bool = option(
        "Write into a folder that is not empty, and replace its own files of the same names.", False
    )
    progress: bool = option(PROGRESS_HELP, True, python_only=True)

    def __post_init__(self):
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ValueError(f"fps={self.fps} must be above 0 and at most {MAX_FPS}")


@dataclass(frozen=True, kw_only=True)
class ImagesOptions(PictureOptions, ImageColumnOptions):
    """Pictures of the images of any source, or of the frames of a video."""

    images: StrPath = option(f"A video. {IMAGES_HELP}", flag="--images --image")
    on_error: str = option(ON_ERROR_HELP, "skip")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(ImagesOptions):
    """Says what of the attention is drawn."""

    summary: ClassVar[str] = (
        "Draws what a ViT's CLS token attends to: each head, and all heads over the image; as pictures or as videos."
    )

    layer: int = option("Block, counted from 0; negative ones are counted from the end.", -1)
    mass: float | None = option(
        "Also mask the patches that hold this share of each head's attention, above 0 and at most 1.", None
    )
    save_arrays: str | None = option(f"Also save the attention: {' or '.join(ARRAYS)}.", None)

    def __post_init__(self):
        super().__post_init__()
        if self.mass is not None and not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must be above 0 and at most 1")
        if self.save_arrays not in (None, *ARRAYS):
            raise ValueError(f"unknown save_arrays {self.save_arrays!r}: allowed are {', '.join(ARRAYS)}")


@dataclass(frozen=True, kw_only=True)
class PcaOptions(ImagesOptions):
    """How patch tokens are painted."""

    summary: ClassVar[str] = (
        "Paints a ViT's patch tokens in the colors of their first three principal components, which all images share."
    )

    split: bool | None = option(
        "Paint the foreground alone, by its own components; by default where the patches clearly part in two.",
        None,
        flag="--split/--no-split",
    )
    save_arrays: bool = option("Also save the components, as components.safetensors.", False)


@dataclass(frozen=True, kw_only=True)
class MatchOptions(ViewOptions):
    """
    Says which patches of two images are compared, and what is written.

    Raises:
        ValueError: if a value cannot work.
    """

    summary: ClassVar[str] = (
        "Draws which patches of two images correspond: those that are each other's nearest neighbours."
    )

    first: StrPath = option("Image.", flag="FIRST", argument=True)
    second: StrPath = option("Image to find the patches of the first one in.", flag="SECOND", argument=True)
    output: StrPath = option("A .png file to draw the images and their matches into.")
    features: str | None = option(
        "Features of patches that are compared: patches, keys@9, queries@9, values@9 or tokens@9, of block 9; by "
        "default the keys of the block after three quarters of them, keys@9 of 12.",
        None,
    )
    top: int = option("Number of matches to draw: the most similar, spread over the first image.", 30)
    table: StrPath | None = option("A .csv file to write all matches to, in pixels of the images.", None)

    def __post_init__(self):
        if self.features is not None:
            check_kind(self.features)
            if not is_of_patches(self.features):
                raise ValueError(f"{self.features} features are not of patches: choose patches or a facet, as keys@9")
        if self.top < 1:
            raise ValueError(f"top={self.top} must be at least 1")
        for name, suffix in (("output", ".png"), ("table", ".csv")):
            file = getattr(self, name)
            if file is not None and Path(file).suffix != suffix:
                raise ValueError(f"{name} {file} must end with {suffix}")
