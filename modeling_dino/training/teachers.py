# SPDX-License-Identifier: Apache-2.0
"""What teachers are: models without anything random, which must fit the student."""

import copy

from ..configuration_dino import DinoConfig
from ..modeling_dino import DinoModel
from .objectives import Objectives, check_backbone


# what makes a student's outputs random in training; its teachers have none of it
RANDOMNESS = {"drop_path_rate": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RANDOMNESS |= {"pos_embed_shift": None, "pos_embed_jitter": None, "pos_embed_rescale": None}


def teacher_config(config: DinoConfig) -> DinoConfig:
    """Returns the configuration of a teacher: the student's without what makes outputs random."""
    config = copy.deepcopy(config)
    for name, value in RANDOMNESS.items():
        setattr(config, name, value)
    return config


def patch_prototypes(config: DinoConfig) -> int:
    """Returns the number of outputs of the head that patches have, or share with crops."""
    return (config.patch_projection_dim if config.patch_head else None) or config.projection_dim


def check_gram_teacher(student: DinoModel, source: DinoModel):
    """Raises ValueError if a model cannot be the Gram teacher of a student: one of another family or input."""
    own, theirs = student.backbone, source.backbone
    if not theirs.has_patch_tokens or theirs.tag != own.tag:
        raise ValueError(
            f"the Gram teacher is a {theirs.kind}, the student a {own.kind}: take a Gram teacher of the same family"
        )
    if source.config.num_channels != student.config.num_channels:
        raise ValueError(
            f"the Gram teacher takes {source.config.num_channels} channels, the student {student.config.num_channels}"
        )


def check_distillation_teacher(student: DinoConfig, teacher: DinoConfig):
    """Raises ValueError if a student cannot learn from a model with this configuration."""
    who = "the distillation teacher"
    if teacher.head_type is None:
        raise ValueError(f"{who} has no head, whose outputs are the targets: take a model with one")
    if teacher.num_channels != student.num_channels:
        raise ValueError(f"{who} takes {teacher.num_channels} channels, the student {student.num_channels}")
    if teacher.projection_dim != student.projection_dim:
        raise ValueError(
            f"{who} has {teacher.projection_dim} prototypes, the student {student.projection_dim}: set "
            f"projection_dim={teacher.projection_dim} in the student's configuration"
        )


def check_distilled_patches(student: DinoConfig, teacher: DinoConfig):
    """Raises ValueError if a student cannot learn from a model at patches, too."""
    check_backbone(teacher, Objectives(ibot_weight=1.0), needs_mask_token=False)
    numbers = [patch_prototypes(config) for config in (teacher, student)]
    if numbers[0] != numbers[1]:
        raise ValueError(
            f"the distillation teacher has {numbers[0]} prototypes of patches, the student {numbers[1]}: set "
            "patch_head and patch_projection_dim of the student's configuration as the teacher's"
        )
    if teacher.patch_size != student.patch_size:
        raise ValueError(
            f"the distillation teacher has patches of {teacher.patch_size} pixels, the student of "
            f"{student.patch_size}: take the same, or set ibot_weight=0"
        )
