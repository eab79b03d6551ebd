# SPDX-License-Identifier: Apache-2.0
"""Draws the crops of a few images as student and teacher get them in the first epoch."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ..pictures.picture_files import save_picture
from ..runtime.extras import PilImage, require
from ..runtime.marked_files import MARK
from ..training.training_data import MultiCropDataset


CELL, GAP, HEADING = 96, 8, 24  # pixels
SHEET_MARK = f"{MARK} crop sheet"


def draw_crop_sheet(dataset: MultiCropDataset, indices: Sequence[int], file: Path):
    """
    Draws a row an image: the image, the global crops, which teacher and student get, and the local crops, which the
    student alone gets. Each crop is shown at its size relative to the global ones.

    Raises:
        ValueError: if there is a file that is no such sheet.
        UnreadableImage: if an image cannot be read.
    """
    Image, ImageDraw = require("PIL.Image"), require("PIL.ImageDraw")
    crops = dataset.multi_crop.config
    columns = 1 + crops.num_global_crops + crops.num_local_crops
    width, height = columns * (CELL + GAP) + GAP, HEADING + len(indices) * (CELL + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    headings = {0: "image", 1: "teacher and student", 1 + crops.num_global_crops: "student alone"}
    for column, heading in headings.items():
        if column < columns:
            draw.text((GAP + column * (CELL + GAP), GAP), heading, fill="black", font_size=14)
    for row, index in enumerate(indices):
        views = [picture_of(crop, dataset) for crop in dataset[index]["pixel_values"]]
        image = dataset.images[index]
        scales = [CELL / max(image.size), *(CELL / crops.global_crop_size for _ in views)]
        for column, (view, scale) in enumerate(zip([image, *views], scales)):
            resized = view.resize([max(1, round(side * scale)) for side in view.size], Image.Resampling.BICUBIC)
            sheet.paste(resized, (GAP + column * (CELL + GAP), HEADING + GAP + row * (CELL + GAP)))
    save_picture(sheet, file, SHEET_MARK)


def picture_of(crop: torch.Tensor, dataset: MultiCropDataset) -> PilImage:
    """Returns a normalised crop (3, h, w) as a picture."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (dataset.multi_crop.mean, dataset.multi_crop.std))
    pixels = (crop * std + mean).clamp(0, 1).mul(255).round().byte()
    return require("PIL.Image").fromarray(pixels.permute(1, 2, 0).numpy())
