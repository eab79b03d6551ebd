# SPDX-License-Identifier: Apache-2.0
"""Student and teacher: the model that is pretrained, by any of the [`Objectives`].

Papers: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294, algorithm 1;
DINOv2, https://arxiv.org/abs/2304.07193, section 4; DINOv3, https://arxiv.org/abs/2508.10104, sections 3 and 4.
References: https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py and `MultiCropWrapper` of its utils.py;
`SSLMetaArch` of https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/train/ssl_meta_arch.py.

Letters in shapes: B images, C channels, h x w pixels of a crop, G global crops, S crops in all, P patches of a global
crop, M masked patches of a batch, K prototypes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..checkpoint_files import checkpoint_keys, is_foreign, location_of, read_center
from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel, DinoPreTrainedModel
from .loss import weighted_sum
from .loss_terms import crop_losses, crop_statistics, patch_loss, patch_statistics, spread_loss
from .losses.centering import centered_softmax, update_center
from .losses.gram import gram_loss, resize_patches
from .losses.sinkhorn import sinkhorn_knopp
from .masking import MaskBatch, mask_batch
from .objectives import Objectives, check_objectives
from .teachers import check_distillation_teacher, check_gram_teacher, patch_prototypes, teacher_config
from .views import Views, check_crops, check_global_crops, see_crops, view_crops
from .whole_steps import KnownOfStep, Preview, drawn_by, kept_statistics


DINO = Objectives()


@dataclass
class DinoForPreTrainingOutput(ModelOutput):
    """
    Output of [`DinoForPreTraining`], of G global crops, S crops in all, and B images. What no objective needs is None.

    Args:
        loss: the weighted sum of `losses`. Of DINO alone it is the cross-entropy of teacher and student in nats, the
            sum of `teacher_entropy` and `kl_divergence`.
        student_projection: (S * B, projection_dim), crop by crop.
        teacher_projection: (G * B, projection_dim), of the global crops.
        teacher_entropy: of the teacher's targets, in nats, mean over crops and images. A collapsed teacher has 0, or
            ln(projection_dim).
        kl_divergence: from teacher to student, in nats, mean over pairs and images.
        image_information: how much of the teacher's output depends on the image, in nats, at most ln(B): the entropy
            of the mean output without the mean entropy. A teacher that says the same of every image has 0.
        losses: each loss by its name, see [`Objectives.weights`], not multiplied by its weight.
        teacher_patch_projection: (M, K), of the masked patches, which the teacher sees.
        patch_entropy, patch_information: as `teacher_entropy` and `image_information`, of the masked patches; 0
            without any.
        mask_share: the share of the patches that are masked.
    """

    loss: torch.FloatTensor | None = None
    student_projection: torch.FloatTensor | None = None
    teacher_projection: torch.FloatTensor | None = None
    teacher_entropy: torch.FloatTensor | None = None
    kl_divergence: torch.FloatTensor | None = None
    image_information: torch.FloatTensor | None = None
    losses: dict[str, torch.FloatTensor] | None = None
    teacher_patch_projection: torch.FloatTensor | None = None
    patch_entropy: torch.FloatTensor | None = None
    patch_information: torch.FloatTensor | None = None
    mask_share: torch.FloatTensor | None = None


class DinoForPreTraining(DinoPreTrainedModel):
    """
    Student and teacher, each backbone and heads, and the centers of the teacher's outputs.

    The teacher has no gradient and nothing random, as drop path; in train mode its batch norms go by the batch, as in
    the original. `forward` changes neither the teacher nor the centers: after each optimizer step call
    `update_teacher` and `update_center`, and those of patches and of the Gram teacher where there are any, as
    [`DinoTrainer`] does.

    Attributes:
        center: (1, projection_dim), of the teacher's outputs for crops.
        patch_center: (1, K), of those for patches; None if the model has no mask token.
        gram_teacher: an older teacher without heads, to which Gram anchoring keeps the patches' similarities; None
            until `add_gram_teacher` is called.
        distillation_teacher: another model whose outputs are the targets in the place of the teacher's, which then
            only averages the student; None until `add_distillation_teacher` is called.
        backbone_is_frozen: whether the heads alone are trained. The backbones of student and teacher then stay in eval
            mode, so that their batch norms do not change either, from the next call of `train` on.

    Example:

    ```python
    >>> output = model([global_crop, global_crop_2, local_crop])  # each (B, C, h, w)
    >>> output.loss.backward()
    >>> optimizer.step()
    >>> model.update_teacher(momentum=0.996)
    >>> model.update_center(output.teacher_projection)
    ```

    With the objectives of DINOv2:

    ```python
    >>> objectives = Objectives(ibot_weight=1.0, koleo_weight=0.1)
    >>> output = model(crops, bool_masked_pos=masks, objectives=objectives)
    >>> output.losses  # {"ibot": …, "koleo": …, "dino_global": …, "dino_local": …}
    >>> model.update_patch_center(output.teacher_patch_projection)
    ```
    """

    backbone_is_frozen = False
    _keys_to_ignore_on_load_unexpected = [r"^gram_teacher\.", r"^distillation_teacher\."]

    def __init__(self, config: DinoConfig):
        if config.head_type is None:
            raise ValueError("pretraining needs a projection head: set head_type")
        super().__init__(config)
        self.student = DinoModel(config)
        self.teacher = DinoModel(teacher_config(config))
        self.gram_teacher: DinoModel | None = None
        self.distillation_teacher: DinoModel | None = None
        self.register_buffer("center", torch.zeros(1, config.projection_dim))
        patch_center = torch.zeros(1, patch_prototypes(config)) if config.use_mask_token else None
        self.register_buffer("patch_center", patch_center)
        self.post_init()
        self._start_teacher()

    def _start_teacher(self):
        """Copies the student into the teacher, which is never trained."""
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    @classmethod
    def from_model(cls, model: DinoModel, **overrides) -> "DinoForPreTraining":
        """
        Makes student and teacher that both start from a model; a head that it lacks is initialised as for training.

        Args:
            overrides: arguments of `DinoConfig` that replace the model's, e.g. `drop_path_rate`.

        Raises:
            ValueError: if the weights do not fit with the overrides.
        """
        values = {**model.config.to_dict(), **overrides}
        values["head_type"] = values["head_type"] or "dino"
        network = cls(DinoConfig.from_dict(values))
        try:
            network.student.load_state_dict(model.state_dict(), strict=model.head is not None)
        except RuntimeError as error:
            raise ValueError(
                f"the model's weights do not fit {overrides}: {str(error).splitlines()[1].strip()}"
            ) from None
        network._start_teacher()
        network.image_transform = model.image_transform
        return network

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        Loads what [`~transformers.PreTrainedModel.from_pretrained`] does, and any single model that [`DinoModel`]
        loads: student and teacher both start from it, with the center that `dino convert` put beside it, if any.
        Raises OSError if the weights are missing or damaged.
        """
        if is_single_model(pretrained_model_name_or_path, **kwargs):
            model = DinoModel.from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
            network = cls.from_model(model)
            center = read_center(pretrained_model_name_or_path, **kwargs)
            if center is not None:
                network.center.copy_(center)
            return network
        loaded = cls._load_network("", pretrained_model_name_or_path, *model_args, **kwargs)
        network = loaded[0] if isinstance(loaded, tuple) else loaded
        network.teacher.requires_grad_(False)  # transformers makes all that it loads trainable
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, DinoForPreTraining):
            init.zeros_(module.center)
            if module.patch_center is not None:
                init.zeros_(module.patch_center)
        else:
            super()._init_weights(module)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the student's first convolution."""
        return self.student.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Sequence[torch.Tensor] | None = None,
        num_global_crops: int = 2,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        objectives: Objectives = DINO,
        bool_masked_pos: torch.Tensor | MaskBatch | None = None,
        gram_pixel_values: Sequence[torch.Tensor] | None = None,
        known: KnownOfStep | None = None,
        preview: int | None = None,
    ) -> DinoForPreTrainingOutput | Preview:
        """
        Computes the losses and what is logged beside them.

        Args:
            pixel_values: the crops of B images, global ones first, each (B, C, h, w); their sizes may differ, but
                those of global crops only if no loss is computed of patches.
            num_global_crops: how many of them are global; the teacher sees these alone.
            objectives: the losses and their weights.
            bool_masked_pos: (G * B, P), crop by crop; true for patches that the student does not see, at which the
                patch loss is computed. One process may have none of a batch's. What [`mask_batch`] makes of it on the
                CPU, moved to the device, spares a wait for the device.
            gram_pixel_values: the global crops as the Gram teacher sees them, each (B, C, h', w'); by default as the
                teacher does.
            known: of the whole step, where these images are a part of it, see `whole_steps.py`.
            preview: a seed for the student's randomness; computes only what the other parts of a step must know.

        Raises:
            ValueError: if the crops do not fit the model or each other, or the objectives need what is not there.
        """
        check_crops(pixel_values, num_global_crops)
        check_objectives(self, objectives)
        masks = None
        if objectives.uses_patches:
            check_global_crops(pixel_values[:num_global_crops], objectives, bool_masked_pos)
            masks = mask_batch(bool_masked_pos) if isinstance(bool_masked_pos, torch.Tensor) else bool_masked_pos
        if preview is not None:
            return self.preview(pixel_values, num_global_crops, objectives, masks, preview)
        known = known or KnownOfStep()
        with drawn_by(known.seed, self.device):
            student = view_crops(
                self.student,
                pixel_values,
                num_global_crops,
                objectives,
                masks,
                sees_masked=False,
                trains_backbone=not self.backbone_is_frozen,
            )
        teacher = known.teacher or self.view_as_teacher(pixel_values, num_global_crops, objectives, masks)
        losses, rest = {}, {}
        if objectives.dino_weight:
            targets = known.targets
            if targets is None:
                targets = self.targets(teacher.projection, self.center, teacher_temperature, objectives)
            targets = targets.unflatten(0, (num_global_crops, -1))  # (G * B, K) -> (G, B, K)
            of_crops = crop_losses(student.projection, targets, student_temperature, objectives)
            losses |= of_crops
            rest |= crop_statistics(targets, of_crops, len(pixel_values) - num_global_crops)
            rest |= {"student_projection": student.projection, "teacher_projection": teacher.projection}
        if objectives.ibot_weight:
            targets = known.patch_targets
            if targets is None:
                targets = self.targets(teacher.patch_projection, self.patch_center, teacher_temperature, objectives)
            losses["ibot"] = patch_loss(student.patch_projection, targets, masks, student_temperature)
            rest |= patch_statistics(targets, masks)
            rest["teacher_patch_projection"] = teacher.patch_projection
        if objectives.koleo_weight:
            features = student.features.chunk(len(pixel_values))[:num_global_crops]
            losses["koleo"] = spread_loss(features, objectives, known.features, known.first)
        if objectives.gram_weight:
            crops = pixel_values[:num_global_crops]
            losses["gram"] = self.gram_loss(student.patch_tokens, crops, gram_pixel_values, objectives)
        weights = objectives.weights(num_global_crops, len(pixel_values) - num_global_crops)
        return DinoForPreTrainingOutput(loss=weighted_sum(losses, weights), losses=losses, **rest)

    @torch.no_grad()
    def view_as_teacher(
        self,
        crops: Sequence[torch.Tensor],
        num_global_crops: int,
        objectives: Objectives,
        masks: MaskBatch | None,
    ) -> Views:
        """Computes what the teacher, or the one from which the student is distilled, says of the global crops."""
        seer = self.teacher if self.distillation_teacher is None else self.distillation_teacher
        return view_crops(seer, crops[:num_global_crops], num_global_crops, objectives, masks)

    @torch.no_grad()
    def preview(
        self,
        crops: Sequence[torch.Tensor],
        num_global_crops: int,
        objectives: Objectives,
        masks: MaskBatch | None,
        seed: int,
    ) -> Preview:
        """Computes what the other parts of a step must know of this one. Call the model with `preview` instead."""
        preview = Preview()
        if objectives.balances_step:
            preview.teacher = self.view_as_teacher(crops, num_global_crops, objectives, masks)
            preview.teacher.patch_tokens = None  # which no loss needs
        if objectives.spreads_step:
            sizes = {crop.shape[-2:] for crop in crops[:num_global_crops]}
            alike = [crop for crop in crops if crop.shape[-2:] in sizes]  # which go through the backbone together
            seen = crops[:num_global_crops] if objectives.uses_patches else alike
            with drawn_by(seed, self.device), kept_statistics(self.student):
                features, _ = see_crops(self.student, seen, num_global_crops, objectives, masks, sees_masked=False)
            preview.features, preview.seed = features.chunk(len(seen))[:num_global_crops], seed
        return preview

    def targets(
        self, outputs: torch.Tensor, center: torch.Tensor, temperature: float, objectives: Objectives
    ) -> torch.Tensor:
        """Returns the teacher's outputs for crops or patches as targets: (N, K) -> (N, K), whose rows sum to 1."""
        if objectives.targets == "sinkhorn":
            return sinkhorn_knopp(outputs, temperature)
        return centered_softmax(outputs, center, temperature)

    def gram_loss(
        self,
        patch_tokens: torch.Tensor,
        crops: Sequence[torch.Tensor],
        gram_crops: Sequence[torch.Tensor] | None,
        objectives: Objectives,
    ) -> torch.Tensor:
        """
        Returns the loss of Gram anchoring.

        Args:
            patch_tokens: (G * B, P, D), the student's.
            crops, gram_crops: the global crops as the student and as the Gram teacher see them.
        """
        crops, seen = torch.cat(list(crops)), torch.cat(list(crops if gram_crops is None else gram_crops))
        grid, seen_grid = self.student.backbone.grid(crops), self.gram_teacher.backbone.grid(seen)
        with torch.no_grad():
            wanted = resize_patches(self.gram_teacher(seen).patch_tokens, seen_grid, grid, objectives.gram_antialias)
        return gram_loss(
            patch_tokens,
            wanted,
            per_image=objectives.gram_per_image,
            normalize=objectives.gram_normalize,
            negatives=objectives.gram_negatives,
        )

    def train(self, mode: bool = True) -> "DinoForPreTraining":
        """Sets the mode of student and teacher; what stays as it is stays in eval mode, too."""
        super().train(mode)
        backbones = [self.student.backbone, self.teacher.backbone] if self.backbone_is_frozen else []
        for fixed in (self.gram_teacher, self.distillation_teacher, *backbones):
            if fixed is not None:
                fixed.eval()
        return self

    def add_distillation_teacher(self, source: DinoModel):
        """
        Lets the student learn from another model, of any size, which never changes: distillation, as DINOv2 and DINOv3
        train their smaller models (https://arxiv.org/abs/2304.07193, section 5). It is not saved with the student.

        Args:
            source: the model with its heads; it is copied.

        Raises:
            ValueError: if its outputs are not of the student's sizes.
        """
        check_distillation_teacher(self.config, source.config)
        self.distillation_teacher = DinoModel(teacher_config(source.config)).to(source.device, source.dtype).eval()
        self.distillation_teacher.load_state_dict(source.state_dict())
        self._keys_to_ignore_on_save = [f"distillation_teacher.{name}" for name in source.state_dict()]
        self.distillation_teacher.requires_grad_(False)

    def add_gram_teacher(self, source: DinoModel | None = None):
        """
        Adds a Gram teacher, which never changes unless `update_gram_teacher` is called.

        Args:
            source: the model whose backbone it becomes, also of another width; by default the teacher as it is.

        Raises:
            ValueError: if the source has other patch tokens than the student, or none.
        """
        source = self.teacher if source is None else source
        check_gram_teacher(self.student, source)
        config = teacher_config(source.config)
        config.head_type, config.patch_head = None, False
        self.gram_teacher = DinoModel(config).to(source.device, source.dtype).eval()
        self.gram_teacher.backbone.load_state_dict(source.backbone.state_dict())
        self.gram_teacher.requires_grad_(False)

    @property
    def can_update_gram_teacher(self) -> bool:
        """Whether the Gram teacher is of the teacher's size, so that it can become it."""
        own, theirs = (network.backbone.state_dict() for network in (self.gram_teacher, self.teacher))
        return {name: x.shape for name, x in own.items()} == {name: x.shape for name, x in theirs.items()}

    def update_gram_teacher(self):
        """Replaces the Gram teacher's weights by the teacher's, which must be of its size."""
        self.gram_teacher.backbone.load_state_dict(self.teacher.backbone.state_dict())

    @torch.no_grad()
    def update_teacher(self, momentum: float):
        """Moves the teacher's parameters towards the student's; `momentum` is how much of the teacher stays.

        The statistics of its batch norms are its own, and stay; so does a backbone that is frozen.
        """
        pairs = [
            (own, theirs)
            for (name, own), theirs in zip(self.teacher.named_parameters(), self.student.parameters())
            if not (self.backbone_is_frozen and name.startswith("backbone."))
        ]
        torch._foreach_lerp_(*map(list, zip(*pairs)), 1 - momentum)

    def update_center(self, teacher_projection: torch.Tensor, momentum: float = 0.9, count: int | None = None):
        """Moves the center towards the mean of the teacher's outputs of all processes, as `losses.centering` does."""
        update_center(self.center, teacher_projection, momentum, count)

    def update_patch_center(self, teacher_projection: torch.Tensor, momentum: float = 0.9, count: int | None = None):
        """Moves the center of patches towards the mean of the teacher's outputs for all masked patches."""
        update_center(self.patch_center, teacher_projection, momentum, count)


def is_single_model(name_or_path: str | os.PathLike, **kwargs) -> bool:
    """Returns whether a saved model is not one of [`DinoForPreTraining`]."""
    if name_or_path is not None and is_foreign(DinoConfig.get_config_dict(name_or_path, **location_of(kwargs))[0]):
        return True
    return not any(key.startswith(("teacher.", "student.")) for key in checkpoint_keys(name_or_path, **kwargs))
