# SPDX-License-Identifier: Apache-2.0
"""ResNets in torchvision's v1.5 layout, without the classifier.

Paper: Deep Residual Learning for Image Recognition, https://arxiv.org/abs/1512.03385; v1.5 has the stride in the 3x3
convolution of the bottleneck. Parameter names are those of torchvision/models/resnet.py, so its state dicts, and the
published DINO ResNet-50, load as they are.
Deviation: a second stem for small images, as usual on CIFAR.

Letters in shapes: B images, C channels, H x W pixels, h x w cells of a feature map.
"""

import re

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbone import Backbone, Stage, batch_counted_once
from .configuration_dino import DinoConfig


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    """Returns a convolution that keeps the size but for the stride; the batch norm after it has the bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


class ResidualBlock(GradientCheckpointingLayer):
    """
    Adds a branch of convolutions with batch norms to the input, which is projected if need be.

    Attributes:
        num_convolutions: `conv1`, `conv2`, … of a subclass, each followed by `bn1`, `bn2`, …
        expansion: output channels of the block over its inner width.
    """

    num_convolutions: int
    expansion: int

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        out_channels = width * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                conv(in_channels, out_channels, 1, stride=stride), nn.BatchNorm2d(out_channels)
            )

    def convolutions(self) -> list[tuple[nn.Module, nn.Module]]:
        """Returns the convolutions of the branch, each with its norm."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"bn{i}")) for i in range(1, self.num_convolutions + 1)]

    def branch(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Computes what is added to the input: ReLU between the convolutions, none after the last."""
        *pairs, (last_conv, last_norm) = self.convolutions()
        for convolution, norm in pairs:
            hidden_states = self.relu(norm(convolution(hidden_states)))
        return last_norm(last_conv(hidden_states))

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        with batch_counted_once(self):
            residual = hidden_states if self.downsample is None else self.downsample(hidden_states)
            return self.relu(self.branch(hidden_states) + residual)


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    num_convolutions, expansion = 2, 1

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__(in_channels, width, stride)
        self.conv1 = conv(in_channels, width, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.bn2.ends_residual_branch = True


class Bottleneck(ResidualBlock):
    """1x1 down, 3x3 with the stride, 1x1 up (ResNet-50, -101 and -152)."""

    num_convolutions, expansion = 3, 4

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__(in_channels, width, stride)
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride=stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.bn3.ends_residual_branch = True


class ResNetStage(Stage, nn.Sequential):
    """Residual blocks at one resolution."""

    def __init__(self, block: type[ResidualBlock], in_channels: int, width: int, depth: int, stride: int):
        out_channels = width * block.expansion
        super().__init__(block(in_channels, width, stride), *(block(out_channels, width, 1) for _ in range(depth - 1)))


class ResNet(Backbone):
    """Stem and residual stages. Stage 0 is the stem, stage i is `layer{i}`."""

    tag, kind = "resnet", "ResNet"

    def __init__(self, config: DinoConfig):
        super().__init__()
        block = Bottleneck if config.resnet_expansion == Bottleneck.expansion else BasicBlock
        channels = config.resnet_width
        if config.uses_cifar_stem:
            self.conv1, self.maxpool = conv(config.num_channels, channels, 3), nn.Identity()
        else:
            self.conv1 = conv(config.num_channels, channels, 7, stride=2)
            self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stage_channels = [channels]
        for i, depth in enumerate(config.depths):
            stage = ResNetStage(block, channels, config.resnet_width * 2**i, depth, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", stage)
            channels = config.resnet_width * 2**i * block.expansion
            self.stage_channels.append(channels)

    @staticmethod
    def describe(config: DinoConfig) -> str:
        """Returns the sizes of a backbone in words."""
        return f"{'-'.join(map(str, config.depths))} blocks"

    @staticmethod
    def layer_of(parameter: str) -> int | None:
        """Returns the layer of a parameter by its name: 0 for the stem, i for stage i, else None."""
        if stage := re.match(r"layer(\d+)\.", parameter):
            return int(stage[1])
        return 0 if parameter.startswith(("conv1", "bn1")) else None

    @staticmethod
    def init_convolution(module: nn.Conv2d):
        """Initialises a convolution as the paper does (He et al., https://arxiv.org/abs/1502.01852)."""
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the pixels."""
        return self.conv1

    def stem(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) -> (B, C, h, w)."""
        return self.maxpool(self.relu(self.bn1(self.conv1(pixel_values))))

    def forward_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """
        Computes the maps (B, C, h, w) after each of the given stages; later stages do not run.

        Args:
            pixel_values: (B, C, H, W).
            stages: numbers in ascending order.
            kwargs: what only other backbones use.
        """
        hidden_states = self.stem(pixel_values)
        outputs = [hidden_states] if 0 in stages else []
        for stage in range(1, stages[-1] + 1):
            hidden_states = getattr(self, f"layer{stage}")(hidden_states)
            if stage in stages:
                outputs.append(hidden_states)
        return outputs

    def normalize(
        self, hidden_states: torch.Tensor, stage: int | None = None, local_crops: bool = False
    ) -> torch.Tensor:
        """Returns the output of a stage as it is: there is no final norm."""
        return hidden_states

    def pool(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Returns the feature of each image, the global average: (B, C, h, w) -> (B, C)."""
        return last_hidden_state.mean(dim=(2, 3))

    def patch_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the cells of a map as a sequence: (B, C, h, w) -> (B, h * w, C)."""
        return hidden_states.flatten(2).transpose(1, 2)

    def feature_map(
        self, hidden_states: torch.Tensor, pixel_values: torch.Tensor, stage: int | None = None
    ) -> torch.Tensor:
        """Returns the output of a stage, which is a map."""
        return hidden_states
