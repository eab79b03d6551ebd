# SPDX-License-Identifier: Apache-2.0
"""The interface of a backbone: what all have, and a new one must have."""

from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from transformers import initialization as init


FACETS = ("query", "key", "value", "token")  # of a token in a block; the first three in the order of its linear


def is_recorded() -> bool:
    """Returns whether operations are recorded, to be run later on other batches: they must not depend on this one."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


@torch.no_grad()
def has_initial_weights(model: nn.Module) -> bool:
    """
    Returns whether a model was never trained: all norms have their initial weights (1, or 0 where they end a residual
    branch), biases (0) and statistics, and all linears have the bias 0. Any step of an optimizer moves some of these.

    A model without norms tells nothing, and counts as trained.
    """
    found = False
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None and module.bias.any():
            return False
        if not type(module).__name__.rstrip("123d").endswith("Norm"):
            continue
        weight, bias, mean = (getattr(module, name, None) for name in ("weight", "bias", "running_mean"))
        if weight is not None:
            found = True
            if not ((weight == 1).all() or (weight == 0).all()):
                return False
        if any(values is not None and values.any() for values in (bias, mean)):
            return False
    return found


@contextmanager
def frozen_batch_statistics(module: nn.Module):
    """Lets batch norms normalise by the batch as before, but keep their running statistics."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1


def batch_counted_once(block: nn.Module):
    """
    Returns a context for the forward pass of a block with batch norms: under gradient checkpointing it runs again in
    the backward pass, and the batch must count only once.
    """
    recomputing = block.gradient_checkpointing and block.training and torch._C._current_graph_task_id() != -1
    return frozen_batch_statistics(block) if recomputing else nullcontext()


class Stage:
    """A ViT's block or a ResNet's resolution: output capturing records what it returns as a hidden state."""


class Backbone(nn.Module):
    """
    Defines what the project asks of a backbone; no other code asks which family it is of.

    A new backbone is made from a `DinoConfig` and entered in `BACKBONE_CLASSES` of `modeling_dino.py`. It sets the
    attributes below, and defines, with shapes as in `VisionTransformer` or `ResNet`:

    - `forward_stages(pixel_values, stages, **kwargs)`: the outputs of the given stages. Stage 0 is the embedding or
      stem, stage i the i-th module that derives from [`Stage`].
    - `grid(pixel_values, stage)`, `norm`; or `normalize`, `pool`, `patch_tokens` and `feature_map` of its own, which
      the methods below define for tokens (B, T, D) of which the first is the CLS token.
    - `first_convolution`, `layer_of`, `describe`; `init_convolution` where needed.
    - `attention_maps`, `cls_attention` and `patch_tokens_and_attention` if it has attention.
    - `block_tokens` if it has facets; and `blocks`, whose `attn` has `query_key_value` of tokens after `norm1`.

    A module that has parameters outside of its submodules initialises them in a method `init_parameters`.

    Attributes:
        tag, kind: what it is called on the hub, and in words.
        num_prefix_tokens: tokens before those of the patches: the CLS token first, and registers after it.
        has_attention: whether every token attends to all, as `attention_maps` shows.
        has_cls_attention: whether the CLS token attends to patches.
        has_facets: whether each block makes queries, keys and values of its tokens.
        has_cls_token, has_patch_tokens, has_drop_path: what else it has to offer.
        num_attention_layers: how many layers the CLS token attends in; by default as many as there are stages.
        min_image_size: the least height and width of an image in pixels.
        stage_channels: the width of each stage, from stage 0.
    """

    tag: str
    kind: str
    num_prefix_tokens = 0
    has_attention = has_cls_attention = has_facets = has_cls_token = has_patch_tokens = has_drop_path = False
    min_image_size = 1
    stage_channels: list[int]

    @property
    def num_attention_layers(self) -> int:
        """The number of layers in which the CLS token attends: all of them, by default."""
        return len(self.stage_channels) - 1

    def forward(
        self, pixel_values: torch.Tensor, stages: list[int] | None = None, local_crops: bool = False, **kwargs
    ) -> torch.Tensor | list[torch.Tensor]:
        """Computes the normed output of the last stage, or `forward_stages`; offloading hooks into this method."""
        if stages is not None:
            return self.forward_stages(pixel_values, stages, **kwargs)
        last = len(self.stage_channels) - 1
        (hidden_states,) = self.forward_stages(pixel_values, [last], **kwargs)
        return self.normalize(hidden_states, last, local_crops)

    def block_tokens(self, pixel_values: torch.Tensor, stages: list[int]) -> list[torch.Tensor]:
        """Computes the tokens (B, T, D) that each of the given stages, 0 being the embedding, hands to a block."""
        return self(pixel_values, stages=stages)

    def facet(self, pixel_values: torch.Tensor, facet: str, layer: int) -> torch.Tensor:
        """
        Computes one of `FACETS` of a block, counted from 0: (B, heads, T, D / heads); the tokens after it (B, T, D).
        """
        (tokens,) = self.block_tokens(pixel_values, [layer + (facet == "token")])  # stage i is the input of block i
        if facet == "token":
            return tokens
        block = self.blocks[layer]
        return block.attn.query_key_value(block.norm1(tokens))[FACETS.index(facet)]

    def normed_stages(
        self, pixel_values: torch.Tensor, stages: list[int], local_crops: bool = False, **kwargs
    ) -> list[torch.Tensor]:
        """Computes the outputs of the given stages, each after its norm."""
        outputs = self(pixel_values, stages=stages, **kwargs)
        return [self.normalize(output, stage, local_crops) for output, stage in zip(outputs, stages)]

    def pooled_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """Computes the features (B, D) of the given stages."""
        return [self.pool(output) for output in self.normed_stages(pixel_values, stages, **kwargs)]

    def normalize(
        self, hidden_states: torch.Tensor, stage: int | None = None, local_crops: bool = False
    ) -> torch.Tensor:
        """
        Applies the final norm to the output of a stage, the last by default.

        Args:
            local_crops: whether it is of local crops, which in training may have a norm of their own.
        """
        return self.norm(hidden_states)

    def pool(self, last_hidden_state: torch.Tensor) -> torch.Tensor:
        """Returns the feature of each image, its CLS token: (B, T, D) -> (B, D)."""
        return last_hidden_state[:, 0]

    def patch_tokens(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the tokens of the patches: (B, T, D) -> (B, h * w, D)."""
        return hidden_states[:, self.num_prefix_tokens :]

    def feature_map(
        self, hidden_states: torch.Tensor, pixel_values: torch.Tensor, stage: int | None = None
    ) -> torch.Tensor:
        """Returns the patch tokens of a stage, the last by default, on their grid: (B, T, D) -> (B, D, h, w)."""
        patches = self.patch_tokens(hidden_states).unflatten(1, self.grid(pixel_values, stage))
        return patches.permute(0, 3, 1, 2).contiguous()

    @staticmethod
    def init_convolution(module: nn.Conv2d):
        """Initialises a convolution as PyTorch does by default."""
        bound = module.weight[0].numel() ** -0.5
        init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound)
