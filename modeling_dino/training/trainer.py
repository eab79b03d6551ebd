# SPDX-License-Identifier: Apache-2.0
"""Pretraining on transformers' Trainer, equal to the original step by step.

Papers: https://arxiv.org/abs/2104.14294, algorithm 1; DINOv2, https://arxiv.org/abs/2304.07193; DINOv3,
https://arxiv.org/abs/2508.10104.
References: `train_one_epoch` of https://github.com/facebookresearch/dino/blob/7c446df/main_dino.py, and `do_train` of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/train/train.py.

One step, whether its batch comes at once or in parts (gradient accumulation), in one process or many:

```
masks = draw_masks(step)                                           # where there is a patch loss
loss = sum of the objectives' losses                               # with the centers of the last step
loss.backward(); clip the gradients; do not train the last layer in the first epochs
optimizer.step()                                                   # with the rates of this step
teacher = momentum * teacher + (1 - momentum) * student
center = 0.9 * center + 0.1 * mean of the teacher's outputs        # that of patches, too
```

All that changes over a run, masks included, is a function of the step, so that a resumed run goes on as if it had not
stopped.
"""

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch.utils.data import RandomSampler, Sampler
from transformers import Trainer
from transformers.utils import logging

from ..checkpoint_files import read_center
from ..modeling_dino import DinoModel
from ..runtime.extras import require
from .adapters import check_adapters, low_rank_adapters
from .arguments import DinoTrainingArguments
from .checkpoints import CheckpointedTrainer
from .collectives import process_number
from .curves import draw_curves
from .masking import BlockMasks, MaskBatch, draw_masks, largest_block, mask_batch
from .objectives import Objectives, check_backbone, leaves_parameters_out
from .optimization import (
    LARS,
    MOMENTUM,
    clip_each_gradient,
    clip_each_module,
    layered_parameter_groups,
    parameter_groups,
)
from .schedules import Schedules
from .self_distillation import DinoForPreTraining
from .steps import STATE, StepCallback
from .synchronized_batch_norm import synchronize_batch_norms
from .teachers import check_distilled_patches
from .training_data import StepSampler
from .training_folder import CURVES
from .whole_steps import KnownOfStep, know_step


logger = logging.get_logger(__name__)


def collate_crops(items: list[dict]) -> dict[str, list[torch.Tensor]]:
    """
    Puts the crops of several images together.

    Args:
        items: B of `{"pixel_values": [crop, …]}`, each crop (C, h, w), in the same order of sizes; all or none with
            `gram_pixel_values`, the global crops for a Gram teacher.

    Returns:
        `{"pixel_values": [crop, …]}`, each (B, C, h, w).
    """
    return {name: [torch.stack(crops) for crops in zip(*(item[name] for item in items))] for name in items[0]}


class DinoTrainer(CheckpointedTrainer):
    """
    [`~transformers.Trainer`] for [`DinoForPreTraining`].

    Args:
        model: student, teacher and center, in float32 (use `bf16=True` to compute in half precision).
        args: the run.
        train_dataset: items `{"pixel_values": [crop, …]}`, global crops first, each (C, h, w), and with
            `"gram_pixel_values"` the global crops for the Gram teacher, if it sees others. Where it has
            `set_epoch(epoch)`, it is told; where `needs_step` is true, it is asked for (step of the epoch, index). For
            a run that is resumed to be the same, its items must depend on these alone.
        evaluation: computes metrics of the teacher; they are logged before training, every few epochs and at the end.
        evaluate_every: epochs between two evaluations.
        kwargs: the Trainer's.

    Raises:
        ValueError: if the model or the kind of distribution cannot be trained, or there are fewer images than a batch.
        FloatingPointError: by `train`, if a loss or gradient is not finite; names the step and the last good
            checkpoint.

    Example:

    ```python
    >>> trainer = DinoTrainer(DinoForPreTraining(config), DinoTrainingArguments("run"), train_dataset=crops)
    >>> trainer.train()  # run/curves.png shows how it went
    >>> trainer.save_model()  # then DinoModel.from_pretrained("run") is the teacher
    ```
    """

    def __init__(
        self,
        model: DinoForPreTraining,
        args: DinoTrainingArguments,
        train_dataset=None,
        *,
        evaluation: Callable[[DinoModel], dict[str, float]] | None = None,
        evaluate_every: int = 1,
        **kwargs,
    ):
        check_model(model)
        prepare_objectives(model, args)
        if args.world_size > 1:
            synchronize_batch_norms(model)
            leaves_out = leaves_parameters_out(model.config, args.objectives()) or args.freeze_backbone_epochs > 0
            args.ddp_find_unused_parameters |= leaves_out
        if args.n_gpu > 1:
            logger.warning(f"training on one of {args.n_gpu} GPUs: start with `accelerate launch` to use all")
            args._n_gpu = 1
        kwargs.setdefault("data_collator", collate_crops)
        super().__init__(model, args, train_dataset=train_dataset, **kwargs)
        if self.is_fsdp_enabled and self.accelerator.state.fsdp_plugin.fsdp_version != 2:
            raise ValueError("FSDP 1 joins parameters into one, so that each cannot be clipped: set fsdp_version to 2")
        if self.is_fsdp_enabled and args.lora_rank:
            raise ValueError("lora_rank does not go with FSDP: train with DDP, or without it")
        if args.load_best_model_at_end:
            check_best_can_be_kept(self, evaluation)
        self.evaluation = evaluation
        self._step_masks: dict[tuple[int, tuple[int, int]], torch.Tensor] = {}  # by step and grid
        self._parts: list[dict] = []  # of the step that is computed
        self._known: list[KnownOfStep] = []  # of each of them, where a loss depends on all
        self.steps = StepCallback(args, None if evaluation is None else evaluate_every)
        self.add_callback(self.steps)

    # rates and optimizer

    def set_initial_training_values(self, *args, **kwargs):
        """
        Returns the Trainer's values, and makes the schedules of these numbers of steps. Warns if the backbone is
        frozen in all of them.
        """
        values = super().set_initial_training_values(*args, **kwargs)
        steps_per_epoch, total_steps = values[1], values[-1]
        self.steps.schedules = Schedules(self.args, steps_per_epoch, total_steps)
        is_frozen = 0 < total_steps <= self.args.freeze_backbone_epochs * steps_per_epoch
        if is_frozen and self.is_world_process_zero():
            logger.warning(
                f"the backbone is frozen in all {total_steps / steps_per_epoch:g} epochs, and stays as it is: train "
                f"longer, or lower training.freeze_backbone_epochs={self.args.freeze_backbone_epochs:g}"
            )
        return values

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """Returns a scheduler that does nothing: the rates are set before each step."""
        if self.lr_scheduler is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """
        Returns the optimizer that `args.optim` names, of [`parameter_groups`], or of [`layered_parameter_groups`]
        where the rates of layers differ.
        """
        if self.optimizer is None:
            make, kwargs = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = make(self._parameter_groups(self.model if model is None else model), **kwargs)
        return self.optimizer

    def _parameter_groups(self, model) -> list[dict]:
        args = self.args
        if args.layer_decay == args.patch_embed_multiplier == 1 and args.freeze_last_layer == "gradient":
            return parameter_groups(model)
        student = self.accelerator.unwrap_model(model).student
        return layered_parameter_groups(student, args.layer_decay, args.patch_embed_multiplier)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: DinoTrainingArguments, model=None) -> tuple[type, dict]:
        """Returns the class and the arguments of an optimizer, the Trainer's or one of ours."""
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
        if self.args.clip == "parameter":
            return clip_each_gradient(model.parameters(), self.args.max_grad_norm)
        student = self.model.student
        modules = [
            module
            for module in (student.backbone, student.head, student.patch_head)
            if module is not None and any(parameter.grad is not None for parameter in module.parameters())
        ]
        return torch.linalg.vector_norm(torch.stack(clip_each_module(modules, self.args.max_grad_norm)))

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        is_scaled = getattr(self.accelerator, "scaler", None) is not None
        self.steps.gradient_norm = None if is_scaled or norm is None else norm
        return norm

    # one step

    def get_batch_samples(self, *args, **kwargs):
        """Returns what the Trainer does, and keeps it: the parts of the step that comes next."""
        self._parts, num_items = super().get_batch_samples(*args, **kwargs)
        return self._parts, num_items

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """Returns the loss of a micro-batch with the centers and teacher of the last optimizer step."""
        rates = self.steps.schedules.rates(self.state.global_step)
        objectives = self.args.objectives_at(rates)
        part = self.steps.sums.num_batches
        if model.training and part == 0:
            self._known = self._know_step(model, objectives, rates["teacher_temperature"])
        output = model(
            **self._arguments_of(inputs, part, objectives),
            student_temperature=self.args.student_temperature,
            teacher_temperature=rates["teacher_temperature"],
            known=self._known[part] if model.training and self._known else None,
        )
        if model.training:
            self.steps.sums.add(output)
        return (output.loss, output) if return_outputs else output.loss

    def _know_step(self, model, objectives: Objectives, teacher_temperature: float) -> list[KnownOfStep]:
        """Returns what the parts of a step must know of each other; nothing if they need not, or there is one."""
        if len(self._parts) < 2 or not (objectives.balances_step or objectives.spreads_step):
            return []
        seeds = random.Random(f"{self.args.seed}-{self.state.global_step}-{process_number()}")
        previews = []
        for part, inputs in enumerate(self._parts):
            arguments = self._arguments_of(self._prepare_inputs(inputs), part, objectives)
            with torch.no_grad():
                previews.append(model(**arguments, preview=seeds.getrandbits(63)))
        return know_step(previews, objectives, teacher_temperature)

    def _arguments_of(self, inputs: dict, part: int, objectives: Objectives) -> dict:
        """Returns what the model must be given of a part of the step."""
        masks = {"bool_masked_pos": self._masks_of(inputs["pixel_values"], part)} if objectives.ibot_weight else {}
        return {**inputs, **masks, "num_global_crops": self.args.num_global_crops, "objectives": objectives}

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Does what the Trainer does, and draws the masks of the next step while the device computes this one."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        for step, grid in list(self._step_masks):
            if step == self.state.global_step:
                self.draw_masks(step + 1, grid)
        return loss

    def draw_masks(self, step: int, grid: tuple[int, int]) -> torch.Tensor:
        """Draws the masks of an optimizer step once, see [`draw_step_masks`]."""
        if (step, grid) not in self._step_masks:
            self._step_masks = {key: masks for key, masks in self._step_masks.items() if key[0] + 1 == step}
            self._step_masks[step, grid] = draw_step_masks(self.args, step, grid)
        return self._step_masks[step, grid]

    def _masks_of(self, crops: list[torch.Tensor], part: int) -> MaskBatch:
        """Returns the masks of a part's global crops, (G * B, P), from those of the whole step."""
        masks = self.draw_masks(self.state.global_step, self.model.student.backbone.grid(crops[0]))
        size = len(crops[0])
        # a step's images come as accelerate hands them out: a batch to each process, then the next micro-batch
        first = (part * self.args.world_size + process_number()) * size
        return mask_batch(masks[:, first : first + size].flatten(0, 1)).to(crops[0].device)

    def floating_point_ops(self, inputs: dict) -> int:
        """Returns 0: the Trainer's estimate is for tokens."""
        return 0

    # log, evaluation and checkpoints

    def log(self, logs: dict[str, float], start_time: float | None = None):
        """Logs what the Trainer does, and the means of the metrics since the last log, the center's norm and rates."""
        if "loss" in logs:
            rates = self.steps.schedules.rates(self.state.global_step - 1)
            logs = {**logs, **self.steps.means.take(), "center_norm": self.model.center.norm().item(), **rates}
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Logs and returns the metrics of the teacher as it is; without `evaluation`, does what the Trainer does."""
        if self.evaluation is None:
            return super().evaluate(*args, **kwargs)
        teacher = self.model.teacher
        was_training = teacher.training
        # one process's, so that all agree on which model is the best
        metrics = require("accelerate.utils").broadcast_object_list([self.evaluation(teacher.eval())])[0]
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        teacher.train(was_training)
        if self.args.load_best_model_at_end:
            self._save_if_best(metrics)
        return metrics

    def _save_if_best(self, metrics: dict[str, float]):
        """Asks for a checkpoint if a model is better than all before; the first one is that before training."""
        name = self.args.metric_for_best_model
        if name not in metrics:
            raise ValueError(f"metric_for_best_model={name} is none of what is measured: {', '.join(metrics)}")
        is_best = self._determine_best_metric({f"eval_{name}": metrics[name]}, None)  # as the Trainer calls it
        saves_anyway = self.args.save_strategy == "epoch"  # an evaluation comes at the end of an epoch
        self.control.should_save |= is_best and self.state.global_step > 0 and not saves_anyway

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.evaluation is not None and self.control.should_evaluate:
            should_log = self.control.should_log  # the loss of this step; logging anything says that it is done
            self.evaluate()
            self.control.should_log = should_log
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """
        Does what [`CheckpointedTrainer.train`] does, and draws what was logged as `curves.png` in the output folder,
        where matplotlib is installed. With `load_best_model_at_end` the model is the best at the end: that of a
        checkpoint, or as it was given to the trainer. Adapters (`lora_rank`) are merged then.

        Args:
            resume_from_checkpoint: a checkpoint, or True for the last whole one in the output folder.

        Raises:
            ValueError: if there is none, or it is of a run with another batch size or number of images.
        """
        if self.evaluation is not None:
            self.args.eval_on_start = not resume_from_checkpoint
        with low_rank_adapters(self.model, self.args.lora_rank):
            start = copy_of(self.model.state_dict()) if self.args.load_best_model_at_end else None
            trained = super().train(resume_from_checkpoint, **kwargs)
            if self.args.load_best_model_at_end and not self.state.best_global_step:
                self.model.load_state_dict(start, strict=False)
        if self.is_world_process_zero():
            path = Path(self.args.output_dir) / CURVES
            with suppress(ImportError):  # of matplotlib
                draw_curves(self.state.log_history, path, self.model.config.projection_dim)
        return trained

    def _save_checkpoint(self, model, trial):
        self.state.stateful_callbacks[STATE] = self.steps.to_dict()
        super()._save_checkpoint(model, trial)

    # data

    def _get_train_sampler(self, train_dataset=None):
        # Whole steps, so that an epoch is the same however its batches are spread over processes and time.
        sampler = super()._get_train_sampler(train_dataset)
        if sampler is None:
            return None
        num_images, batch_size = len(self.train_dataset), self.args.total_batch_size
        if num_images < batch_size:
            raise ValueError(f"{num_images} images are fewer than a batch of {batch_size}: lower its size")
        if isinstance(sampler, RandomSampler):
            sampler = RandomSampler(sampler.data_source, num_samples=num_images // batch_size * batch_size)
        return self._with_steps(sampler) if getattr(self.train_dataset, "needs_step", False) else sampler

    def _with_steps(self, sampler: Sampler) -> StepSampler:
        """Returns a sampler that tells the step of each image, in the order that there is without it."""
        if isinstance(sampler, RandomSampler):  # in whose place accelerate puts the same, but not within another
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            make = require("accelerate.data_loader").SeedableRandomSampler
            sampler = make(sampler.data_source, num_samples=len(sampler), data_seed=seed)
        return StepSampler(sampler, self.args.total_batch_size)


def check_model(model: DinoForPreTraining):
    """Raises ValueError if it is no model for pretraining, or in a half precision, in which small steps are lost."""
    if not isinstance(model, DinoForPreTraining):
        raise ValueError(f"the model is a {type(model).__name__}: make a DinoForPreTraining of it (from_model)")
    dtypes = {parameter.dtype for parameter in model.parameters()}
    if dtypes - {torch.float32, torch.float64}:
        raise ValueError(
            f"the weights are in {', '.join(map(str, dtypes))}, in which the teacher would not move: load them with "
            "dtype=torch.float32, and set bf16=True to compute in half precision"
        )


def check_best_can_be_kept(trainer: DinoTrainer, evaluation: Callable | None):
    """Raises ValueError if a trainer cannot know or keep the best model."""
    if evaluation is None or trainer.args.metric_for_best_model is None:
        raise ValueError("load_best_model_at_end=True needs an evaluation, and metric_for_best_model of its metrics")
    if trainer.is_fsdp_enabled:
        raise ValueError("load_best_model_at_end=True does not go with FSDP: train with DDP, or without it")


def copy_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a copy, on the CPU, of a model's state without that of other teachers, which are not saved."""
    others = ("gram_teacher.", "distillation_teacher.")
    return {name: value.detach().cpu().clone() for name, value in state.items() if not name.startswith(others)}


def prepare_objectives(model: DinoForPreTraining, args: DinoTrainingArguments):
    """
    Checks whether a model can be trained for the objectives of a run, and gives it the other teachers that it needs.

    Raises:
        ValueError: if it cannot; one line says what to change.
    """
    objectives = args.objectives()
    check_backbone(model.config, objectives)
    if args.lora_rank:
        check_adapters(model)
    if args.distillation_teacher is not None:
        add_distillation_teacher(model, args)
    add_gram_teacher(model, args)


def add_distillation_teacher(model: DinoForPreTraining, args: DinoTrainingArguments):
    """Gives a model the teacher from which it is distilled, with its center; raises ValueError if they do not fit."""
    source = DinoModel.from_pretrained(args.distillation_teacher, dtype=torch.float32)
    model.add_distillation_teacher(source)
    if args.ibot_weight:
        check_distilled_patches(model.config, source.config)
    center = read_center(args.distillation_teacher)
    if center is not None:
        model.center.copy_(center)


def add_gram_teacher(model: DinoForPreTraining, args: DinoTrainingArguments):
    """Gives a model the Gram teacher of a run that has one; raises ValueError if it cannot be."""
    objectives = args.objectives()
    if not objectives.gram_weight:
        if args.gram_update_steps or args.gram_teacher is not None:
            raise ValueError("gram_teacher and gram_update_steps are of Gram anchoring: set gram_weight, too")
        return
    if args.gram_teacher is not None:
        source = DinoModel.from_pretrained(args.gram_teacher, head_type=None, patch_head=False, dtype=torch.float32)
        model.add_gram_teacher(source)
    elif model.gram_teacher is None:
        model.add_gram_teacher()
    if args.gram_update_steps and not model.can_update_gram_teacher:
        raise ValueError(
            "the Gram teacher is of another size than the teacher and cannot become it: set gram_update_steps=0"
        )


def draw_step_masks(args: DinoTrainingArguments, step: int, grid: tuple[int, int]) -> torch.Tensor:
    """
    Draws the masks of an optimizer step, the same in all processes.

    Args:
        args: the run's. What is drawn depends on its seed and the step alone.
        grid: rows and columns of patches of a global crop.

    Returns:
        (G, images of the step, rows * columns), bool; masked patches are True.

    Raises:
        ValueError: if no patch can be masked.
    """
    most = largest_block(grid[0], 1) if grid[0] == grid[1] else None
    blocks = BlockMasks(*grid, max_patches=most, exact=args.exact_masks)
    num_crops, generator = args.num_global_crops * args.total_batch_size, random.Random(f"{args.seed}-{step}")
    drawn = draw_masks(blocks, num_crops, generator, tuple(args.mask_ratios), args.mask_share_of_crops)
    return drawn.masks.unflatten(0, (args.num_global_crops, -1))
