"""Learned positions that are resized by matrices, as in exported graphs, beside PyTorch's kernels."""

import random

import pytest
import torch
from torch.nn.functional import interpolate

from modeling_dino.configuration_dino import POSITION_INTERPOLATIONS
from modeling_dino.positions import interpolate_positions, multiply_positions, resize_matrix


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


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("method", POSITION_INTERPOLATIONS)
def test_the_matrices_are_pytorchs_interpolation(method, dtype, bound):
    """For 200 random pairs of sizes, up and down."""
    draw = random.Random(0)
    for _ in range(200):
        side, height, width = (draw.randint(2, 40) for _ in range(3))
        table = torch.randn(1, 3, side, side, dtype=dtype)
        if method == "dino":
            factors = [(height + 0.1) / side, (width + 0.1) / side]
            expected = torch.ops.aten.upsample_bicubic2d(table, [height, width], False, *factors)
        else:
            antialias = method == "antialias"
            expected = interpolate(table, size=(height, width), mode="bicubic", antialias=antialias)
        rows, columns = (resize_matrix(length, side, method, dtype=dtype) for length in (height, width))
        assert (rows @ table @ columns.T - expected).abs().max() <= bound * expected.abs().max()
