# SPDX-License-Identifier: Apache-2.0
"""What student and teacher compute of crops, as far as the objectives need it.

References: `MultiCropWrapper` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py; `SSLMetaArch` of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/train/ssl_meta_arch.py.

Letters in shapes: B images, C channels, h x w pixels of a crop, T tokens, G global crops, S crops in all, P patches of
a global crop, M masked patches of a batch, K prototypes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..modeling_dino import DinoModel
from .losses.ibot import masked_tokens
from .masking import MaskBatch
from .objectives import Objectives


@dataclass
class Views:
    """
    Holds what a network computes of crops.

    Args:
        features: (S * B, D), crop by crop, global ones first.
        projection: (S * B, K), the head's output.
        patch_tokens: (G * B, P, D), after the final norm; None if no loss is computed of patches.
        patch_projection: (M, K), the head's output at masked patches; None without masks.
    """

    features: torch.Tensor
    projection: torch.Tensor | None = None
    patch_tokens: torch.Tensor | None = None
    patch_projection: torch.Tensor | None = None


def view_crops(
    network: DinoModel,
    crops: Sequence[torch.Tensor],
    num_global_crops: int,
    objectives: Objectives,
    masks: MaskBatch | None,
    sees_masked: bool = True,
    trains_backbone: bool = True,
) -> Views:
    """
    Computes what the objectives need of crops.

    Args:
        crops: each (B, C, h, w), global ones first.
        masks: of the global crops.
        sees_masked: whether the network sees the masked patches, as the teacher does.
        trains_backbone: whether gradients reach the backbone; else they end at its outputs.
    """
    patches = None
    with torch.set_grad_enabled(torch.is_grad_enabled() and trains_backbone):
        features, patch_tokens = see_crops(network, crops, num_global_crops, objectives, masks, sees_masked)
    if objectives.ibot_weight:
        patches = masked_tokens(patch_tokens, masks.indices)
    projection, patch_projection = project(network, features if objectives.dino_weight else None, patches)
    return Views(features, projection, patch_tokens, patch_projection)


def see_crops(
    network: DinoModel,
    crops: Sequence[torch.Tensor],
    num_global_crops: int,
    objectives: Objectives,
    masks: MaskBatch | None,
    sees_masked: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes `features` and `patch_tokens` of [`Views`], what the backbone gives."""
    if not objectives.uses_patches:
        return torch.cat(pool_crops(network, crops, num_global_crops)), None
    given = {} if sees_masked or masks is None else {"bool_masked_pos": masks.masks}
    images = network.check_pixel_values(torch.cat(list(crops[:num_global_crops])))
    tokens = network.backbone(images, **given)  # (G * B, T, D)
    features = [network.backbone.pool(tokens), *pool_crops(network, crops[num_global_crops:], 0)]
    return torch.cat(features), network.backbone.patch_tokens(tokens)


def project(
    network: DinoModel, features: torch.Tensor | None, patches: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Computes the heads' outputs for features (N, D) and patches (M, D), of what is given: (N, K) and (M, K).

    A head that both share takes them together, as in the original: each pass over its prototypes takes long. Batch
    norms go by features and by patches alone.
    """
    if features is None or patches is None or network.patch_head is not None or network.config.head_use_bn:
        projection = None if features is None else network.head(features)
        return projection, None if patches is None else network.project_patches(patches)
    return network.head(torch.cat([features, patches])).split([len(features), len(patches)])


def pool_crops(network: DinoModel, crops: Sequence[torch.Tensor], num_global_crops: int) -> list[torch.Tensor]:
    """
    Returns the features (B, D) of crops of any sizes. Crops of one size go through the backbone together
    (`MultiCropWrapper` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py).

    Args:
        crops: each (B, C, h, w), global ones first. Local ones may have a norm of their own in training, and then go
            through the backbone by themselves.
    """
    features: list[torch.Tensor | None] = [None] * len(crops)
    has_own_norm = network.config.untie_global_and_local_cls_norm
    kinds = [(crop.shape[-2:], has_own_norm and i >= num_global_crops) for i, crop in enumerate(crops)]
    for kind in dict.fromkeys(kinds):
        indices = [i for i in range(len(crops)) if kinds[i] == kind]
        local = {"local_crops": True} if kind[1] else {}
        pooled = network.get_features(torch.cat([crops[i] for i in indices]), **local)
        for i, feature in zip(indices, pooled.chunk(len(indices))):
            features[i] = feature
    return features


def check_crops(crops: Sequence[torch.Tensor] | None, num_global_crops: int):
    """Raises ValueError if they are not a list of batches of the same images, with enough global ones."""
    if not isinstance(crops, (list, tuple)) or not crops:
        raise ValueError(
            "pixel_values must be a list of crops, global ones first, each (batch, channels, height, width)"
        )
    if not 1 <= num_global_crops <= len(crops) or len(crops) < 2:
        raise ValueError(f"{len(crops)} crops with num_global_crops={num_global_crops}: at least two crops are needed")
    if len({len(crop) for crop in crops}) > 1:
        raise ValueError(f"the crops are of different numbers of images: {[len(crop) for crop in crops]}")


def check_global_crops(crops: Sequence[torch.Tensor], objectives: Objectives, masks: torch.Tensor | MaskBatch | None):
    """Raises ValueError if the patches of global crops cannot be compared: other sizes, or masks that are missing."""
    sizes = {tuple(crop.shape[-2:]) for crop in crops}
    if len(sizes) > 1:
        raise ValueError(f"the global crops are of different sizes {sorted(sizes)}, whose patches do not fit together")
    if objectives.ibot_weight and masks is None:
        raise ValueError("the patch loss needs masks: pass bool_masked_pos, (global crops * images, patches)")
