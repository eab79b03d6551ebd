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
from typing import Annotated

import typer
from huggingface_hub.errors import HTTPError, StrictDataclassError
from huggingface_hub.utils import enable_progress_bars
from transformers.utils import logging


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
        str, typer.Option(help="cls, patch_mean, cls_patch_mean, patches or projection; several with commas.")
    ] = "cls",
    last_blocks: Annotated[int, typer.Option(help="Of how many last blocks, side by side.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Images in one forward pass.")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
    streaming: Annotated[
        bool, typer.Option("--streaming", help="Read a data set of the hub without storing it.")
    ] = False,
    image_column: Annotated[str | None, typer.Option(help="Column of images, where there are several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of labels, if not `label`.")] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Run the model through torch.compile.")] = False,
    on_error: Annotated[str, typer.Option(help="What to do about an unreadable image: skip or fail.")] = "skip",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew where features are.")] = False,
):
    """Features of images, as Parquet shards and a manifest; run again, it goes on where it stopped."""
    from .extract import ExtractionSettings, extract_features

    settings = ExtractionSettings(
        model, images, features, last_blocks, batch_size, dtype, streaming, image_column, label_column
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
    image_column: Annotated[str | None, typer.Option(help="Column of images, where there are several.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Processes that read images.")] = None,
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
def demo(
    output: Output = "demo",
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of a saved model; random weights if none.")
    ] = None,
):
    """A tour: features of scikit-image's photographs, and the attention to one of them."""
    from .demo import run_demo

    typer.echo(run_demo(output, model))


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
