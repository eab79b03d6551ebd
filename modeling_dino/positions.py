# SPDX-License-Identifier: Apache-2.0
"""The positions of a vision transformer: embeddings that are learned for a native grid, or rotations.

Deviation: learned positions are interpolated in float32 in every dtype.

Letters in shapes: B images, h x w patches, T tokens, D width.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .configuration_dino import DinoConfig


Angles = tuple[torch.Tensor, torch.Tensor]  # sine and cosine, each (h * w, D / heads)


def native_grid_side(positions: torch.Tensor) -> int:
    """
    Returns the side of the square grid that position embeddings (1, 1 + N, D) are for; the first is the CLS token's.

    Raises:
        ValueError: if N is not a square.
    """
    num_patches = positions.shape[1] - 1
    side = math.isqrt(num_patches)
    if side**2 != num_patches:
        raise ValueError(f"positions of {num_patches} patches are not those of a square image")
    return side


def interpolate_positions(
    positions: torch.Tensor, image_size: tuple[int, int], grid: tuple[int, int], method: str
) -> torch.Tensor:
    """
    Resizes the position embeddings of the square native grid to another grid of patches, in the way of one library.

    Args:
        positions: (1, 1 + N, D), the CLS token's first.
        image_size: height and width in pixels.
        grid: height and width in patches.
        method: `"dino"`: bicubic by the factor `(n + 0.1) / sqrt(N)`, on the native grid unless the image is square
            (https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py#L174); `"size"`: bicubic to
            the size of the grid, as transformers' ViT; `"antialias"`: the same with antialiasing, as timm.

    Returns:
        (1, 1 + h * w, D), in the dtype of `positions`.
    """
    if torch.compiler.is_exporting():
        return multiply_positions(positions, image_size, grid, method)
    side = native_grid_side(positions)
    height, width = grid
    # An image that is not square goes through the 0.1 of the original even on the native grid.
    if grid == (side, side) and (method != "dino" or image_size[0] == image_size[1]):
        return positions
    if positions.is_cuda and torch.are_deterministic_algorithms_enabled():  # which refuse the gradient of what follows
        with torch.autocast("cuda", enabled=False):
            return multiply_positions(positions, image_size, grid, method)
    cls_position, patch_positions = positions[:, :1], positions[:, 1:]
    # (1, N, D) -> (1, D, side, side); in float32, since bicubic in half precision shifts the embeddings
    patch_positions = patch_positions.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    if method == "dino":
        # What F.interpolate(scale_factor=…) calls, with the size of the result given: it is not computed from the
        # factor, which goes wrong by one under torch.compile(dynamic=True).
        factors = [(height + 0.1) / side, (width + 0.1) / side]
        patch_positions = torch.ops.aten.upsample_bicubic2d(patch_positions, [height, width], False, *factors)
    else:
        patch_positions = nn.functional.interpolate(
            patch_positions, size=(height, width), mode="bicubic", antialias=method == "antialias"
        )
    patch_positions = patch_positions.flatten(2).transpose(1, 2).to(positions.dtype)
    return torch.cat([cls_position, patch_positions], dim=1)


def multiply_positions(
    positions: torch.Tensor, image_size: tuple[int, int], grid: tuple[int, int], method: str
) -> torch.Tensor:
    """
    Does what [`interpolate_positions`] does by two small matrices, so that a graph holds for all sizes of images: it
    has no branch that depends on the size, and no operator that other engines lack. On the native grid the result is
    the same bit for bit, elsewhere up to rounding.
    """
    side, device = native_grid_side(positions), positions.device
    patches = positions[:, 1:].reshape(side, side, -1).float()
    # the original's 0.1 is there on the native grid, too, unless the image is square
    equals = [*((length, side) for length in grid), *([image_size] if method == "dino" else [])]
    is_native = torch.stack([torch.full((), x, device=device) == y for x, y in equals]).all()
    weights = []
    for length in grid:
        same = torch.arange(length, device=device).unsqueeze(1) == torch.arange(side, device=device)
        weights.append(torch.where(is_native, same.float(), resize_matrix(length, side, method, device)))
    resized = torch.einsum("ih,jw,hwd->ijd", *weights, patches).flatten(0, 1).unsqueeze(0)
    return torch.cat([positions[:, :1], resized.to(positions.dtype)], dim=1)


def resize_matrix(
    length: int, side: int, method: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """
    Returns the weights of bicubic interpolation from `side` values to `length`, (length, side): Keys' kernel, which is
    stretched for antialiasing (https://doi.org/10.1109/TASSP.1981.1163711). PyTorch's constant is -0.75 without it and
    -0.5 with it; values beyond an end are those of the end without it, and left out with it.
    """
    scale = side / (torch.full((), length, device=device, dtype=dtype) + (0.1 if method == "dino" else 0))
    centers = (torch.arange(length, device=device, dtype=dtype).unsqueeze(1) + 0.5) * scale - 0.5
    if method == "antialias":
        distance = (torch.arange(side, device=device) - centers).abs() / scale.clamp(min=1)
        weights = keys_kernel(distance, -0.5)
        return weights / weights.sum(1, keepdim=True)
    taps = centers.floor() + torch.arange(-1, 3, device=device)  # (length, 4)
    weights = keys_kernel((taps - centers).abs(), -0.75)
    is_tap = taps.clamp(0, side - 1).unsqueeze(2) == torch.arange(side, device=device)  # (length, 4, side)
    return (weights.unsqueeze(2) * is_tap).sum(1)


def keys_kernel(distance: torch.Tensor, a: float) -> torch.Tensor:
    """Computes Keys' cubic kernel of distances: 1 at 0, and 0 at 1 and from 2 on."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(far)))


class RotaryPositions(nn.Module):
    """The positions of DINOv3: queries and keys of patches are rotated by angles that depend on row and column.

    Paper: RoFormer, https://arxiv.org/abs/2104.09864; the angles are those of
    https://github.com/facebookresearch/dinov3/tree/6876159. Half of the elements of a head turn with the row, half
    with the column, each pair by `2 * pi * coordinate / period`. Coordinates are from -1 to 1 over the image.

    The periods are a buffer that is saved, since published weights may hold them rounded.
    """

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.num_periods = config.hidden_size // config.num_attention_heads // 4
        self.theta, self.period_range = config.rope_theta, (config.rope_min_period, config.rope_max_period)
        self.shared_side = {"separate": None, "max": max, "min": min}[config.rope_coordinates]
        self.dtype = getattr(torch, config.rope_dtype)
        self.shift, self.jitter = config.pos_embed_shift, config.pos_embed_jitter
        self.rescale = config.pos_embed_rescale
        self.register_buffer("periods", self.initial_periods())

    def initial_periods(self) -> torch.Tensor:
        """Returns a geometric series from 1 to near the base, or from the least to the greatest period."""
        if self.theta is not None:
            return (self.theta ** (torch.arange(self.num_periods, dtype=self.dtype) / self.num_periods)).float()
        least, greatest = self.period_range
        return (least * (greatest / least) ** torch.linspace(0, 1, self.num_periods, dtype=self.dtype)).float()

    def init_parameters(self):
        """Initialises the periods."""
        init.copy_(self.periods, self.initial_periods())

    def forward(self, grid: tuple[int, int]) -> Angles:
        """Computes sine and cosine of the angles of a grid of patches (h, w), each (h * w, D / heads)."""
        coordinates = self.coordinates(grid)
        if self.training:
            coordinates = self.augmented(coordinates)
        angles = 2 * math.pi * coordinates.unsqueeze(-1) / self.periods.to(self.dtype)  # (h * w, 2, D / heads / 4)
        angles = angles.flatten(1).repeat(1, 2)
        return angles.sin(), angles.cos()

    def coordinates(self, grid: tuple[int, int]) -> torch.Tensor:
        """Returns rows and columns of the centers of patches, (h * w, 2), from -1 to 1."""
        sides = grid if self.shared_side is None else [self.shared_side(grid)] * 2
        centers = [
            (torch.arange(length, device=self.periods.device) + 0.5).to(self.dtype) / side
            for length, side in zip(grid, sides)
        ]
        return 2 * torch.stack(torch.meshgrid(*centers, indexing="ij"), dim=-1).flatten(0, 1) - 1

    def augmented(self, coordinates: torch.Tensor) -> torch.Tensor:
        """Shifts, stretches each axis by itself, and rescales both; the draws are the same for all images."""
        if self.shift is not None:
            coordinates = coordinates + coordinates.new_empty(2).uniform_(-self.shift, self.shift)
        for largest, size in ((self.jitter, 2), (self.rescale, 1)):
            if largest is not None:
                bound = math.log(largest)
                coordinates = coordinates * coordinates.new_empty(size).uniform_(-bound, bound).exp()
        return coordinates


def rotate(x: torch.Tensor, angles: Angles) -> torch.Tensor:
    """
    Rotates the queries or keys of the patches, which come last; those of the tokens before them stay.

    Args:
        x: (B, heads, T, D / heads).
        angles: sine and cosine, each (h * w, D / heads), in whose dtype it computes.

    Returns:
        (B, heads, T, D / heads), in the dtype of `x`.
    """
    sine, cosine = angles
    num_before = x.shape[-2] - sine.shape[0]
    before, patches = x.to(sine.dtype).split([num_before, sine.shape[0]], dim=-2)
    first, second = patches.chunk(2, dim=-1)
    patches = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([before, patches], dim=-2).to(x.dtype)
