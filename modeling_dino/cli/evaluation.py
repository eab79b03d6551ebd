# SPDX-License-Identifier: Apache-2.0
"""The commands that measure how good features are: knn, linear, retrieve, finetune, report."""

from typing import Annotated

import typer

from ..evaluation.options import KnnOptions, LinearOptions, RetrieveOptions
from .commands import add_command
from .options import IMAGES_HELP, DataSet, Model, NumWorkers


app = typer.Typer()


def knn(options: KnnOptions):
    """Classifies images by the votes of their nearest neighbours, and records the accuracy."""
    from ..evaluation import knn_classification

    return knn_classification.knn(options)


def linear(options: LinearOptions):
    """Trains linear classifiers of a model's features, tests the best, and saves the model with it."""
    from ..evaluation import linear as linear_classification

    return linear_classification.linear(options)


def retrieve(options: RetrieveOptions):
    """Finds the images most like each query; gives mean average precision where labels or a ground truth allow it."""
    from ..evaluation import retrieval

    return retrieval.retrieve(options)


for command in (knn, linear, retrieve):
    add_command(app, command)


@app.command()
def finetune(
    train: Annotated[str, typer.Option(help="Labelled images to train on. " + IMAGES_HELP)],
    test: Annotated[str, typer.Option(help="Labelled images to test on, at the end.")],
    model: Model,
    output: Annotated[str, typer.Option(help="Folder of the run, and of the model at its end.")],
    epochs: Annotated[int, typer.Option(help="Times that each training image is seen.")] = 50,
    batch_size: Annotated[int, typer.Option(help="Images in one step, over all processes.")] = 64,
    learning_rate: Annotated[float, typer.Option("--lr", help="Of the classifier; a cosine to 0.")] = 5e-4,
    layer_decay: Annotated[float, typer.Option(help="A layer's learning rate over that of the next.")] = 0.65,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.05,
    drop_path: Annotated[float, typer.Option(help="Stochastic depth of a ViT.")] = 0.1,
    crop_scale: Annotated[float, typer.Option(help="Least share of an image in a random crop.")] = 0.35,
    flip: Annotated[float, typer.Option(help="Probability of a horizontal flip.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    num_workers: NumWorkers = None,
    dataset: DataSet = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where a run is.")] = False,
):
    """Trains a classifier and its backbone, and tests it; run again, it goes on where it stopped."""
    from ..training.finetune import FinetuningSettings
    from ..training.finetune import finetune as run_finetuning

    settings = FinetuningSettings(
        epochs,
        batch_size,
        learning_rate,
        layer_decay,
        weight_decay,
        drop_path_rate=drop_path,
        crop_scale=crop_scale,
        flip_probability=flip,
        seed=seed,
    )
    summary = run_finetuning(
        train, test, model, output, settings, dataset=dataset, num_workers=num_workers, overwrite=overwrite
    )
    if summary is not None:  # on the main process
        typer.echo(summary)


@app.command()
def report(
    folder: Annotated[str, typer.Argument(metavar="FEATURES", help="Folder of `dino extract`.")],
    output: Annotated[str | None, typer.Option(help="HTML file; report.html in the folder if left out.")] = None,
    features: Annotated[str | None, typer.Option(help="Kind of features, where there are several.")] = None,
    images: Annotated[str | None, typer.Option(help="Where the images are now, if they have moved.")] = None,
    k: Annotated[int, typer.Option(help="Neighbours that are shown and vote.")] = 20,
    clusters: Annotated[int | None, typer.Option(help="Of k-means; by default sqrt(images / 2), at most 20.")] = None,
    duplicates: Annotated[float, typer.Option(help="Cosine from which on images are near-duplicates.")] = 0.95,
    max_images: Annotated[int, typer.Option(help="If there are more, so many are drawn by lot.")] = 20_000,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
):
    """One HTML page: a map of the images, neighbours, near-duplicates, outliers, and what k-NN makes of labels."""
    from ..report.page import write_report

    summary = write_report(
        folder,
        output,
        features=features,
        images=images,
        k=k,
        num_clusters=clusters,
        duplicates=duplicates,
        max_images=max_images,
        num_workers=num_workers,
    )
    for note in summary.notes:
        typer.echo(f"note {note}", err=True)
    for reason, count in summary.missing.items():
        typer.echo(f"no picture of {count}: {reason}", err=True)
    typer.echo(summary)
