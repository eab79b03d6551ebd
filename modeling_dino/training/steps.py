# SPDX-License-Identifier: Apache-2.0
"""What pretraining does around an optimizer step, and what it sums up, watches and saves over steps."""

import math
from dataclasses import asdict, dataclass, field

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from .arguments import DinoTrainingArguments
from .collapse import CollapseWatch
from .collectives import sum_over_processes
from .finite_steps import check_finite_step
from .optimization import set_rates
from .schedules import Schedules
from .self_distillation import DinoForPreTraining, DinoForPreTrainingOutput


logger = logging.get_logger(__name__)

STATE = "DinoTrainer"  # name of the state in a checkpoint
# outputs of the model that are logged and watched
METRICS = ("loss", "teacher_entropy", "kl_divergence", "image_information")


@dataclass
class StepSums:
    """Sums over the micro-batches of one optimizer step."""

    metrics: torch.Tensor | float = 0.0  # of METRICS, and the number of micro-batches
    teacher: torch.Tensor | float = 0.0  # (1, K)
    num_outputs: int = 0

    def add(self, output: DinoForPreTrainingOutput):
        """Adds a micro-batch."""
        values = [output[name].detach() for name in METRICS]
        self.metrics = self.metrics + torch.stack([*values, torch.ones_like(values[0])])
        self.teacher = self.teacher + output.teacher_projection.detach().float().sum(0, keepdim=True)
        self.num_outputs += len(output.teacher_projection)

    def mean_metrics(self) -> dict[str, float]:
        """Returns the means of the metrics over micro-batches and processes."""
        *sums, count = sum_over_processes(self.metrics.double()).tolist()
        return {name: value / count for name, value in zip(METRICS, sums)}


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
        watch: names a collapse.
        gradient_norm: of the step that is computed, before clipping; None if it may be infinite, as in half precision
            with a scaler, which leaves out such steps.
    """

    schedules: Schedules
    gradient_norm: float | None = None

    def __init__(self, args: DinoTrainingArguments, evaluate_every: int | None = None):
        self.evaluate_every = evaluate_every
        self.sums, self.means, self.watch = StepSums(), RunningMeans(), CollapseWatch(args.collapse_patience)

    def to_dict(self) -> dict:
        """Returns what a checkpoint must have for the run to go on."""
        return {"watch": asdict(self.watch), "means": asdict(self.means), "steps": self._step_size()}

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
        self.watch = CollapseWatch(**{**saved["watch"], "patience": args.collapse_patience})
        self.means = RunningMeans(**saved["means"])

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        """Tells the data set the epoch; accelerate, in several processes, tells the sampler alone."""
        if hasattr(train_dataloader.dataset, "set_epoch"):
            train_dataloader.dataset.set_epoch(int(state.epoch or 0))

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        """
        Sets the rates of the step, and drops the last layer's gradient in the first epochs. Raises FloatingPointError
        if the loss or the gradient is not finite; nothing has changed yet.
        """
        step, metrics = state.global_step, self.sums.mean_metrics()
        check_finite_step(args, state, metrics["loss"], self.gradient_norm)
        self.means.add(metrics)
        self._warn_of_collapse(args, state, model, metrics)
        rates = self.schedules.rates(step)
        set_rates(optimizer, rates["learning_rate"], rates["weight_decay"])
        if step < args.freeze_last_layer_epochs * self.schedules.steps_per_epoch:
            for name, parameter in model.student.named_parameters():
                if "last_layer" in name:
                    parameter.grad = None

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Moves the teacher towards the student, and the center towards the mean of the teacher's outputs."""
        model.update_teacher(self.schedules.rates(state.global_step)["teacher_momentum"])
        model.update_center(self.sums.teacher, args.center_momentum, count=self.sums.num_outputs)
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
        information = metrics["image_information"] if args.train_batch_size > 1 else None
        maximum = math.log(model.config.projection_dim)
        warning = self.watch.update(metrics["loss"], metrics["teacher_entropy"], information, maximum)
        if warning and state.is_world_process_zero:
            logger.warning(f"step {state.global_step}: {warning}")
