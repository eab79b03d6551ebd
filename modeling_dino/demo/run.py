# SPDX-License-Identifier: Apache-2.0
"""
Runs the demo, offline: it pretrains a model, extracts features, evaluates them, draws pictures, and opens a report.

A small ViT is pretrained on the left parts of photographs. Then it has to recognise places in their right parts, which
it has never seen, from distorted views. It is compared with the same network untrained, and with the pixels.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import set_seed

from ..data.decoding import read_image
from ..data.sources import open_source
from ..evaluation.evaluation_data import EvaluationFeatures, features_of
from ..evaluation.knn_classification import classify_by_neighbours
from ..evaluation.options import FeatureOptions, RetrieveOptions
from ..evaluation.retrieval import retrieve
from ..extraction.extract import extract_features
from ..extraction.options import ExtractOptions
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_config, load_image_processor
from ..pictures.attention import draw_attention
from ..pictures.options import AttentionOptions
from ..report.options import ReportOptions
from ..report.page import write_report
from ..runtime.options import takes_options
from ..runtime.processes import cores_of_process
from ..runtime.run_folder import RunFolder
from ..training.multi_crop import MultiCrop
from ..training.options import PretrainOptions
from ..training.pretrain import pretrain
from ..training.recipes import Recipe, load_recipe
from ..training.self_distillation import DinoForPreTraining
from ..training.training_data import MultiCropDataset, SourceImages
from .browser import open_page
from .crop_sheet import draw_crop_sheet
from .images import copy_photographs, cut_photographs
from .options import DemoOptions


RECIPE = "photographs"
K = 5  # neighbours that vote
NAMES = {"trained": "features, pretrained", "untrained": "features, untrained", "pixels": "pixels"}
PORTRAITS = ("astronaut.png", "chelsea.png")
PORTRAIT_SIZE = 320  # pixels
CROPPED = 5  # images whose crops are drawn
DATA_SET = "places in scikit-image's photographs"


@dataclass(frozen=True)
class DemoSummary:
    """
    Holds k-NN top-1 accuracies in percent, by the keys of `NAMES`, and where the pictures are.

    Args:
        crops: the picture of what student and teacher get to see.
        places: number of places, which are the classes.
    """

    output: Path
    crops: Path
    accuracies: dict[str, float]
    places: int
    seconds: float

    @property
    def report(self) -> Path:
        """The page about the features of the views."""
        return self.output / "report.html"

    def __str__(self) -> str:
        lines = [f"which of {self.places} unseen places does a distorted view show? k-NN accuracy, k={K}:"]
        lines += [f"  {NAMES[name]:<22}{accuracy:5.1f} %" for name, accuracy in self.accuracies.items()]
        lines.append(f"  {'chance':<22}{100 / self.places:5.1f} %")
        drawings = [f"attention/{Path(portrait).stem}-attention.png" for portrait in PORTRAITS]
        pictures = [self.output / name for name in ("model/curves.png", "neighbours.png", *drawings)]
        lines.append(f"look at {', '.join(map(str, [self.crops, *pictures]))}")
        lines.append(f"open {self.report.absolute().as_uri()}, a map of the places")
        return "\n".join([*lines, f"{self.seconds:.0f} s"])


class DemoFolder(RunFolder):
    """The folder of demos, of any options; nothing is lost by another demo."""

    file_name, format, contents, command = "demo.json", "modeling-dino demo 1", "a demo", "dino demo"

    def has_results(self) -> bool:
        """Returns False, as each step keeps its own results."""
        return False

    def clear(self):
        """Keeps everything, which each step replaces if it may."""

    def open(self, overwrite: bool):
        """Makes the folder; one that is a demo's stays as it is."""
        if not self.facts:
            super().open(overwrite)


@takes_options(DemoOptions, command="demo")
def run_demo(options: DemoOptions) -> DemoSummary:
    """
    If it is run again, the pretraining continues where it stopped.

    Raises:
        ValueError: if the folder has the pretraining of another demo or anything else, another demo writes to it, or
            an override cannot work.
        ImportError: if something is not installed that the demo needs.
    """
    with DemoFolder(options.output, {}).opened(overwrite=False), one_thread():
        summary = run_steps(options, Path(options.output))
    if not options.no_open:
        open_page(summary.report)
    return summary


def run_steps(options: DemoOptions, output: Path) -> DemoSummary:
    """Does what [`run_demo`] does, in a folder that is the demo's."""
    started = time.perf_counter()
    print_step("cutting scikit-image's photographs: the left parts to train on, the right parts to test on")
    photographs = copy_photographs(output / "photographs")
    tiles, *views = cut_photographs(photographs, output / f"seed-{options.seed}", options.seed)
    overrides = (f"training.seed={options.seed}", *options.overrides)
    recipe = load_recipe(RECIPE, overrides)
    crops = tiles.parent / "crops.png"
    draw_crops(tiles, recipe, crops)
    print_step(f"what student and teacher get to see is in {crops}")

    model, untrained = str(output / "model"), str(output / "untrained")
    print_step(f"pretraining by the recipe {RECIPE}")
    pretrain(
        PretrainOptions(
            recipe=RECIPE,
            data=str(tiles),
            output=model,
            overrides=overrides,
            overwrite=options.overwrite,
            num_workers=cropping_processes(),
        )
    )
    save_untrained(untrained, recipe)

    print_step("extracting features of the right parts, and classifying them by their neighbours")
    folders = [extract(model, images, output / "features" / images.name) for images in views]
    trained = [features_of(folder) for folder in folders]
    rivals = [features_of(str(images), untrained, FeatureOptions(progress=False)) for images in views]
    sides = {"trained": trained, "untrained": rivals, "pixels": [pixels_of(part, untrained) for part in trained]}
    found = {name: classify_by_neighbours(*parts, k=[K]) for name, parts in sides.items()}
    add_evaluation_results(model, found["trained"].results(DATA_SET))
    summary = DemoSummary(
        output,
        crops,
        {name: accuracy.top1[K] for name, accuracy in found.items()},
        len(found["trained"].class_sizes),
        time.perf_counter() - started,
    )

    print_step("drawing nearest neighbours, the attention of the network, and a map of the places")
    index, queries = folders
    sheet = str(output / "neighbours.png")
    retrieve(RetrieveOptions(index=index, queries=queries, model=model, sheet=sheet, dataset=DATA_SET))
    draw_portraits(model, output)
    write_report(ReportOptions(folder=index, output=str(summary.report), progress=False))
    return replace(summary, seconds=time.perf_counter() - started)


def print_step(line: str):
    """Prints what is done next to standard error."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread: the network is so small that several would wait for each other most of the time."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def cropping_processes() -> int:
    """Returns how many processes make crops: one if there is a core for it, and it starts at once, as by a fork."""
    return int(cores_of_process(1) > 1 and multiprocessing.get_start_method() == "fork")


def draw_crops(tiles: Path, recipe: Recipe, file: Path):
    """Draws the crops of tiles of several photographs, as they are in the first epoch."""
    images = SourceImages(open_source(str(tiles)).indexed())
    dataset = MultiCropDataset(images, MultiCrop(recipe.crops), recipe.training["seed"])
    draw_crop_sheet(dataset, range(0, len(images), len(images) // CROPPED)[:CROPPED], file)


def save_untrained(folder: str, recipe: Recipe):
    """Saves student and teacher with the weights at which the pretraining began."""
    set_seed(recipe.training["seed"])
    DinoForPreTraining(recipe.config()).save_pretrained(folder)


def extract(model: str, images: Path, output: Path) -> str:
    """Extracts the features of images into a folder, in the place of earlier ones, and returns its name."""
    folder = str(output)
    extract_features(
        ExtractOptions(
            model=model,
            images=str(images),
            output=folder,
            overwrite=os.path.exists(output),
            num_workers=0,
            progress=False,
        )
    )
    return folder


def pixels_of(part: EvaluationFeatures, model: str) -> EvaluationFeatures:
    """Replaces the features of images by their pixels, as the network gets them: (N, C * H * W)."""
    config = load_config(model)
    processor = load_image_processor(model, config)
    images = (read_image(name, config.num_channels)[0] for name in part.names)
    pixels = torch.stack([processor(image, return_tensors="pt")["pixel_values"].flatten() for image in images])
    return replace(part, features=pixels)


def draw_portraits(model: str, output: Path):
    """Draws the attention of the network on two portraits."""
    folder = str(output / "attention")
    for portrait in PORTRAITS:
        image = str(output / "photographs" / portrait)
        draw_attention(
            AttentionOptions(
                model=model, images=image, output=folder, size=PORTRAIT_SIZE, overwrite=True, progress=False
            )
        )
