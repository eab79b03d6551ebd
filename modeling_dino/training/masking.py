# SPDX-License-Identifier: Apache-2.0
"""Masks of patches for the patch loss: rectangles of random size and place, and batches of them.

Papers: BEiT, https://arxiv.org/abs/2106.08254, algorithm 1; iBOT, https://arxiv.org/abs/2111.07832, section 3.2;
DINOv2, https://arxiv.org/abs/2304.07193, section 4.
References: `MaskingGenerator` of https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/data/masking.py and
`collate_data_and_cast` of https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/data/collate.py.

DINOv2's masks have a few patches less than were asked for; DINOv3 adds single patches until the number is met
(`exact`), and asks for the most that DINOv2 may ask for.
Deviation: all is drawn from one generator that the caller gives, so that masks are reproducible and independent of
whatever else is drawn.
"""

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise

import torch


MIN_PATCHES = 4  # of a block
MIN_ASPECT = 0.3  # height over width; at most 1 / 0.3
TRIES = 10  # to place one block


@dataclass(frozen=True)
class BlockMasks:
    """
    Draws masks of blocks of patches.

    Args:
        height, width: of the grid of patches.
        max_patches: area of a block at most; half the grid by default. [`largest_block`] is the originals' number.
        min_patches: area of a block at least, while so many patches are missing.
        min_aspect: height over width of a block at least; at most 1 / min_aspect.
        exact: mask single patches at random where blocks alone fall short, as DINOv3 does.

    Raises:
        ValueError: if no block fits the grid.
    """

    height: int
    width: int
    max_patches: float | None = None
    min_patches: int = MIN_PATCHES
    min_aspect: float = MIN_ASPECT
    exact: bool = False

    def __post_init__(self):
        if self.height < 2 or self.width < 2:
            raise ValueError(
                f"no block of patches can be masked in an image of {self.height} x {self.width} patches: take larger "
                "crops or smaller patches, or leave out the patch loss"
            )
        if not 0 < self.min_aspect <= 1:
            raise ValueError(f"min_aspect={self.min_aspect} of masks must be above 0 and at most 1")
        if self.max_patches is None:
            object.__setattr__(self, "max_patches", self.num_patches / 2)

    @property
    def num_patches(self) -> int:
        """Returns the number of patches of an image."""
        return self.height * self.width

    def draw(self, num_masked: int, generator: random.Random) -> torch.Tensor:
        """
        Draws a mask.

        ```
        while fewer than num_masked are masked:
            place a block of at most the missing number of new patches; give up after 10 tries in vain
        if exact: mask single patches at random until num_masked are
        ```

        Args:
            num_masked: patches to be masked; without `exact` some fewer may be.

        Returns:
            (height, width), bool; masked patches are True.
        """
        mask = torch.zeros(self.height, self.width, dtype=torch.bool)
        missing = num_masked
        while missing > 0:
            masked = self._mask_block(mask, min(missing, self.max_patches), generator)
            if masked == 0:
                break
            missing -= masked
        if self.exact:
            free = mask.logical_not().flatten().nonzero().flatten().tolist()
            mask.view(-1)[generator.sample(free, missing)] = True
        return mask

    def _mask_block(self, mask: torch.Tensor, most: float, generator: random.Random) -> int:
        """Masks one block, in place, with at most so many patches that were not masked; returns how many."""
        for _ in range(TRIES):
            height, width = self._draw_block(most, generator)
            if height >= self.height or width >= self.width:
                continue
            top = generator.randint(0, self.height - height)
            left = generator.randint(0, self.width - width)
            block = mask[top : top + height, left : left + width]
            new = block.numel() - int(block.sum())
            if 0 < new <= most:
                block.fill_(True)
                return new
        return 0

    def _draw_block(self, most: float, generator: random.Random) -> tuple[int, int]:
        """Draws height and width of a block, whose area is uniform and whose aspect is uniform in its logarithm."""
        area = generator.uniform(self.min_patches, most)
        aspect = math.exp(generator.uniform(math.log(self.min_aspect), math.log(1 / self.min_aspect)))
        return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def largest_block(image_size: int, patch_size: int) -> float:
    """
    Returns the `max_patches` of the originals for square crops, about half the grid.

    It is evaluated from left to right as they write it: for 518 pixels and patches of 14 it is 666, where half the
    grid is 684.5.
    """
    return 0.5 * image_size // patch_size * image_size // patch_size


@dataclass(frozen=True)
class MaskBatch:
    """
    The masks of a batch of N crops of P patches, of which M are masked.

    Args:
        masks: (N, P), bool; masked patches are True.
        indices: (M,), the numbers of the masked patches among all N * P.
        weights: (M,), 1 / the number of masked patches of the patch's crop.
        upper_bound: which M never passes; shapes padded to it are the same in every step with the same settings.
    """

    masks: torch.Tensor
    indices: torch.Tensor
    weights: torch.Tensor
    upper_bound: int


def draw_masks(
    blocks: BlockMasks,
    num_crops: int,
    generator: random.Random,
    ratios: tuple[float, float] = (0.1, 0.5),
    share_of_crops: float = 0.5,
) -> MaskBatch:
    """
    Draws the masks of a batch: of some of its crops, with ratios that are spread evenly over a range.

    ```
    for i in range(n):                       # n = int(num_crops * share_of_crops)
        ratio = a random one of the i-th of n equal parts of the range      # `exact`: its upper end
        masks += draw(int(P * ratio))
    masks += [nothing masked] * (num_crops - n)
    shuffle(masks)
    ```

    Where blocks by chance mask nothing at all, single patches are masked instead, so that there always is something.

    Args:
        num_crops: N, the number of all global crops of the batch.
        generator: of Python's `random`; the same state gives the same masks.
        ratios: the range of the share of patches that are masked in a crop.
        share_of_crops: that are masked.

    Raises:
        ValueError: if the ratios or the share cannot work, or nothing would ever be masked.
    """
    check_ratios(ratios, share_of_crops)
    bounds = torch.linspace(*ratios, int(num_crops * share_of_crops) + 1)  # in float32, as the originals round
    most = [int(blocks.num_patches * bound) for bound in bounds[1:]]
    if sum(most) == 0:
        raise ValueError(
            f"no patch is masked in {num_crops} crops of {blocks.height} x {blocks.width} patches by ratios {ratios} "
            f"in a share of {share_of_crops}: raise these, or leave out the patch loss"
        )
    masks: list[torch.Tensor] = []
    for low, high in pairwise(bounds):
        ratio = high if blocks.exact else generator.uniform(low, high)
        masks.append(blocks.draw(int(blocks.num_patches * ratio), generator))
    if not any(mask.any() for mask in masks):
        masks = [replace(blocks, exact=True).draw(number, generator) for number in most]
    masks += [blocks.draw(0, generator)] * (num_crops - len(masks))
    generator.shuffle(masks)
    return mask_batch(torch.stack(masks).flatten(1), sum(most))


def mask_batch(masks: torch.Tensor, upper_bound: int | None = None) -> MaskBatch:
    """Returns masks (N, P) with the indices and weights of their patches; without an upper bound it is M itself."""
    per_crop = masks.sum(-1, keepdim=True).clamp(min=1)  # (N, 1)
    weights = (1 / per_crop).expand_as(masks)[masks]
    indices = masks.flatten().nonzero().flatten()
    return MaskBatch(masks, indices, weights, len(indices) if upper_bound is None else upper_bound)


def check_ratios(ratios: tuple[float, float], share_of_crops: float):
    """Raises ValueError if the range of ratios or the share of masked crops is not within 0 and 1."""
    if not 0 <= ratios[0] <= ratios[1] <= 1:
        raise ValueError(f"the ratios {ratios} of masked patches must rise and be between 0 and 1")
    if not 0 <= share_of_crops <= 1:
        raise ValueError(f"the share {share_of_crops} of masked crops must be between 0 and 1")
