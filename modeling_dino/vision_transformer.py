# SPDX-License-Identifier: Apache-2.0
"""The vision transformers of DINO, DINOv2 and DINOv3, which differ in options of the configuration.

Paper: An Image is Worth 16x16 Words, https://arxiv.org/abs/2010.11929, in the sizes of DeiT and of the DINOs.
References: https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py, and
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/models/vision_transformer.py, whose parameter names are
kept; for DINOv3 https://github.com/facebookresearch/dinov3/tree/6876159.
Deviations: attention goes through transformers' attention interface; DINOv3's storage tokens are called registers; its
mask of the key bias is no buffer; a size that the patch does not divide is cropped, as DINO and DINOv3 do.

Letters in shapes: B images, C channels, H x W pixels, h x w patches, T = 1 + registers + h * w tokens, D width.
"""

import re

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .backbone import Backbone, Stage, is_recorded
from .block_parts import DropPath, Mlp, SubsetDropPath, SwiGlu, make_layer_scale, make_norm
from .configuration_dino import DinoConfig
from .positions import Angles, RotaryPositions, interpolate_positions, rotate


OPTIONAL_TOKENS = ("register_tokens", "mask_token")


class PatchEmbed(nn.Module):
    """Cuts the image into patches and embeds each; what does not fill a patch at the bottom and right is cropped."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.proj = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.proj(pixel_values).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, h * w, D)


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


def is_half_on_cpu(query: torch.Tensor) -> bool:
    """Returns whether fused attention takes longer than its definition; its backward pass takes up to six times."""
    return query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16)


class LinearWithoutKeyBias(nn.Linear):
    """A fused linear for query, key and value that adds no bias to the key; that third of its bias has no effect."""

    def used_bias(self) -> torch.Tensor:
        """Returns the bias with zeros for the key, (3 * D,)."""
        query, key, value = self.bias.chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight, self.used_bias())


class Attention(nn.Module):
    """Multi-head self-attention with one fused linear for query, key and value, in that order."""

    is_causal = False

    def __init__(self, config: DinoConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        linear = nn.Linear if config.key_bias or not config.qkv_bias else LinearWithoutKeyBias
        self.qkv = linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.attn_drop = config.attention_probs_dropout_prob
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj_drop = nn.Dropout(config.hidden_dropout_prob)

    def query_key_value(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(B, T, D) -> three of (B, heads, T, D / heads)."""
        return (
            self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        )

    def rotated(self, hidden_states: torch.Tensor, angles: Angles | None) -> tuple[torch.Tensor, ...]:
        """Computes query, key and value, the first two of them rotated if there are angles."""
        query, key, value = self.query_key_value(hidden_states)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        return query, key, value

    def _projections(self) -> tuple[list[torch.Tensor], list[torch.Tensor | None]] | None:
        """Returns weights (heads, D / heads, D) and biases (heads, D / heads) of query, key and value; None for
        adapters and offloaded weights, where only the module knows what it computes."""
        if type(self.qkv) not in (nn.Linear, LinearWithoutKeyBias) or hasattr(self.qkv, "_hf_hook"):
            return None
        weights = self.qkv.weight.unflatten(0, (3, self.num_heads, self.head_dim)).unbind(0)
        if self.qkv.bias is None:
            return weights, (None, None, None)
        query, key, value = self.qkv.bias.unflatten(0, (3, self.num_heads, -1)).unbind(0)
        return weights, (query, key if self.config.key_bias else None, value)

    def forward(
        self, hidden_states: torch.Tensor, cls_only: bool = False, angles: Angles | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if cls_only:
            attended, weights = self._attend_from_cls(hidden_states, angles)
        else:
            attended, weights = self._attend(hidden_states, angles, **kwargs)
        return self.proj_drop(self.proj(attended.flatten(2))), weights

    def _attend(
        self, hidden_states: torch.Tensor, angles: Angles | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes the attended values (B, T, heads, D / heads), and the weights if the kernel returns them."""
        # Only eager attention returns its weights, and only it takes no images, so it computes these calls.
        needs_weights = kwargs.get("output_attentions", self.config.output_attentions)
        needs_eager = needs_weights or (not is_recorded() and hidden_states.shape[0] == 0)
        query_key_value = self.rotated(hidden_states, angles)
        implementation = self.config._attn_implementation
        if needs_eager or (implementation == "sdpa" and self.training and is_half_on_cpu(query_key_value[0])):
            implementation = "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention)
        dropout = self.attn_drop if self.training else 0.0
        return attend(self, *query_key_value, None, scaling=self.scaling, dropout=dropout, **kwargs)

    def _attend_from_cls(
        self, hidden_states: torch.Tensor, angles: Angles | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Computes `_attend` for the CLS token alone, without the values of the tokens: a mean of values is the value of
        the mean of tokens, as the weights of the mean sum to 1.
        """
        weights = self.cls_attention(hidden_states, angles)
        weights = nn.functional.dropout(weights, p=self.attn_drop, training=self.training)
        projections = self._projections()
        if projections is None or (self.training and self.attn_drop):
            *_, value = self.query_key_value(hidden_states)
            return (weights.unsqueeze(2) @ value).transpose(1, 2), weights.unsqueeze(2)
        (*_, value_weight), (*_, value_bias) = projections
        means = weights @ hidden_states  # (B, heads, D)
        attended = torch.einsum("bhd,hkd->bhk", means, value_weight)
        if value_bias is not None:
            attended = attended + value_bias
        return attended.unsqueeze(1), weights.unsqueeze(2)

    def attention_map(self, hidden_states: torch.Tensor, angles: Angles | None) -> torch.Tensor:
        """Computes the whole attention: (B, T, D) -> (B, heads, T, T)."""
        query, key, _ = self.rotated(hidden_states, angles)
        return attention_weights(query, key, self.scaling)

    def cls_attention(self, hidden_states: torch.Tensor, angles: Angles | None = None) -> torch.Tensor:
        """
        Computes the CLS token's row of the attention: (B, T, D) -> (B, heads, T); without the keys, if they are not
        rotated.

        `query @ (W x + b) = (query @ W) @ x + query @ b`, whose last term is the same for every token x, so the
        softmax cancels it.
        """
        projections = self._projections()
        if projections is None:
            query, key, _ = self.rotated(hidden_states, angles)
            return attention_weights(query[:, :, :1], key, self.scaling).squeeze(2)
        (query_weight, key_weight, _), (query_bias, key_bias, _) = projections
        query = torch.einsum("bd,hkd->bhk", hidden_states[:, 0], query_weight)
        if query_bias is not None:
            query = query + query_bias
        if angles is None:
            directions = torch.einsum("bhk,hkd->bhd", query * self.scaling, key_weight)
            return (directions @ hidden_states.transpose(1, 2)).softmax(dim=-1)
        key = torch.einsum("btd,hkd->bhtk", hidden_states, key_weight)
        key = rotate(key if key_bias is None else key + key_bias.unsqueeze(1), angles)
        query = query.to(angles[0].dtype).to(key.dtype)  # rounded as the keys are
        return attention_weights(query.unsqueeze(2), key, self.scaling).squeeze(2)


class Block(Stage, GradientCheckpointingLayer):
    """A pre-norm transformer block, with LayerScale in some."""

    def __init__(self, config: DinoConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = make_norm(config)
        self.attn = Attention(config)
        self.ls1 = make_layer_scale(config)
        self.drop_path = (SubsetDropPath if config.drop_path_uniform else DropPath)(drop_path_rate)
        self.norm2 = make_norm(config)
        self.mlp = SwiGlu(config) if config.use_swiglu_ffn else Mlp(config)
        self.ls2 = make_layer_scale(config)

    def forward(self, hidden_states: torch.Tensor, cls_only: bool = False, **kwargs) -> torch.Tensor:
        """
        (B, T, D) -> (B, T, D), or with `cls_only` only its CLS token, (B, 1, D), for less work. The `angles` of rotary
        positions are among `kwargs`.
        """

        def attend(tokens: torch.Tensor) -> torch.Tensor:
            return self.ls1(self.attn(self.norm1(tokens), cls_only=cls_only, **kwargs)[0])

        def feed_forward(tokens: torch.Tensor) -> torch.Tensor:
            return self.ls2(self.mlp(self.norm2(tokens)))

        residual = hidden_states[:, :1] if cls_only else hidden_states
        hidden_states = self.drop_path.add_branch(residual, hidden_states, attend)
        return self.drop_path.add_branch(hidden_states, hidden_states, feed_forward)


class VisionTransformer(Backbone):
    """CLS token, registers and patches through pre-norm blocks. Stage 0 is the embedding, stage i is block i."""

    tag, kind = "vit", "vision transformer"
    has_attention = has_cls_attention = has_facets = has_cls_token = has_patch_tokens = has_drop_path = True

    def __init__(self, config: DinoConfig):
        super().__init__()
        width, depth = config.hidden_size, config.num_hidden_layers
        self.patch_size = config.patch_size
        self.num_prefix_tokens = 1 + config.num_register_tokens
        self.token_init_std = config.token_init_std
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = self.mask_token = self.pos_embed = self.rope_embed = None
        if config.has_rotary_positions:
            self.rope_embed = RotaryPositions(config)
        else:
            self.position_interpolation = config.position_interpolation
            num_patches = (config.image_size // config.patch_size) ** 2
            self.pos_embed = nn.Parameter(torch.zeros(1, 1 + num_patches, width))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, width))
        if config.use_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_drop = nn.Dropout(config.hidden_dropout_prob)
        last, rate = max(depth - 1, 1), config.drop_path_rate
        rates = [rate if config.drop_path_uniform else rate * i / last for i in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = make_norm(config)
        self.cls_norm = make_norm(config) if config.untie_cls_and_patch_norms else None
        self.local_cls_norm = make_norm(config) if config.untie_global_and_local_cls_norm else None
        self.stage_channels = [width] * (1 + depth)
        self.min_image_size = config.patch_size

    @staticmethod
    def describe(config: DinoConfig) -> str:
        """Returns the sizes of a backbone in words."""
        sizes = f"{config.num_hidden_layers} blocks, {config.num_attention_heads} heads, patch {config.patch_size}"
        return f"{sizes}, {config.num_register_tokens} registers" if config.num_register_tokens else sizes

    @staticmethod
    def layer_of(parameter: str) -> int | None:
        """Returns the layer of a parameter by its name: 0 for the embedding, i + 1 for block i, else None."""
        if block := re.match(r"blocks\.(\d+)\.", parameter):
            return int(block[1]) + 1
        return 0 if parameter.startswith(("patch_embed", "cls_token", "pos_embed", *OPTIONAL_TOKENS)) else None

    def init_parameters(self):
        """Initialises tokens and learned positions as the originals do."""
        init.trunc_normal_(self.cls_token, std=self.token_init_std)
        if self.pos_embed is not None:
            init.trunc_normal_(self.pos_embed, std=0.02)
        if self.register_tokens is not None:
            init.trunc_normal_(self.register_tokens, std=self.token_init_std)
        if self.mask_token is not None:
            init.zeros_(self.mask_token)

    @property
    def first_convolution(self) -> nn.Conv2d:
        """The convolution that takes the pixels."""
        return self.patch_embed.proj

    def grid(self, pixel_values: torch.Tensor, stage: int | None = None) -> tuple[int, int]:
        """Returns height and width of an image in patches; raises ValueError if it is smaller than a patch."""
        height, width = pixel_values.shape[-2:]
        if height < self.patch_size or width < self.patch_size:
            raise ValueError(
                f"an image of {height}x{width} pixels is smaller than a patch of "
                f"{self.patch_size}x{self.patch_size}: resize it, or use a model with smaller patches"
            )
        return height // self.patch_size, width // self.patch_size

    def embed(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        """Computes the tokens before the first block: (B, C, H, W) -> (B, T, D)."""
        positions = self.positions(pixel_values)
        tokens = self.patch_embed(pixel_values)
        if bool_masked_pos is not None:
            check_mask(bool_masked_pos, tokens)
            tokens = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token.to(tokens.dtype), tokens)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        tokens = tokens if positions is None else tokens + positions
        if self.register_tokens is not None:  # they have no position
            registers = self.register_tokens.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return self.pos_drop(tokens)

    def positions(self, pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Returns the embeddings of the positions in an image, (1, 1 + h * w, D); None for rotary positions."""
        size, grid = tuple(pixel_values.shape[-2:]), self.grid(pixel_values)
        if self.pos_embed is None:
            return None
        return interpolate_positions(self.pos_embed, size, grid, self.position_interpolation)

    def angles(self, pixel_values: torch.Tensor) -> Angles | None:
        """Returns the angles by which a block rotates its queries and keys; None for learned positions."""
        return None if self.rope_embed is None else self.rope_embed(self.grid(pixel_values))

    def forward_stages(
        self,
        pixel_values: torch.Tensor,
        stages: list[int],
        cls_only: bool = False,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs,
    ) -> list[torch.Tensor]:
        """
        Computes the tokens (B, T, D) after each of the given stages, before the final norm; later blocks do not run.

        Args:
            pixel_values: (B, C, H, W).
            stages: numbers in ascending order.
            cls_only: return only CLS tokens, (B, 1, D); the last block computes no others.
            bool_masked_pos: (B, h * w), true for patches that are replaced by the mask token.
        """
        hidden_states = self.embed(pixel_values, bool_masked_pos)
        angles = self.angles(pixel_values)
        outputs = [hidden_states] if 0 in stages else []
        for stage, block in enumerate(self.blocks[: stages[-1]], start=1):
            if self.training and stage > 1:  # each block has draws of its own
                angles = self.angles(pixel_values)
            if cls_only and stage == stages[-1]:
                kwargs["cls_only"] = True
            hidden_states = block(hidden_states, angles=angles, **kwargs)
            if stage in stages:
                outputs.append(hidden_states)
        return [tokens[:, :1] for tokens in outputs] if cls_only else outputs

    def pooled_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """Computes the normed CLS tokens (B, D) of the given stages; the last block computes no other tokens."""
        return super().pooled_stages(pixel_values, stages, cls_only=True, **kwargs)

    def normalize(
        self, hidden_states: torch.Tensor, stage: int | None = None, local_crops: bool = False
    ) -> torch.Tensor:
        """Applies the final norm to the output of a block: (B, T, D) -> (B, T, D)."""
        norm = self.cls_norm
        if local_crops and self.training and self.local_cls_norm is not None:
            norm = self.local_cls_norm
        if norm is None:
            return self.norm(hidden_states)
        before, patches = hidden_states[:, : self.num_prefix_tokens], self.patch_tokens(hidden_states)
        return torch.cat([norm(before), self.norm(patches)], dim=1)

    def attention_maps(self, pixel_values: torch.Tensor, layers: list[int]) -> tuple[torch.Tensor, ...]:
        """Computes the whole attention (B, heads, T, T) of each of the given blocks, counted from 0."""
        ascending, angles = sorted(set(layers)), self.angles(pixel_values)
        inputs = dict(zip(ascending, self(pixel_values, stages=ascending)))  # stage i is the input of block i
        blocks = [(self.blocks[i], inputs[i]) for i in layers]
        return tuple(block.attn.attention_map(block.norm1(tokens), angles) for block, tokens in blocks)

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
        attention = block.attn.cls_attention(block.norm1(hidden_states), self.angles(pixel_values))
        return attention[..., self.num_prefix_tokens :].unflatten(-1, self.grid(pixel_values))


def check_mask(bool_masked_pos: torch.Tensor, patches: torch.Tensor):
    """Raises ValueError if a mask is not of booleans, one for each patch."""
    shape, expected = tuple(bool_masked_pos.shape), tuple(patches.shape[:2])
    if bool_masked_pos.dtype != torch.bool or shape != expected:
        raise ValueError(
            f"bool_masked_pos is {bool_masked_pos.dtype} of shape {shape}, but must be torch.bool of {expected}: one "
            "value for each patch of each image"
        )
