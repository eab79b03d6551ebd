# SPDX-License-Identifier: Apache-2.0
"""
Runs the demo, offline: it pretrains a model, extracts features, evaluates them, and draws pictures.

A small ViT is pretrained on the left parts of photographs. Then it has to recognise places in their right parts, which
it has never seen, from distorted views. It is compared with the same network untrained, and with the pixels.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import set_seed

from ..data.decoding import read_image
from ..evaluation.evaluation_data import EvaluationFeatures, features_of
from ..evaluation.knn_classification import classify_by_neighbours
from ..evaluation.options import FeatureOptions, RetrieveOptions
from ..evaluation.retrieval import retrieve
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_config, load_image_processor
from ..pictures.attention import draw_attention
from ..pictures.options import AttentionOptions
from ..runtime.extras import check_extra
from ..runtime.options import takes_options
from ..runtime.run_folder import RunFolder
from ..training.options import PretrainOptions
from ..training.pretrain import pretrain
from ..training.recipes import load_recipe
from ..training.self_distillation import DinoForPreTraining
from .images import copy_photographs, cut_photographs
from .options import DemoOptions


RECIPE = "photographs"
PROCESSES = 2  # of the extraction, where there are no GPUs
K = 5  # neighbours that vote
NAMES = {"trained": "features, pretrained", "untrained": "features, untrained", "pixels": "pixels"}
PORTRAITS = ("astronaut.png", "chelsea.png")
PORTRAIT_SIZE = 320  # pixels
DATA_SET = "places in scikit-image's photographs"


@dataclass(frozen=True)
class DemoSummary:
    """k-NN top-1 accuracies in percent, by the keys of `NAMES`; and the number of places, which are the classes."""

    output: Path
    accuracies: dict[str, float]
    places: int
    seconds: float

    def __str__(self) -> str:
        lines = [f"which of {self.places} unseen places does a distorted view show? k-NN accuracy, k={K}:"]
        lines += [f"  {NAMES[name]:<22}{accuracy:5.1f} %" for name, accuracy in self.accuracies.items()]
        lines.append(f"  {'chance':<22}{100 / self.places:5.1f} %")
        drawings = [f"attention/{Path(portrait).stem}-attention.png" for portrait in PORTRAITS]
        pictures = ["model/curves.png", "neighbours.png", *drawings]
        lines.append(f"look at {', '.join(str(self.output / picture) for picture in pictures)}")
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


@takes_options(DemoOptions)
def run_demo(options: DemoOptions) -> DemoSummary:
    """
    Run again, the pretraining goes on where it stopped.

    Raises:
        ValueError: if the folder has the pretraining of another demo or anything else, another demo writes to it, or
            an override cannot work.
        OSError: if the extraction fails.
    """
    check_extra("demo")
    with DemoFolder(options.output, {}).opened(overwrite=False):
        return run_steps(options, Path(options.output))


def run_steps(options: DemoOptions, output: Path) -> DemoSummary:
    """Does what [`run_demo`] does, in a folder that is the demo's."""
    started = time.perf_counter()
    photographs = copy_photographs(output / "photographs")
    tiles, *views = cut_photographs(photographs, output / f"seed-{options.seed}", options.seed)
    overrides = (f"training.seed={options.seed}", *options.overrides)
    model, untrained = str(output / "model"), str(output / "untrained")
    print_step(f"pretraining by the recipe {RECIPE} on tiles of the left parts of {len(photographs) - 1} photographs")
    pretrain(
        PretrainOptions(recipe=RECIPE, data=str(tiles), output=model, overrides=overrides, overwrite=options.overwrite)
    )
    save_untrained(untrained, overrides)

    print_step("extracting features of views of the right parts")
    folders = [str(output / "features" / images.name) for images in views]
    for images, folder in zip(views, folders):
        run_extraction(model, images, folder)
    trained = [features_of(folder) for folder in folders]
    rivals = [features_of(str(images), untrained, FeatureOptions(progress=False)) for images in views]
    sides = {"trained": trained, "untrained": rivals, "pixels": [pixels_of(part, untrained) for part in trained]}
    found = {name: classify_by_neighbours(*parts, k=[K]) for name, parts in sides.items()}
    add_evaluation_results(model, found["trained"].results(DATA_SET))

    print_step("drawing nearest neighbours, and the attention of the network")
    index, queries = folders
    sheet = str(output / "neighbours.png")
    retrieve(RetrieveOptions(index=index, queries=queries, model=model, sheet=sheet, dataset=DATA_SET))
    draw_portraits(model, output)
    return DemoSummary(
        output,
        {name: accuracy.top1[K] for name, accuracy in found.items()},
        len(found["trained"].class_sizes),
        time.perf_counter() - started,
    )


def print_step(line: str):
    """Prints the next step to standard error."""
    print(line, file=sys.stderr, flush=True)


def save_untrained(folder: str, overrides: Sequence[str]):
    """Saves student and teacher with the weights at which the pretraining began."""
    recipe = load_recipe(RECIPE, overrides)
    set_seed(recipe.training["seed"])
    DinoForPreTraining(recipe.config()).save_pretrained(folder)


def run_extraction(model: str, images: Path, output: str):
    """
    Runs `dino extract` by `accelerate launch`, on all GPUs or in processes on the CPU; replaces an earlier output.
    Raises OSError if it fails; it has printed why.
    """
    on_gpus = torch.accelerator.is_available()
    count = torch.accelerator.device_count() if on_gpus else PROCESSES
    launch = ["accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(count)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["--multi_gpu"] if count > 1 else []  # on a CPU, too: without it a single process is started
    arguments = ["extract", "--model", model, "--images", str(images), "--output", output]
    arguments += ["--overwrite"] if os.path.exists(output) else []
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not on_gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", *launch, "--module", "modeling_dino", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise OSError(f"extraction failed: {' '.join(command)}")


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
