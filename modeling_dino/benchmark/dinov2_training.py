# SPDX-License-Identifier: Apache-2.0
"""Measures a training step with DINOv2's objectives, with centering, beside the original's step, done plainly."""

import random

import torch
from torch import nn

from ..block_parts import DropPath
from ..modeling_dino import DinoModel
from ..training.masking import BlockMasks, MaskBatch, draw_masks, largest_block
from ..training.objectives import Objectives
from ..training.optimization import clip_each_module, layered_parameter_groups
from ..training.self_distillation import DinoForPreTraining
from .options import BenchOptions
from .training import (
    CENTER_MOMENTUM,
    MAX_GRAD_NORM,
    STUDENT_TEMPERATURE,
    TEACHER_MOMENTUM,
    TEACHER_TEMPERATURE,
    TEMPERATURES,
    DinoStep,
    measure_training,
    project,
)


OBJECTIVES = Objectives(ibot_weight=1.0, koleo_weight=0.1)
LAYER_DECAY, PATCH_EMBED_MULTIPLIER = 0.9, 0.2
DROP_PATH = {"drop_path_rate": 0.3, "drop_path_uniform": True}  # of DINOv2's recipe for ImageNet-1k
NUM_GLOBAL_CROPS = 2
# DINOv2 starts with so small values of both that all features are nearly alike, and KoLeo magnifies their rounding
LARGE_START = {"layerscale_value": 1.0, "token_init_std": 0.02}


class Dinov2Step(DinoStep):
    """Does what [`DinoTrainer`] does in a step with DINOv2's objectives."""

    masks: MaskBatch | None = None

    def parameter_groups(self) -> list[dict]:
        """Returns groups of equal rates."""
        return layered_parameter_groups(self.model.student, LAYER_DECAY, PATCH_EMBED_MULTIPLIER)

    def __call__(self, crops: list[torch.Tensor]) -> torch.Tensor:
        """Does one step, with the same masks for the same number of images, and returns the loss."""
        if self.masks is None or len(self.masks.masks) != NUM_GLOBAL_CROPS * len(crops[0]):
            self.masks = masks_of(self.model, crops)
        return super().__call__(crops)

    def forward(self, crops: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the loss, and the teacher's projections of global crops, (2 * B, K), and of masked patches."""
        output = self.model(crops, bool_masked_pos=self.masks, objectives=OBJECTIVES, **TEMPERATURES)
        return output.loss, output.teacher_projection, output.teacher_patch_projection

    def parts(self) -> list[nn.Module]:
        """Returns the student's backbone and heads."""
        student = self.model.student
        return [part for part in (student.backbone, student.head, student.patch_head) if part is not None]

    def clip_gradients(self):
        """Clips the gradient of backbone and heads each by its norm."""
        clip_each_module(self.parts(), MAX_GRAD_NORM)

    def update(self, teacher: torch.Tensor, teacher_patches: torch.Tensor):
        """Updates the teacher and the centers."""
        super().update(teacher)
        self.model.update_patch_center(teacher_patches, CENTER_MOMENTUM)


class PlainDinov2Step(Dinov2Step):
    """
    Does the training step as the original does: `SSLMetaArch` of
    https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/train/ssl_meta_arch.py, without xformers and FSDP.

    It computes all tokens of all crops, attention by definition, one pass of the head for crops and for masked patches
    padded to their upper bound, a loss pair by pair, weight norm on the weight, and loops over parameters. Its
    drop path computes all images and masks some; the original computes only those that it keeps.
    """

    optimizer_kind = {"foreach": False}

    def __init__(self, model: DinoForPreTraining):
        super().__init__(model)
        for network in (model.student, model.teacher):
            network.set_attn_implementation("eager")
        for block in model.student.backbone.blocks:
            block.drop_path = MaskedDropPath(block.drop_path.rate)

    def forward(self, crops: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Returns the loss, and the teacher's projections of global crops, (2 * B, K), and of masked patches."""
        of_global, of_local = (torch.cat(part) for part in (crops[:NUM_GLOBAL_CROPS], crops[NUM_GLOBAL_CROPS:]))
        student, teacher, masks = self.model.student, self.model.teacher, self.masks
        with torch.no_grad():
            tokens = teacher.backbone(of_global)
            seen, seen_patches = self.project(teacher, tokens, tokens[:, 0])
            targets = softmax_of(seen, self.model.center).chunk(NUM_GLOBAL_CROPS)
            patch_targets = softmax_of(seen_patches, self.model.patch_center)
        tokens, local = student.backbone(of_global, bool_masked_pos=masks.masks), student.backbone(of_local)
        said, said_patches = self.project(student, tokens, torch.cat([tokens[:, 0], local[:, 0]]))
        views = said.chunk(len(crops))
        entropies = [
            -torch.sum(target * nn.functional.log_softmax(view / STUDENT_TEMPERATURE, dim=-1), dim=-1).mean()
            for s, view in enumerate(views)
            for t, target in enumerate(targets)
            if s != t
        ]
        log_patches = nn.functional.log_softmax(said_patches / STUDENT_TEMPERATURE, dim=-1)
        ibot = -(torch.sum(patch_targets * log_patches, dim=-1) * masks.weights).sum() / len(masks.masks)
        spread = sum(map(koleo, tokens[:, 0].chunk(NUM_GLOBAL_CROPS)))
        loss = sum(entropies) / len(entropies) + OBJECTIVES.ibot_weight * ibot + OBJECTIVES.koleo_weight * spread
        return loss, seen, seen_patches

    def project(self, network: DinoModel, tokens: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Computes the projections of features (N, D), and of the masked ones among all tokens (2 * B, T, D)."""
        indices, upper_bound = self.masks.indices, self.masks.upper_bound
        patches = network.backbone.patch_tokens(tokens).flatten(0, 1)
        buffer = patches.new_zeros(upper_bound, patches.shape[-1])
        buffer[: len(indices)].copy_(patches.index_select(0, indices))
        if network.patch_head is None:
            both = project(network.head, torch.cat([features, buffer])).float()
            return both[: len(features)], both[len(features) :][: len(indices)]
        of_features, of_patches = project(network.head, features), project(network.patch_head, buffer)
        return of_features.float(), of_patches[: len(indices)].float()

    def clip_gradients(self):
        """Clips the gradient of backbone and heads each by its norm."""
        for part in self.parts():
            nn.utils.clip_grad_norm_(part.parameters(), MAX_GRAD_NORM, foreach=False)

    @torch.no_grad()
    def update(self, *outputs: torch.Tensor):
        """Updates the teacher and the centers."""
        for ours, theirs in zip(self.model.teacher.parameters(), self.model.student.parameters()):
            ours.mul_(TEACHER_MOMENTUM).add_(theirs, alpha=1 - TEACHER_MOMENTUM)
        for center, output in zip((self.model.center, self.model.patch_center), outputs):
            mean = output.sum(0, keepdim=True) / len(output)
            center.mul_(CENTER_MOMENTUM).add_(mean * (1 - CENTER_MOMENTUM))


class MaskedDropPath(DropPath):
    """Computes a branch for all images, and masks those that skip it, as timm, transformers and lightly do."""

    def forward(self, computed: torch.Tensor) -> torch.Tensor:
        """Masks what a branch made of images (B, ...); draws the same images as `SubsetDropPath`."""
        if self.rate == 0 or not self.training:
            return computed
        count = max(int(len(computed) * (1 - self.rate)), 1)
        mask = computed.new_zeros(len(computed), *[1] * (computed.ndim - 1))
        mask[torch.randperm(len(computed), device=computed.device)[:count]] = len(computed) / count
        return computed * mask


def masks_of(model: DinoForPreTraining, crops: list[torch.Tensor]) -> MaskBatch:
    """Draws masks of the global crops, as DINOv2 does."""
    grid = model.student.backbone.grid(crops[0])
    blocks = BlockMasks(*grid, max_patches=largest_block(grid[0], 1))
    return draw_masks(blocks, NUM_GLOBAL_CROPS * len(crops[0]), random.Random(0)).to(crops[0].device)


def softmax_of(teacher: torch.Tensor, center: torch.Tensor) -> torch.Tensor:
    """Returns the teacher's outputs as targets, (N, K) -> (N, K)."""
    return nn.functional.softmax((teacher - center) / TEACHER_TEMPERATURE, dim=-1)


def koleo(features: torch.Tensor) -> torch.Tensor:
    """Returns the KoLeo loss of features (B, D) by its definition."""
    features = nn.functional.normalize(features.float(), eps=1e-8, dim=-1)
    with torch.no_grad():
        products = features @ features.T
        nearest = products.fill_diagonal_(-1).argmax(dim=1)
    return -torch.log(nn.functional.pairwise_distance(features, features[nearest], eps=1e-8) + 1e-8).mean()


def measure_dinov2_training(
    name: str, options: BenchOptions, what: str = "training-dinov2", **settings
) -> dict | None:
    """Measures training steps as [`measure_training`], with patches that share the head of crops by default."""
    settings = {"use_mask_token": True, "norm_last_layer": False, **LARGE_START, **settings}
    return measure_training(name, options, what, (Dinov2Step, PlainDinov2Step), **settings)
