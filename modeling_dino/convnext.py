# SPDX-License-Identifier: Apache-2.0
"""The ConvNeXts of DINOv3.

Paper: A ConvNet for the 2020s, https://arxiv.org/abs/2201.03545, whose parameter names are kept, and DINOv3,
https://arxiv.org/abs/2508.10104: the mean of the last map takes the place of a CLS token, before the last norm.
Deviation: the last norm is in the weights once, not twice.

Letters in shapes: B images, C channels, H x W pixels, h x w cells of a feature map.
"""

import re
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbone import Backbone, Stage
from .block_parts import DropPath
from .configuration_dino import DinoConfig


class ChannelLayerNorm(nn.LayerNorm):
    """A LayerNorm over the channels of a map, (B, C, h, w) -> (B, C, h, w)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(GradientCheckpointingLayer):
    """A depthwise 7x7 convolution and an MLP on the channels of each cell, with a factor a channel."""

    def __init__(self, width: int, drop_path_rate: float, config: DinoConfig):
        super().__init__()
        self.layerscale_value = config.layerscale_value
        self.dwconv = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))
        self.drop_path = DropPath(drop_path_rate)

    def init_parameters(self):
        """Initialises the factors."""
        init.constant_(self.gamma, self.layerscale_value)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        branch = self.norm(self.dwconv(hidden_states).permute(0, 2, 3, 1))  # (B, C, h, w) -> (B, h, w, C)
        branch = self.gamma * self.pwconv2(self.act(self.pwconv1(branch)))
        return hidden_states + self.drop_path(branch.permute(0, 3, 1, 2))


class ConvNeXtStage(Stage, nn.Sequential):
    """Blocks at one resolution, after what reduces the resolution of the stage before."""

    def forward(self, hidden_states: torch.Tensor, downsample: nn.Module | None = None) -> torch.Tensor:
        return super().forward(hidden_states if downsample is None else downsample(hidden_states))


class ConvNeXt(Backbone):
    """Stem and stages. Stage 0 is the stem; outputs of stages are tokens, of which the first is their mean."""

    tag, kind = "convnext", "ConvNeXt"
    num_prefix_tokens = 1
    has_cls_token = has_drop_path = True

    def __init__(self, config: DinoConfig):
        super().__init__()
        widths, eps = config.hidden_sizes, config.layer_norm_eps
        self.patch_size = config.patch_size
        stem = nn.Sequential(
            nn.Conv2d(config.num_channels, widths[0], 4, stride=4), ChannelLayerNorm(widths[0], eps=eps)
        )
        self.downsample_layers = nn.ModuleList([stem])
        for before, width in pairwise(widths):
            layers = ChannelLayerNorm(before, eps=eps), nn.Conv2d(before, width, 2, stride=2)
            self.downsample_layers.append(nn.Sequential(*layers))
        last, number, self.stages = max(sum(config.depths) - 1, 1), 0, nn.ModuleList()
        for width, depth in zip(widths, config.depths):
            rates = [config.drop_path_rate * i / last for i in range(number, number + depth)]
            self.stages.append(ConvNeXtStage(*(ConvNeXtBlock(width, rate, config) for rate in rates)))
            number += depth
        self.norm = nn.LayerNorm(widths[-1], eps=eps)
        self.stage_channels = [widths[0], *widths]
        self.min_image_size = 4 * 2 ** (len(widths) - 1)

    @staticmethod
    def describe(config: DinoConfig) -> str:
        """Returns the sizes of a backbone in words."""
        return f"{'-'.join(map(str, config.depths))} blocks"

    @staticmethod
    def layer_of(parameter: str) -> int | None:
        """Returns the layer of a parameter by its name: 0 for the stem, i for stage i, else None."""
        if parameter.startswith("downsample_layers.0."):
            return 0
        stage = re.match(r"(?:downsample_layers|stages)\.(\d+)\.", parameter)
        return stage and int(stage[1]) + 1

    @staticmethod
    def init_convolution(module: nn.Conv2d):
        """Initialises a convolution as the linears."""
        init.trunc_normal_(module.weight, std=0.02)
        init.zeros_(module.bias)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the pixels."""
        return self.downsample_layers[0][0]

    def grid(self, pixel_values: torch.Tensor, stage: int | None = None) -> tuple[int, int]:
        """
        Returns height and width of the map of a stage, the last by default. Raises ValueError if the image is too
        small for all of them.
        """
        height, width = pixel_values.shape[-2:]
        if height < self.min_image_size or width < self.min_image_size:
            least = self.min_image_size
            raise ValueError(f"an image of {height}x{width} pixels is smaller than {least}x{least}: resize it")
        number = len(self.stages) if stage is None else max(stage, 1)
        stride = 2 ** (number + 1) if self.patch_size is None else self.patch_size
        return height // stride, width // stride

    def forward_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """
        Computes tokens (B, 1 + h * w, C) of each of the given stages, before the norm; later stages do not run.

        Args:
            pixel_values: (B, C, H, W).
            stages: numbers in ascending order.
            kwargs: what only other backbones use.
        """
        grids = [self.grid(pixel_values, stage) for stage in stages]
        stem, *downsample_layers = self.downsample_layers
        maps = [stem(pixel_values)]
        for stage, downsample in zip(self.stages[: stages[-1]], [None, *downsample_layers]):
            maps.append(stage(maps[-1], downsample=downsample))
        return [self.tokens(maps[stage], grid) for stage, grid in zip(stages, grids)]

    def tokens(self, cells: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Returns the mean of a map, and its cells on the given grid: (B, C, h, w) -> (B, 1 + h * w, C)."""
        mean = cells.mean(dim=(2, 3)).unsqueeze(1)
        if self.patch_size is not None:
            cells = nn.functional.interpolate(cells, size=grid, mode="bilinear", antialias=True)
        return torch.cat([mean, cells.flatten(2).transpose(1, 2)], dim=1)

    def normalize(
        self, hidden_states: torch.Tensor, stage: int | None = None, local_crops: bool = False
    ) -> torch.Tensor:
        """Applies the final norm to the tokens of the last stage; those of others stay as they are."""
        is_last = stage is None or stage == len(self.stages)
        return self.norm(hidden_states) if is_last else hidden_states
