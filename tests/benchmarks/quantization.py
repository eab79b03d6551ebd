"""
What int8 costs, measured on models that were trained: those of `dino demo`, over several seeds.

    python tests/benchmarks/quantization.py --folder demos --json tests/benchmarks/results/quantization.json

Each model is exported for both engines, in float32 and in int8, calibrated by the tiles that it was trained on. Its
features of the labelled images, which it was not trained on, are compared: the cosine to PyTorch's, whether the
nearest neighbour among the distorted views is the same, k-NN, and a linear classifier that is fitted to PyTorch's
features of the views and classifies the distorted ones by the features of each engine. A seed that is in the folder
already is not trained again.
"""

import json
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from evaluation import Trained, train_photographs
from sklearn.linear_model import LogisticRegression
from torch.nn.functional import normalize

from modeling_dino.evaluation.evaluation_data import EvaluationFeatures, features_of
from modeling_dino.evaluation.knn_classification import classify_by_neighbours
from modeling_dino.evaluation.options import FeatureOptions
from modeling_dino.export.export import export_model
from modeling_dino.export.options import ExportOptions


ENGINES = {"onnxruntime": "onnx", "openvino": "openvino"}
# name -> engine, dtype, whether it is in int8
VARIANTS = {
    "ONNX Runtime": ("onnxruntime", "float32", False),
    "OpenVINO": ("openvino", "float32", False),
    "OpenVINO, bfloat16": ("openvino", "bfloat16", False),
    "ONNX Runtime, int8": ("onnxruntime", "float32", True),
    "OpenVINO, int8": ("openvino", "float32", True),
}
Parts = list[EvaluationFeatures]  # the views, and the distorted ones


def features_by(variant: str, trained: Trained, tiles: Path, folder: Path) -> Parts:
    """The features of both parts by a variant of the model."""
    engine, dtype, is_int8 = VARIANTS[variant]
    model = trained.models["DINO"]
    if is_int8:
        output, how = folder / engine, {"quantize": "int8", "calibrate": str(tiles)}
        export_model(ExportOptions(model=model, output=output, to=ENGINES[engine], outputs="features", **how))
        model = str(output)
    options = FeatureOptions(progress=False, engine=engine, dtype=dtype)
    return [features_of(part, model, options) for part in trained.parts]


def compare(parts: Parts, expected: Parts, classifier: LogisticRegression, k: int) -> dict[str, float]:
    """Features of an engine beside PyTorch's, of the distorted views; accuracies in percent."""
    one, other = (normalize(features[1].features, dim=1) for features in (parts, expected))
    cosines = (one * other).sum(1)
    neighbours = [(x @ x.T).fill_diagonal_(-2).argmax(1) for x in (one, other)]
    return {
        "cosine": cosines.mean().item(),
        "least cosine": cosines.min().item(),
        "same neighbour": 100 * (neighbours[0] == neighbours[1]).float().mean().item(),
        "k-NN": classify_by_neighbours(*parts, (k,)).top1[k],
        "classifier": 100 * classifier.score(parts[1].features.numpy(), parts[1].labels),
    }


def measure_seed(folder: Path, seed: int) -> dict[str, dict[str, float]]:
    """What each variant of one model costs, PyTorch first."""
    trained = train_photographs(folder, seed)
    tiles = Path(trained.parts[0]).with_name("tiles")
    expected = [features_of(part, trained.models["DINO"], FeatureOptions(progress=False)) for part in trained.parts]
    classifier = LogisticRegression(max_iter=2000).fit(expected[0].features.numpy(), expected[0].labels)
    found = {"PyTorch": compare(expected, expected, classifier, *trained.ks)}
    with TemporaryDirectory() as name:
        for variant in VARIANTS:
            parts = features_by(variant, trained, tiles, Path(name))
            found[variant] = compare(parts, expected, classifier, *trained.ks)
    return found


def table(seeds: list[dict[str, dict[str, float]]]) -> str:
    """A table in Markdown, with the accuracies of each seed."""
    lines = [
        "| in | cosine, mean (least) | same neighbour, % | k-NN, each seed, % | classifier, each seed, % |",
        "| --- " * 5 + "|",
    ]
    for variant in seeds[0]:
        of_seeds = {name: [found[variant][name] for found in seeds] for name in seeds[0][variant]}
        cosine = f"{sum(of_seeds['cosine']) / len(seeds):.4f} ({min(of_seeds['least cosine']):.4f})"
        same = f"{sum(of_seeds['same neighbour']) / len(seeds):.0f}"
        accuracies = (", ".join(f"{value:.1f}" for value in of_seeds[name]) for name in ("k-NN", "classifier"))
        lines.append(f"| {' | '.join([variant, cosine, same, *accuracies])} |")
    return "\n".join(lines)


def main(
    folder: Annotated[Path, typer.Option(help="For images and models.")],
    seeds: Annotated[str, typer.Option(help="With commas between them.")] = "0,1,2",
    output: Annotated[Path | None, typer.Option("--json", help="File to write.")] = None,
):
    """Trains what is not trained yet, and prints a table."""
    found = [measure_seed(folder, seed) for seed in map(int, seeds.split(","))]
    print(table(found))
    if output:
        versions = {name: version(name) for name in ("torch", "transformers", "onnxruntime", "openvino", "nncf")}
        report = {"date": str(date.today()), "versions": versions, "machine": platform.machine(), "seeds": seeds}
        output.write_text(json.dumps({**report, "found": found}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
