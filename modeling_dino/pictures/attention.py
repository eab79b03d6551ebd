# SPDX-License-Identifier: Apache-2.0
"""Draws what the CLS token attends to, in images or in the frames of a video.

As https://github.com/facebookresearch/dino/blob/7c446df/visualize_attention.py, and `video_generation.py` beside it.
Where we deviate: the aspect ratio is kept, and frames go straight into a video, not through files.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..runtime.finite import check_finite
from ..runtime.options import takes_options
from .attention_pictures import attention_pictures
from .options import AttentionOptions
from .picture_files import PictureSummary, new_file, open_drawing, picture_files, save_tensors


NUMPY_MAGIC = "NUMPY"  # begins every .npy file, which has no place for another mark
VIDEO_KINDS = ("attention", "heads", "masks")  # the pictures that videos are made of


@dataclass(frozen=True)
class AttentionSummary(PictureSummary):
    """Names the files that were drawn; the mosaic of the last image is the last."""

    files: list[Path]

    def __str__(self) -> str:
        return f"{len(self.files)} files of {super().__str__()}; all heads: {self.files[-1]}"


@takes_options(AttentionOptions, command="attention")
def draw_attention(options: AttentionOptions) -> AttentionSummary:
    """
    The pictures of images are `NAME-KIND.png`, those of the frames of a video `NAME-KIND.mp4`.

    The kinds are described at [`attention_pictures`]; a video is made of each of the mosaic, `attention`, of `heads`
    and of `masks`.

    Raises:
        ValueError: if the model has no attention or no such layer, an option cannot work, or no image can be read.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    model = load_model(options.model)
    model.check_cls_attention()
    # raises ValueError if there is no such layer
    (layer,) = model.resolve_layers([options.layer], model.backbone.num_attention_layers)
    drawing = open_drawing(options, model, options.images, options.on_error, **options.of_tables)
    about = [*drawing.about, f"Attention of the CLS token in block {layer}, counted from 0."]
    num_frames, files = 0, {}  # in order, each once
    with picture_files(drawing.folder, drawing.frames, drawing.fps, VIDEO_KINDS) as save:
        for frame in drawing.iterate():
            image = drawing.transform.crop(frame.image)
            attention = cls_attention(model, drawing.transform.pixel_values(image), options.layer)
            check_finite(attention[None], "the attention to", [frame.source])
            if options.save_arrays:
                file = drawing.folder / f"{frame.name}-attention.{options.save_arrays}"
                save_attention(attention, file)
                files[file] = None
            picture = drawing.transform.picture(image)
            pictures = attention_pictures(picture, attention, drawing.transform.patch_size, about, options.mass)
            files |= dict.fromkeys(save(frame.name, pictures))
            num_frames += 1
    return AttentionSummary(num_frames, drawing.frames.skipped, drawing.about, list(files))


@torch.inference_mode()
def cls_attention(model: DinoModel, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
    """Computes what the CLS token of one image, (1, C, H, W), attends to: (heads, h, w) in float32."""
    return model.get_cls_attention(pixel_values.to(model.device), layer)[0].float().cpu()


def save_attention(attention: torch.Tensor, file: Path):
    """Writes attention (heads, h, w) in the format of the file's suffix."""
    if file.suffix == ".safetensors":
        save_tensors({"attention": attention}, file)
        return
    with new_file(file, NUMPY_MAGIC) as partial, open(partial, "wb") as opened:  # NumPy adds a suffix to paths
        np.save(opened, attention.numpy())
