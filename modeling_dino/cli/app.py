# SPDX-License-Identifier: Apache-2.0
"""The command line, `dino`: each command reads its arguments here and does its work in a module of its own."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging

from ..extraction.options import ExtractOptions
from . import evaluation, pictures, training
from .commands import add_command
from .options import (
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
app.add_typer(training.app)


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
