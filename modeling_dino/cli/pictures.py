# SPDX-License-Identifier: Apache-2.0
"""The commands that draw what a model sees: attention, pca, segment."""

from typing import Annotated

import typer

from .options import IMAGES_HELP, FramesPerSecond, Model, OnError, Output, Replace, Size, say_skipped


app = typer.Typer()


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
    from ..pictures.attention import AttentionSettings, draw_attention_of_frames

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
    from ..pictures.components import paint_components

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
    from ..evaluation.mask_propagation import PropagationSettings
    from ..evaluation.segmentation import segment_video

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
