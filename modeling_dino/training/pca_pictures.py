# SPDX-License-Identifier: Apache-2.0
"""Shows what the teacher sees over a run: the principal components of its patch tokens, of the same three images.

The picture is its own record: it holds the steps of its columns, so that a run that is resumed replaces the columns
that it makes again.
"""

from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..data.evaluation_transform import DinoImageProcessor, ImageTransform
from ..data.image_values import Decoded, as_picture
from ..extraction.principal_components import Moments
from ..modeling_dino import DinoModel
from ..pictures.components import NUM_COLORS, PatchColors
from ..pictures.patch_images import mosaic, paint_patches
from ..runtime.extras import PilImage, require
from ..runtime.whole_files import whole_file
from .knn_evaluation import transform_of
from .training_data import UnreadableImage


NUM_IMAGES = 3
MOST_TRIED = 100  # images, of which some cannot be read
TILE = 112  # pixels
MOST_COLUMNS = 50  # the last ones
STEPS = "steps"  # the text of the PNG that has the steps of its columns


class PcaPictures(TrainerCallback):
    """
    Adds a column to the picture of a run after each evaluation: the components of the teacher's patch tokens.

    Args:
        images: of which the first ones that can be read are shown; reading one may raise `UnreadableImage`.
        path: of the picture.
    """

    def __init__(self, images: Sequence[Decoded], path: Path):
        self.images, self.path = images, path
        self.shown: list[Decoded] | None = None

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        """Adds a column; nothing if the model has no maps of at least 2 x 2 patches, or no image can be read."""
        if self.shown is None:
            self.shown = list(islice(readable(self.images), NUM_IMAGES))
        maps = [patch_map(model.teacher, image) for image in self.shown]
        if not maps or min(min(tokens.shape[:2]) for tokens in maps) < 2:
            return
        if state.is_world_process_zero:
            tiles = [as_picture(image).convert("RGB").resize((TILE, TILE)) for image in self.shown]
            new = column(f"epoch {state.epoch or 0:.4g}", paint(maps))
            append_column(self.path, state.global_step, column("image", tiles), new)


def readable(images: Sequence[Decoded]):
    """Yields the images that can be read."""
    for index in range(min(len(images), MOST_TRIED)):
        with suppress(UnreadableImage):
            yield images[index]


@torch.inference_mode()
def patch_map(model: DinoModel, image: Decoded) -> torch.Tensor:
    """Computes the patch tokens of an image, or the last feature map: (h, w, D), in float32."""
    transform = ImageTransform(
        DinoImageProcessor(**transform_of(model)), model.config.num_channels, model.backbone.min_image_size
    )
    pixel_values = transform.pixel_values(transform.fit(image)[0])[None].to(model.device)
    hidden_states = model.backbone(pixel_values)
    return model.backbone.feature_map(hidden_states, pixel_values)[0].permute(1, 2, 0).float().cpu()


def paint(maps: Sequence[torch.Tensor]) -> list[PilImage]:
    """Paints maps of tokens in their common principal components; black if they do not vary."""
    moments = Moments(maps[0].shape[-1])
    try:
        for tokens in maps:
            moments.add(tokens.flatten(0, 1))
        colors = PatchColors(None, moments.principal_components(NUM_COLORS))
    except ValueError:  # a model that has collapsed or is not finite, which is said elsewhere
        return [paint_patches(torch.zeros(TILE, TILE, 3), 1)] * len(maps)
    return [paint_patches(colors(tokens, (TILE, TILE)), 1) for tokens in maps]


def column(title: str, tiles: Sequence[PilImage]) -> PilImage:
    """Puts pictures below each other, under a title."""
    return mosaic([{title if i == 0 else "": tile} for i, tile in enumerate(tiles)], [])


def append_column(path: Path, step: int, first: PilImage, new: PilImage):
    """
    Writes a picture anew: the columns of earlier steps that it has, and a new one. Raises OSError if it cannot be
    written.

    Args:
        step: of the new column; those of this and of later steps are dropped.
        first: the column before all others.
    """
    Image = require("PIL.Image")
    width, height = new.size
    columns: dict[int, PilImage] = {}
    with suppress(OSError), Image.open(path) as picture:  # there is none yet, or it is another's
        steps = [int(number) for number in picture.info.get(STEPS, "").split()]
        whole = picture.convert("RGB")
        columns = {s: whole.crop((i * width, 0, (i + 1) * width, height)) for i, s in enumerate(steps, 1) if s < step}
    columns[step] = new
    columns = dict(list(columns.items())[-MOST_COLUMNS:])
    whole = Image.new("RGB", ((len(columns) + 1) * width, height), "white")
    for i, tiles in enumerate((first, *columns.values())):
        whole.paste(tiles, (i * width, 0))
    info = require("PIL.PngImagePlugin").PngInfo()
    info.add_text(STEPS, " ".join(map(str, columns)))
    with whole_file(path) as partial:
        whole.save(partial, format="PNG", pnginfo=info)
