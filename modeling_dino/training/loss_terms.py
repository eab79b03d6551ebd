# SPDX-License-Identifier: Apache-2.0
"""The losses of one batch by their names, and what is logged beside them.

Letters in shapes: B images, G global crops, S crops in all, M masked patches of a batch, K prototypes, D width.
"""

from collections.abc import Sequence

import torch

from .loss import pair_shares, weighted_sum
from .losses.cross_entropy import mean_entropy
from .losses.dino import cross_view_entropy
from .losses.ibot import ibot_loss
from .losses.koleo import koleo_loss
from .masking import MaskBatch
from .objectives import Objectives


def crop_losses(
    student: torch.Tensor, targets: torch.Tensor, temperature: float, objectives: Objectives
) -> dict[str, torch.Tensor]:
    """
    Returns DINO's loss, or its parts of global and of local crops, by their names.

    Args:
        student: (S * B, K), crop by crop, global ones first.
        targets: (G, B, K).
    """
    if objectives.is_dino_alone:
        return {"dino": cross_view_entropy(student, targets, temperature)}
    num_global = targets.shape[0] * targets.shape[1]
    losses = {}
    if len(targets) > 1:
        losses["dino_global"] = cross_view_entropy(student[:num_global], targets, temperature)
    if len(student) > num_global:
        local = student[num_global:]
        losses["dino_local"] = cross_view_entropy(local, targets, temperature, ignore_diagonal=False)
    return losses


def patch_loss(student: torch.Tensor, targets: torch.Tensor, masks: MaskBatch, temperature: float) -> torch.Tensor:
    """Returns [`ibot_loss`]; 0, with gradients of 0, if this process has no masked patch of the batch's."""
    if len(student) == 0:
        return student.float().sum()
    return ibot_loss(student, targets, masks.weights, len(masks.masks), temperature)


def spread_loss(
    features: Sequence[torch.Tensor],
    objectives: Objectives,
    whole: Sequence[torch.Tensor] | None = None,
    first: int = 0,
) -> torch.Tensor:
    """
    Returns the sum of [`koleo_loss`] over the global crops.

    Args:
        features: (B, D) each.
        whole: (N, D) each, of all parts of a step; `features` are the rows from `first` on.
    """
    options = objectives.koleo_neighbours, objectives.koleo_over_processes
    wholes = [None] * len(features) if whole is None else whole
    return sum(koleo_loss(crop, *options, of_all, first) for crop, of_all in zip(features, wholes))


def crop_statistics(
    targets: torch.Tensor, losses: dict[str, torch.Tensor], num_local_crops: int
) -> dict[str, torch.Tensor]:
    """
    Returns entropy and information of the teacher's targets, and the student's divergence from them, in nats.

    Args:
        targets: (G, B, K).
        losses: what [`crop_losses`] returns.
    """
    entropy = mean_entropy(targets)
    loss = losses.get("dino")
    if loss is None:
        shares = dict(zip(("dino_global", "dino_local"), pair_shares(len(targets), num_local_crops)))
        loss = weighted_sum(losses, shares)
    return {
        "teacher_entropy": entropy,
        "kl_divergence": loss.detach() - entropy,
        "image_information": mean_entropy(targets.mean((0, 1))) - entropy,
    }


def patch_statistics(targets: torch.Tensor, masks: MaskBatch) -> dict[str, torch.Tensor]:
    """Returns entropy and information of the teacher's targets (M, K) in nats, and the share of masked patches."""
    share = masks.masks.float().mean()
    if len(targets) == 0:
        return {"patch_entropy": share * 0, "patch_information": share * 0, "mask_share": share}
    entropy = mean_entropy(targets)
    return {
        "patch_entropy": entropy,
        "patch_information": mean_entropy(targets.mean(0)) - entropy,
        "mask_share": share,
    }
