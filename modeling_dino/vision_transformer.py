# SPDX-License-Identifier: Apache-2.0
"""The vision transformer of DINO.

Paper: An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929, in the sizes of DeiT and DINO.
Reference: https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py, whose parameter names are kept.
Deviations: attention goes through transformers' attention interface, and positions are interpolated in float32 in
every dtype, in one of three ways (`config.position_interpolation`).

Letters in shapes: B images, C channels, H x W pixels, h x w patches, T = 1 + h * w tokens, D width.
"""

import math
import re

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .backbone import Backbone, Stage, is_recorded
from .configuration_dino import DinoConfig


class PatchEmbed(nn.Module):
    """Cuts the image into patches and embeds each; what does not fill a patch at the bottom and right is cropped."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.proj = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, h * w, D)


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
    side = native_grid_side(positions)
    height, width = grid
    # An image that is not square goes through the 0.1 of the original even on the native grid.
    if grid == (side, side) and (method != "dino" or image_size[0] == image_size[1]):
        return positions
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


def attention_weights(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Computes how much each query attends to each key: two of (B, heads, T, D / heads) -> (B, heads, T, T)."""
    return (query * scaling @ key.transpose(-2, -1)).softmax(dim=-1)


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes attention by definition, with the signature of transformers' attention interface.

    Returns:
        the attended values (B, T, heads, D / heads), and the attention weights (B, heads, T, T).
    """
    weights = attention_weights(query, key, scaling)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """Multi-head self-attention with one fused linear for query, key and value, in that order."""

    is_causal = False
    linears: tuple[type, ...] = (nn.Linear,)  # classes that compute nothing but `x @ weight.T + bias`

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.attn_drop = config.attention_probs_dropout_prob
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.hidden_dropout_prob)

    def query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, T, D) -> three of (B, heads, T, D / heads)."""
        return (
            self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )

    def _qkv_weights(self) -> list[torch.Tensor] | None:
        """Returns the weights of query, key and value, (heads, D / heads, D); None for adapters and offloaded weights,
        where only the module knows what it computes."""
        if type(self.qkv) not in self.linears or hasattr(self.qkv, "_hf_hook"):
            return None
        return self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim)).unbind(0)

    def forward(
        self, hidden_states: torch.Tensor, cls_only: bool = False, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if cls_only:
            attended, weights = self._attend_from_cls(hidden_states)
        else:
            attended, weights = self._attend(hidden_states, **kwargs)
        return self.proj_drop(self.proj(attended.flatten(2))), weights

    def _attend(self, hidden_states: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes the attended values (B, T, heads, D / heads), and the weights if the kernel returns them."""
        # Only eager attention returns its weights, and only it takes no images, so it computes these calls.
        needs_weights = kwargs.get("output_attentions", self.config.output_attentions)
        needs_eager = needs_weights or (not is_recorded() and hidden_states.shape[0] == 0)
        implementation = "eager" if needs_eager else self.config._attn_implementation
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.attn_drop if self.training else 0.0
        query_key_value = self.query_key_value(hidden_states)
        return attend(self, *query_key_value, None, scaling=self.scaling, dropout=dropout, **kwargs)

    def _attend_from_cls(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes `_attend` for the CLS token alone, without the values of the tokens: a mean of values is the value of
        the mean of tokens, as the weights of the mean sum to 1.
        """
        weights = self.cls_attention(hidden_states)
        weights = nn.functional.dropout(weights, p=self.attn_drop, training=self.training)
        projections = self._qkv_weights()
        if projections is None or (self.training and self.attn_drop):
            *_, value = self.query_key_value(hidden_states)
            return (weights.unsqueeze(2) @ value).transpose(1, 2), weights.unsqueeze(2)
        means = weights @ hidden_states  # (B, heads, D)
        attended = torch.einsum("bhd,hkd->bhk", means, projections[2])
        if self.qkv.bias is not None:
            attended = attended + self.qkv.bias.unflatten(0, (3, self.num_heads, -1))[2]
        return attended.unsqueeze(1), weights.unsqueeze(2)

    def attention_map(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Computes the whole attention: (B, T, D) -> (B, heads, T, T)."""
        query, key, _ = self.query_key_value(hidden_states)
        return attention_weights(query, key, self.scaling)

    def cls_attention(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """
        Computes the CLS token's row of the attention, without the keys: (B, T, D) -> (B, heads, T).

        `query @ (W x + b) = (query @ W) @ x + query @ b`, whose last term is the same for every token x, so the
        softmax cancels it.
        """
        projections = self._qkv_weights()
        if projections is None:
            query, key, _ = self.query_key_value(hidden_states)
            return attention_weights(query[:, :, :1], key, self.scaling).squeeze(2)
        query = torch.einsum("bd,hkd->bhk", hidden_states[:, 0], projections[0])
        if self.qkv.bias is not None:
            query = query + self.qkv.bias.unflatten(0, (3, self.num_heads, -1))[0]
        directions = torch.einsum("bhk,hkd->bhd", query * self.scaling, projections[1])
        return (directions @ hidden_states.transpose(1, 2)).softmax(dim=-1)


class Mlp(nn.Module):
    """Two linears with exact (erf) GELU between them."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        hidden_dim = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, config.hidden_size)
        self.drop = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(hidden_states)))))


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
        mask = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_rate)  # one draw an image
        return hidden_states * mask / keep_rate

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3g}"


class Block(Stage, GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: DinoConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.drop_path = DropPath(drop_path_rate)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, hidden_states: torch.Tensor, cls_only: bool = False, **kwargs) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), or with `cls_only` only its CLS token, (B, 1, D), for less work."""
        attended, _ = self.attn(self.norm1(hidden_states), cls_only=cls_only, **kwargs)
        residual = hidden_states[:, :1] if cls_only else hidden_states
        hidden_states = residual + self.drop_path(attended)
        return hidden_states + self.drop_path(self.mlp(self.norm2(hidden_states)))


class VisionTransformer(Backbone):
    """Patches and a CLS token through pre-norm blocks. Stage 0 is the embedding, stage i the output of block i."""

    tag, kind = "vit", "vision transformer"
    num_prefix_tokens = 1
    has_attention = has_cls_token = has_patch_tokens = has_drop_path = True

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.position_interpolation = config.position_interpolation
        num_patches = (config.image_size // config.patch_size) ** 2
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        last = max(config.num_hidden_layers - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config, config.drop_path_rate * i / last) for i in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.stage_channels = [config.hidden_size] * (1 + config.num_hidden_layers)
        self.min_image_size = config.patch_size

    @staticmethod
    def describe(config: DinoConfig) -> str:
        """Returns the sizes of a backbone in words."""
        return f"{config.num_hidden_layers} blocks, {config.num_attention_heads} heads, patch {config.patch_size}"

    @staticmethod
    def layer_of(parameter: str) -> int | None:
        """Returns the layer of a parameter by its name: 0 for the embedding, i + 1 for block i, else None."""
        if block := re.match(r"blocks\.(\d+)\.", parameter):
            return int(block[1]) + 1
        return 0 if parameter.startswith(("patch_embed", "cls_token", "pos_embed")) else None

    @staticmethod
    def init_convolution(module: nn.Conv2d):
        """Initialises the patch embedding as PyTorch does by default."""
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(module.bias, -bound, bound)

    def init_tokens(self):
        """Initialises CLS token and positions as the original does."""
        init.trunc_normal_(self.cls_token, std=0.02)
        init.trunc_normal_(self.pos_embed, std=0.02)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the pixels."""
        return self.patch_embed.proj

    def grid(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Returns height and width of an image in patches; raises ValueError if it is smaller than a patch."""
        height, width = pixel_values.shape[-2:]
        if height < self.patch_size or width < self.patch_size:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than a patch of "
                f"{self.patch_size}x{self.patch_size}: resize it, or use a model with smaller patches"
            )
        return height // self.patch_size, width // self.patch_size

    def embed(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Computes the tokens before the first block: (B, C, H, W) -> (B, T, D)."""
        positions = self.positions(pixel_values)
        tokens = self.patch_embed(pixel_values)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        return self.pos_drop(tokens + positions)

    def positions(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the embeddings of the positions in an image, (1, T, D)."""
        size, grid = tuple(pixel_values.shape[-2:]), self.grid(pixel_values)
        return interpolate_positions(self.pos_embed, size, grid, self.position_interpolation)

    def forward_stages(
        self, pixel_values: torch.Tensor, stages: list[int], cls_only: bool = False, **kwargs
    ) -> list[torch.Tensor]:
        """
        Computes the tokens (B, T, D) after each of the given stages, before the final norm; later blocks do not run.

        Args:
            pixel_values: (B, C, H, W).
            stages: numbers in ascending order.
            cls_only: return only CLS tokens, (B, 1, D); the last block computes no others.
        """
        hidden_states = self.embed(pixel_values)
        outputs = [hidden_states] if 0 in stages else []
        for stage, block in enumerate(self.blocks[: stages[-1]], start=1):
            if cls_only and stage == stages[-1]:
                kwargs["cls_only"] = True
            hidden_states = block(hidden_states, **kwargs)
            if stage in stages:
                outputs.append(hidden_states)
        return [tokens[:, :1] for tokens in outputs] if cls_only else outputs

    def pooled_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """Computes the normed CLS tokens (B, D) of the given stages; the last block computes no other tokens."""
        return super().pooled_stages(pixel_values, stages, cls_only=True, **kwargs)

    def normalize(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the final norm to the output of a block: (B, T, D) -> (B, T, D)."""
        return self.norm(hidden_states)

    def pool(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Returns the feature of each image, its CLS token: (B, T, D) -> (B, D)."""
        return last_hidden_state[:, 0]

    def patch_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of the patches: (B, T, D) -> (B, h * w, D)."""
        return hidden_states[:, self.num_prefix_tokens :]

    def feature_map(self, hidden_states: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns the patch tokens on their grid: (B, T, D) -> (B, D, h, w)."""
        patches = self.patch_tokens(hidden_states).unflatten(1, self.grid(pixel_values))
        return patches.permute(0, 3, 1, 2).contiguous()

    def attention_maps(self, pixel_values: torch.Tensor, layers: list[int]) -> tuple[torch.Tensor, ...]:
        """Computes the whole attention (B, heads, T, T) of each of the given blocks, counted from 0."""
        ascending = sorted(set(layers))
        inputs = dict(zip(ascending, self(pixel_values, stages=ascending)))  # stage i is the input of block i
        blocks = [(self.blocks[i], inputs[i]) for i in layers]
        return tuple(block.attn.attention_map(block.norm1(tokens)) for block, tokens in blocks)

    def cls_attention(self, pixel_values: torch.Tensor, layer: int) -> torch.Tensor:
        """Computes what the CLS token attends to among the patches in a block, counted from 0: (B, heads, h, w)."""
        (hidden_states,) = self(pixel_values, stages=[layer])
        return self._attention_to_patches(layer, hidden_states, pixel_values)

    def patch_tokens_and_attention(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes the normed patch tokens of the last block (B, h * w, D), and the attention of its CLS token to the
        patches (B, heads, h, w), in one pass.
        """
        depth = len(self.blocks)
        before, after = self(pixel_values, stages=[depth - 1, depth])
        attention = self._attention_to_patches(depth - 1, before, pixel_values)
        return self.patch_tokens(self.normalize(after)), attention

    def _attention_to_patches(self, layer: int, hidden_states: torch.Tensor, pixel_values: torch.Tensor):
        block = self.blocks[layer]
        attention = block.attn.cls_attention(block.norm1(hidden_states))
        return attention[..., self.num_prefix_tokens :].unflatten(-1, self.grid(pixel_values))
