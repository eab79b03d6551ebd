# SPDX-License-Identifier: Apache-2.0
"""Ends a training at the first step whose loss or gradient is not finite, before anything is changed by it."""

import math

from transformers import TrainerState, TrainingArguments

from .checkpoints import checkpoints, last_good_checkpoint, set_aside, step_of


def check_finite_step(args: TrainingArguments, state: TrainerState, loss: float, gradient_norm: float | None):
    """
    Checks a step before its update.

    A loss that is not finite is that of weights which the last update broke, whether they are finite or not; a
    checkpoint that has them is set aside, so that the run does not go on from it.

    Args:
        loss: the mean over all processes.
        gradient_norm: None if it is not known.

    Raises:
        FloatingPointError: if the loss or the gradient is not finite; names the last good checkpoint.
    """
    step, has_finite_loss = state.global_step, math.isfinite(loss)
    if has_finite_loss and (gradient_norm is None or math.isfinite(gradient_norm)):
        return
    what = f"the norm of the gradient is {gradient_norm}" if has_finite_loss else f"the loss is {loss}"
    message = f"{what} at step {step}: lower learning_rate or max_grad_norm"
    if state.is_world_process_zero:
        aside = ""
        for path in checkpoints(args.output_dir):
            if step_of(path) >= step and not has_finite_loss:
                aside = f"; {path.name}, which has the update before it, is kept as {set_aside(path).name}"
        good = last_good_checkpoint(args.output_dir, step + has_finite_loss) or "none: no step was saved"
        message = f"{message}{aside}. The last good checkpoint is {good}"
    raise FloatingPointError(message)
