# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The tour in one command: photographs to features and pictures, with what comes with the package alone."""

import os
import shutil
from pathlib import Path

from .configuration_dino import DinoConfig
from .extract import ExtractionSettings, ExtractionSummary, extract_features
from .extras import require
from .feature_files import load_features
from .modeling_dino import DinoModel
from .pretrained import load_image_processor, load_model
from .visualization import draw_attention


# the photographs among the images that lie inside the scikit-image package (others it would download)
PHOTOGRAPHS = [
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
]
PRESET = "dino_vits16"
PORTRAIT = "astronaut.png"


def copy_photographs(folder: Path) -> list[Path]:
    """Copies scikit-image's photographs into a folder."""
    source = Path(require("skimage.data").__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(source / name, folder / name)) for name in PHOTOGRAPHS if (source / name).is_file()]


def make_model(folder: Path):
    """Saves a model of the preset with random weights."""
    DinoModel(DinoConfig.from_preset(PRESET, head_type=None)).save_pretrained(folder)


def run_demo(output: str | os.PathLike, model: str | None = None) -> str:
    """
    Extracts features of the photographs and draws the attention to one of them.

    Args:
        output: a folder; what an earlier demo left there is replaced.
        model: folder or hub id of a saved model; by default a preset with random weights.

    Returns:
        what was done, and where it is.
    """
    output = Path(output)
    photographs = copy_photographs(output / "photographs")
    lines = []
    if model is None:
        model = str(output / "model")
        make_model(output / "model")
        lines.append(f"model       {PRESET} with random weights in {model}: its features mean little; try --model")
    summary = extract(model, output)
    features = load_features(summary.output)["feature"]
    pictures = draw(model, output)
    return "\n".join(
        [
            *lines,
            f"photographs {len(photographs)} from scikit-image in {output / 'photographs'}",
            f"features    {features.shape[0]} x {features.shape[1]}: {summary}",
            f"attention   {len(pictures)} pictures; look at {pictures[-1]}",
        ]
    )


def extract(model: str, output: Path) -> ExtractionSummary:
    """Features of the photographs."""
    settings = ExtractionSettings(model=model, images=str(output / "photographs"))
    return extract_features(settings, output / "features", overwrite=(output / "features").exists())


def draw(model: str, output: Path) -> list[Path]:
    """The attention to the portrait."""
    dino = load_model(model)
    processor = load_image_processor(model, dino.config)
    portrait = output / "photographs" / PORTRAIT
    return draw_attention(dino, portrait, output / "attention", processor.image_mean, processor.image_std)


__all__ = ["run_demo"]
