# SPDX-License-Identifier: Apache-2.0
"""The commands that say how good features are: knn, linear, finetune, retrieve."""

from typing import Annotated

import typer

from .options import (
    IMAGES_HELP,
    BatchSize,
    DataSet,
    ImageColumn,
    ImageSize,
    JsonFile,
    LabelColumn,
    Model,
    NumWorkers,
    Test,
    Train,
    is_main_process,
    name_skipped,
    numbers,
)


app = typer.Typer()


@app.command()
def knn(
    train: Train,
    test: Test,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a saved model, where images are given and not features.")
    ] = None,
    k: Annotated[
        str | None, typer.Option(help="Neighbours that vote, with commas; 10,20,100,200 as far as there are so many.")
    ] = None,
    temperature: Annotated[float, typer.Option(help="A vote weighs exp(cosine / temperature).")] = 0.07,
    per_class: Annotated[bool, typer.Option("--per-class", help="Each class's accuracy, too.")] = False,
    features: Annotated[
        str | None, typer.Option(help="cls, patch_mean, cls_patch_mean or projection; cls if left out.")
    ] = None,
    last_blocks: Annotated[int | None, typer.Option(help="Of how many last blocks, side by side.")] = None,
    batch_size: BatchSize = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    num_workers: NumWorkers = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    dataset: DataSet = None,
    json_file: JsonFile = None,
):
    """Classifies images by their nearest neighbours' votes; says how many rightly, and records it."""
    from ..evaluation.evaluation_data import features_of
    from ..evaluation.knn_classification import evaluate_knn
    from ..hub.evaluation_results import record_evaluation_results

    ks = None if k is None else numbers("k", k, int)
    train_features, test_features = (
        features_of(
            source,
            model,
            features=features,
            last_blocks=last_blocks,
            batch_size=batch_size,
            dtype=dtype,
            num_workers=num_workers,
            image_column=image_column,
            label_column=label_column,
        )
        for source in (train, test)
    )
    accuracy = evaluate_knn(train_features, test_features, ks, temperature)
    if not is_main_process():
        return
    name_skipped(train_features, test_features)
    typer.echo(accuracy)
    if per_class:
        typer.echo(accuracy.class_table())
    results, details = accuracy.results(dataset or test), accuracy.class_results(dataset or test)
    typer.echo(record_evaluation_results(model, json_file, results, details if per_class else ()))


@app.command()
def linear(
    train: Train,
    test: Test,
    model: Model,
    output: Annotated[str | None, typer.Option(help="Folder for the model with its classifier.")] = None,
    epochs: Annotated[int, typer.Option(help="Times that each training image is seen.")] = 100,
    classifier_batch_size: Annotated[int, typer.Option(help="Images in one step of the classifiers.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the order of images, and of those that are held out.")] = 0,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    dataset: DataSet = None,
    json_file: JsonFile = None,
):
    """Trains linear classifiers of a model's features, tests the best, and saves the model with it."""
    from ..evaluation.evaluation_data import features_of
    from ..evaluation.linear import check_output, evaluate_linear, features_to_classify, save_classifier
    from ..hub.evaluation_results import record_evaluation_results

    if output is not None:
        check_output(output)
    train_features, test_features = (
        features_of(
            source,
            model,
            **features_to_classify(source, model),
            batch_size=batch_size,
            num_workers=num_workers,
            image_column=image_column,
            label_column=label_column,
        )
        for source in (train, test)
    )
    if not is_main_process():
        return
    accuracy = evaluate_linear(
        train_features, test_features, epochs=epochs, batch_size=classifier_batch_size, seed=seed
    )
    name_skipped(train_features, test_features)
    typer.echo(accuracy)
    results = accuracy.results(dataset or test)
    typer.echo(record_evaluation_results(model, json_file, results))
    if output is not None:
        save_classifier(accuracy, model, output, results)
        typer.echo(f"saved in {output}")


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
def retrieve(
    index: Annotated[str, typer.Option(help="The images to search: a folder of `dino extract`, or images.")],
    queries: Annotated[
        str | None, typer.Option(help="What to find: an image, images or features; else each of the index.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a saved model, where there are images.")
    ] = None,
    top: Annotated[int | None, typer.Option(help="Neighbours of each query; 10 if there are so many.")] = None,
    ground_truth: Annotated[str | None, typer.Option(help="JSON that says what queries should find.")] = None,
    whiten: Annotated[str | None, typer.Option(help="Images or features to learn PCA whitening from.")] = None,
    whiten_dim: Annotated[int | None, typer.Option(help="Whitened dimensions; alone, learned from the index.")] = None,
    search: Annotated[str, typer.Option(help="faiss, exact, or auto: faiss where it is installed.")] = "auto",
    output: Annotated[str | None, typer.Option(help="A .csv or .parquet file for all neighbours.")] = None,
    sheet: Annotated[str | None, typer.Option(help="A .png file for a contact sheet.")] = None,
    features: Annotated[str | None, typer.Option(help="A kind of `dino extract`; cls if not given.")] = None,
    last_blocks: Annotated[int | None, typer.Option(help="Of how many last blocks, side by side.")] = None,
    gem_p: Annotated[float | None, typer.Option(help="Exponent of generalised means; 4 if not given.")] = None,
    scales: Annotated[str | None, typer.Option(help="Sizes to take the mean over, e.g. 1,0.7071,0.5.")] = None,
    resize: Annotated[str | None, typer.Option(help="crop, square or whole: see `dino extract`.")] = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    num_workers: NumWorkers = None,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the data set in results; --index if left out.")] = None,
    json_file: JsonFile = None,
):
    """The images most like each query; mean average precision where labels or a ground truth say what is right."""
    from ..evaluation.retrieval import retrieve as run_retrieval

    given = {
        "gem_p": gem_p,
        "scales": None if scales is None else numbers("scales", scales, float),
        "resize": resize,
        "image_size": image_size,
    }
    retrieval = run_retrieval(
        index,
        queries,
        model,
        top=top,
        ground_truth=ground_truth,
        whiten=whiten,
        whiten_dim=whiten_dim,
        search=search,
        output=output,
        sheet=sheet,
        dataset=dataset,
        json_file=json_file,
        features=features,
        last_blocks=last_blocks,
        batch_size=batch_size,
        dtype=dtype,
        num_workers=num_workers,
        image_column=image_column,
        label_column=label_column,
        **{name: value for name, value in given.items() if value is not None},
    )
    if retrieval is None:  # not the main process
        return
    name_skipped(*{part.source: part for part in (retrieval.index, retrieval.queries)}.values())
    typer.echo(retrieval)
