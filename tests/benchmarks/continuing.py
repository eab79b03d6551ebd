"""
What continuing from a model is worth, and what it can destroy: from five classes of Fashion-MNIST to the other five.

    python tests/benchmarks/continuing.py FASHION_MNIST --folder continuing --json continuing.json

FASHION_MNIST is the folder of the data set's files (`train-images-idx3-ubyte.gz` and so on). For each seed a small
ResNet is pretrained without labels on the 30,000 images of classes 0 to 4, and continued without labels, with a fresh
head, on images of classes 5 to 9 in several ways. Given is the k-NN accuracy of other images of classes 5 to 9, by
further ones, which is also what watches a run: of the model that is saved, and of the last checkpoint. A run that is
in the folder already is not trained again.
"""

import gzip
import json
import platform
import time
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.data.sources import open_source
from modeling_dino.training.checkpoints import last_whole_checkpoint
from modeling_dino.training.knn_evaluation import KnnEvaluation
from modeling_dino.training.options import PretrainOptions
from modeling_dino.training.pretrain import pretrain
from modeling_dino.training.recipes import load_recipe


TRAINED, VOTING, TESTED = 1000, 500, 2000  # images
RECIPE = "fashion_mnist_resnet"
START = ("training.num_train_epochs=1",)
COMMON = (
    "batch_size=32",
    "training.num_train_epochs=8",
    "training.warmup_epochs=1",
    "training.save_strategy=epoch",
)
HIGH = "base_learning_rate=0.05"  # a hundred times the recipe's
FROZEN = "training.freeze_backbone_epochs=2"


@dataclass(frozen=True)
class Way:
    """
    A way to continue.

    Args:
        what: it is, in the table.
        by_labels: whether k-NN watches it; else augmented views do, of a tenth of the images.
    """

    what: str
    overrides: tuple[str, ...]
    recipe: str = "continue"
    by_labels: bool = True


WAYS = {
    "continue": Way("`continue`, watched by k-NN", (FROZEN,)),
    "views": Way("`continue`, watched by views", (FROZEN,), by_labels=False),
    "high": Way("the same as the first, at a hundred times the rate", (HIGH, FROZEN)),
    "fresh": Way(
        "the same as the first, but all layers from the first step at one rate",
        ("training.freeze_backbone_epochs=0", "training.warmup_epochs=0", "training.layer_decay=1"),
    ),
    "plain": Way("`fashion_mnist_resnet --from`", (), recipe=RECIPE),
}


def read_idx(file: Path) -> np.ndarray:
    """Reads an array of the format of MNIST: http://yann.lecun.com/exdb/mnist."""
    content = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def write_images(fashion_mnist: Path, common: Path, folder: Path, seed: int) -> dict[str, str]:
    """
    Writes images, with a folder for each class. Returns the folders of `first` and `second`, to train on, and of
    `voting` and `tested`.
    """
    images, labels = (read_idx(fashion_mnist / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    order = np.random.default_rng(seed).permutation(len(labels))
    second = np.split(order[labels[order] >= 5], np.cumsum([TRAINED, VOTING, TESTED]))
    folders = {"first": common / "first", **{part: folder / part for part in ("second", "voting", "tested")}}
    for part, chosen in zip(folders.values(), (np.flatnonzero(labels < 5), *second)):
        for i in chosen:
            file = part / str(labels[i]) / f"{i:05d}.png"
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(images[i]).save(file)
    return {part: str(path) for part, path in folders.items()}


def train_start(folder: Path, images: str, seed: int):
    """Pretrains a model, and saves its backbone as `start`, and an untrained one beside it."""
    overrides = [*START, f"training.seed={seed}"]
    pretrain(recipe=RECIPE, data=images, output=folder / "pretrained", overrides=overrides, num_workers=0)
    DinoModel.from_pretrained(folder / "pretrained", head_type=None).save_pretrained(folder / "start")
    torch.manual_seed(seed)
    DinoModel(DinoConfig.from_pretrained(folder / "start")).save_pretrained(folder / "untrained")


def head_and_crops() -> list[str]:
    """Returns the settings of the recipe's head and crops, which suit the images, for other recipes."""
    settings = load_recipe(RECIPE).flat()
    return [f"{key}={value}" for key, value in settings.items() if key.startswith(("model.head_", "crops."))]


def evaluate_seed(fashion_mnist: Path, folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Returns the k-NN accuracy of the model that each way saves, of its last checkpoint, and of the start."""
    parts = write_images(fashion_mnist, folder.parent, folder, seed)
    if not (folder / "start").is_dir():
        train_start(folder, parts["first"], seed)
    evaluation = KnnEvaluation([(part, open_source(parts[part])) for part in ("voting", "tested")])

    def knn(model: Path | str) -> float:
        return evaluation(DinoModel.from_pretrained(model).eval())["knn_top1"]

    found: dict[str, dict[str, Any]] = {name: {"saved": knn(folder / name)} for name in ("untrained", "start")}
    for name, way in WAYS.items():
        summary = pretrain(
            PretrainOptions(
                recipe=way.recipe,
                overrides=[*head_and_crops(), *COMMON, *way.overrides, f"training.seed={seed}"],
                data=parts["second"],
                output=str(folder / name),
                from_model=str(folder / "start"),
                eval_knn=[parts["voting"], parts["tested"]] if way.by_labels else None,
                num_workers=0,
                progress=False,
            )
        )
        found[name] = {"saved": knn(folder / name), "last": knn(last_whole_checkpoint(folder / name))}
        found[name]["outcome"] = summary.results.get("outcome")
        print(seed, name, found[name], f"{time.process_time():.0f} s of processor time so far", flush=True)
    return found


def main(
    fashion_mnist: Path,
    folder: Annotated[Path, typer.Option(help="For images and runs.")],
    seeds: Annotated[str, typer.Option(help="With commas between them.")] = "0,1,2",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
):
    """Prints a table in Markdown: of each seed, and how much the mean differs from the start's."""
    found = [evaluate_seed(fashion_mnist, folder / f"seed{seed}", int(seed)) for seed in seeds.split(",")]
    print("| k-NN (%) | saved, of each seed | change | last checkpoint | change |\n| --- | --- | --- | --- | --- |")
    names = {"untrained": "untrained", "start": "the start"} | {name: way.what for name, way in WAYS.items()}
    for name, what in names.items():
        cells = [cell for kind in ("saved", "last") for cell in cells_of(found, name, kind)]
        print(f"| {what} | {' | '.join(cells)} |")
    if json_file is not None:
        facts = {"date": date.today().isoformat(), "machine": platform.machine(), "seeds": seeds, "found": found}
        facts["versions"] = {name: version(name) for name in ("torch", "transformers")}
        json_file.write_text(json.dumps(facts, indent=2) + "\n")


def cells_of(found: list[dict], name: str, kind: str) -> tuple[str, str]:
    """Returns the accuracies of all seeds, and the mean change from the start."""
    if kind not in found[0][name]:
        return "", ""
    values = [seed[name][kind] for seed in found]
    change = mean(value - seed["start"]["saved"] for value, seed in zip(values, found))
    return ", ".join(f"{value:.1f}" for value in values), f"{change:+.1f}"


if __name__ == "__main__":
    typer.run(main)
