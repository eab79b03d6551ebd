# SPDX-License-Identifier: Apache-2.0
"""The whole story in one command, offline: pretrain, save, load, extract, evaluate, look.

A small ViT is pretrained on the left parts of photographs, and is to recognise places in their right parts, which it
has never seen, from distorted views. Beside it stand the same network untrained, and the pixels themselves.
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
from ..evaluation.knn_classification import evaluate_knn
from ..evaluation.options import FeatureOptions, RetrieveOptions
from ..evaluation.retrieval import retrieve
from ..hub.evaluation_results import add_evaluation_results
from ..hub.loading import load_config, load_image_processor
from ..pictures.attention import draw_attention
from ..pictures.options import AttentionOptions
from ..training.options import PretrainOptions
from ..training.pretrain import pretrain
from ..training.recipes import load_recipe
from ..training.self_distillation import DinoForPreTraining
from .images import copy_photographs, cut_photographs


RECIPE = "photographs"
PROCESSES = 2  # that extract features, where there are no GPUs
K = 5  # neighbours that vote
PORTRAITS = ("astronaut.png", "chelsea.png")
PORTRAIT_SIZE = 320  # pixels
DATA_SET = "places in scikit-image's photographs"


@dataclass(frozen=True)
class DemoSummary:
    """
    What the demo came to.

    Args:
        output: its folder.
        accuracies: k-NN top-1 accuracy in percent, of trained features, of untrained ones and of pixels.
        places: the classes there are.
        seconds: it took.
    """

    output: Path
    accuracies: dict[str, float]
    places: int
    seconds: float

    def __str__(self) -> str:
        names = {"trained": "features, pretrained", "untrained": "features, untrained", "pixels": "pixels"}
        lines = [f"which of {self.places} unseen places does a distorted view show? k-NN accuracy, k={K}:"]
        lines += [f"  {names[name]:<22}{accuracy:5.1f} %" for name, accuracy in self.accuracies.items()]
        lines.append(f"  {'chance':<22}{100 / self.places:5.1f} %")
        drawings = [f"attention/{Path(portrait).stem}-attention.png" for portrait in PORTRAITS]
        pictures = ["model/curves.png", "neighbours.png", *drawings]
        return "\n".join([*lines, f"look at {', '.join(str(self.output / picture) for picture in pictures)}"])


def run_demo(
    output: str | os.PathLike, seed: int = 0, overrides: Sequence[str] = (), overwrite: bool = False
) -> DemoSummary:
    """
    Pretrains on photographs, and shows what came of it.

    Args:
        output: a folder. Killed and run again with the same arguments, the pretraining goes on where it stopped.
        seed: of the images and the network.
        overrides: `key=value` of the recipe.
        overwrite: start anew where the folder has the pretraining of another demo.

    Raises:
        ValueError, OSError: as of the functions it calls.
    """
    started = time.perf_counter()
    output = Path(output)
    photographs = copy_photographs(output / "photographs")
    tiles, views, distorted = cut_photographs(photographs, output / f"seed-{seed}", seed)
    overrides = (f"training.seed={seed}", *overrides)
    model, untrained = str(output / "model"), str(output / "untrained")
    say(f"pretraining by the recipe {RECIPE} on tiles of the left parts of {len(photographs) - 1} photographs")
    pretrain(PretrainOptions(recipe=RECIPE, data=str(tiles), output=model, overrides=overrides, overwrite=overwrite))
    save_untrained(untrained, overrides)

    say("extracting features of views of the right parts")
    for name, images in (("views", views), ("distorted", distorted)):
        extract(model, images, output / "features" / name)
    trained = [features_of(str(output / "features" / name)) for name in ("views", "distorted")]
    rivals = [features_of(str(images), untrained, FeatureOptions(progress=False)) for images in (views, distorted)]
    sides = {"trained": trained, "untrained": rivals, "pixels": [pixels_of(part, untrained) for part in trained]}
    found = {name: evaluate_knn(*parts, k=[K]) for name, parts in sides.items()}
    add_evaluation_results(model, found["trained"].results(DATA_SET))

    say("drawing what is similar to what, and what the network attends to")
    index, queries = (str(output / "features" / name) for name in ("views", "distorted"))
    sheet = str(output / "neighbours.png")
    retrieve(RetrieveOptions(index=index, queries=queries, model=model, sheet=sheet, dataset=DATA_SET))
    draw(model, output)
    return DemoSummary(
        output,
        {name: accuracy.top1[K] for name, accuracy in found.items()},
        len(found["trained"].class_sizes),
        time.perf_counter() - started,
    )


def say(line: str):
    """What comes next, before it is done."""
    print(line, file=sys.stderr, flush=True)


def save_untrained(folder: str, overrides: Sequence[str]):
    """Saves student and teacher as the pretraining began with them."""
    recipe = load_recipe(RECIPE, overrides)
    set_seed(recipe.training["seed"])
    DinoForPreTraining(recipe.config()).save_pretrained(folder)


def extract(model: str, images: Path, output: Path):
    """
    `dino extract` on all GPUs there are, or on some processes of this CPU; what an earlier demo left is replaced.

    Raises:
        OSError: if it fails; it has said why.
    """
    on_gpus = torch.accelerator.is_available()
    count = torch.accelerator.device_count() if on_gpus else PROCESSES
    launch = ["accelerate.commands.launch", "--num_machines", "1", "--num_processes", str(count)]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["--multi_gpu"] if count > 1 else []  # on a CPU, too: without it a single process is started
    arguments = ["extract", "--model", model, "--images", str(images), "--output", str(output)]
    arguments += ["--overwrite"] if output.exists() else []
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if not on_gpus:
        environment["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", *launch, "--module", "modeling_dino", *arguments]
    if subprocess.run(command, env=environment, check=False).returncode:
        raise OSError(f"extraction failed: {' '.join(command)}")


def pixels_of(part: EvaluationFeatures, model: str) -> EvaluationFeatures:
    """The same images as a network sees them, in the place of its features: (N, C * H * W)."""
    config = load_config(model)
    processor = load_image_processor(model, config)
    images = (read_image(name, config.num_channels)[0] for name in part.names)
    pixels = torch.stack([processor(image, return_tensors="pt")["pixel_values"].flatten() for image in images])
    return replace(part, features=pixels)


def draw(model: str, output: Path):
    """Draws the attention to the portraits."""
    folder = str(output / "attention")
    for portrait in PORTRAITS:
        image = str(output / "photographs" / portrait)
        draw_attention(
            AttentionOptions(
                model=model, images=image, output=folder, size=PORTRAIT_SIZE, overwrite=True, progress=False
            )
        )


__all__ = ["DemoSummary", "run_demo"]
