# SPDX-License-Identifier: Apache-2.0
"""Makes the command line, `dino`, of the commands in the other modules."""

import sys
from typing import Annotated

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging

from ..extraction.options import ExtractOptions
from . import evaluation, pictures
from .benchmark import bench
from .commands import add_command
from .demo import demo
from .options import (
    IMAGES_HELP,
    ImageColumn,
    NumWorkers,
)
from .report import report


app = typer.Typer(
    help="Every DINO as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evaluation.app)
app.add_typer(pictures.app)


@app.command()
def info(
    model: Annotated[str | None, typer.Argument(help="Preset, folder or hub id; all presets if left out.")] = None,
):
    """Sizes of a model, or of all presets: parameters, features, memory of the weights, FLOPs of an image."""
    from ..configuration_dino import DinoConfig
    from ..hub.info import info_table

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


def extract(options: ExtractOptions):
    """Computes features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."""
    from ..extraction.extract import extract_features

    return extract_features(options)


add_command(app, extract)


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
    from ..training.pretrain import pretrain as run_pretraining

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
    from ..hub.loading import load_model

    dino = load_model(model, dtype="auto", model_class=None)
    if sys.stderr.isatty():
        enable_progress_bars()  # of uploads
    commit = dino.push_to_hub(repo_id, private=private or None, with_code=with_code, license=license)
    typer.echo(commit.repo_url)


for command in (report, bench, demo):
    add_command(app, command)


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
