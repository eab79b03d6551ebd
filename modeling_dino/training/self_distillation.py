# SPDX-License-Identifier: Apache-2.0
"""Student and teacher: the model that is pretrained.

Paper: Emerging Properties in Self-Supervised Vision Transformers, https://arxiv.org/abs/2104.14294, algorithm 1.
Reference: https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py and `MultiCropWrapper` of its utils.py.

Letters in shapes: B images, C channels, h x w pixels of a crop, G global crops, S crops in all.
"""

import copy
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
from .losses.centering import teacher_probabilities, update_center
from .losses.cross_entropy import mean_entropy
from .losses.dino import cross_view_entropy


@dataclass
class DinoForPreTrainingOutput(ModelOutput):
    """
    Output of [`DinoForPreTraining`], of G global crops, S crops in all, and B images.

    Args:
        loss: cross-entropy of teacher and student in nats: the sum of `teacher_entropy` and `kl_divergence`.
        student_projection: (S * B, projection_dim), crop by crop.
        teacher_projection: (G * B, projection_dim), of the global crops.
        teacher_entropy: of the centered and sharpened output, in nats, mean over crops and images. A collapsed teacher
            has 0, or ln(projection_dim).
        kl_divergence: from teacher to student, in nats, mean over pairs and images.
        image_information: how much of the teacher's output depends on the image, in nats, at most ln(B): the entropy
            of the mean output without the mean entropy. A teacher that says the same of every image has 0.
    """

    loss: torch.FloatTensor | None = None
    student_projection: torch.FloatTensor | None = None
    teacher_projection: torch.FloatTensor | None = None
    teacher_entropy: torch.FloatTensor | None = None
    kl_divergence: torch.FloatTensor | None = None
    image_information: torch.FloatTensor | None = None


class DinoForPreTraining(DinoPreTrainedModel):
    """
    Student and teacher, each backbone and head, and the center of the teacher's outputs.

    The teacher has no gradient and no dropout or drop path; in train mode its batch norms go by the batch, as in the
    original. `forward` changes neither the teacher nor the center: after each optimizer step call `update_teacher` and
    `update_center`, as [`DinoTrainer`] does.

    Example:

    ```python
    >>> output = model([global_crop, global_crop_2, local_crop])  # each (B, C, h, w)
    >>> output.loss.backward()
    >>> optimizer.step()
    >>> model.update_teacher(momentum=0.996)
    >>> model.update_center(output.teacher_projection)
    ```
    """

    def __init__(self, config: DinoConfig):
        if config.head_type is None:
            raise ValueError("pretraining needs a projection head: set head_type")
        super().__init__(config)
        teacher_config = copy.deepcopy(config)
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            setattr(teacher_config, name, 0.0)
        self.student = DinoModel(config)
        self.teacher = DinoModel(teacher_config)
        self.register_buffer("center", torch.zeros(1, config.projection_dim))
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
    ) -> DinoForPreTrainingOutput:
        """
        Computes the loss and what is logged beside it.

        Args:
            pixel_values: the crops of B images, global ones first, each (B, C, h, w); their sizes may differ.
            num_global_crops: how many of them are global; the teacher sees these alone.

        Raises:
            ValueError: if the crops do not fit the model or each other.
        """
        check_crops(pixel_values, num_global_crops)
        student = project_crops(self.student, pixel_values)
        with torch.no_grad():
            teacher = project_crops(self.teacher, pixel_values[:num_global_crops])
        targets = teacher_probabilities(teacher, self.center, teacher_temperature, num_global_crops)
        loss = cross_view_entropy(student, targets, student_temperature)
        entropy = mean_entropy(targets)
        return DinoForPreTrainingOutput(
            loss=loss,
            student_projection=student,
            teacher_projection=teacher,
            teacher_entropy=entropy,
            kl_divergence=loss.detach() - entropy,
            image_information=mean_entropy(targets.mean((0, 1))) - entropy,
        )

    @torch.no_grad()
    def update_teacher(self, momentum: float):
        """Moves the teacher's parameters towards the student's; `momentum` is how much of the teacher stays.

        The statistics of its batch norms are its own, and stay.
        """
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def update_center(self, teacher_projection: torch.Tensor, momentum: float = 0.9, count: int | None = None):
        """Moves the center towards the mean of the teacher's outputs of all processes, as `losses.centering` does."""
        update_center(self.center, teacher_projection, momentum, count)


def project_crops(network: DinoModel, crops: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    Returns the head's outputs on crops of any sizes. Crops of one size go through the backbone together, and all
    through the head (`MultiCropWrapper` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py).

    Args:
        crops: each (B, C, h, w).

    Returns:
        (crops * B, projection_dim), crop by crop.
    """
    features: list[torch.Tensor | None] = [None] * len(crops)
    for size in dict.fromkeys(crop.shape[-2:] for crop in crops):
        indices = [i for i, crop in enumerate(crops) if crop.shape[-2:] == size]
        pooled = network.get_features(torch.cat([crops[i] for i in indices]))
        for i, feature in zip(indices, pooled.chunk(len(indices))):
            features[i] = feature
    return network.head(torch.cat(features))


def is_single_model(name_or_path: str | os.PathLike, **kwargs) -> bool:
    """Returns whether a saved model is not one of [`DinoForPreTraining`]."""
    if name_or_path is not None and is_foreign(DinoConfig.get_config_dict(name_or_path, **location_of(kwargs))[0]):
        return True
    return not any(key.startswith(("teacher.", "student.")) for key in checkpoint_keys(name_or_path, **kwargs))


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
