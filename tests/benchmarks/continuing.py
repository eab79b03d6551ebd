"""
What continuing from a model is worth, and what it can destroy: from five classes of Fashion-MNIST to the other five.

    python tests/benchmarks/continuing.py FASHION_MNIST --folder continuing --json continuing.json
    python tests/benchmarks/continuing.py FASHION_MNIST --start pretrained --folder pretrained --json pretrained.json

FASHION_MNIST is the folder of the data set's files (`train-images-idx3-ubyte.gz` and so on). For each seed a model is
trained on images of classes 0 to 4, and continued without labels, with a fresh head, on images of classes 5 to 9 in
several ways. The start is a tiny ViT, trained with labels for a minute; or a small ResNet, pretrained without labels
by the recipe `fashion_mnist_resnet` on all 30,000 images, which takes some more. Given is the k-NN accuracy of other
images of classes 5 to 9, by further ones, which is also what watches a run: of the model that is saved, and of the
last checkpoint. A run that is in the folder already is not trained again.
"""

import gzip
import json
import platform
import time
from collections.abc import Callable
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
from modeling_dino.training.finetune import finetune
from modeling_dino.training.knn_evaluation import KnnEvaluation
from modeling_dino.training.options import PretrainOptions
from modeling_dino.training.pretrain import pretrain
from modeling_dino.training.recipes import load_recipe


RECIPE = "fashion_mnist_resnet"
EPOCHS = ("training.num_train_epochs=8", "training.warmup_epochs=1", "training.save_strategy=epoch")
FROZEN = "training.freeze_backbone_epochs=2"
VIT = {
    "backbone": "vit_tiny",
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 4,
    "image_size": 16,
}


@dataclass(frozen=True)
class Start:
    """
    A model that is continued from.

    Args:
        train: makes it, and an untrained one, in a folder, of images, by a seed.
        num_first: images that it is trained on; None for all.
        num_images: that it is continued on, that vote, and that are classified.
        image_size: to which images are resized, if at all.
        common: settings of all ways to continue.
        plain: a recipe without any guard, and its settings.
        high: a rate that is too high.
    """

    train: Callable[[Path, str, int], None]
    num_first: int | None
    num_images: tuple[int, int, int]
    image_size: int | None
    common: tuple[str, ...]
    plain: tuple[str, tuple[str, ...]]
    high: str


def train_with_labels(folder: Path, images: str, seed: int):
    """Trains a ViT as a classifier, and saves its backbone."""
    torch.manual_seed(seed)
    DinoModel(DinoConfig(**VIT, head_type=None)).save_pretrained(folder / "untrained")
    options = {"model": str(folder / "untrained"), "output": str(folder / "classifier"), "seed": seed}
    rates = {"epochs": 50, "learning_rate": 2e-3, "layer_decay": 1.0, "drop_path_rate": 0.0}
    finetune(train=images, test=images, num_workers=0, progress=False, **options, **rates)
    DinoModel.from_pretrained(folder / "classifier").save_pretrained(folder / "start")


def train_without_labels(folder: Path, images: str, seed: int):
    """Pretrains a ResNet for an epoch, and saves its backbone."""
    overrides = ["training.num_train_epochs=1", f"training.seed={seed}"]
    pretrain(recipe=RECIPE, data=images, output=folder / "pretrained", overrides=overrides, num_workers=0)
    DinoModel.from_pretrained(folder / "pretrained", head_type=None).save_pretrained(folder / "start")
    torch.manual_seed(seed)
    DinoModel(DinoConfig.from_pretrained(folder / "start")).save_pretrained(folder / "untrained")


def head_and_crops() -> tuple[str, ...]:
    """Returns the settings of the recipe's head and crops, which suit the images, for other recipes."""
    settings = load_recipe(RECIPE).flat()
    return tuple(f"{key}={value}" for key, value in settings.items() if key.startswith(("model.head_", "crops.")))


STARTS = {
    "labelled": Start(
        train_with_labels,
        num_first=300,
        num_images=(300, 200, 400),
        image_size=VIT["image_size"],
        common=(
            "batch_size=16",
            "model.projection_dim=256",
            "model.head_hidden_dim=128",
            "model.head_bottleneck_dim=32",
            "crops.num_local_crops=2",
            "crops.global_crop_scale=[0.5,1.0]",
            "crops.local_crop_scale=[0.2,0.5]",
            *EPOCHS,
        ),
        plain=(
            "small_data",
            (
                *(f"model.{name}={value}" for name, value in VIT.items()),
                "crops.global_crop_size=auto",
                "crops.local_crop_size=auto",
            ),
        ),
        high="base_learning_rate=0.05",  # a hundred times the recipe's
    ),
    "pretrained": Start(
        train_without_labels,
        num_first=None,
        num_images=(1000, 500, 2000),
        image_size=None,
        common=("batch_size=32", *head_and_crops(), *EPOCHS),
        plain=(RECIPE, ()),
        high="base_learning_rate=0.5",  # a thousand times
    ),
}


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


def ways_from(start: Start) -> dict[str, Way]:
    """Returns the ways to continue from a start, by names of their folders."""
    recipe, overrides = start.plain
    at_once = ("training.freeze_backbone_epochs=0", "training.warmup_epochs=0", "training.layer_decay=1")
    return {
        "continue": Way("`continue`, watched by k-NN", (FROZEN,)),
        "views": Way("`continue`, watched by views", (FROZEN,), by_labels=False),
        "high": Way(f"the same as the first, with {start.high}", (start.high, FROZEN)),
        "fresh": Way("the same as the first, but all layers from the first step at one rate", at_once),
        "plain": Way(f"`{recipe} --from`", overrides, recipe=recipe),
    }


def read_idx(file: Path) -> np.ndarray:
    """Reads an array of the format of MNIST: http://yann.lecun.com/exdb/mnist."""
    content = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)


def write_images(fashion_mnist: Path, folder: Path, start: Start, seed: int) -> dict[str, str]:
    """
    Writes images, with a folder for each class. Returns the folders of `first` and `second`, to train on, and of
    `voting` and `tested`.
    """
    images, labels = (read_idx(fashion_mnist / f"train-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1"))
    order = np.random.default_rng(seed).permutation(len(labels))
    first, others = order[labels[order] < 5], order[labels[order] >= 5]
    chosen = {"first": first[: start.num_first]}
    chosen |= zip(("second", "voting", "tested"), np.split(others, np.cumsum(start.num_images)))
    for part, numbers in chosen.items():
        for i in numbers:
            file = folder / part / str(labels[i]) / f"{i:05d}.png"
            if file.is_file():
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(images[i])
            if start.image_size is not None:
                image = image.resize((start.image_size, start.image_size), Image.Resampling.BICUBIC)
            image.save(file)
    return {part: str(folder / part) for part in chosen}


def evaluate_seed(fashion_mnist: Path, folder: Path, start: Start, seed: int) -> dict[str, dict[str, Any]]:
    """Returns the k-NN accuracy of the model that each way saves, of its last checkpoint, and of the start."""
    parts = write_images(fashion_mnist, folder / "images", start, seed)
    if not (folder / "start").is_dir() or not (folder / "untrained").is_dir():
        start.train(folder, parts["first"], seed)
    evaluation = KnnEvaluation([(part, open_source(parts[part])) for part in ("voting", "tested")])

    def knn(model: Path | str) -> float:
        return evaluation(DinoModel.from_pretrained(model).eval())["knn_top1"]

    found: dict[str, dict[str, Any]] = {name: {"saved": knn(folder / name)} for name in ("untrained", "start")}
    for name, way in ways_from(start).items():
        summary = pretrain(
            PretrainOptions(
                recipe=way.recipe,
                overrides=[*start.common, *way.overrides, f"training.seed={seed}"],
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
    start: Annotated[str, typer.Option(help=f"{' or '.join(STARTS)}.")] = "labelled",
    seeds: Annotated[str, typer.Option(help="With commas between them.")] = "0,1,2",
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the numbers.")] = None,
):
    """Prints a table in Markdown: of each seed, and how much the mean differs from the start's."""
    kind = STARTS[start]
    found = [evaluate_seed(fashion_mnist, folder / f"seed{seed}", kind, int(seed)) for seed in seeds.split(",")]
    print("| k-NN (%) | saved, of each seed | change | last checkpoint | change |\n| --- | --- | --- | --- | --- |")
    names = {"untrained": "untrained", "start": "the start"} | {
        name: way.what for name, way in ways_from(kind).items()
    }
    for name, what in names.items():
        cells = [cell for kind in ("saved", "last") for cell in cells_of(found, name, kind)]
        print(f"| {what} | {' | '.join(cells)} |")
    if json_file is not None:
        facts = {"date": date.today().isoformat(), "machine": platform.machine(), "start": start, "found": found}
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
