# SPDX-License-Identifier: Apache-2.0
"""The commands that draw what a model sees: attention, pca, segment."""

import typer

from ..evaluation.segmentation_options import SegmentOptions
from ..pictures.options import AttentionOptions, PcaOptions
from .commands import add_command


app = typer.Typer()


def attention(options: AttentionOptions):
    """Draws what a ViT's CLS token attends to: each head, and all heads over the image; as pictures or as videos."""
    from ..pictures.attention import draw_attention

    return draw_attention(options)


def pca(options: PcaOptions):
    """Paints a ViT's patch tokens in the colors of their first three principal components, which all images share."""
    from ..pictures.components import paint_components

    return paint_components(options)


def segment(options: SegmentOptions):
    """Carries the mask of a video's first frame through it by the similarity of patches, as the original on DAVIS."""
    from ..evaluation.segmentation import segment_video

    return segment_video(options)


for command in (attention, pca, segment):
    add_command(app, command)
