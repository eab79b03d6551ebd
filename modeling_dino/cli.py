# Copyright 2026 The modeling-dino authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""The command line, `dino`: each command reads its arguments here and does its work in a module of its own."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging


if TYPE_CHECKING:
    from .evaluation_data import EvaluationFeatures

app = typer.Typer(
    help="Every DINO as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Model = Annotated[str, typer.Option(help="Folder or hub id of a saved model.")]
IMAGES_HELP = (
    "Folder of images, tars or Parquet files; one of these; a text file with a path a line; or the id of a data set, "
    "user/name[/subset]. A split after a colon."
)
Output = Annotated[str, typer.Option(help="Folder to write to.")]
GemP = Annotated[float, typer.Option(help="Exponent of generalised means.")]
Scales = Annotated[str, typer.Option(help="Sizes of the image to take the mean over, e.g. 1,0.7071,0.5.")]
Resize = Annotated[
    str, typer.Option(help="crop: from the middle, as saved with the model; square: squashed; whole: not cropped.")
]
ImageSize = Annotated[int | None, typer.Option(help="Pixels a side, if not the model's; the longer of whole images.")]
BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.")]
NumWorkers = Annotated[int | None, typer.Option(min=0, help="Processes that read images.")]
ImageColumn = Annotated[str | None, typer.Option(help="Column of images, where there are several.")]
LabelColumn = Annotated[str | None, typer.Option(help="Column of labels, if not `label`.")]
# of evaluations
Train = Annotated[str, typer.Option(help="Labelled images to learn from: as of extract, or features that it wrote.")]
Test = Annotated[str, typer.Option(help="Labelled images to be classified; the same.")]
DataSet = Annotated[str | None, typer.Option(help="Name of the data set in results; --test if left out.")]
JsonFile = Annotated[str | None, typer.Option("--json", help="File to write the results to, too.")]
# of pictures
Size = Annotated[int, typer.Option(help="Shorter side of the resized image in pixels.")]
FramesPerSecond = Annotated[
    float | None, typer.Option(help="Make a video of images, in their order, at so many a second.")
]
OnError = Annotated[str, typer.Option(help="What to do about an unreadable image: skip or fail.")]
Replace = Annotated[bool, typer.Option("--overwrite", help="Replace files of the same names.")]


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="Preset, folder or hub id; all presets if left out.")] = None,
):
    """Sizes of a model, or of all presets: parameters, features, memory of the weights, FLOPs of an image."""
    from .configuration_dino import DinoConfig
    from .info import info_table

    typer.echo(info_table(DinoConfig.presets() if model is None else [model]))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="File, folder or hub id of any DINO; its format is recognised.")],
    output: Annotated[str, typer.Argument(help="Folder, or file for original, lesson and torchvision.")],
    to: Annotated[str, typer.Option(help="dino, original, timm, transformers, torchvision or lesson.")] = "dino",
    which: Annotated[str, typer.Option(help="Network of a full checkpoint: teacher, student or both.")] = "teacher",
    num_heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, if not width / 64.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compare outputs with the source's library.")] = False,
):
    """Converts any DINO checkpoint into any format; says what it recognised and what it left out."""
    from conversion_scripts.convert import convert as convert_checkpoint

    for line in convert_checkpoint(source, output, to, which, num_heads, verify):
        typer.echo(line)


@app.command()
def extract(
    model: Model,
    images: Annotated[str, typer.Option(help=IMAGES_HELP)],
    output: Output,
    features: Annotated[
        str,
        typer.Option(
            help="cls, patch_mean, cls_patch_mean, gem, cls_gem, patches or projection; several with commas."
        ),
    ] = "cls",
    last_blocks: Annotated[int, typer.Option(help="Of how many last blocks, side by side.")] = 1,
    batch_size: BatchSize = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    num_workers: NumWorkers = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a data set of the hub without storing it.")
    ] = False,
    image_column: ImageColumn = None,
    label_column: LabelColumn = None,
    gem_p: GemP = 4.0,
    scales: Scales = "1",
    resize: Resize = "crop",
    image_size: ImageSize = None,
    compile: Annotated[bool, typer.Option("--compile", help="Run the model through torch.compile.")] = False,
    on_error: Annotated[str, typer.Option(help="What to do about an unreadable image: skip or fail.")] = "skip",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where features are.")] = False,
):
    """Features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."""
    from .extract import ExtractionSettings, extract_features

    settings = ExtractionSettings(
        model,
        images,
        features,
        last_blocks,
        batch_size,
        dtype,
        streaming,
        image_column,
        label_column,
        gem_p,
        numbers("scales", scales, float),
        resize,
        image_size,
    )
    summary = extract_features(
        settings, output, num_workers=num_workers, compile=compile, on_error=on_error, overwrite=overwrite
    )
    if summary is None:  # not the main process
        return
    for kind, remarks in (("skipped", summary.skipped), ("note", summary.notes)):
        for path, reason in remarks.items():
            typer.echo(f"{kind} {path}: {reason}", err=True)
    typer.echo(summary)


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
    from .evaluation_data import features_of
    from .evaluation_results import record_evaluation_results
    from .knn_classification import evaluate_knn

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
    from .evaluation_data import features_of
    from .evaluation_results import record_evaluation_results
    from .linear_evaluation import check_output, evaluate_linear, features_to_classify, save_classifier

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
    from .finetune import FinetuningSettings
    from .finetune import finetune as run_finetuning

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
def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to replace in the recipe.")
    ] = None,
    *,
    data: Annotated[str, typer.Option(help=IMAGES_HELP)],
    output: Annotated[str, typer.Option(help="Folder of the run.")],
    from_model: Annotated[
        str | None, typer.Option("--from", help="Folder or hub id of a model to start from, with a head or without.")
    ] = None,
    eval_knn: Annotated[
        list[str] | None,
        typer.Option(help="Labelled images, classified by k-NN; given twice: those that vote, those classified."),
    ] = None,
    eval_every: Annotated[int | None, typer.Option(min=1, help="Epochs between two of these.")] = None,
    image_column: ImageColumn = None,
    num_workers: NumWorkers = None,
    on_error: Annotated[str, typer.Option(help="What to do about an unreadable image: skip or fail.")] = "skip",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where a run is.")] = False,
):
    """Pretrains a model by a recipe; run again, it goes on where it stopped."""
    from .pretrain import pretrain as run_pretraining

    summary = run_pretraining(
        recipe,
        data,
        output,
        overrides or (),
        from_model=from_model,
        eval_knn=eval_knn or (),
        eval_every=eval_every,
        image_column=image_column,
        num_workers=num_workers,
        on_error=on_error,
        overwrite=overwrite,
    )
    if summary is None:  # not the main process
        return
    for kind, remarks in (("skipped", summary.unreadable), ("note", summary.notes)):
        for path, reason in remarks.items():
            typer.echo(f"{kind} {path}: {reason}", err=True)
    typer.echo(summary)


@app.command()
def attention(
    model: Model,
    images: Annotated[str, typer.Option("--images", "--image", help=f"A video. {IMAGES_HELP}")],
    output: Output,
    size: Size = 480,
    layer: Annotated[int, typer.Option(help="Block, counted from 0; negative ones from the end.")] = -1,
    mass: Annotated[
        float | None, typer.Option(help="Also mask the patches that hold this share of each head's attention.")
    ] = None,
    save_arrays: Annotated[str | None, typer.Option(help="Also save the attention: npy or safetensors.")] = None,
    fps: FramesPerSecond = None,
    on_error: OnError = "skip",
    overwrite: Replace = False,
):
    """What a ViT's CLS token attends to: a picture a head, each in its color, and all over the image; or videos."""
    from .visualization import AttentionSettings, draw_attention_of_frames

    settings = AttentionSettings(layer, mass, save_arrays)
    summary = draw_attention_of_frames(
        model, images, output, settings, size=size, fps=fps, on_error=on_error, overwrite=overwrite
    )
    say_skipped(summary.skipped)
    typer.echo(summary)


@app.command()
def pca(
    model: Model,
    images: Annotated[str, typer.Option("--images", "--image", help=f"A video. {IMAGES_HELP}")],
    output: Output,
    size: Size = 480,
    split: Annotated[bool, typer.Option(help="Paint the foreground alone, by its own components.")] = True,
    save_arrays: Annotated[bool, typer.Option("--save-arrays", help="Also save the components.")] = False,
    fps: FramesPerSecond = None,
    on_error: OnError = "skip",
    overwrite: Replace = False,
):
    """A ViT's patch tokens in the colors of their first three principal components, which all images share."""
    from .pca_pictures import paint_components

    summary = paint_components(
        model,
        images,
        output,
        size=size,
        split=split,
        save_arrays=save_arrays,
        fps=fps,
        on_error=on_error,
        overwrite=overwrite,
    )
    say_skipped(summary.skipped)
    typer.echo(summary)


@app.command()
def segment(
    model: Model,
    video: Annotated[str, typer.Option(help="A video, or a folder of its frames.")],
    mask: Annotated[
        str, typer.Option(help="Mask of the first frame: a palette PNG with the object's number a pixel.")
    ],
    output: Output,
    ground_truth: Annotated[str | None, typer.Option(help="Folder of masks of all frames, to score by.")] = None,
    size: Size = 480,
    num_last_frames: Annotated[int, typer.Option(help="Frames before it that a frame looks back to.")] = 7,
    radius: Annotated[int, typer.Option(help="How many patches an object may move; 0 for any number.")] = 12,
    top_k: Annotated[int, typer.Option(help="From how many patches one takes its label.")] = 5,
    overlay: Annotated[bool, typer.Option("--overlay", help="Also a video of the masks over the frames.")] = False,
    fps: Annotated[float | None, typer.Option(help="Frames a second there.")] = None,
    overwrite: Replace = False,
):
    """Carries the mask of a video's first frame through it by the likeness of patches, as the original on DAVIS."""
    from .mask_propagation import PropagationSettings
    from .segment import segment_video

    settings = PropagationSettings(num_last_frames, radius, top_k)
    summary = segment_video(
        model,
        video,
        mask,
        output,
        size=size,
        settings=settings,
        ground_truth=ground_truth,
        overlay=overlay,
        fps=fps,
        overwrite=overwrite,
    )
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
    from .retrieve import retrieve as run_retrieval

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
    from .report import write_report

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


@app.command()
def push(
    model: Annotated[str, typer.Argument(help="Folder or hub id of a saved model.")],
    repo_id: Annotated[str, typer.Argument(help="Where to push it: name or namespace/name.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    with_code: Annotated[
        bool, typer.Option("--with-code", help="Push the code too, for those who have not installed this package.")
    ] = False,
    license: Annotated[str | None, typer.Option(help="For the model card, e.g. apache-2.0.")] = None,
):
    """Pushes a model to the hub, with its image transform and a model card; says where it is."""
    from .pretrained import load_model

    dino = load_model(model, dtype="auto", model_class=None)
    if sys.stderr.isatty():
        enable_progress_bars()  # of uploads
    commit = dino.push_to_hub(repo_id, private=private or None, with_code=with_code, license=license)
    typer.echo(commit.repo_url)


@app.command()
def bench(
    models: Annotated[str, typer.Option(help="Presets, with commas between them.")] = "dino_vits16,dino_resnet50",
    what: Annotated[
        str, typer.Option(help="features, latency, attention, training, loading or extraction.")
    ] = "features,latency",
    against: Annotated[str, typer.Option(help="Libraries, where installed.")] = "timm,transformers,torchvision",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a pass.")] = 8,
    training_batch_size: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 4,
    image_size: Annotated[int | None, typer.Option(min=1, help="In pixels, if not the model's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; medians count.")] = 3,
    compile: Annotated[bool, typer.Option("--compile", help="Compiled models, too.")] = False,
    output: Annotated[Path | None, typer.Option("--json", help="File to write the report to.")] = None,
):
    """How fast models are here, beside the same in other libraries."""
    from .bench import BenchSettings, run_benchmarks, table, write_report

    names = ([part.strip() for part in text.split(",") if part.strip()] for text in (models, what, against))
    sizes = (threads, batch_size, training_batch_size, image_size, rounds)
    report = run_benchmarks(BenchSettings(*names, device, dtype, *sizes, compile))
    typer.echo(table(report))
    if output is not None:
        write_report(report, output)


@app.command()
def demo(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values to replace in the recipe.")
    ] = None,
    output: Output = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Of the images and the network.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where another demo is.")] = False,
):
    """The whole story, in minutes: pretrains on scikit-image's photographs, extracts, evaluates, draws."""
    from .demo import run_demo

    summary = run_demo(output, seed, overrides or (), overwrite)
    typer.echo(summary)
    typer.echo(f"{summary.seconds:.0f} s")


def numbers(option: str, text: str, kind: type[int] | type[float]) -> tuple:
    """
    Numbers with commas between them.

    Raises:
        ValueError: if they are something else.
    """
    try:
        return tuple(map(kind, text.split(",")))
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ValueError(f"--{option} {text} must be {whole}numbers with commas between them") from None


def is_main_process() -> bool:
    """Whether this is the process that speaks, of those that were launched together."""
    from .extract import processes

    return processes().is_main_process


def name_skipped(*parts: "EvaluationFeatures"):
    """Says which images could not be read, and how many have no label."""
    for part in parts:
        say_skipped(part.skipped)
        if missing := (part.labels or []).count(None):
            typer.echo(f"note {part.source}: {missing} images have no label, and are left out", err=True)


def say_skipped(skipped: dict[str, str]):
    """Names the images that could not be read."""
    for name, reason in skipped.items():
        typer.echo(f"skipped {name}: {reason}", err=True)


def one_line(error: BaseException) -> str:
    """The message of an error a user can cause, without the frame that strict configurations put around it."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def run(app: typer.Typer, **kwargs):
    """Runs a command line; errors a user can cause are one line, and exit with 2."""
    logging.disable_progress_bar()
    try:
        app(**kwargs)
    except (ValueError, OSError, ImportError, FloatingPointError, StrictDataclassError, HTTPError) as error:
        print(f"dino: {one_line(error)}", file=sys.stderr)
        sys.exit(2)


def main():
    """Runs `dino`."""
    run(app, prog_name="dino")


if __name__ == "__main__":
    main()
