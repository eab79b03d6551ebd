"""
What pretraining is worth on small images: k-NN, linear classification and retrieval, over one or several seeds.

    python tests/benchmarks/evaluation.py fashion --source FASHION_MNIST --folder fashion --seeds 0 --json fashion.json
    python tests/benchmarks/evaluation.py photographs --folder demos --json tests/benchmarks/results/photographs.json

`fashion` is Fashion-MNIST, 60,000 images of 28 x 28 for training and 10,000 for testing; FASHION_MNIST is the folder
of its files, as `train-images-idx3-ubyte.gz`. Only training images are pretrained on, without their labels.
`photographs` are those of `dino demo`: the views of places are for training, the distorted ones for testing, and only
other parts are pretrained on.

Beside the pretrained network stand the same architecture before training, and the pixels that it sees. It is done by
the functions behind `dino pretrain`, `dino knn`, `dino linear` and `dino retrieve`; a seed that is in the folder
already is not trained again.
"""

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import torch
import typer
from continuing import read_idx
from PIL import Image

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.demo.options import DemoOptions
from modeling_dino.demo.run import pixels_of, run_demo
from modeling_dino.evaluation.evaluation_data import EvaluationFeatures, features_of, number_labels
from modeling_dino.evaluation.knn_classification import classify_by_neighbours
from modeling_dino.evaluation.linear import classify_linearly, features_to_classify
from modeling_dino.evaluation.options import FeatureOptions
from modeling_dino.evaluation.ranking import evaluate_each
from modeling_dino.training.pretrain import pretrain


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_fashion(source: Path, folder: Path):
    """`train` and `test`, with a folder for each class."""
    for part, stem in (("train", "train"), ("test", "t10k")):
        images, labels = (read_idx(source / f"{stem}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
        for i, (pixels, label) in enumerate(zip(images, labels)):
            file = folder / part / str(label) / f"{i:05d}.png"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(file)


@dataclass(frozen=True)
class Trained:
    """
    One seed of a data set.

    Args:
        models: folders of the network before and after pretraining.
        parts: folders of images, for training and testing.
        ks: neighbours that vote.
    """

    models: dict[str, str]
    parts: tuple[str, str]
    ks: tuple[int, ...]


def train_fashion(folder: Path, seed: int, source: Path) -> Trained:
    """Pretrains on the training images."""
    write_fashion(source, folder / "images")
    trained, untrained = folder / f"seed{seed}", folder / f"untrained{seed}"
    data, started = str(folder / "images" / "train"), time.monotonic()
    overrides = [f"training.seed={seed}"]
    pretrain(recipe="fashion_mnist_resnet", data=data, output=trained, overrides=overrides, num_workers=0)
    print(f"seed {seed} was pretrained in {(time.monotonic() - started) / 60:.0f} minutes", flush=True)
    torch.manual_seed(seed)
    DinoModel(DinoConfig.from_pretrained(trained, head_type=None)).save_pretrained(untrained)
    parts = tuple(str(folder / "images" / part) for part in ("train", "test"))
    return Trained({"untrained": str(untrained), "DINO": str(trained)}, parts, ks=(5, 20))


def train_photographs(folder: Path, seed: int) -> Trained:
    """Pretrains on the left parts of the photographs, as the demo does; the right parts are the images."""
    demo = run_demo(DemoOptions(output=str(folder / f"demo{seed}"), seed=seed, no_open=True)).output
    parts = tuple(str(demo / f"seed-{seed}" / part) for part in ("views", "distorted"))
    return Trained({"untrained": str(demo / "untrained"), "DINO": str(demo / "model")}, parts, ks=(5,))


NAMES = {"pixels": "pixels", "untrained": "the same network, untrained", "DINO": "features, pretrained"}
DATA_SETS = {"fashion": train_fashion, "photographs": train_photographs}


def percentages(
    knn: Sequence[EvaluationFeatures], linear: Sequence[EvaluationFeatures], ks: tuple[int, ...], seed: int
) -> dict[str, float]:
    """
    Top-1 accuracies, by name; of training and test images each. And how well each test image finds the others of its
    class, as the mean average precision.
    """
    found = {f"k-NN, k={k}": top1 for k, top1 in classify_by_neighbours(*knn, ks).top1.items()}
    found["linear"] = classify_linearly(*linear, seed=seed, progress=False).top1
    (labels,) = number_labels(knn[1].labels)[1]
    return {**found, "retrieval, mAP": evaluate_each(knn[1].features, labels)["mAP"]}


def evaluate_seed(trained: Trained, seed: int) -> dict[str, dict[str, float]]:
    """
    The same of pixels and of each model: k-NN and retrieval of the last CLS tokens; the linear classifier has its
    choice of features.
    """
    found = {}
    for name, model in trained.models.items():
        options = FeatureOptions(progress=False)
        knn = [features_of(part, model, options) for part in trained.parts]
        choice = features_to_classify(trained.parts[0], model, options)
        linear = [features_of(part, model, choice) for part in trained.parts]
        if not found:
            pixels = [pixels_of(part, model) for part in knn]
            found["pixels"] = percentages(pixels, pixels, trained.ks, seed)
        found[name] = percentages(knn, linear, trained.ks, seed)
        print(f"seed {seed}, {name}: {found[name]}", flush=True)
    return found


def table(data_set: str, found: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown: means over seeds ± standard deviations, and the first column of each seed."""
    columns = list(found["DINO"][0])
    lines = [
        f"| {data_set}, % | {' | '.join(columns)} | {columns[0]}, each seed |",
        "| --- " * (len(columns) + 2) + "|",
    ]
    for name, rows in found.items():
        cells = [[row[column] for row in rows] for column in columns]
        means = [f"{mean(v):.1f} ± {stdev(v):.1f}" if len(v) > 1 else f"{v[0]:.1f}" for v in cells]
        lines.append(f"| {' | '.join([NAMES[name], *means, ', '.join(f'{value:.1f}' for value in cells[0])])} |")
    return "\n".join(lines)


@app.command()
def main(
    data_set: Annotated[str, typer.Argument(help=f"{' or '.join(DATA_SETS)}.")],
    folder: Annotated[Path, typer.Option(help="For images and models.")],
    seeds: Annotated[str, typer.Option(help="With commas between them.")] = "0,1,2,3,4",
    source: Annotated[Path | None, typer.Option(help="Folder of Fashion-MNIST's files.")] = None,
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
):
    """Trains what is not trained yet, and prints a table: means over seeds ± standard deviations."""
    found: dict[str, list[dict[str, float]]] = {"pixels": [], "untrained": [], "DINO": []}
    if data_set == "fashion" and source is None:
        raise typer.BadParameter("fashion needs --source, the folder of Fashion-MNIST's files")
    train = partial(train_fashion, source=source) if data_set == "fashion" else DATA_SETS[data_set]
    for seed in map(int, seeds.split(",")):
        for name, values in evaluate_seed(train(folder, seed), seed).items():
            found[name].append(values)
    print(table(data_set, found))
    if output:
        versions = {name: version(name) for name in ("torch", "transformers", "scikit-learn", "scikit-image")}
        report = {"data_set": data_set, "date": str(date.today()), "versions": versions, "machine": platform.machine()}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({**report, "seeds": seeds, "percent": found}, indent=2) + "\n")


if __name__ == "__main__":
    app()
