"""
What pretraining is worth on scikit-learn's digits: k-NN, linear classification and retrieval, over several seeds.

    python tests/benchmarks/evaluation.py --folder digits --json tests/benchmarks/results/evaluation.json

1,797 images of 8 x 8 are enlarged to 32 x 32. Of each digit every other image is for training, the rest for testing;
only training images are pretrained on. Beside the pretrained network stand the same architecture before training, and
the pixels. It is done by the functions behind `dino pretrain`, `dino knn`, `dino linear` and `dino retrieve`; a seed
that is in the folder already is not trained again.
"""

import json
import platform
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import numpy as np
import torch
import transformers
import typer
from PIL import Image
from sklearn.datasets import load_digits

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.evaluation_data import EvaluationFeatures, features_of, number_labels
from modeling_dino.knn_classification import evaluate_knn
from modeling_dino.linear_evaluation import evaluate_linear, features_to_classify
from modeling_dino.pretrain import pretrain
from modeling_dino.ranking import evaluate_each


KS = (10, 20)
IMAGE_SIZE = 32
RECIPE = "small_data"
OVERRIDES = (
    "batch_size=32",
    "base_learning_rate=0.008",
    f"model.image_size={IMAGE_SIZE}",
    "model.num_channels=1",
    "model.hidden_size=96",
    "model.num_hidden_layers=4",
    "model.projection_dim=512",
    "model.head_hidden_dim=256",
    "model.head_bottleneck_dim=64",
    "model.head_use_bn=true",
    f"crops.global_crop_size={IMAGE_SIZE}",
    "crops.local_crop_size=16",
    "crops.num_local_crops=2",
    "crops.global_crop_scale=[0.7,1.0]",
    "crops.local_crop_scale=[0.3,0.7]",
    "crops.flip_probability=0",  # mirrored, a digit is none
    "crops.global_solarize_probability=[0,0]",
    "training.num_train_epochs=12",
    "training.warmup_epochs=2",
    "training.final_weight_decay=0.04",
    "training.save_strategy='no'",
)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_digits(folder: Path):
    """`train` and `test`, with a folder for each digit."""
    digits, seen = load_digits(), dict.fromkeys(range(10), 0)
    for i, (pixels, digit) in enumerate(zip(digits.images, digits.target)):
        part = "test" if seen[digit] % 2 else "train"
        seen[digit] += 1
        file = folder / part / str(digit) / f"{i:04d}.png"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(np.round(pixels * 255 / 16).astype(np.uint8))
            image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC).save(file)


def models_of_seed(folder: Path, seed: int) -> dict[str, str]:
    """Folders of the network after and before pretraining."""
    trained, untrained = folder / f"seed{seed}", folder / f"untrained{seed}"
    pretrain(RECIPE, str(folder / "images" / "train"), trained, (*OVERRIDES, f"training.seed={seed}"), num_workers=0)
    torch.manual_seed(seed)
    DinoModel(DinoConfig.from_pretrained(trained, head_type=None)).save_pretrained(untrained)
    return {"DINO": str(trained), "untrained": str(untrained)}


def pixels(folder: Path, part: str) -> EvaluationFeatures:
    """The images themselves, in the place of features."""
    files = sorted((folder / "images" / part).glob("*/*.png"))
    values = torch.tensor(np.stack([np.asarray(Image.open(file)).ravel() for file in files])) / 255
    settings = {"last_blocks": 1, "dtype": "", "model_fingerprint": "pixels", "transform": {}}
    labels, names = [file.parent.name for file in files], list(map(str, files))
    return EvaluationFeatures(str(folder / "images" / part), values, labels, names, "cls", settings, {})


def accuracies(knn: list[EvaluationFeatures], linear: list[EvaluationFeatures], seed: int) -> dict[str, float]:
    """
    Top-1 accuracies in percent, by name; of training and test images each. And how well each test image finds the
    others of its class, as the mean average precision.
    """
    by_k = evaluate_knn(*knn, KS).top1
    found = {f"k-NN, k={k}": top1 for k, top1 in by_k.items()}
    found["linear"] = evaluate_linear(*linear, seed=seed, progress=False).top1
    (labels,) = number_labels(knn[1].labels)[1]
    return {**found, "retrieval, mAP": evaluate_each(knn[1].features, labels)["mAP"]}


def accuracies_of_model(folder: Path, model: str, seed: int) -> dict[str, float]:
    """The same of a model: k-NN of the last CLS tokens; the linear classifier has its choice of features."""
    sources = [str(folder / "images" / part) for part in ("train", "test")]
    knn = [features_of(source, model, progress=False) for source in sources]
    linear = [features_of(source, model, **features_to_classify(source, model), progress=False) for source in sources]
    return accuracies(knn, linear, seed)


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="For images and models.")] = Path("digits"),
    seeds: Annotated[str, typer.Option(help="At least two, with commas between them.")] = "0,1,2,3,4",
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
):
    """Trains what is not trained yet, and prints a table: means over seeds ± standard deviations."""
    write_digits(folder / "images")
    found: dict[str, list[dict[str, float]]] = {"pixels": [], "untrained": [], "DINO": []}
    for seed in map(int, seeds.split(",")):
        parts = [pixels(folder, part) for part in ("train", "test")]
        found["pixels"].append(accuracies(parts, parts, seed))
        for name, model in models_of_seed(folder, seed).items():
            found[name].append(accuracies_of_model(folder, model, seed))
            print(f"seed {seed}, {name}: {found[name][-1]}", flush=True)
    columns = list(found["DINO"][0])
    print(f"| features | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name, rows in found.items():
        cells = [[row[column] for row in rows] for column in columns]
        print(f"| {name} | " + " | ".join(f"{mean(values):.1f} ± {stdev(values):.1f}" for values in cells) + " |")
    if output:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        report = {**versions, "machine": platform.machine(), "recipe": RECIPE, "overrides": OVERRIDES}
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({**report, "seeds": seeds, "top1": found}, indent=2) + "\n")


if __name__ == "__main__":
    app()
