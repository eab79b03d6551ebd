# SPDX-License-Identifier: Apache-2.0
"""Patch tokens in the colors of their first three principal components, which a set of images shares.

As figure 1 of DINOv2, https://arxiv.org/abs/2304.07193: the first component of all patches parts foreground and
background at its mean, and the components of the foreground's patches are its colors.

Where we say what the paper does not: the foreground is the side that the CLS tokens attend to more; components are
scaled to unit variance and squashed by a sigmoid, so that a few extreme patches do not take all of the range; and
their signs are fixed. Only sums over patches are kept, in float64, so any number of images can share the components.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from ..data.frames import Frame, Frames, open_frames
from ..extraction.principal_components import Moments, PrincipalComponents
from ..hub.loading import load_model
from ..modeling_dino import DinoModel
from ..runtime.processes import processes
from ..runtime.whole_files import whole_file
from .patch_images import PatchTransform, mosaic, paint_patches
from .picture_files import frame_rate, new_folder, picture_files, save_picture


if TYPE_CHECKING:
    from PIL import Image

KIND = "pca"  # of pictures, in the names of files
NUM_COLORS = 3
SLOPE = 2.0  # of the sigmoid: two standard deviations are 0.02 and 0.98
TOKENS_IN_MEMORY = 2**30  # bytes; the tokens of further images are computed again in each pass
NUM_SHOWN = 12  # images in the overview
SHOWN_WIDTH = 320  # pixels


@dataclass(frozen=True)
class PatchTokens:
    """
    Args:
        tokens: (h, w, D), of the last block, after the final norm.
        cls_attention: (h, w), the mean of the heads' there.
    """

    tokens: torch.Tensor
    cls_attention: torch.Tensor


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
        """(h, w, D) -> (h, w), of bool."""
        if self.split is None:
            return torch.ones(tokens.shape[:2], dtype=torch.bool)
        return self.split.project(tokens)[..., 0] > 0

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """(h, w, D) -> (h, w, 3), in [0, 1]; the background is black."""
        colors = torch.sigmoid(SLOPE * self.colors.project(tokens) / self.colors.variances.sqrt())
        return colors * self.is_foreground(tokens)[..., None]


class TokensOfFrames:
    """Frames with their patch tokens, as often as they are iterated over; as many as memory allows are kept."""

    def __init__(self, model: DinoModel, frames: Frames, transform: PatchTransform, progress: bool):
        self.frames, self.transform = frames, transform
        self._model, self._progress = model, progress
        self._kept: dict[str, PatchTokens] = {}
        self._room = TOKENS_IN_MEMORY

    def passes(self, what: str) -> Iterator[tuple[Frame, PatchTokens]]:
        """
        Args:
            what: is shown beside the progress bar.
        """
        total = self.frames.num_frames
        for frame in tqdm(self.frames, desc=what, total=total, unit=" images", disable=not self._progress):
            if frame.name not in self._kept:
                patches = patch_tokens(self._model, self.transform.pixel_values(self.transform.crop(frame.image)))
                if patches.tokens.nbytes > self._room:
                    yield frame, patches
                    continue
                self._room -= patches.tokens.nbytes
                self._kept[frame.name] = patches
            yield frame, self._kept[frame.name]


@torch.inference_mode()
def patch_tokens(model: DinoModel, pixel_values: torch.Tensor) -> PatchTokens:
    """The patch tokens of one image, (1, C, H, W), and its CLS token's attention, from one pass."""
    pixel_values = model.check_pixel_values(pixel_values.to(model.device))
    (tokens,), (attention,) = model.backbone.patch_tokens_and_attention(pixel_values)
    if not tokens.isfinite().all():
        raise ValueError("the patch tokens are not finite: are the model's weights?")
    attention = attention.mean(0)
    return PatchTokens(tokens.unflatten(0, attention.shape).float().cpu(), attention.float().cpu())


def fit_colors(images: TokensOfFrames, dim: int, split: bool) -> PatchColors:
    """
    Args:
        dim: of a token.
        split: whether to part foreground and background.

    Raises:
        ValueError: if there are too few patches, or they are not finite.
    """
    moments, preference = Moments(dim), torch.zeros(dim, dtype=torch.float64)
    for _, patches in images.passes("components"):
        tokens, attention = patches.tokens.flatten(0, 1), patches.cls_attention.flatten().double()
        moments.add(tokens)
        preference += (attention - attention.mean()) @ tokens.double()
    if not split:
        return PatchColors(None, moments.principal_components(NUM_COLORS))
    first = moments.principal_components(1)
    if first.components[0] @ preference < 0:  # the covariance of attention and component, summed over images
        first = PrincipalComponents(first.mean, -first.components, first.variances, first.total_variance)
    foreground, parted = Moments(dim), PatchColors(first, first)
    for _, patches in images.passes("foreground"):
        foreground.add(patches.tokens[parted.is_foreground(patches.tokens)])
    return PatchColors(first, foreground.principal_components(NUM_COLORS))


@dataclass(frozen=True)
class PaintingSummary:
    """
    What was painted.

    Args:
        foreground: share of the patches.
        shares: of the foreground's variance, of each of its components.
        file: to look at.
        shown: some of the images beside what was painted, by title.
    """

    num_frames: int
    foreground: float
    shares: list[float]
    file: Path
    skipped: dict[str, str]
    shown: "dict[str, Image.Image]" = field(repr=False)

    def __str__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        shares = ", ".join(f"{share:.0%}" for share in self.shares)
        return (
            f"{self.num_frames} images{skipped}, {self.foreground:.0%} of the patches in the foreground, three "
            f"components with {shares} of their variance -> {self.file}"
        )


def paint_components(
    model: str,
    images: str,
    output: str | os.PathLike,
    *,
    size: int = 480,
    split: bool = True,
    save_arrays: bool = False,
    fps: float | None = None,
    on_error: str = "skip",
    overwrite: bool = False,
    progress: bool = True,
) -> PaintingSummary:
    """
    Paints patch tokens by their principal components: `NAME-pca.png` of each image and `overview.png`, or of a video
    `NAME-pca.mp4`, the frames beside it.

    Args:
        model: folder or hub id of a saved ViT.
        images: a video, or see [`open_source`]; all share the components.
        output: a new or empty folder.
        size: to which the shorter side of the images is resized, in pixels.
        split: paint the foreground alone, by components of its own.
        save_arrays: also save the components, as `components.safetensors`.
        fps: make a video of images, in their order, at so many a second; of a video it is its own.
        on_error: `"skip"` unreadable images (the summary names them), or `"fail"` at the first.
        overwrite: replace files of the same names.

    Raises:
        ValueError: if an argument cannot work, no image can be read, or there are too few patches.
        OSError: if the model is missing or damaged, or the output cannot be written.
    """
    dino = load_model(model)
    if not dino.backbone.has_patch_tokens:
        raise ValueError(f"{dino.config.backbone} has no patch tokens: use a ViT")
    transform = PatchTransform.of_model(model, dino.config, size)
    frames = open_frames(images, dino.config.num_channels, size, on_error)
    fps = frame_rate(frames, fps)
    folder = new_folder(output, overwrite)
    tokens = TokensOfFrames(dino.to(processes().device), frames, transform, progress)
    colors = fit_colors(tokens, dino.config.hidden_size, split)
    if save_arrays:
        save_components(folder / "components.safetensors", colors)
    with picture_files(folder, frames, fps, (KIND,)) as save:
        summary = paint_frames(tokens, colors, save)
    if fps is None:
        save_picture(mosaic(summary.shown, columns=4), folder / "overview.png")
        summary = replace(summary, file=folder / "overview.png")
    return summary


def paint_frames(images: TokensOfFrames, colors: PatchColors, save: Callable) -> PaintingSummary:
    """Paints all frames, and hands each to `save` of [`picture_files`]."""
    num_frames = foreground = num_patches = 0
    shown: dict[str, Image.Image] = {}
    for frame, patches in images.passes("pictures"):
        picture = paint_patches(colors(patches.tokens).float(), images.transform.patch_size)
        (file,) = save(frame.name, {KIND: picture})
        num_frames, num_patches = num_frames + 1, num_patches + patches.cls_attention.numel()
        foreground += int(colors.is_foreground(patches.tokens).sum())
        if num_frames <= NUM_SHOWN:
            shown[frame.name] = shrunk(images.transform.crop(frame.image))
            shown[f"{frame.name}, components"] = shrunk(picture)
    shares = (colors.colors.variances / colors.colors.total_variance).tolist()
    return PaintingSummary(num_frames, foreground / num_patches, shares, file, images.frames.skipped, shown)


def shrunk(picture: "Image.Image") -> "Image.Image":
    """For the overview."""
    return picture.convert("RGB").resize((SHOWN_WIDTH, max(1, SHOWN_WIDTH * picture.height // picture.width)))


def save_components(file: Path, colors: PatchColors):
    """Writes means and components, in float64: `split.…` of the first component of all patches, `colors.…`."""
    parts = {"colors": colors.colors} if colors.split is None else {"split": colors.split, "colors": colors.colors}
    tensors = {
        f"{name}.{field}": getattr(part, field).contiguous()
        for name, part in parts.items()
        for field in ("mean", "components", "variances")
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as partial:
        save_file(tensors, partial)


__all__ = ["PaintingSummary", "PatchColors", "paint_components", "patch_tokens"]
