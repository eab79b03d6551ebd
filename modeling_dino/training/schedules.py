# SPDX-License-Identifier: Apache-2.0
"""How learning rate, weight decay, momentum and temperature change over a run: functions of the step alone.

So there is nothing to save, and a resumed run goes on as if it had not stopped.
Reference: `cosine_scheduler` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py, and `DINOLoss` of
main_dino.py there.
"""

import math
from dataclasses import dataclass

from .arguments import DinoTrainingArguments


@dataclass(frozen=True)
class Schedules:
    """
    Computes the rates of each step of a run.

    Args:
        args: the run's.
        steps_per_epoch, total_steps: of the optimizer.
    """

    args: DinoTrainingArguments
    steps_per_epoch: int
    total_steps: int

    def rates(self, step: int) -> dict[str, float]:
        """Returns learning rate, weight decay, teacher momentum and teacher temperature of a step, from 0 on."""
        args, total = self.args, self.total_steps
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


def linear_warmup(step: int, start: float, stop: float, num_steps: int) -> float:
    """Returns `start` at step 0, `stop` from step `num_steps - 1` on, and what lies on the line between them."""
    if step >= num_steps:
        return stop
    return start + (stop - start) * step / max(num_steps - 1, 1)


def cosine_schedule(
    step: int, base: float, final: float, total_steps: int, warmup_steps: int = 0, start: float = 0.0
) -> float:
    """
    Rises linearly from `start` to `base`, then falls (or rises) along half a cosine towards `final`.

    Args:
        step: of the optimizer, counted from 0.
        total_steps: of the run, its warm-up included; `final` would be reached at this step.
        warmup_steps: the run may be shorter: it is then the beginning of a longer one's warm-up.
    """
    if step < warmup_steps:
        return linear_warmup(step, start, base, warmup_steps)
    if step >= total_steps:
        return final
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * progress))
