# SPDX-License-Identifier: Apache-2.0
"""The interface of a backbone: what `VisionTransformer` and `ResNet` have, and a new one must have."""

import torch
from torch import nn


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


class Stage:
    """A ViT's block or a ResNet's resolution: output capturing records what it returns as a hidden state."""


class Backbone(nn.Module):
    """
    Defines what the project asks of a backbone; no other code asks which family it is of.

    A new backbone is made from a `DinoConfig` and entered in `BACKBONE_CLASSES` of `modeling_dino.py`. It sets the
    attributes below, and defines, with shapes as in `VisionTransformer` or `ResNet`:

    - `forward_stages(pixel_values, stages, **kwargs)`: the outputs of the given stages. Stage 0 is the embedding or
      stem, stage i the i-th module that derives from [`Stage`].
    - `pool`, `patch_tokens`, `feature_map`: a normed output as the feature, as patch tokens, as a map.
    - `first_convolution`, `init_convolution`, `layer_of`, `describe`; `normalize` and `init_tokens` where needed.
    - `attention_maps`, `cls_attention` and `patch_tokens_and_attention` if it has attention.

    Attributes:
        tag, kind: what it is called on the hub, and in words.
        num_prefix_tokens: tokens before those of the patches, the CLS token first.
        has_attention, has_cls_token, has_patch_tokens, has_drop_path: what it has to offer.
        min_image_size: the least height and width of an image in pixels.
        stage_channels: the width of each stage, from stage 0.
    """

    tag: str
    kind: str
    num_prefix_tokens = 0
    has_attention = has_cls_token = has_patch_tokens = has_drop_path = False
    min_image_size = 1
    stage_channels: list[int]

    def forward(
        self, pixel_values: torch.Tensor, stages: list[int] | None = None, **kwargs
    ) -> torch.Tensor | list[torch.Tensor]:
        """Computes the normed output of the last stage, or `forward_stages`; offloading hooks into this method."""
        if stages is not None:
            return self.forward_stages(pixel_values, stages, **kwargs)
        (hidden_states,) = self.forward_stages(pixel_values, [len(self.stage_channels) - 1], **kwargs)
        return self.normalize(hidden_states)

    def pooled_stages(self, pixel_values: torch.Tensor, stages: list[int], **kwargs) -> list[torch.Tensor]:
        """Computes the features (B, D) of the given stages."""
        return [self.pool(self.normalize(output)) for output in self(pixel_values, stages=stages, **kwargs)]

    def normalize(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Applies the final norm to the output of a stage; without one the output stays as it is."""
        return hidden_states

    def init_tokens(self):
        """Initialises the parameters that the backbone has outside of its modules."""
