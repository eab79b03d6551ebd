"""Learned positions that are resized by matrices, as in exported graphs, beside PyTorch's kernels."""

import pytest
import torch

from modeling_dino.configuration_dino import POSITION_INTERPOLATIONS
from modeling_dino.positions import interpolate_positions, multiply_positions


PATCH = 8
GRIDS = [(1, 1), (2, 3), (5, 9), (16, 16), (40, 31), (77, 5)]


@pytest.mark.parametrize("side", [1, 2, 4, 14, 37])
@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_the_product_is_what_the_kernel_computes(method, side):
    positions = torch.randn(1, 1 + side**2, 8)
    for height, width in [*GRIDS, (side, side + 1)]:
        arguments = (PATCH * height + 3, PATCH * width), (height, width), method
        expected = interpolate_positions(positions, *arguments)
        difference = (multiply_positions(positions, *arguments) - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_on_the_native_grid_it_is_the_same_bit_for_bit(method, dtype):
    positions = torch.randn(1, 1 + 14**2, 8).to(dtype)
    assert torch.equal(multiply_positions(positions, (14 * PATCH, 14 * PATCH), (14, 14), method), positions)
