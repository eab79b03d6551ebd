# SPDX-License-Identifier: Apache-2.0
"""What the commands have in common: options of the same name and meaning, and what they say of images."""

from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from ..evaluation.evaluation_data import EvaluationFeatures

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
BatchSize = Annotated[int, typer.Option(help="Images in one forward pass; on a CPU at most 8.")]
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
    from ..runtime.processes import processes

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
