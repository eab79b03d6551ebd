# SPDX-License-Identifier: Apache-2.0
"""Says whether a training that kept its best model has made it better than it was before."""

from typing import Any

from transformers import TrainerState


def outcome_of(state: TrainerState, metric: str) -> dict[str, Any]:
    """
    Compares the best checkpoint of a training with the model before it.

    Args:
        state: at the end of a training with `load_best_model_at_end`.
        metric: `metric_for_best_model`, in percent.

    Returns:
        the metrics of the model that is kept; `start_METRIC`, the score before the training; and `outcome`, a line.
    """
    start, *later = [entry for entry in state.log_history if metric in entry]
    best = max(later, key=lambda entry: entry[metric])  # the first of equals
    kept = best if state.best_global_step else start
    if state.best_global_step:
        place = f"best at epoch {best['epoch']:.4g} of {state.epoch:.4g}"
        line = f"{metric} {start[metric]:.1f} -> {best[metric]:.1f} % ({place})"
    else:
        scores = f"{metric} {start[metric]:.1f} %, best {best[metric]:.1f}"
        line = f"no checkpoint is better than the start ({scores}): the start is saved"
    metrics = {name: value for name, value in kept.items() if name not in ("step", "epoch")}
    return {**metrics, f"start_{metric}": start[metric], "outcome": line}
