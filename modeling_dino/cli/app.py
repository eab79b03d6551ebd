# SPDX-License-Identifier: Apache-2.0
"""The command line, `dino`: each command reads its arguments here and does its work in a module of its own."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from transformers.utils import logging

from . import evaluation, pictures
from .commands import add_command
from .conversion import convert
from .extraction import extract
from .models import info, push
from .options import (
    IMAGES_HELP,
    ImageColumn,
    NumWorkers,
    Output,
)


app = typer.Typer(
    help="Every DINO as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(evaluation.app)
app.add_typer(pictures.app)


add_command(app, info)


add_command(app, convert)


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


add_command(app, push)


@app.command()
def bench(
    models: Annotated[str, typer.Option(help="Presets, with commas between them.")] = "dino_vits16,dino_resnet50",
    what: Annotated[
        str, typer.Option(help="features, latency, attention, training, loading, knn or extraction.")
    ] = "features,latency",
    against: Annotated[str, typer.Option(help="Libraries, where installed.")] = "timm,transformers,torchvision",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Of a CPU.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in a pass.")] = 8,
    training_batch_size: Annotated[int, typer.Option(min=1, help="Images in a training step.")] = 4,
    image_size: Annotated[int | None, typer.Option(min=1, help="In pixels, if not the model's.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each; medians count.")] = 5,
    compile: Annotated[bool, typer.Option("--compile", help="Compiled models, too.")] = False,
    output: Annotated[Path | None, typer.Option("--json", help="File to write the report to.")] = None,
):
    """How fast models are here, beside the same in other libraries."""
    from ..benchmark.run import BenchSettings, run_benchmarks, table, write_report

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
    from ..demo.run import run_demo

    summary = run_demo(output, seed, overrides or (), overwrite)
    typer.echo(summary)
    typer.echo(f"{summary.seconds:.0f} s")


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
