# SPDX-License-Identifier: Apache-2.0
"""Paints patch tokens in the colors of their first three principal components, which all images share.

As figure 1 of DINOv2, https://arxiv.org/abs/2304.07193: the first component of all patches parts foreground and
background at its mean, and the components of the foreground's patches are its colors.

Where we deviate: without being asked, a foreground is split off only where the first component clearly parts the
patches in two, and the CLS tokens attend to one side far more; else all patches are painted. The foreground is that
side. Components are interpolated to the pixels of the image, scaled to unit variance, and squashed by a sigmoid, so
that a few extreme patches do not take all of the range. Their signs are fixed. Only sums over patches are kept, in
float64, so that any number of images can share the components.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..data.frames import Frame
from ..extraction.principal_components import Moments, PrincipalComponents
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..runtime.extras import PilImage
from ..runtime.finite import check_finite
from ..runtime.options import takes_options
from .options import PcaOptions
from .patch_images import enlarge, mosaic, paint_patches
from .picture_files import Drawing, PictureSummary, open_drawing, picture_files, save_picture, save_tensors


KIND = "pca"  # of pictures, in the names of files
NUM_COLORS = 3
# The first component clearly has two sides if at least this share of its variance lies between them; the share is 0.64
# for a normal distribution, 0.75 for a uniform one, and 1 for two points.
CLEARLY_TWO = 0.8
ATTENDED = 2.0  # least ratio of the mean attention to a patch of a clear foreground and to one of the background
SLOPE = 1.5  # of the sigmoid: two standard deviations are 0.05 and 0.95
TOKENS_IN_MEMORY = 2**30  # bytes; the tokens of further images are computed again in each pass
NUM_SHOWN = 12  # images in the overview
SHOWN_WIDTH = 320  # pixels


@dataclass(frozen=True)
class PaintingSummary(PictureSummary):
    """
    Says what was painted.

    Args:
        foreground: share of the patches that are in the foreground; None if none was split off.
        shares: of the variance of the patches that are painted, that each component has.
        file: the overview, or the video.
    """

    foreground: float | None
    shares: list[float]
    file: Path

    def __str__(self) -> str:
        shares = ", ".join(f"{share:.0%}" for share in self.shares)
        painted = "all patches painted"
        if self.foreground is not None:
            painted = f"{self.foreground:.0%} of the patches in the foreground"
        return f"{super().__str__()}, {painted}, three components with {shares} of their variance -> {self.file}"


@takes_options(PcaOptions, command="pca")
def draw_pca(options: PcaOptions) -> PaintingSummary:
    """
    The pictures of images are `NAME-pca.png`, beside an `overview.png`; that of a video is `NAME-pca.mp4`.

    Raises:
        ValueError: if an option cannot work, no image can be read, or there are too few patches.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    model = load_model(options.model)
    drawing = open_drawing(options, model, options.images, options.on_error, **options.of_tables)
    images = TokensOfFrames(drawing)
    colors = fit_colors(images, model.config.hidden_size, options.split)
    if options.save_arrays:
        save_tensors(colors.tensors(), drawing.folder / "components.safetensors")
    num_frames = foreground = num_patches = 0
    shown = []
    with picture_files(drawing.folder, drawing.frames, drawing.fps, (KIND,)) as save:
        for frame, tokens, attention in images.iterate("pictures"):
            image = drawing.shown(frame).convert("RGB")
            painted = paint_patches(colors(tokens, image.size[::-1]), 1)
            (file,) = save(frame.name, {KIND: painted})
            num_frames, num_patches = num_frames + 1, num_patches + attention.numel()
            foreground += int(colors.is_foreground(tokens).sum())
            if num_frames <= NUM_SHOWN:
                size = SHOWN_WIDTH, max(1, SHOWN_WIDTH * painted.height // painted.width)
                shown.append({frame.name: image.resize(size), f"{frame.name}, components": painted.resize(size)})
    if drawing.fps is None:
        file = drawing.folder / "overview.png"
        save_picture(overview(shown, [*drawing.about, *colors.describe(), *note_on_number(num_frames)]), file)
    shares = (colors.colors.variances / colors.colors.total_variance).tolist()
    share = None if colors.split is None else foreground / num_patches
    return PaintingSummary(num_frames, drawing.frames.skipped, drawing.about, share, shares, file)


def overview(pairs: Sequence[Mapping[str, PilImage]], below: Sequence[str]) -> PilImage:
    """Puts pairs of an image and its components into rows, of two pairs or of three, whichever leaves fewer gaps."""
    in_row = min((3, 2), key=lambda number: (-len(pairs) % number, -number))
    rows = [pairs[i : i + in_row] for i in range(0, len(pairs), in_row)]
    return mosaic([dict(tile for pair in row for tile in pair.items()) for row in rows], below)


def note_on_number(num_images: int) -> list[str]:
    """Returns a sentence if the overview does not show all images."""
    return [f"These are the first {NUM_SHOWN} of {num_images} images."] if num_images > NUM_SHOWN else []


@torch.inference_mode()
def patch_tokens(model: DinoModel, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes in one pass what the model sees of one image, (1, C, H, W).

    Returns:
        the patch tokens of the last block after the final norm, (h, w, D); and the attention of its CLS token to the
        patches, the mean of the heads, (h, w). Both in float32.
    """
    pixel_values = model.check_pixel_values(pixel_values.to(model.device))
    (tokens,), (attention,) = model.backbone.patch_tokens_and_attention(pixel_values)
    attention = attention.mean(0)
    return tokens.unflatten(0, attention.shape).float().cpu(), attention.float().cpu()


class TokensOfFrames:
    """The patch tokens of frames, which are kept for further passes as long as there is memory for them."""

    def __init__(self, drawing: Drawing):
        self._drawing = drawing
        self._kept: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._free_bytes = TOKENS_IN_MEMORY

    def iterate(self, description: str) -> Iterator[tuple[Frame, torch.Tensor, torch.Tensor]]:
        """
        Yields each frame, its patch tokens and its CLS token's attention; see [`patch_tokens`]. Raises ValueError if
        they are not finite.
        """
        transform = self._drawing.transform
        for frame in self._drawing.iterate(description):
            found = self._kept.get(frame.name)
            if found is None:
                found = patch_tokens(self._drawing.model, transform.pixel_values(transform.crop(frame.image)))
                for values in found:
                    check_finite(values[None], "what the model sees of", [frame.source])
                if found[0].nbytes <= self._free_bytes:
                    self._free_bytes -= found[0].nbytes
                    self._kept[frame.name] = found
            yield frame, *found


@dataclass(frozen=True)
class PatchColors:
    """
    Colors of patch tokens.

    Args:
        split: the first principal component of all patches, positive in the foreground; None where all is painted.
        colors: the first three of what is painted.
    """

    split: PrincipalComponents | None
    colors: PrincipalComponents

    def is_foreground(self, tokens: torch.Tensor) -> torch.Tensor:
        """Returns which patches are in the foreground: (h, w, D) -> (h, w), of bool."""
        if self.split is None:
            return torch.ones(tokens.shape[:2], dtype=torch.bool)
        return self.split.project(tokens)[..., 0] > 0

    def __call__(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Returns the colors of pixels, black in the background: (h, w, D), (H, W) -> (H, W, 3), in [0, 1]."""
        values = self.colors.project(tokens) / self.colors.variances.sqrt()
        colors = torch.sigmoid(SLOPE * enlarge_components(values, size))
        if self.split is not None:
            colors *= enlarge_components(self.split.project(tokens), size) > 0
        return colors.float()

    def describe(self) -> list[str]:
        """Returns what the overview says about the colors."""
        line = "Red, green and blue are the first three principal components of the patch tokens of all images."
        return [line if self.split is None else f"{line} The background is black."]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Returns means, components and variances, in float64: `split.…` if there are any, and `colors.…`."""
        parts = {"colors": self.colors} | ({} if self.split is None else {"split": self.split})
        names = ("mean", "components", "variances")
        return {f"{part}.{name}": getattr(parts[part], name) for part in parts for name in names}


def enlarge_components(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Interpolates components of patches to pixels: (h, w, C) -> (H, W, C)."""
    return enlarge(values.permute(2, 0, 1), size, mode="bicubic").permute(1, 2, 0)


def fit_colors(images: TokensOfFrames, dim: int, split: bool | None) -> PatchColors:
    """
    Computes the principal components of the patch tokens, of width `dim`, of all images. Without `split` the
    foreground is split off where it is clearly there. Raises ValueError if there are too few patches, or they are not
    finite.
    """
    moments, preference = Moments(dim), torch.zeros(dim, dtype=torch.float64)
    for _, tokens, attention in images.iterate("components"):
        tokens, attention = tokens.flatten(0, 1), attention.flatten().double()
        moments.add(tokens)
        preference += (attention - attention.mean()) @ tokens.double()
    all_patches = PatchColors(None, moments.principal_components(NUM_COLORS)) if not split else None
    if split is False:
        return all_patches
    first = moments.principal_components(1)
    if first.components[0] @ preference < 0:  # the covariance of attention and component, summed over images
        first = replace(first, components=-first.components)
    foreground, parted, attended = Moments(dim), PatchColors(first, first), torch.zeros(2, dtype=torch.float64)
    for _, tokens, attention in images.iterate("foreground"):
        mask = parted.is_foreground(tokens)
        foreground.add(tokens[mask])
        attended += torch.stack([attention[mask].sum(), attention[~mask].sum()])
    in_front, behind = (attended / torch.tensor([foreground.count, moments.count - foreground.count])).tolist()
    is_clear = variance_between(first, foreground, moments.count) >= CLEARLY_TWO and in_front >= ATTENDED * behind
    return PatchColors(first, foreground.principal_components(NUM_COLORS)) if split or is_clear else all_patches


def variance_between(first: PrincipalComponents, foreground: Moments, count: int) -> float:
    """
    Computes the share of the variance of the first component that lies between the foreground and the rest of `count`
    patches: 0 if it does not part them, 1 if each side is a point.
    """
    mean = float(first.project(foreground.mean)[0])  # of the foreground; the mean of all is 0
    of_foreground = foreground.count / count
    return mean**2 * of_foreground / (1 - of_foreground) / float(first.variances[0])
