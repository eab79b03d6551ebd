# SPDX-License-Identifier: Apache-2.0
"""The parts of a block that several backbones share: feed-forward networks, layer scale, drop path and norms.

References: https://github.com/facebookresearch/dinov2/tree/b8931f7/dinov2/layers and, for the sizes of SwiGLU,
https://github.com/facebookresearch/dinov3/tree/6876159, whose parameter names are kept.
Deviation: SwiGLU always has its gate (`w1`) and its value (`w2`) apart, which DINOv2 packs into one tensor `w12`.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init

from .configuration_dino import DinoConfig


Branch = Callable[[torch.Tensor], torch.Tensor]  # a residual branch, of images (B, ...)


def make_norm(config: DinoConfig) -> nn.Module:
    """Returns a norm over the width of the tokens: LayerNorm, or RMSNorm (https://arxiv.org/abs/1910.07467)."""
    norm = nn.RMSNorm if config.use_rms_norm else nn.LayerNorm
    return norm(config.hidden_size, eps=config.layer_norm_eps)


class Mlp(nn.Module):
    """Two linears with exact (erf) GELU between them."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        hidden_dim = config.feed_forward_width
        self.fc1 = nn.Linear(config.hidden_size, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, config.hidden_size)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(hidden_states)))))


class SwiGlu(nn.Module):
    """A linear of values that are multiplied by their gates, `w3(silu(w1 x) * w2 x)`.

    Paper: GLU Variants Improve Transformer, https://arxiv.org/abs/2002.05202.
    """

    def __init__(self, config: DinoConfig):
        super().__init__()
        hidden_dim = config.feed_forward_width
        self.w1 = nn.Linear(config.hidden_size, hidden_dim)
        self.w2 = nn.Linear(config.hidden_size, hidden_dim)
        self.w3 = nn.Linear(hidden_dim, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.w3(nn.functional.silu(self.w1(hidden_states)) * self.w2(hidden_states))


class LayerScale(nn.Module):
    """Multiplies each channel by a factor of its own, which starts at `value`.

    Paper: Going deeper with Image Transformers, https://arxiv.org/abs/2103.17239.
    """

    def __init__(self, width: int, value: float):
        super().__init__()
        self.value = value
        self.gamma = nn.Parameter(torch.full((width,), float(value)))

    def init_parameters(self):
        """Initialises the factors."""
        init.constant_(self.gamma, self.value)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.gamma

    def extra_repr(self) -> str:
        return f"value={self.value:.3g}"


def make_layer_scale(config: DinoConfig) -> nn.Module:
    """Returns a layer scale, or what does nothing where the configuration has none."""
    return (
        nn.Identity() if config.layerscale_value is None else LayerScale(config.hidden_size, config.layerscale_value)
    )


class DropPath(nn.Module):
    """Stochastic depth: in training, each image skips the residual branch with probability `rate`.

    Paper: Deep Networks with Stochastic Depth, https://arxiv.org/abs/1603.09382.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.rate == 0 or not self.training:
            return hidden_states
        keep_rate = 1 - self.rate
        one_an_image = (hidden_states.shape[0], *[1] * (hidden_states.ndim - 1))
        mask = hidden_states.new_empty(one_an_image).bernoulli_(keep_rate)
        return hidden_states * mask / keep_rate

    def add_branch(self, residual: torch.Tensor, hidden_states: torch.Tensor, branch: Branch) -> torch.Tensor:
        """Adds what a branch makes of the images (B, ...) to the residual (B, ...), for those that do not skip it."""
        return residual + self(branch(hidden_states))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class SubsetDropPath(DropPath):
    """
    Stochastic depth of DINOv2 and DINOv3: int(B * (1 - `rate`)) of B images, at least one, take the branch, drawn at
    random; it is not computed for the others.

    Reference: `drop_add_residual_stochastic_depth` of
    https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/layers/block.py; DINOv2
    (https://arxiv.org/abs/2304.07193), "Efficient stochastic depth".
    """

    def add_branch(self, residual: torch.Tensor, hidden_states: torch.Tensor, branch: Branch) -> torch.Tensor:
        if self.rate == 0 or not self.training or len(hidden_states) == 0:
            return residual + branch(hidden_states)
        count = max(int(len(hidden_states) * (1 - self.rate)), 1)
        images = torch.randperm(len(hidden_states), device=hidden_states.device)[:count]
        computed = branch(hidden_states[images])
        dtype = torch.promote_types(residual.dtype, computed.dtype)  # as of a sum, which index_add does not promote
        return residual.to(dtype).index_add(0, images, computed.to(dtype), alpha=len(hidden_states) / count)
