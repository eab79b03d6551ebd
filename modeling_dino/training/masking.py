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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
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
        return to_tensor([self.draw_bits(num_masked, generator)], self.num_patches).view(self.height, self.width)

    def draw_bits(self, num_masked: int, generator: random.Random) -> int:
        """Draws a mask as a number, whose i-th bit is that of patch i, row by row."""
        mask, missing = 0, num_masked
        while missing > 0:
            block = self._draw_new_block(mask, min(missing, self.max_patches), generator)
            if block == 0:
                break
            missing -= (block & ~mask).bit_count()
            mask |= block
        if self.exact:
            free = [patch for patch in range(self.num_patches) if not mask >> patch & 1]
            for patch in generator.sample(free, missing):
                mask |= 1 << patch
        return mask

    def _draw_new_block(self, mask: int, most: float, generator: random.Random) -> int:
        """Draws a block with at most so many patches that a mask does not have; 0 if none is found."""
        for _ in range(TRIES):
            height, width = self._draw_block(most, generator)
            if height >= self.height or width >= self.width:
                continue
            top, left = generator.randrange(self.height - height + 1), generator.randrange(self.width - width + 1)
            row = (1 << width) - 1
            block = sum(row << patch for patch in range(0, height * self.width, self.width))
            block <<= top * self.width + left
            if 0 < (block & ~mask).bit_count() <= most:
                return block
        return 0

    def _draw_block(self, most: float, generator: random.Random) -> tuple[int, int]:
        """Draws height and width of a block, whose area is uniform and whose aspect is uniform in its logarithm."""
        area = generator.uniform(self.min_patches, most)
        aspect = math.exp(generator.uniform(math.log(self.min_aspect), math.log(1 / self.min_aspect)))
        return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def to_tensor(masks: Sequence[int], num_patches: int) -> torch.Tensor:
    """Returns the bits of numbers as masks (N, P), bool."""
    rows = b"".join(mask.to_bytes(-(-num_patches // 8), "little") for mask in masks)
    packed = np.frombuffer(rows, np.uint8).reshape(len(masks), -1)
    return torch.from_numpy(np.unpackbits(packed, axis=1, count=num_patches, bitorder="little")).bool()


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

    def to(self, device: torch.device) -> "MaskBatch":
        """Returns the masks on a device; a GPU copies them while this process goes on."""
        tensors = (self.masks, self.indices, self.weights)
        if device.type == "cuda":
            tensors = (tensor.pin_memory() for tensor in tensors)
        return MaskBatch(*(tensor.to(device, non_blocking=True) for tensor in tensors), self.upper_bound)


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
    masks: list[int] = []
    for low, high in pairwise(bounds):
        ratio = high if blocks.exact else generator.uniform(low, high)
        masks.append(blocks.draw_bits(int(blocks.num_patches * ratio), generator))
    if not any(masks):
        masks = [replace(blocks, exact=True).draw_bits(number, generator) for number in most]
    masks += [0] * (num_crops - len(masks))
    generator.shuffle(masks)
    return mask_batch(to_tensor(masks, blocks.num_patches), sum(most))


def mask_batch(masks: torch.Tensor, upper_bound: int | None = None) -> MaskBatch:
    """
    Returns masks (N, P) with the indices and weights of their patches; without an upper bound it is M itself.

    It waits for the device of the masks: call it where they were drawn, on the CPU, and move the result.
    """
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
