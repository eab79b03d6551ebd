# SPDX-License-Identifier: Apache-2.0
"""How learning rate, weight decay, momentum and temperature change over a run: functions of the step alone.

So there is nothing to save, and a resumed run goes on as if it had not stopped.
Reference: `cosine_scheduler` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py, and `DINOLoss` of
main_dino.py there; DINOv2's are the same (`CosineScheduler` of
https://github.com/facebookresearch/dinov2/blob/b8931f7/dinov2/utils/utils.py). DINOv3's are
[`warmup_cosine_schedule`] (https://arxiv.org/abs/2508.10104, section 3.2).
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
        """
        Returns learning rate, weight decay, teacher momentum and teacher temperature of a step, from 0 on, and the
        weights of losses that have a schedule.
        """
        given = {name: self._given_rate(step, **schedule) for name, schedule in (self.args.schedules or {}).items()}
        return {**self._default_rates(step), **given}

    def _default_rates(self, step: int) -> dict[str, float]:
        args, total = self.args, self.total_steps
        warmup_steps = round(args.warmup_epochs * self.steps_per_epoch)
        steps_per_unit = 1 if args.teacher_temperature_by_step else self.steps_per_epoch
        return {
            "learning_rate": self._share_after_freezing(step, warmup_steps)
            * cosine_schedule(step, args.learning_rate, args.final_learning_rate, total, warmup_steps=warmup_steps),
            "weight_decay": cosine_schedule(step, args.weight_decay, args.final_weight_decay, total),
            "teacher_momentum": cosine_schedule(step, args.teacher_momentum, args.final_teacher_momentum, total),
            "teacher_temperature": linear_warmup(
                step // steps_per_unit,
                args.warmup_teacher_temperature,
                args.teacher_temperature,
                args.teacher_temperature_warmup_epochs * self.steps_per_epoch // steps_per_unit,
            ),
        }

    def _share_after_freezing(self, step: int, warmup_steps: int) -> float:
        """Returns by what to multiply the learning rate: it rises from 0 again once the backbone is trained, too."""
        frozen_steps = math.ceil(self.args.freeze_backbone_epochs * self.steps_per_epoch)
        if step < frozen_steps or not frozen_steps:
            return 1.0
        return linear_warmup(step - frozen_steps, 0.0, 1.0, warmup_steps)  # AdamW's first steps are long

    def _given_rate(
        self,
        step: int,
        start: float,
        peak: float,
        end: float,
        warmup_epochs: float = 0,
        cosine_epochs: float | None = None,
    ) -> float:
        """Returns a rate of `args.schedules` at a step."""
        warmup_steps = round(warmup_epochs * self.steps_per_epoch)
        cosine_steps = None if cosine_epochs is None else round(cosine_epochs * self.steps_per_epoch)
        return warmup_cosine_schedule(step, start, peak, end, self.total_steps, warmup_steps, cosine_steps)


def linear_warmup(step: int, start: float, stop: float, num_steps: int) -> float:
    """Returns `start` at step 0, `stop` from step `num_steps - 1` on, and what lies on the line between them."""
    if step >= num_steps:
        return stop
    return start + (stop - start) * step / max(num_steps - 1, 1)


def cosine_schedule(
    step: int,
    base: float,
    final: float,
    total_steps: int,
    warmup_steps: int = 0,
    start: float = 0.0,
    truncation: float = 0.0,
) -> float:
    """
    Rises linearly from `start` to `base`, then falls (or rises) along half a cosine towards `final`.

    Args:
        step: of the optimizer, counted from 0.
        total_steps: of the run, its warm-up included; `final` would be reached at this step.
        warmup_steps: the run may be shorter: it is then the beginning of a longer one's warm-up.
        truncation: by which share of the steps after the warm-up the cosine is longer than the run, which cuts it off
            while it still falls, and stretches it to reach `final` in the last step. 0 for a whole one.
    """
    if step < warmup_steps:
        return linear_warmup(step, start, base, warmup_steps)
    if step >= total_steps:
        return final
    cosine_steps = total_steps - warmup_steps
    if truncation:
        longer = max(int((1 + truncation) * cosine_steps) - 1, 1)
        last = half_cosine((cosine_steps - 1) / longer)
        return final + (base - final) * (half_cosine((step - warmup_steps) / longer) - last) / (1 - last)
    return final + (base - final) * half_cosine((step - warmup_steps) / cosine_steps)


def half_cosine(progress: float) -> float:
    """Returns what falls from 1 to 0 along half a cosine, as the progress goes from 0 to 1."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine_schedule(
    step: int,
    start: float,
    peak: float,
    end: float,
    total_steps: int,
    warmup_steps: int = 0,
    cosine_steps: int | None = None,
) -> float:
    """
    Rises linearly from `start` to `peak`, goes to `end` along half a cosine, and stays there.

    It differs from [`cosine_schedule`] in its ends: `peak` comes once, when the warm-up is over, and `end` in the last
    step of the cosine, not one after it. With `peak` equal to `end` it is constant after the warm-up, as DINOv3's.

    Args:
        step: of the optimizer, counted from 0.
        total_steps: of the run.
        warmup_steps: before `peak` is reached.
        cosine_steps: from `peak` to `end`; by default all that follow the warm-up.
    """
    if step < warmup_steps:
        return start + (peak - start) * step / warmup_steps
    cosine_steps = total_steps - warmup_steps if cosine_steps is None else cosine_steps
    if step - warmup_steps >= cosine_steps:
        return end
    return end + (peak - end) * half_cosine((step - warmup_steps) / max(cosine_steps - 1, 1))
