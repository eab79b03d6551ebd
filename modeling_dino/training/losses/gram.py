# SPDX-License-Identifier: Apache-2.0
"""Gram anchoring: the similarities among patches stay those of an older teacher, while the features go on to change.

Paper: DINOv3, https://arxiv.org/abs/2508.10104, section 4.
"""

import torch
from torch.nn import functional as F

from .cross_entropy import at_least_float32, without_autocast


NEGATIVES = ("keep", "remove", "remove_teacher")  # what is done with negative similarities


def gram_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    per_image: bool = True,
    normalize: bool = True,
    negatives: str = "keep",
) -> torch.Tensor:
    """
    Returns the mean squared difference between the Gram matrices of the student's and the teacher's patches.

    ```
    for image in range(B):
        s, t = normalize(student[image]), normalize(teacher[image])      # (P, D)
        loss += ((s @ s.T - t @ t.T) ** 2).mean() / B
    ```

    It is a mean over images: that of micro-batches of equal size is the batch's, unless `per_image` is False.

    Args:
        student: (B, P, D), patch tokens after the final norm.
        teacher: (B, P, E), the gram teacher's, whose width may be another; it gets no gradient.
        per_image: compare the patches of each image; if not, those of all images together, B * P.
        normalize: scale tokens to unit length.
        negatives: `"keep"` negative similarities, `"remove"` them (set both to zero), or `"remove_teacher"` for the
            teacher's alone.

    Returns:
        a scalar, at least in float32.

    Raises:
        ValueError: if the patches do not fit each other, there are none, or `negatives` is no such word.
    """
    if negatives not in NEGATIVES:
        raise ValueError(f"negatives={negatives!r} must be one of {', '.join(NEGATIVES)}")
    if student.ndim != 3 or student.shape[:2] != teacher.shape[:2] or student.shape[1] == 0:
        raise ValueError(
            f"Gram anchoring needs the same patches of student and teacher, (images, patches, width) each, not "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    with without_autocast(student):
        of_student = similarities(student, per_image, normalize)
        of_teacher = similarities(teacher.detach(), per_image, normalize)
        if negatives != "keep":
            of_teacher = of_teacher.clamp(min=0)
        if negatives == "remove":
            of_student = of_student.clamp(min=0)
        return F.mse_loss(of_student, of_teacher)


def similarities(tokens: torch.Tensor, per_image: bool, normalize: bool) -> torch.Tensor:
    """Returns the Gram matrices of patch tokens, at least in float32: (B, P, D) -> (B, P, P) or (B * P, B * P)."""
    tokens = at_least_float32(tokens)
    if normalize:
        tokens = F.normalize(tokens, dim=-1)
    if not per_image:
        tokens = tokens.flatten(0, 1)
    return tokens @ tokens.mT


def resize_patches(
    tokens: torch.Tensor, grid: tuple[int, int], to_grid: tuple[int, int], antialias: bool = False
) -> torch.Tensor:
    """
    Resizes a grid of patch tokens, bicubic: those of a gram teacher that sees larger crops come to the student's grid.

    Args:
        tokens: (B, h * w, D), row by row.
        grid, to_grid: rows and columns, before and after.
        antialias: smooth before shrinking; DINOv3 does not.

    Returns:
        (B, rows * columns of `to_grid`, D).

    Raises:
        ValueError: if the tokens are not those of the grid.
    """
    if tokens.ndim != 3 or tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} are not those of {grid[0]} x {grid[1]} patches")
    if grid == to_grid:
        return tokens
    maps = tokens.mT.unflatten(-1, grid)  # (B, D, h, w)
    resized = F.interpolate(maps, to_grid, mode="bicubic", align_corners=False, antialias=antialias)
    return resized.flatten(2).mT
