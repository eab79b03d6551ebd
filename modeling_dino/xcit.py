# SPDX-License-Identifier: Apache-2.0
"""The XCiTs of DINO: transformers whose attention is between channels.

Paper: XCiT: Cross-Covariance Image Transformers, https://arxiv.org/abs/2106.09681.
Reference: https://github.com/facebookresearch/xcit/blob/82f5291/xcit.py, whose parameter names are kept.
Deviation: `forward` returns all tokens, not the CLS token alone.

Letters in shapes: B images, C channels, H x W pixels, h x w patches, N = h * w of them, D width.
"""

import math
import re
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer

from .backbone import Backbone, Stage, batch_counted_once
from .block_parts import DropPath, Mlp, make_norm
from .configuration_dino import DinoConfig
from .projection_head import l2_normalize
from .vision_transformer import Attention


POSITION_FREQUENCIES = 16  # for rows and columns each, a sine and a cosine
TEMPERATURE = 10000


class ConvPatchEmbed(nn.Module):
    """3x3 convolutions of stride 2 with batch norm, and GELU between them; sizes are rounded up."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        halvings = int(math.log2(config.patch_size))
        widths = [config.num_channels, *(config.hidden_size // 2**i for i in reversed(range(halvings)))]
        layers = []
        for before, width in pairwise(widths):
            conv = nn.Conv2d(before, width, kernel_size=3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(width)), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, N, D)


class FourierPositions(nn.Module):
    """Sines and cosines of rows and columns, in a linear."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.token_projection = nn.Conv2d(4 * POSITION_FREQUENCIES, config.hidden_size, kernel_size=1)

    def forward(self, grid: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """Computes the embeddings of a grid (h, w), on the device and in the dtype of a tensor: (1, D, h, w)."""
        rows, columns = (self._waves(length, like.device) for length in grid)  # (length, 2 * frequencies)
        rows = rows.unsqueeze(1).expand(-1, grid[1], -1)
        columns = columns.unsqueeze(0).expand(grid[0], -1, -1)
        waves = torch.cat([rows, columns], dim=-1).permute(2, 0, 1).unsqueeze(0)
        return self.token_projection(waves.to(like.dtype))

    @staticmethod
    def _waves(length: int, device: torch.device) -> torch.Tensor:
        positions = torch.arange(1, length + 1, device=device, dtype=torch.float32) / (length + 1e-6) * 2 * math.pi
        exponents = torch.arange(POSITION_FREQUENCIES, device=device, dtype=torch.float32) / POSITION_FREQUENCIES
        angles = positions.unsqueeze(1) / TEMPERATURE**exponents
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # a sine, then its cosine


class CrossCovarianceAttention(nn.Module):
    """Attention between the channels of each head, by the cosines of their values over all patches."""

    query_key_value = Attention.query_key_value  # (B, N, D) -> three of (B, heads, N, D / heads)

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.temperature = nn.Parameter(torch.ones(self.num_heads, 1, 1))
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.attn_drop = nn.Dropout(config.attention_probs_dropout_prob)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.hidden_dropout_prob)

    def init_parameters(self):
        """Initialises the temperatures."""
        init.ones_(self.temperature)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        query, key, value = (x.transpose(-2, -1) for x in self.query_key_value(hidden_states))
        weights = (l2_normalize(query) @ l2_normalize(key).transpose(-2, -1)) * self.temperature
        attended = self.attn_drop(weights.softmax(dim=-1)) @ value
        return self.proj_drop(self.proj(attended.permute(0, 3, 1, 2).flatten(2)))


class LocalPatchInteraction(nn.Module):
    """Two depthwise 3x3 convolutions over the grid of patches."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)
        self.act = nn.GELU()
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        cells = hidden_states.transpose(1, 2).unflatten(2, grid)  # (B, N, D) -> (B, D, h, w)
        return self.conv2(self.bn(self.act(self.conv1(cells)))).flatten(2).transpose(1, 2)


class ScaledBranches(GradientCheckpointingLayer):
    """A block whose branches have factors `gamma1`, `gamma2`, …, one a channel."""

    def __init__(self, config: DinoConfig, num_branches: int):
        super().__init__()
        self.num_branches, self.layerscale_value = num_branches, config.layerscale_value
        for i in range(1, num_branches + 1):
            setattr(self, f"gamma{i}", nn.Parameter(torch.ones(config.hidden_size)))

    def init_parameters(self):
        """Initialises the factors."""
        for i in range(1, self.num_branches + 1):
            init.constant_(getattr(self, f"gamma{i}"), self.layerscale_value)


class XcitBlock(Stage, ScaledBranches):
    """Attention between channels, local interaction of patches, and an MLP; the patches have no CLS token here."""

    def __init__(self, config: DinoConfig):
        super().__init__(config, num_branches=3)
        self.norm1 = make_norm(config)
        self.attn = CrossCovarianceAttention(config)
        self.drop_path = DropPath(config.drop_path_rate)
        self.norm2 = make_norm(config)
        self.mlp = Mlp(config)
        self.norm3 = make_norm(config)
        self.local_mp = LocalPatchInteraction(config)

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        with batch_counted_once(self):
            hidden_states = hidden_states + self.drop_path(self.gamma1 * self.attn(self.norm1(hidden_states)))
            local = self.local_mp(self.norm3(hidden_states), grid)
            hidden_states = hidden_states + self.drop_path(self.gamma3 * local)
            return hidden_states + self.drop_path(self.gamma2 * self.mlp(self.norm2(hidden_states)))


class ClassAttentionBlock(ScaledBranches):
    """A block in which the CLS token attends to the patches, which change by norms alone."""

    def __init__(self, config: DinoConfig):
        super().__init__(config, num_branches=2)
        self.norms_all_tokens = config.tokens_norm
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp = Mlp(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, 1 + N, D) -> (B, 1 + N, D). The patches are added to themselves, as the original does."""
        normed = self.norm1(hidden_states)
        attended, _ = self.attn(normed, cls_only=True)
        attended = torch.cat([attended, normed[:, 1:]], dim=1)
        hidden_states = hidden_states + self.gamma1 * attended
        if self.norms_all_tokens:
            hidden_states = self.norm2(hidden_states)
        else:
            hidden_states = torch.cat([self.norm2(hidden_states[:, :1]), hidden_states[:, 1:]], dim=1)
        cls_branch = self.gamma2 * self.mlp(hidden_states[:, :1])
        return hidden_states + torch.cat([cls_branch, hidden_states[:, 1:]], dim=1)


class Xcit(Backbone):
    """Patches through blocks, after which a CLS token attends to them. Stage 0 is the embedding, stage i block i."""

    tag, kind = "xcit", "cross-covariance image transformer"
    num_prefix_tokens = 1
    has_cls_attention = has_facets = has_cls_token = has_patch_tokens = has_drop_path = True

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.token_init_std = config.token_init_std
        self.patch_embed = ConvPatchEmbed(config)
        self.pos_embeder = FourierPositions(config)
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList(XcitBlock(config) for _ in range(config.num_hidden_layers))
        num_layers = config.num_class_attention_layers
        self.cls_attn_blocks = nn.ModuleList(ClassAttentionBlock(config) for _ in range(num_layers))
        self.norm = make_norm(config)
        self.stage_channels = [config.hidden_size] * (1 + config.num_hidden_layers)

    @property
    def num_attention_layers(self) -> int:
        """The number of layers in which the CLS token attends: that of the class-attention blocks."""
        return len(self.cls_attn_blocks)

    @staticmethod
    def describe(config: DinoConfig) -> str:
        """Returns the sizes of a backbone in words."""
        blocks = f"{config.num_hidden_layers} + {config.num_class_attention_layers} blocks"
        return f"{blocks}, {config.num_attention_heads} heads, patch {config.patch_size}"

    @staticmethod
    def layer_of(parameter: str) -> int | None:
        """Returns the layer of a parameter by its name: 0 for the embedding, i + 1 for block i, else None."""
        if block := re.match(r"blocks\.(\d+)\.", parameter):
            return int(block[1]) + 1
        return 0 if parameter.startswith(("patch_embed", "pos_embeder", "cls_token")) else None

    def init_parameters(self):
        """Initialises the CLS token."""
        init.trunc_normal_(self.cls_token, std=self.token_init_std)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the pixels."""
        return self.patch_embed.proj[0][0]

    def grid(self, pixel_values: torch.Tensor, stage: int | None = None) -> tuple[int, int]:
        """Returns height and width of an image in patches, rounded up."""
        height, width = pixel_values.shape[-2:]
        up = self.patch_size - 1  # not -(-x // p): ONNX divides whole numbers toward 0
        return (height + up) // self.patch_size, (width + up) // self.patch_size

    def forward_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """
        Computes tokens (B, 1 + N, D) after each of the given stages and the class attention, before the final norm;
        later blocks do not run.

        Args:
            pixel_values: (B, C, H, W).
            stages: numbers in ascending order.
            kwargs: what only other backbones use.
        """
        return [self.attend_from_cls(patches) for patches in self.block_tokens(pixel_values, stages)]

    def block_tokens(self, pixel_values: torch.Tensor, stages: list[int]) -> list[torch.Tensor]:
        """Computes the patches (B, N, D) after each of the given stages."""
        grid = self.grid(pixel_values)
        positions = self.pos_embeder(grid, pixel_values).flatten(2).transpose(1, 2)
        patches = self.pos_drop(self.patch_embed(pixel_values) + positions)
        outputs = [patches] if 0 in stages else []
        for stage, block in enumerate(self.blocks[: stages[-1]], start=1):
            patches = block(patches, grid=grid)
            if stage in stages:
                outputs.append(patches)
        return outputs

    def attend_from_cls(self, patches: torch.Tensor, num_layers: int | None = None) -> torch.Tensor:
        """Computes what the class-attention blocks, or the first of them, make of patches: (B, N, D) ->
        (B, 1 + N, D)."""
        tokens = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        for block in self.cls_attn_blocks[:num_layers]:
            tokens = block(tokens)
        return tokens

    def cls_attention(self, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """Computes what the CLS token attends to among the patches in a class-attention block: (B, heads, h, w)."""
        _, attention = self._tokens_and_attention(pixel_values, layer)
        return attention

    def patch_tokens_and_attention(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the normed patch tokens (B, N, D), and the last attention of the CLS token (B, heads, h, w)."""
        tokens, attention = self._tokens_and_attention(pixel_values, len(self.cls_attn_blocks) - 1)
        return self.patch_tokens(self.normalize(tokens)), attention

    def _tokens_and_attention(self, pixel_values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        (patches,) = self.block_tokens(pixel_values, [len(self.blocks)])
        before, block = self.attend_from_cls(patches, layer), self.cls_attn_blocks[layer]
        weights = block.attn.cls_attention(block.norm1(before))
        return block(before), weights[:, :, 1:].unflatten(-1, self.grid(pixel_values))
