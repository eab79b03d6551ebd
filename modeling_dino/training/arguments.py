# SPDX-License-Identifier: Apache-2.0
"""The arguments of a pretraining run: transformers' TrainingArguments and those of DINO, DINOv2 and DINOv3."""

from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from transformers import TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from ..runtime.extras import require
from ..runtime.processes import check_joined
from .masking import check_ratios
from .objectives import Objectives
from .optimization import OPTIMIZERS


LARGEST_RATE = 1e30  # with which float32 can compute
BASE_BATCH_SIZE = 256  # images in a step, to which base learning rates refer
# what may have a schedule of its own, and the least and greatest value of each
SCHEDULED = {
    "learning_rate": (0.0, LARGEST_RATE),
    "weight_decay": (0.0, LARGEST_RATE),
    "teacher_momentum": (0.0, 1.0),
    "teacher_temperature": (1e-9, LARGEST_RATE),
    "dino_local_weight": (1e-9, LARGEST_RATE),
    "gram_weight": (1e-9, LARGEST_RATE),
}
SCHEDULE_KEYS = ("start", "peak", "end", "warmup_epochs", "cosine_epochs")
CLIPS = ("parameter", "module")
FREEZES = ("gradient", "rate")
require("accelerate")  # TrainingArguments need it, and say so late


class Rates(NamedTuple):
    """The rates that an optimizer takes unless others are given; the learning rate is for 256 images in a step."""

    base_learning_rate: float
    weight_decay: float
    final_weight_decay: float


ADAMW_RATES = Rates(5e-4, 0.04, 0.4)  # the original's for ViTs
# and for ResNets: https://github.com/facebookresearch/dino/blob/7c446df/README.md#resnet-50-and-other-convnets-trainings
SGD_RATES = Rates(0.03, 1e-4, 1e-4)


def rates_of(optim: str) -> Rates:
    """Returns the rates of an optimizer."""
    return SGD_RATES if optim == "sgd" else ADAMW_RATES


@dataclass
class DinoTrainingArguments(TrainingArguments):
    """
    Adds the arguments of DINO to [`~transformers.TrainingArguments`]; defaults are the original's for ViT-S. Those of
    DINOv2 and DINOv3 are in the recipes.

    Args:
        optim: `"adamw"`, `"sgd"` (momentum 0.9), `"lars"`, or any name that the Trainer knows.
        learning_rate, final_learning_rate: after the warm-up, and at the end. By default the first is
            0.0005 * batch size / 256, with `sgd` 0.03 * batch size / 256; the batch is that of all processes.
        warmup_epochs: in which the learning rate rises linearly from 0; once more when a frozen backbone is trained.
        weight_decay, final_weight_decay: at the beginning and at the end; not on biases and norms. By default 0.04
            and 0.4, with `sgd` 0.0001, as the original's for ResNets.
        max_grad_norm: to which the gradient of each parameter is clipped, by itself; 0 for not at all.
        clip: `"parameter"`, or `"module"` for the gradient of the backbone and of each head, as DINOv2.
        freeze_last_layer_epochs: in which the head's last layer is not trained.
        freeze_last_layer: `"gradient"` drops its gradient meanwhile; `"rate"` sets its learning rate to 0, as DINOv2,
            so that Adam's moments gather.
        freeze_backbone_epochs: in which the heads alone are trained, and the backbones of student and teacher stay as
            they are, batch norms included; for fresh heads on a trained backbone.
        lora_rank: train adapters of this rank in the linear layers of the backbone, and not its weights (LoRA); they
            are merged at the end. 0 for none.
        layer_decay: the learning rate of each layer of the backbone over that of the next.
        patch_embed_multiplier: by which the learning rate of the patch embedding is multiplied besides.
        teacher_momentum, final_teacher_momentum: how much of the teacher stays in a step. Small batches want more.
        center_momentum: how much of the center stays in a step.
        student_temperature: of the student's softmax.
        warmup_teacher_temperature, teacher_temperature: of the teacher's, at the beginning and after its warm-up.
        teacher_temperature_warmup_epochs: in which it changes linearly, epoch by epoch.
        teacher_temperature_by_step: it changes step by step, as DINOv2's.
        schedules: by name (learning_rate, weight_decay, teacher_momentum, teacher_temperature, dino_local_weight,
            gram_weight) a schedule of DINOv3's form in the place of the above: `start` rises linearly to `peak` in
            `warmup_epochs`, and goes to `end` along half a cosine in `cosine_epochs`, by default all that follow.
        num_global_crops: how many of the crops the teacher sees, the first ones.
        dino_weight, dino_local_weight, ibot_weight, koleo_weight, gram_weight, targets, koleo_neighbours,
            koleo_over_processes, gram_per_image, gram_normalize, gram_negatives, gram_antialias: the losses, their
            weights and settings, see [`Objectives`].
        mask_ratios: the range of the share of patches that are masked in a crop, for the patch loss.
        mask_share_of_crops: the share of the global crops of a step that are masked.
        exact_masks: mask single patches, too, until the number is met, as DINOv3.
        gram_teacher: folder or hub id of the Gram teacher; by default the teacher as the run begins.
        gram_update_steps: steps after which the teacher becomes the Gram teacher, again and again; 0 for never.
        gram_max_updates: how often it does at most; by default as long as the run.
        distillation_teacher: folder or hub id of a model with heads, of any size, from which the student learns in the
            place of its own average, and which stays as it is. What is saved and evaluated is the average.
        collapse_patience: steps that a collapse lasts before a warning names it.
        load_best_model_at_end: evaluate the model before training, save a checkpoint whenever the score is above all
            earlier ones, and end with the best: the model as it was before training, if no checkpoint is better.
        metric_for_best_model: the score, one of those that the evaluation returns.

    Raises:
        ValueError: if a value cannot work; the message names it.
    """

    optim: str = "adamw"
    learning_rate: float | None = None
    final_learning_rate: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float | None = None
    final_weight_decay: float | None = None
    max_grad_norm: float = 3.0
    clip: str = "parameter"
    freeze_last_layer_epochs: float = 1
    freeze_last_layer: str = "gradient"
    freeze_backbone_epochs: float = 0
    lora_rank: int = 0
    layer_decay: float = 1.0
    patch_embed_multiplier: float = 1.0
    teacher_momentum: float = 0.996
    final_teacher_momentum: float = 1.0
    center_momentum: float = 0.9
    student_temperature: float = 0.1
    warmup_teacher_temperature: float = 0.04
    teacher_temperature: float = 0.04
    teacher_temperature_warmup_epochs: int = 0
    teacher_temperature_by_step: bool = False
    schedules: dict | None = None
    num_global_crops: int = 2
    dino_weight: float = Objectives.dino_weight
    dino_local_weight: float = Objectives.dino_local_weight
    ibot_weight: float = Objectives.ibot_weight
    koleo_weight: float = Objectives.koleo_weight
    gram_weight: float = Objectives.gram_weight
    targets: str = Objectives.targets
    koleo_neighbours: int = Objectives.koleo_neighbours
    koleo_over_processes: bool = Objectives.koleo_over_processes
    gram_per_image: bool = Objectives.gram_per_image
    gram_normalize: bool = Objectives.gram_normalize
    gram_negatives: str = Objectives.gram_negatives
    gram_antialias: bool = Objectives.gram_antialias
    mask_ratios: list[float] = field(default_factory=lambda: [0.1, 0.5])
    mask_share_of_crops: float = 0.5
    exact_masks: bool = False
    gram_teacher: str | None = None
    gram_update_steps: int = 0
    gram_max_updates: int | None = None
    distillation_teacher: str | None = None
    collapse_patience: int = 50
    num_train_epochs: float = 100.0
    logging_steps: float = 10
    dataloader_drop_last: bool = True
    remove_unused_columns: bool = False
    ddp_find_unused_parameters: bool | None = False
    logging_nan_inf_filter: bool = False  # a loss that is not finite stops the run

    def __post_init__(self):
        optim = self.optim
        if optim in OPTIMIZERS:
            self.optim = "adamw_torch"  # the inherited check knows its own names alone
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else processes on CPUs do not join
        if self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu:
            self.accelerator_config = {"non_blocking": True}  # else each batch waits for the step before it
        # the inherited check compares strategies of evaluation and of saving; here, what is best is saved
        keeps_best, self.load_best_model_at_end = self.load_best_model_at_end, False
        super().__post_init__()
        self.load_best_model_at_end = keeps_best
        if self.greater_is_better is None:
            self.greater_is_better = True
        check_joined(self.world_size)
        self.optim = optim if optim in OPTIMIZERS else self.optim
        self._set_rates()
        # else the order of the images would depend on PyTorch's seed when training begins, also when it is resumed
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self._validate()

    @property
    def total_batch_size(self) -> int:
        """Images an optimizer step: of all processes and accumulation steps."""
        return self.train_batch_size * self.gradient_accumulation_steps * self.world_size

    def objectives(self, weights: dict[str, float] | None = None) -> Objectives:
        """Returns the losses and their settings, with other weights in a step where these have a schedule."""
        values = {field.name: getattr(self, field.name) for field in fields(Objectives)}
        return Objectives(**{**values, **(weights or {})})

    def updates_gram_teacher(self, step: int) -> bool:
        """Returns whether the teacher becomes the Gram teacher after this many steps."""
        if not self.gram_update_steps:
            return False
        updates, rest = divmod(step, self.gram_update_steps)
        return rest == 0 and (self.gram_max_updates is None or updates <= self.gram_max_updates)

    def objectives_at(self, rates: dict[str, float]) -> Objectives:
        """Returns the losses of a step with these rates."""
        return self.objectives({name: rates[name] for name in ("dino_local_weight", "gram_weight") if name in rates})

    def _set_rates(self):
        """Sets the rates that are not given to those of the optimizer."""
        rates = rates_of(self.optim)
        if self.learning_rate is None:
            # not `total_batch_size`, which counts GPUs that a process without a launcher leaves idle
            batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = rates.base_learning_rate * batch_size / BASE_BATCH_SIZE
        self.weight_decay = rates.weight_decay if self.weight_decay is None else self.weight_decay
        if self.final_weight_decay is None:
            self.final_weight_decay = rates.final_weight_decay

    def _validate(self):
        for name in ("teacher_momentum", "final_teacher_momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("student_temperature", "warmup_teacher_temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in (
            "warmup_epochs",
            "freeze_last_layer_epochs",
            "freeze_backbone_epochs",
            "teacher_temperature_warmup_epochs",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        for name in ("learning_rate", "final_learning_rate", "weight_decay", "final_weight_decay"):
            if not 0 <= getattr(self, name) <= LARGEST_RATE:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and {LARGEST_RATE:g}")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps={self.max_steps} must be at least 1, or -1 to go by num_train_epochs")
        if self.num_train_epochs <= 0 and self.max_steps < 0:
            raise ValueError(f"num_train_epochs={self.num_train_epochs} must be greater than 0")
        if self.load_best_model_at_end and self.save_strategy == "no":
            raise ValueError("load_best_model_at_end=True loads a checkpoint: set save_strategy to steps or epoch")
        if not self.greater_is_better:
            raise ValueError("greater_is_better=False: the scores of pretraining are accuracies, the greatest is best")
        self._validate_report_to()
        self._validate_objectives()
        self._validate_schedules()
        if self.dataloader_persistent_workers:
            raise ValueError("dataloader_persistent_workers=True would repeat the crops of the first epoch")

    def _validate_objectives(self):
        objectives = self.objectives()
        for name, allowed in (("clip", CLIPS), ("freeze_last_layer", FREEZES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(allowed)}")
        for name in ("layer_decay", "patch_embed_multiplier"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and at most 1")
        if self.freeze_backbone_epochs and not (objectives.dino_weight or objectives.ibot_weight):
            raise ValueError(
                f"freeze_backbone_epochs={self.freeze_backbone_epochs} trains the heads alone, which no loss uses: "
                "set dino_weight or ibot_weight, or freeze_backbone_epochs=0"
            )
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank={self.lora_rank} must be at least 0")
        if self.lora_rank and self.gram_update_steps:
            raise ValueError(
                "the Gram teacher has no adapters, and cannot become a teacher with some: set lora_rank=0 or "
                "gram_update_steps=0"
            )
        if self.gram_update_steps < 0:
            raise ValueError(f"gram_update_steps={self.gram_update_steps} must be at least 0")
        if self.gram_max_updates is not None and (self.gram_max_updates < 1 or not self.gram_update_steps):
            raise ValueError(
                f"gram_max_updates={self.gram_max_updates} must be at least 1, and goes with gram_update_steps"
            )
        if len(self.mask_ratios) != 2:
            raise ValueError(f"mask_ratios={self.mask_ratios} must be two numbers, the lesser first")
        check_ratios(tuple(self.mask_ratios), self.mask_share_of_crops)
        self._validate_neighbours(objectives)

    def _validate_neighbours(self, objectives: Objectives):
        """Raises ValueError if KoLeo compares too few images."""
        compared = self.total_batch_size if objectives.koleo_over_processes else self.per_device_train_batch_size
        if objectives.koleo_weight and compared <= objectives.koleo_neighbours:
            raise ValueError(
                f"KoLeo of {compared} images has no {objectives.koleo_neighbours} nearest others of an image: raise "
                "the batch size, or set koleo_weight=0"
            )

    def _validate_schedules(self):
        for name, schedule in (self.schedules or {}).items():
            if name not in SCHEDULED:
                raise ValueError(f"schedules has {name!r}, but only {', '.join(SCHEDULED)} can have one")
            if not isinstance(schedule, dict) or not {"start", "peak", "end"} <= set(schedule) <= set(SCHEDULE_KEYS):
                raise ValueError(
                    f"schedules.{name} must have start, peak, end, and may have warmup_epochs, cosine_epochs"
                )
            self._validate_schedule(name, schedule)

    def _validate_schedule(self, name: str, schedule: dict):
        least, greatest = SCHEDULED[name]
        for key, value in schedule.items():
            low, high = (least, greatest) if key in ("start", "peak", "end") else (0, LARGEST_RATE)
            if value is None and key == "cosine_epochs":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                raise ValueError(f"schedules.{name}.{key}={value!r} must be a number from {low:g} to {high:g}")

    def _validate_report_to(self):
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise ValueError(f"report_to={name} must be none, all, or of {', '.join(INTEGRATION_TO_CALLBACK)}")
            if name != "flyte" and name not in get_available_reporting_integrations():  # which it never lists
                raise ValueError(f"report_to={name}: {name} is not installed: install it, or set report_to=none")
