# SPDX-License-Identifier: Apache-2.0
"""Pretraining on transformers' Trainer, equal to the original step by step.

Paper: https://arxiv.org/abs/2104.14294, algorithm 1.
Reference: `train_one_epoch` of https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py.

One step, whether its batch comes at once or in parts (gradient accumulation), in one process or many:

```
loss = dino_loss(student(crops), teacher(global_crops), center)    # the center of the last step
loss.backward(); clip each gradient; forget the last layer's in the first epochs
optimizer.step()                                                   # with the rates of this step
teacher = momentum * teacher + (1 - momentum) * student
center = 0.9 * center + 0.1 * mean of the teacher's outputs
```

All that changes over a run is a function of the step, so that a resumed run goes on as if it had not stopped.
"""

import math
from dataclasses import dataclass, field

import torch
from torch.utils.data import RandomSampler
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from ..runtime.extras import require
from .checkpoints import last_good_checkpoint, last_whole_checkpoint
from .collapse import CollapseWatch
from .loss import sum_over_processes
from .optimization import LARS, MOMENTUM, OPTIMIZERS, clip_each_gradient, parameter_groups, set_rates
from .schedules import cosine_schedule, linear_warmup
from .self_distillation import DinoForPreTraining, DinoForPreTrainingOutput
from .synchronized_batch_norm import synchronize_batch_norms


require("accelerate")  # the Trainer needs it, and says so late

logger = logging.get_logger(__name__)

STATE = "DinoTrainer"  # under which a checkpoint has what this trainer adds to the Trainer's state
# what of the model's output is logged and watched
METRICS = ("loss", "teacher_entropy", "kl_divergence", "image_information")


@dataclass
class DinoTrainingArguments(TrainingArguments):
    """
    [`~transformers.TrainingArguments`] with those of DINO, whose defaults are the original's for ViT-S.

    Args:
        optim: `"adamw"`, `"sgd"` (momentum 0.9), `"lars"`, or any name that the Trainer knows.
        learning_rate, final_learning_rate: after the warm-up, and at the end. The original has 0.0005 * batch / 256.
        warmup_epochs: in which the learning rate rises linearly from 0.
        weight_decay, final_weight_decay: at the beginning and at the end; not on biases and norms.
        max_grad_norm: to which the gradient of each parameter is clipped, by itself; 0 for not at all.
        freeze_last_layer_epochs: in which the head's last layer is not trained.
        teacher_momentum, final_teacher_momentum: how much of the teacher stays in a step. Small batches want more.
        center_momentum: how much of the center stays in a step.
        student_temperature: of the student's softmax.
        warmup_teacher_temperature, teacher_temperature: of the teacher's, at the beginning and after its warm-up.
        teacher_temperature_warmup_epochs: in which it changes linearly, epoch by epoch.
        num_global_crops: how many of the crops the teacher sees, the first ones.
        collapse_patience: steps that a collapse lasts before a warning names it.

    Raises:
        ValueError: if a value cannot work; the message names it.
    """

    optim: str = "adamw"
    learning_rate: float = 5e-4
    final_learning_rate: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    final_weight_decay: float = 0.4
    max_grad_norm: float = 3.0
    freeze_last_layer_epochs: float = 1
    teacher_momentum: float = 0.996
    final_teacher_momentum: float = 1.0
    center_momentum: float = 0.9
    student_temperature: float = 0.1
    warmup_teacher_temperature: float = 0.04
    teacher_temperature: float = 0.04
    teacher_temperature_warmup_epochs: int = 0
    num_global_crops: int = 2
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
        super().__post_init__()
        self.optim = optim if optim in OPTIMIZERS else self.optim
        # else the order of the images would depend on PyTorch's seed when training begins, also when it is resumed
        self.data_seed = self.seed if self.data_seed is None else self.data_seed
        self._validate()

    def _validate(self):
        for name in ("teacher_momentum", "final_teacher_momentum", "center_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be between 0 and 1")
        for name in ("student_temperature", "warmup_teacher_temperature", "teacher_temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be greater than 0")
        for name in ("warmup_epochs", "freeze_last_layer_epochs", "teacher_temperature_warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0")
        if self.dataloader_persistent_workers:
            raise ValueError("dataloader_persistent_workers=True would repeat the crops of the first epoch")


def collate_crops(items: list[dict]) -> dict[str, list[torch.Tensor]]:
    """
    Args:
        items: B of `{"pixel_values": [crop, …]}`, each crop (C, h, w), in the same order of sizes.

    Returns:
        `{"pixel_values": [crop, …]}`, each (B, C, h, w).
    """
    return {"pixel_values": [torch.stack(crops) for crops in zip(*(item["pixel_values"] for item in items))]}


@dataclass
class StepSums:
    """What the micro-batches of one optimizer step add up to."""

    metrics: torch.Tensor | float = 0.0  # of METRICS, and the number of micro-batches
    teacher: torch.Tensor | float = 0.0  # (1, K)
    num_outputs: int = 0

    def add(self, output: DinoForPreTrainingOutput):
        """One micro-batch."""
        values = [output[name].detach() for name in METRICS]
        self.metrics = self.metrics + torch.stack([*values, torch.ones_like(values[0])])
        self.teacher = self.teacher + output.teacher_projection.detach().float().sum(0, keepdim=True)
        self.num_outputs += len(output.teacher_projection)

    def mean_metrics(self) -> dict[str, float]:
        """Over micro-batches and processes."""
        *sums, count = sum_over_processes(self.metrics.double()).tolist()
        return {name: value / count for name, value in zip(METRICS, sums)}


@dataclass
class RunningMeans:
    """The means of the metrics since they were last logged."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, metrics: dict[str, float]):
        """One step."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}
        self.steps += 1

    def take(self) -> dict[str, float]:
        """The means; begins anew."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


class DinoTrainer(Trainer):
    """
    [`~transformers.Trainer`] for [`DinoForPreTraining`].

    Args:
        model: student, teacher and center, in float32 (use `bf16=True` to compute in half precision).
        args: the run.
        train_dataset: items `{"pixel_values": [crop, …]}`, global crops first, each (C, h, w). Where it has
            `set_epoch(epoch)`, it is told; for a run that is resumed to be the same, its items must depend on the
            epoch and the index alone.
        kwargs: the Trainer's.

    Raises:
        ValueError: if the model or the kind of distribution cannot be trained, or there are fewer images than a batch.
        FloatingPointError: by `train`, if the loss is not finite; names the step and the last good checkpoint.

    Example:

    ```python
    >>> trainer = DinoTrainer(DinoForPreTraining(config), DinoTrainingArguments("run"), train_dataset=crops)
    >>> trainer.train()
    >>> trainer.save_model()  # then DinoModel.from_pretrained("run") is the teacher
    ```
    """

    def __init__(self, model: DinoForPreTraining, args: DinoTrainingArguments, train_dataset=None, **kwargs):
        check_model(model)
        if args.world_size > 1:
            synchronize_batch_norms(model)
        if args.n_gpu > 1:
            logger.warning(f"training on one of {args.n_gpu} GPUs: start with `accelerate launch` to use all")
            args._n_gpu = 1
        kwargs.setdefault("data_collator", collate_crops)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError("FSDP 1 joins parameters into one, so that each cannot be clipped: set fsdp_version to 2")
        self.watch = CollapseWatch(args.collapse_patience)
        self.means = RunningMeans()
        self.step_sums = StepSums()
        self.add_callback(PretrainingCallback(self))

    # what changes over a run

    def set_initial_training_values(self, *args, **kwargs):
        """The Trainer's, of which the number of optimizer steps an epoch is kept."""
        values = super().set_initial_training_values(*args, **kwargs)
        self.steps_per_epoch = values[1]
        return values

    def rates(self, step: int) -> dict[str, float]:
        """Learning rate, weight decay, teacher momentum and teacher temperature of a step, counted from 0."""
        args, total = self.args, self.state.max_steps
        warmup_steps = round(args.warmup_epochs * self.steps_per_epoch)
        return {
            "learning_rate": cosine_schedule(
                step, args.learning_rate, args.final_learning_rate, total, warmup_steps=warmup_steps
            ),
            "weight_decay": cosine_schedule(step, args.weight_decay, args.final_weight_decay, total),
            "teacher_momentum": cosine_schedule(step, args.teacher_momentum, args.final_teacher_momentum, total),
            "teacher_temperature": linear_warmup(
                step // self.steps_per_epoch,
                args.warmup_teacher_temperature,
                args.teacher_temperature,
                args.teacher_temperature_warmup_epochs,
            ),
        }

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """One that does nothing: `rates` are set before each step."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    # optimizer

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The one that `args.optim` names, for [`parameter_groups`]."""
        if self.optimizer is None:
            make, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = make(parameter_groups(self.model if model is None else model), **kwargs)
        return self.optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: DinoTrainingArguments, model=None) -> tuple[type, dict]:
        """The Trainer's, and ours."""
        if args.optim == "adamw":
            betas = (args.adam_beta1, args.adam_beta2)
            kwargs = {"lr": args.learning_rate, "betas": betas, "eps": args.adam_epsilon}
            return torch.optim.AdamW, {**kwargs, "fused": True}  # one pass over the weights, also on CPUs
        if args.optim in ("sgd", "lars"):
            make = LARS if args.optim == "lars" else torch.optim.SGD
            return make, {"lr": args.learning_rate, "momentum": MOMENTUM}
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def _clip_grad_norm(self, model) -> torch.Tensor:
        self.accelerator.unscale_gradients()
        return clip_each_gradient(model.parameters(), self.args.max_grad_norm)

    # one step

    @property
    def pretrained(self) -> DinoForPreTraining:
        """The model, without what distribution and compilation wrap around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The loss of a micro-batch with the center and teacher of the last optimizer step."""
        output = model(
            **inputs,
            num_global_crops=self.args.num_global_crops,
            student_temperature=self.args.student_temperature,
            teacher_temperature=self.rates(self.state.global_step)["teacher_temperature"],
        )
        if model.training:
            self.step_sums.add(output)
        return (output.loss, output) if return_outputs else output.loss

    def before_optimizer_step(self):
        """
        Sets the rates of the step, and forgets the last layer's gradient in the first epochs.

        Raises:
            FloatingPointError: if the loss is not finite; nothing has changed yet.
        """
        step = self.state.global_step
        metrics = self.step_sums.mean_metrics()
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(self._not_finite(metrics["loss"]))
        self.means.add(metrics)
        self._watch(metrics)
        rates = self.rates(step)
        set_rates(self.optimizer, rates["learning_rate"], rates["weight_decay"])
        if step < self.args.freeze_last_layer_epochs * self.steps_per_epoch:
            for name, parameter in self.pretrained.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None

    def after_optimizer_step(self):
        """Moves the teacher towards the student, and the center towards the mean of the teacher's outputs."""
        model, sums = self.pretrained, self.step_sums
        model.update_teacher(self.rates(self.state.global_step)["teacher_momentum"])
        model.update_center(sums.teacher, self.args.center_momentum, count=sums.num_outputs)
        self.step_sums = StepSums()

    def _not_finite(self, loss: float) -> str:
        message = f"the loss is {loss} at step {self.state.global_step}: lower learning_rate or max_grad_norm"
        if not self.is_world_process_zero():
            return message
        checkpoint = last_good_checkpoint(self.args.output_dir)
        return f"{message}. The last good checkpoint is {checkpoint or 'none: no step was saved'}"

    def _watch(self, metrics: dict[str, float]):
        # of one image nothing can be said
        information = metrics["image_information"] if self.args.train_batch_size > 1 else None
        maximum = math.log(self.pretrained.config.projection_dim)
        warning = self.watch.update(metrics["loss"], metrics["teacher_entropy"], information, maximum)
        if warning and self.is_world_process_zero():
            logger.warning(f"step {self.state.global_step}: {warning}")

    # log and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """The Trainer's logs of training, with what tells how it goes; losses are means since the last log."""
        if "loss" in logs:
            center_norm = self.pretrained.center.norm().item()
            logs = {**logs, **self.means.take(), "center_norm": center_norm, **self.rates(self.state.global_step - 1)}
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: the Trainer's estimate is for tokens."""
        return 0

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        [`~transformers.Trainer.train`].

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last one in the output folder that was saved whole.

        Raises:
            ValueError: if there is none, or it is of a run with another batch size or number of images.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"nothing to resume: there is no whole checkpoint in {self.args.output_dir}")
        return super().train(resume_from_checkpoint, **kwargs)

    def _save_checkpoint(self, model, trial):
        self.state.stateful_callbacks[STATE] = {
            "watch": self.watch.state(),
            "means": vars(self.means),
            "steps": self._steps(),
        }
        super()._save_checkpoint(model, trial)

    def restore(self):
        """
        Takes up what a checkpoint has of this trainer, if one was loaded.

        Raises:
            ValueError: if it counts steps of another size.
        """
        saved = self.state.stateful_callbacks.get(STATE)
        if saved is None:
            return
        for name, value in self._steps().items():
            if saved["steps"][name] != value:
                raise ValueError(
                    f"the checkpoint is of a run with {name}={saved['steps'][name]}, not {value}: its steps would not "
                    "mean the same (the batch size is that of all processes and accumulation steps)"
                )
        self.watch = CollapseWatch(**{**saved["watch"], "patience": self.args.collapse_patience})
        self.means = RunningMeans(**saved["means"])

    def _steps(self) -> dict[str, int]:
        return {"batch_size": self.total_batch_size, "steps_per_epoch": self.steps_per_epoch}

    # data

    @property
    def total_batch_size(self) -> int:
        """Images an optimizer step: of all processes and accumulation steps."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def _get_train_sampler(self, train_dataset=None):
        # Whole steps, so that an epoch is the same however its batches are spread over processes and time.
        sampler = super()._get_train_sampler(train_dataset)
        if sampler is None:
            return None
        num_images = len(self.train_dataset)
        if num_images < self.total_batch_size:
            raise ValueError(f"{num_images} images are fewer than a batch of {self.total_batch_size}: lower its size")
        if isinstance(sampler, RandomSampler):
            whole_steps = num_images // self.total_batch_size * self.total_batch_size
            return RandomSampler(sampler.data_source, num_samples=whole_steps)
        return sampler


class PretrainingCallback(TrainerCallback):
    """Calls the trainer at the moments of a step for which the Trainer has no method of its own."""

    def __init__(self, trainer: DinoTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.restore()

    def on_epoch_begin(self, args, state, control, **kwargs):
        # not left to accelerate, which in several processes tells the sampler alone
        if hasattr(self.trainer.train_dataset, "set_epoch"):
            self.trainer.train_dataset.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.trainer.after_optimizer_step()


def check_model(model: DinoForPreTraining):
    """
    Raises:
        ValueError: if it is no model for pretraining, or its weights are not in float32: small steps would get lost.
    """
    if not isinstance(model, DinoForPreTraining):
        raise ValueError(f"the model is a {type(model).__name__}: make a DinoForPreTraining of it (from_model)")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes != {torch.float32}:
        raise ValueError(
            f"the weights are in {', '.join(map(str, dtypes))}, in which the teacher would not move: load them with "
            "dtype=torch.float32, and set bf16=True to compute in half precision"
        )


__all__ = ["DinoTrainer", "DinoTrainingArguments", "collate_crops"]
