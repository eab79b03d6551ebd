# SPDX-License-Identifier: Apache-2.0
"""How learning rate, weight decay, momentum and temperature change over a run: functions of the step alone.

So there is nothing to save, and a resumed run goes on as if it had not stopped.
Reference: `cosine_scheduler` of https://github.com/facebookresearch/dino/blob/7c446df/utils.py, and `DINOLoss` of
main_dino.py there.
"""

import math


def linear_warmup(step: int, start: float, stop: float, num_steps: int) -> float:
    """From `start` at step 0 to `stop` at step `num_steps - 1`, and `stop` from there on."""
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


__all__ = ["cosine_schedule", "linear_warmup"]
