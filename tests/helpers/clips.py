"""A short video, and a mask of an object in its first frame."""

from pathlib import Path

import torch
from PIL import Image

from modeling_dino.data.video import write_video
from modeling_dino.evaluation.mask_files import Mask, write_mask


def save_clip(folder: Path, num_frames: int):
    """Writes `video.mp4`, frames of noise, and `mask.png`, a square."""
    with write_video(folder / "video.mp4", 10) as append:
        for i in range(num_frames):
            append(Image.effect_noise((64, 48), 50 + 20 * i))
    mask = torch.zeros(48, 64, dtype=torch.uint8)
    mask[8:40, 8:40] = 1
    write_mask(Mask(mask), folder / "mask.png")
