# SPDX-License-Identifier: Apache-2.0
"""The projection heads, on whose outputs the DINOs compute their losses.

`dino`: MLP, L2 norm, weight-normed prototypes; appendix C of the paper (https://arxiv.org/abs/2104.14294) and
https://github.com/facebookresearch/dino/blob/7c446df/vision_transformer.py#L257, whose parameter names are kept.
DINOv2 trains the gains (`norm_last_layer=False`); DINOv3 has plain prototypes (`head_weight_norm=False`).
`simple`: MLP with ReLU, L2 norm, as in teaching implementations of DINO.
Deviation: a frozen gain is a buffer, since `from_pretrained` makes every parameter trainable.
"""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .configuration_dino import HEAD_SIZES, DinoConfig


MANY_ROWS = 2  # for each column of the prototypes; measured on a CPU in float32 and bfloat16


def l2_normalize(x: torch.Tensor) -> torch.Tensor:
    """Scales to unit length along the last dimension, with a floor of the norm that the dtype can represent."""
    return nn.functional.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)


def build_mlp(dims: list[int], activation: type[nn.Module], config: DinoConfig) -> nn.Module:
    """Builds linears with [batch norms and] activations between them; a single linear is not wrapped."""
    layers: list[nn.Module] = []
    for in_dim, out_dim in pairwise(dims[:-1]):
        layers.append(nn.Linear(in_dim, out_dim, bias=config.head_bias))
        if config.head_use_bn:
            layers.append(nn.BatchNorm1d(out_dim))
        layers.append(activation())
    last = nn.Linear(dims[-2], dims[-1], bias=config.head_bias)
    return nn.Sequential(*layers, last) if layers else last


class WeightNormLinear(nn.Module):
    """A linear without bias whose rows have a length of their own: `weight = weight_g * weight_v / ||weight_v||`.

    Paper: Weight Normalization, https://arxiv.org/abs/1602.07868. Both parts have the names that
    `torch.nn.utils.weight_norm` gives them, but the module survives `deepcopy`, the meta device and `from_pretrained`.

    Args:
        frozen_gain: keep `weight_g` at 1, as a buffer; every output is then a cosine.
    """

    def __init__(self, in_dim: int, out_dim: int, frozen_gain: bool):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        gain = torch.ones(out_dim, 1)
        if frozen_gain:
            self.register_buffer("weight_g", gain)
        else:
            self.weight_g = nn.Parameter(gain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > MANY_ROWS * x.shape[-1]:
            # passes over all prototypes cost less than those over the outputs, and autograd keeps none of these
            scales = self.weight_g / row_lengths(self.weight_v).unsqueeze(1)
            return nn.functional.linear(x, self.weight_v * scales.to(self.weight_v.dtype))
        if self.training and torch.is_grad_enabled():
            return WeightNormProduct.apply(x, self.weight_v, self.weight_g)
        return self.plain(x)

    def plain(self, x: torch.Tensor) -> torch.Tensor:
        """Computes (B, in_dim) -> (B, out_dim) with gradients of any order."""
        # Lengths are applied to the outputs: a weight of unit rows would cost several passes over all prototypes.
        cosines = nn.functional.linear(x, self.weight_v)
        return cosines * (self.weight_g.squeeze(1) / row_lengths(self.weight_v)).to(cosines.dtype)


def row_lengths(weight: torch.Tensor) -> torch.Tensor:
    """Computes the lengths of rows at least in float32: (N, D) -> (N,)."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return torch.linalg.vector_norm(weight, dim=-1, dtype=dtype).clamp(min=1e-12)


def column_products(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """
    Computes the products of columns: two of (N, K) -> (K,).

    On a CPU some rows at a time, which stay in its cache, take an eighth of the time.
    """
    rows_at_once = 16 if a.is_cpu else len(a)
    parts = zip(a.split(rows_at_once), b.split(rows_at_once))
    return sum((of_a * of_b).to(dtype).sum(0) for of_a, of_b in parts)


class WeightNormProduct(torch.autograd.Function):
    """
    Computes `WeightNormLinear.plain` for training, and adds the gradient of the lengths to the weight's in one pass.

    For 65,536 prototypes the weight is larger than all else of the step, and autograd would pass over it five times.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        device, length = x.device.type, row_lengths(weight)
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        x_cast, weight_cast = x.to(dtype), weight.to(dtype)
        cosines = nn.functional.linear(x_cast, weight_cast)
        ctx.save_for_backward(x_cast, weight, weight_cast, gain, length, cosines)
        ctx.dtype = x.dtype
        return cosines * (gain.squeeze(1) / length).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, weight_cast, gain, length, cosines = ctx.saved_tensors
        of_cosines = gradient * (gain.squeeze(1) / length).to(gradient.dtype)
        of_x = of_weight = of_gain = None
        if ctx.needs_input_grad[0]:
            of_x = (of_cosines @ weight_cast).to(ctx.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            of_scale = column_products(gradient, cosines, length.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (of_cosines.T @ x).to(weight.dtype)
            along = (of_scale * gain.squeeze(1) / length**3).to(weight.dtype)
            of_weight.addcmul_(weight, along.unsqueeze(1), value=-1)
        if ctx.needs_input_grad[2]:
            of_gain = (of_scale / length).unsqueeze(1).to(gain.dtype)
        return of_x, of_weight, of_gain


class DinoHead(nn.Module):
    """MLP to a bottleneck, L2 norm, and a cosine with each prototype (times its gain)."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        hidden_dims = [config.head_hidden_dim] * (config.head_num_layers - 1)
        dims = [config.hidden_size, *hidden_dims, config.head_bottleneck_dim]
        self.mlp = build_mlp(dims, nn.GELU, config)
        last_dims = (config.head_bottleneck_dim, config.projection_dim)
        if config.head_weight_norm:
            self.last_layer = WeightNormLinear(*last_dims, frozen_gain=config.norm_last_layer)
        else:
            self.last_layer = nn.Linear(*last_dims, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, hidden_size) -> (B, projection_dim)."""
        return self.last_layer(l2_normalize(self.mlp(features)))


class SimpleHead(nn.Module):
    """MLP with ReLU straight to the projection, whose length is 1."""

    def __init__(self, config: DinoConfig):
        super().__init__()
        hidden_dims = [config.head_hidden_dim] * (config.head_num_layers - 1)
        self.mlp = build_mlp([config.hidden_size, *hidden_dims, config.projection_dim], nn.ReLU, config)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, hidden_size) -> (B, projection_dim)."""
        return l2_normalize(self.mlp(features))


def build_head(config: DinoConfig) -> nn.Module | None:
    """Builds the head that the configuration names, or returns None."""
    heads = {"dino": DinoHead, "simple": SimpleHead, None: lambda config: None}
    return heads[config.head_type](config)


def build_patch_head(config: DinoConfig) -> nn.Module | None:
    """Builds the head that patches have of their own (https://arxiv.org/abs/2111.07832), or returns None."""
    if not config.patch_head:
        return None
    config = copy.deepcopy(config)
    for name in HEAD_SIZES:
        own = getattr(config, f"patch_{name}")
        setattr(config, name, getattr(config, name) if own is None else own)
    return DinoHead(config)
