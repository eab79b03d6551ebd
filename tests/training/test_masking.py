"""Masks of patches: the originals' own draws, their distribution by a plain writing of it, and batches."""

import math
import random

import numpy as np
import pytest
import torch
from golden_data import assert_close, read_golden

from modeling_dino.training.masking import BlockMasks, draw_masks, largest_block, mask_batch


class OriginalDraws(random.Random):
    """Draws single patches as DINOv3 does, by numpy's generator; all else by Python's."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.numpy = np.random.RandomState(seed)

    def sample(self, population, k):
        return self.numpy.choice(population, size=k, replace=False).tolist()


def golden_blocks(golden: dict, family: str) -> BlockMasks:
    """The masks of an original."""
    limits = {"max_patches": golden["max_num_patches"], "min_patches": golden["min_num_patches"]}
    return BlockMasks(*golden["grid"], **limits, min_aspect=golden["min_aspect"], exact=family == "dinov3")


def first_seed(golden: dict) -> int:
    """The number in "seeded with N + requested"."""
    return int("".join(letter for letter in golden["seed"] if letter.isdecimal()))


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_the_originals_masks(family):
    metadata, tensors = read_golden(f"{family}_losses")
    golden = metadata["masking"]
    blocks = golden_blocks(golden, family)
    for i, requested in enumerate(golden["requested"]):
        generator = OriginalDraws(first_seed(golden) + requested)
        masks = torch.stack([blocks.draw(requested, generator) for _ in range(golden["draws"])])
        first = tensors["masking.first"][i]
        assert torch.equal(masks[: len(first)], first)
        counts = masks.flatten(1).sum(1).bincount(minlength=blocks.num_patches + 1)
        assert torch.equal(counts, tensors["masking.counts"][i].long())
        assert (masks.float().mean(0) - tensors["masking.frequency"][i]).abs().max() <= 1e-6


@pytest.mark.parametrize("family", ["dinov2", "dinov3"])
def test_the_originals_batch_of_masks(family):
    metadata, tensors = read_golden(f"{family}_losses")
    golden = metadata["masking"]
    collate = golden["collate"]
    batch = draw_masks(
        golden_blocks(golden, family),
        collate["images"] * collate["global_crops"],
        OriginalDraws(collate["seed"]),
        tuple(collate["mask_ratio_min_max"]),
        collate["mask_probability"],
    )
    assert torch.equal(batch.masks, tensors["masking.collate.collated_masks"])
    assert torch.equal(batch.indices, tensors["masking.collate.mask_indices_list"])
    assert_close(batch.weights, tensors["masking.collate.masks_weight"])
    assert batch.upper_bound == collate["upperbound"]
    assert len(batch.indices) == tensors["masking.collate.n_masked_patches"].item()


@pytest.mark.parametrize("name", ["dinov2_training", "dinov3_training"])
def test_indices_and_weights_of_the_originals_runs(name):
    metadata, tensors = read_golden(name)
    for run, arguments in metadata.items():
        for step in range(arguments["steps"]):
            of_step = {key: tensors[f"{run}.step{step}.{key}"] for key in ("mask_indices_list", "masks_weight")}
            batch = mask_batch(tensors[f"{run}.step{step}.collated_masks"])
            assert torch.equal(batch.indices, of_step["mask_indices_list"])
            assert_close(batch.weights, of_step["masks_weight"])
            assert batch.upper_bound == arguments["log"][step]["n_masked_patches"]


def plain_mask(height: int, width: int, num_masked: int, most: float, draw: random.Random) -> set[tuple[int, int]]:
    """Blocks of patches as sets of places, by the words of BEiT's algorithm 1 and DINOv2's limits."""
    mask: set[tuple[int, int]] = set()
    while len(mask) < num_masked:
        limit = min(num_masked - len(mask), most)
        for _ in range(10):
            area = 4 + (limit - 4) * draw.random()
            aspect = 0.3 * (1 / 0.3**2) ** draw.random()
            rows, columns = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
            if rows >= height or columns >= width:
                continue
            top, left = draw.randrange(height - rows + 1), draw.randrange(width - columns + 1)
            new = {(top + i, left + j) for i in range(rows) for j in range(columns)} - mask
            if 0 < len(new) <= limit:
                mask |= new
                break
        else:
            break
    return mask


@pytest.mark.parametrize(("height", "width", "num_masked"), [(6, 10, 25), (4, 4, 6), (14, 14, 98)])
def test_masks_are_distributed_as_by_a_plain_writing(height, width, num_masked):
    draws, generator = 4000, random.Random(1)
    blocks = BlockMasks(height, width)
    ours = torch.stack([blocks.draw(num_masked, generator) for _ in range(draws)]).double()
    plain = torch.zeros_like(ours)
    for i in range(draws):
        for place in plain_mask(height, width, num_masked, height * width / 2, generator):
            plain[i][place] = 1
    share = num_masked / (height * width)
    bound = 5 * math.sqrt(2 * share * (1 - share) / draws)  # five standard errors of a difference
    assert (ours.mean(0) - plain.mean(0)).abs().max() < bound
    ours_counts, plain_counts = ours.flatten(1).sum(1), plain.flatten(1).sum(1)
    spread = (ours_counts.var() + plain_counts.var()) / draws
    assert (ours_counts.mean() - plain_counts.mean()).abs() <= 5 * spread.sqrt()
    # how much neighbours go together, which the frequencies do not tell
    together = [(masks[:, :, 1:] * masks[:, :, :-1]).flatten(1).sum(1) for masks in (ours, plain)]
    spread = (together[0].var() + together[1].var()) / draws
    assert (together[0].mean() - together[1].mean()).abs() <= 5 * spread.sqrt()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (5, 9), (16, 16)])
def test_exact_masks_have_the_number_and_the_others_at_most(height, width):
    generator = random.Random(0)
    for num_masked in range(height * width // 2 + 1):
        assert BlockMasks(height, width, exact=True).draw(num_masked, generator).sum() == num_masked
        assert BlockMasks(height, width).draw(num_masked, generator).sum() <= num_masked


@pytest.mark.parametrize(("height", "width"), [(2, 9), (9, 2), (3, 9)])
def test_no_block_spans_the_grid(height, width):
    """A first block of four patches is a square only where the grid is larger than two."""
    generator = random.Random(0)
    masks = [BlockMasks(height, width, max_patches=4).draw(4, generator) for _ in range(300)]
    squares = [mask for mask in masks if mask.any(0).sum() == mask.any(1).sum() == 2]
    assert bool(squares) == (min(height, width) > 2)


@pytest.mark.parametrize("exact", [False, True])
def test_the_same_generator_gives_the_same_batch_and_another_does_not(exact):
    blocks = BlockMasks(8, 8, exact=exact)
    state, numpys, torchs = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    batches = [draw_masks(blocks, 8, random.Random(seed)) for seed in (3, 3, 4)]
    assert torch.equal(batches[0].masks, batches[1].masks)
    assert not torch.equal(batches[0].masks, batches[2].masks)
    assert random.getstate() == state
    assert (np.random.get_state()[1] == numpys).all()
    assert torch.equal(torch.get_rng_state(), torchs)


@pytest.mark.parametrize("exact", [False, True])
def test_half_of_the_crops_are_masked_with_ratios_over_the_range(exact):
    blocks = BlockMasks(16, 16, exact=exact)
    for seed in range(20):
        batch = draw_masks(blocks, 9, random.Random(seed), (0.1, 0.5), 0.5)
        counts = batch.masks.sum(1)
        assert (counts > 0).sum() == 4
        assert batch.upper_bound == 51 + 76 + 102 + 128  # 256 * (0.2, 0.3, 0.4, 0.5)
        assert len(batch.indices) == counts.sum() <= batch.upper_bound
        assert_close(batch.weights.sum().reshape(1), torch.tensor([4.0]))
        if exact:
            assert sorted(counts.tolist())[-4:] == [51, 76, 102, 128]


def test_masked_crops_are_anywhere_in_the_batch():
    blocks = BlockMasks(8, 8)
    masked = torch.stack([draw_masks(blocks, 4, random.Random(seed)).masks.any(1) for seed in range(400)])
    assert (masked.float().mean(0) - 0.5).abs().max() < 5 * math.sqrt(0.25 / 400)


def test_numbers_and_weights_of_patches():
    masks = torch.tensor([[False, True, True], [False, False, False], [True, False, False]])
    batch = mask_batch(masks)
    assert batch.indices.tolist() == [1, 2, 6]
    assert batch.weights.tolist() == [0.5, 0.5, 1.0]
    assert batch.upper_bound == 3


def test_the_originals_largest_block():
    assert largest_block(518, 14) == 666
    assert largest_block(224, 16) == 98
    assert largest_block(256, 16) == 128


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 8), (8, 1), (0, 4)])
def test_grids_on_which_no_block_fits_are_refused(height, width):
    with pytest.raises(ValueError, match=f"no block .* an image of {height} x {width} patches"):
        BlockMasks(height, width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratios": (0.5, 0.1)}, r"ratios \(0.5, 0.1\) of masked patches must rise"),
        ({"ratios": (0.1, 1.5)}, r"ratios \(0.1, 1.5\)"),
        ({"share_of_crops": 1.5}, "share 1.5 of masked crops must be between 0 and 1"),
        ({"share_of_crops": 0.1}, "no patch is masked in 4 crops of 4 x 4 patches"),
        ({"ratios": (0.0, 0.05)}, r"no patch is masked in 4 crops .* by ratios \(0.0, 0.05\)"),
    ],
)
def test_settings_that_mask_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_masks(BlockMasks(4, 4), 4, random.Random(0), **options)


def test_an_aspect_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="min_aspect=0 of masks must be above 0 and at most 1"):
        BlockMasks(4, 4, min_aspect=0)
