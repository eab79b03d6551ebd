"""Images of which evaluations can tell the classes apart, mostly."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_models import tiny_config

from modeling_dino import DinoModel


COLOURS = {"red": (150, 90, 90), "green": (90, 150, 90), "blue": (90, 90, 150)}


def coloured_images(folder: Path, per_class: int = 4, family: str = "vit") -> Path:
    """Noise around a colour, in a folder for each: `train`, `test`, and `plain`, all in one; and a `model`."""
    torch.manual_seed(0)
    DinoModel(tiny_config(family)).save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    (folder / "plain").mkdir()
    for part in ("train", "test"):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for i in range(per_class):
                pixels = np.clip(colour + draw.normal(0, 60, (36, 36, 3)) + draw.normal(0, 30, 3), 0, 255)
                image = Image.fromarray(pixels.astype(np.uint8))
                image.save(folder / part / name / f"{i}.png")
                image.save(folder / "plain" / f"{part}-{name}-{i}.png")
    return folder
