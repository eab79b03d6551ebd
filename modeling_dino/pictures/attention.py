# SPDX-License-Identifier: Apache-2.0
"""What the CLS token attends to: from a model and images or videos to files of pictures.

As https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py, and `video_generation.py` beside it.
Where we deviate: the aspect ratio is kept, and no frame is written and read again on its way into a video.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from ..data.decoding import read_image
from ..data.frames import open_frames
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..runtime.extras import require
from ..runtime.processes import processes
from ..runtime.whole_files import whole_file
from .attention_pictures import attention_pictures
from .patch_images import PatchTransform
from .picture_files import frame_rate, new_folder, picture_files, save_pictures


if TYPE_CHECKING:
    from PIL import Image

ARRAYS = ("npy", "safetensors")
VIDEOS = ("attention", "heads", "masks")  # the pictures that a video is made of


@dataclass(frozen=True)
class AttentionSettings:
    """
    Args:
        layer: which block, counted from 0; negative ones from the end.
        mass: also mask the patches that hold this share of each head's attention, in (0, 1].
        save_arrays: also save the attention, as `"npy"` or `"safetensors"`.

    Raises:
        ValueError: if a value cannot work.
    """

    layer: int = -1
    mass: float | None = None
    save_arrays: str | None = None

    def __post_init__(self):
        if self.mass is not None and not 0 < self.mass <= 1:
            raise ValueError(f"mass={self.mass} must be above 0 and at most 1")
        if self.save_arrays not in (None, *ARRAYS):
            raise ValueError(f"unknown save_arrays {self.save_arrays!r}: allowed are {', '.join(ARRAYS)}")


@torch.inference_mode()
def attention_of(
    model: DinoModel, image: "Image.Image", transform: PatchTransform, layer: int
) -> "tuple[Image.Image, torch.Tensor]":
    """What the model sees of an image, and what its CLS token attends to there: (heads, h, w) in float32."""
    cropped = transform.crop(image)
    pixel_values = transform.pixel_values(cropped).to(model.device)
    attention = model.get_cls_attention(pixel_values, layer)[0].float().cpu()
    if not attention.isfinite().all():
        raise ValueError("the attention is not finite: are the model's weights?")
    return cropped, attention


def draw_attention(
    model: DinoModel,
    image_path: str | os.PathLike,
    output: str | os.PathLike,
    mean: list[float],
    std: list[float],
    size: int = 480,
    layer: int = -1,
    mass: float | None = None,
) -> list[Path]:
    """
    Draws what the CLS token attends to: `NAME-head0.png`, …, and `NAME-attention.png`, all of them over the image.

    Args:
        mean, std: of each channel, in [0, 1], as the model was trained.
        size: to which the shorter side of the image is resized, in pixels.
        layer, mass: see [`AttentionSettings`].

    Returns:
        the files, the mosaic last; see [`attention_pictures`].

    Raises:
        ValueError: for a ResNet, if there is no such layer, or if the image cannot be read.
    """
    model.check_attention(True)
    settings, transform = AttentionSettings(layer, mass), PatchTransform(model.config.patch_size, mean, std, size)
    try:
        image, _ = read_image(str(image_path), model.config.num_channels)
    except ValueError as error:
        raise ValueError(f"cannot read {image_path}: {error}") from error
    cropped, attention = attention_of(model, image, transform, settings.layer)
    pictures = attention_pictures(cropped, attention, transform.patch_size, settings.mass)
    return save_pictures(Path(output), Path(image_path).stem, pictures)


def save_array(file: Path, attention: torch.Tensor):
    """Writes attention (heads, h, w) in the format of the file's suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        if file.suffix == ".npy":
            with open(partial, "wb") as opened:
                require("numpy").save(opened, attention.numpy())
        else:
            save_file({"attention": attention.contiguous()}, partial)


@dataclass(frozen=True)
class AttentionSummary:
    """What was drawn."""

    num_frames: int
    files: list[Path]
    skipped: dict[str, str]

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"{len(self.files)} files of {self.num_frames} images{skipped}; all heads: {self.files[-1]}"


def draw_attention_of_frames(
    model: str,
    images: str,
    output: str | os.PathLike,
    settings: AttentionSettings,
    *,
    size: int = 480,
    fps: float | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
    progress: bool = True,
) -> AttentionSummary:
    """
    Draws the attention to images as PNGs, or to the frames of a video as videos; `NAME-KIND` as [`draw_attention`].

    A video's files are `NAME-attention.mp4` (the mosaic), `NAME-heads.mp4` and with `mass` `NAME-masks.mp4`.

    Args:
        model: folder or hub id of a saved ViT.
        images: a video, or see [`open_source`].
        output: a new or empty folder.
        size: to which the shorter side of the images is resized, in pixels.
        fps: make a video of images, in their order, at so many a second; of a video it is its own.
        on_error: `"skip"` unreadable images (the summary names them), or `"fail"` at the first.
        overwrite: replace files of the same names.

    Raises:
        ValueError: if an argument cannot work, or no image can be read.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    dino = load_model(model)
    dino.check_attention(True)
    dino.resolve_layers([settings.layer])  # refuses one that is not there
    transform = PatchTransform.of_model(model, dino.config, size)
    frames = open_frames(images, dino.config.num_channels, size, on_error)
    fps = frame_rate(frames, fps)
    folder = new_folder(output, overwrite)
    dino.to(processes().device)
    num_frames, files = 0, {}  # in order, each once
    with picture_files(folder, frames, fps, VIDEOS) as save:
        for frame in tqdm(frames, total=frames.num_frames, unit=" images", disable=not progress):
            image, attention = attention_of(dino, frame.image, transform, settings.layer)
            if settings.save_arrays:
                file = folder / f"{frame.name}-attention.{settings.save_arrays}"
                save_array(file, attention)
                files[file] = None
            pictures = attention_pictures(image, attention, transform.patch_size, settings.mass)
            files |= dict.fromkeys(save(frame.name, pictures))
            num_frames += 1
    return AttentionSummary(num_frames, list(files), frames.skipped)


__all__ = ["AttentionSettings", "AttentionSummary", "draw_attention", "draw_attention_of_frames"]
