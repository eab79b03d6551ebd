# SPDX-License-Identifier: Apache-2.0
"""What pretraining does around an optimizer step, and what it sums up, watches and saves over steps."""

import math
from dataclasses import asdict, dataclass, field

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .arguments import DinoTrainingArguments
from .checkpoints import check_best, checkpoint_at
from .collapse import CollapseWatch
from .collectives import sum_over_processes
from .finite_steps import check_finite_step
from .optimization import set_rates, whole
from .schedules import Schedules
from .self_distillation import DinoForPreTraining, DinoForPreTrainingOutput


logger = logging.get_logger(__name__)

STATE = "DinoTrainer"  # name of the state in a checkpoint
# outputs of the model that are logged and watched, of each micro-batch alike, and of each masked patch alike
METRICS = ("loss", "teacher_entropy", "kl_divergence", "image_information", "mask_share")
PATCH_METRICS = ("patch_entropy", "patch_information")


@dataclass
class OutputSums:
    """Sums of the teacher's outputs for crops or patches, to move a center by."""

    total: torch.Tensor | float = 0.0  # (1, K)
    count: int = 0

    def add(self, outputs: torch.Tensor):
        """Adds outputs, (N, K)."""
        self.total = self.total + outputs.detach().float().sum(0, keepdim=True)
        self.count += len(outputs)


@dataclass
class StepSums:
    """Sums over the micro-batches of one optimizer step."""

    names: tuple[str, ...] = ()
    metrics: torch.Tensor | float = 0.0  # those of `names`
    num_batches: int = 0
    num_patches: int = 0  # masked ones
    crops: OutputSums = field(default_factory=OutputSums)
    patches: OutputSums = field(default_factory=OutputSums)

    def add(self, output: DinoForPreTrainingOutput):
        """Adds a micro-batch."""
        values = metrics_of(output)
        num_patches = 0 if output.teacher_patch_projection is None else len(output.teacher_patch_projection)
        self.names = tuple(values)
        numbers = [value * (num_patches if name in PATCH_METRICS else 1) for name, value in values.items()]
        self.metrics = self.metrics + torch.stack(numbers)
        self.num_batches += 1
        self.num_patches += num_patches
        if output.teacher_projection is not None:
            self.crops.add(output.teacher_projection)
        if output.teacher_patch_projection is not None:
            self.patches.add(output.teacher_patch_projection)

    def read(self, gradient_norm: torch.Tensor | float | None = None) -> tuple[dict[str, float], float | None]:
        """
        Returns the means of the metrics over micro-batches, or masked patches, and processes; and the norm that was
        given. Both are read together, since each time one waits until the device has computed the step.
        """
        metrics = self.metrics.double()
        counts = (metrics.new_full((1,), count) for count in (self.num_batches, self.num_patches))
        sums = sum_over_processes(torch.cat([metrics, *counts]))
        if isinstance(gradient_norm, torch.Tensor):
            *sums, gradient_norm = torch.cat([sums, whole(gradient_norm).to(sums).reshape(1)]).tolist()
        else:
            sums = sums.tolist()
        *sums, batches, patches = sums
        counted = (patches if name in PATCH_METRICS else batches for name in self.names)
        return {name: value / count for name, value, count in zip(self.names, sums, counted)}, gradient_norm


def metrics_of(output: DinoForPreTrainingOutput) -> dict[str, torch.Tensor]:
    """Returns what is logged of a micro-batch, with each loss by its name where there are several."""
    metrics = {name: getattr(output, name) for name in (*METRICS, *PATCH_METRICS)}
    if len(output.losses) > 1:
        metrics |= {f"{name}_loss": loss for name, loss in output.losses.items()}
    return {name: value.detach() for name, value in metrics.items() if value is not None}


@dataclass
class RunningMeans:
    """Means of the metrics since they were last logged."""

    sums: dict[str, float] = field(default_factory=dict)
    steps: int = 0

    def add(self, metrics: dict[str, float]):
        """Adds a step."""
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in metrics.items()}
        self.steps += 1

    def take(self) -> dict[str, float]:
        """Returns the means, and begins anew."""
        means = {name: value / self.steps for name, value in self.sums.items()}
        self.sums, self.steps = {}, 0
        return means


class StepCallback(TrainerCallback):
    """
    Sets the rates before an optimizer step, and moves teacher and center after it; the trainer reads its attributes.

    Args:
        args: the run's.
        evaluate_every: epochs between two evaluations, if there are any.

    Attributes:
        schedules: of the rates; known when training begins.
        sums: of the step that is computed.
        means: to be logged.
        watch, patch_watch: name a collapse of the teacher's outputs for crops and for masked patches.
        gradient_norm: of the step that is computed, before clipping; None if it may be infinite, as in half precision
            with a scaler, which leaves out such steps.
    """

    schedules: Schedules
    gradient_norm: torch.Tensor | float | None = None

    def __init__(self, args: DinoTrainingArguments, evaluate_every: int | None = None):
        self.evaluate_every = evaluate_every
        self.sums, self.means = StepSums(), RunningMeans()
        self.watch, self.patch_watch = (CollapseWatch(args.collapse_patience) for _ in range(2))

    def to_dict(self) -> dict:
        """Returns what a checkpoint must have for the run to go on."""
        watches = {"watch": asdict(self.watch), "patch_watch": asdict(self.patch_watch)}
        return {**watches, "means": asdict(self.means), "steps": self._step_size()}

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes up what a checkpoint has, if one was loaded. Raises ValueError if its steps are of another size."""
        saved = state.stateful_callbacks.get(STATE)
        if saved is None:
            return
        for name, value in self._step_size().items():
            if saved["steps"][name] != value:
                raise ValueError(
                    f"the checkpoint is of a run with {name}={saved['steps'][name]}, not {value}: its steps would not "
                    "mean the same (the batch size is that of all processes and accumulation steps)"
                )
        for name in ("watch", "patch_watch"):
            if name in saved:  # the second is not in checkpoints of versions without a patch loss
                setattr(self, name, CollapseWatch(**{**saved[name], "patience": args.collapse_patience}))
        self.means = RunningMeans(**saved["means"])
        if state.best_global_step:  # the folder may have been moved since
            state.best_model_checkpoint = str(checkpoint_at(args.output_dir, state.best_global_step))
            if args.load_best_model_at_end:
                check_best(state.best_model_checkpoint)  # before all the rest is computed

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Tells the data set the epoch; accelerate, in several processes, tells the sampler alone."""
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Freezes the backbone in the first epochs, before the model is set to train mode for the step."""
        model.backbone_is_frozen = state.global_step < args.freeze_backbone_epochs * self.schedules.steps_per_epoch

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """
        Sets the rates of the step, and drops the last layer's gradient in the first epochs. Raises FloatingPointError
        if the loss or the gradient is not finite; nothing has changed yet.
        """
        step = state.global_step
        metrics, gradient_norm = self.sums.read(self.gradient_norm)
        check_finite_step(args, state, metrics["loss"], gradient_norm)
        self.means.add(metrics)
        self._warn_of_collapse(args, state, model, metrics)
        rates = self.schedules.rates(step)
        is_frozen = step < args.freeze_last_layer_epochs * self.schedules.steps_per_epoch
        of_last_layer = 0.0 if is_frozen and args.freeze_last_layer == "rate" else None
        set_rates(optimizer, rates["learning_rate"], rates["weight_decay"], of_last_layer)
        if is_frozen and args.freeze_last_layer == "gradient":
            for name, parameter in model.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """
        Moves the teacher towards the student, the centers towards the means of the teacher's outputs, and every few
        steps makes the teacher the Gram teacher.
        """
        model.update_teacher(self.schedules.rates(state.global_step)["teacher_momentum"])
        if args.targets == "centering":
            updates = ((model.update_center, self.sums.crops), (model.update_patch_center, self.sums.patches))
            for update, outputs in updates:
                if isinstance(outputs.total, torch.Tensor):
                    update(outputs.total, args.center_momentum, count=outputs.count)
        if args.updates_gram_teacher(state.global_step + 1):
            model.update_gram_teacher()
        self.sums = StepSums()

    def on_step_end(self, args, state, control, **kwargs):
        """Asks for an evaluation at the end of every few epochs, and of the run."""
        # not in on_epoch_end, before which the checkpoint of the last step would be saved without the result
        step = state.global_step
        if self.evaluate_every is not None and (
            step % (self.evaluate_every * self.schedules.steps_per_epoch) == 0 or step == state.max_steps
        ):
            control.should_evaluate = True

    def _step_size(self) -> dict[str, int]:
        schedules = self.schedules
        return {"batch_size": schedules.args.total_batch_size, "steps_per_epoch": schedules.steps_per_epoch}

    def _warn_of_collapse(self, args, state, model: DinoForPreTraining, metrics: dict[str, float]):
        # of one image nothing can be said
        information = metrics.get("image_information") if args.train_batch_size > 1 else None
        maximum = math.log(model.config.projection_dim)
        warnings = [self.watch.update(metrics["loss"], metrics.get("teacher_entropy"), information, maximum)]
        if "patch_entropy" in metrics:
            maximum = math.log(model.patch_center.shape[1])
            warnings.append(
                self.patch_watch.update(
                    None, metrics["patch_entropy"], metrics["patch_information"], maximum, thing="patch"
                )
            )
        for warning in warnings:
            if warning and state.is_world_process_zero:
                logger.warning(f"step {state.global_step}: {warning}")
