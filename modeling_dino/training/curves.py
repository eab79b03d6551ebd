# SPDX-License-Identifier: Apache-2.0
"""Draws what was logged during pretraining as curves in one picture."""

from pathlib import Path

from ..runtime.extras import require
from ..runtime.whole_files import whole_file


# panels: title -> what is drawn in it
PANELS = {
    "loss (nats)": ["loss"],
    "teacher entropy (nats)": ["teacher_entropy"],
    "divergence from teacher to student (nats)": ["kl_divergence"],
    "information of the teacher on the image (nats)": ["image_information"],
    "norm of the center": ["center_norm"],
    "k-NN accuracy (%)": ["knn_top1", "knn_top5"],
    "learning rate": ["learning_rate"],
    "weight decay": ["weight_decay"],
    "teacher momentum": ["teacher_momentum"],
    "teacher temperature": ["teacher_temperature"],
}
COLUMNS = 5


def draw_curves(log: list[dict], path: Path):
    """
    Draws each quantity over the steps into a PNG.

    Args:
        log: `log_history` of the Trainer's state.

    Raises:
        OSError: if it cannot be written.
    """
    figures = require("matplotlib.figure")
    drawn = {title: [name for name in names if any(name in entry for entry in log)] for title, names in PANELS.items()}
    drawn = {title: names for title, names in drawn.items() if names}
    rows = -(-max(len(drawn), 1) // COLUMNS)
    figure = figures.Figure(figsize=(3.6 * COLUMNS, 2.7 * rows), layout="constrained")
    for number, (title, names) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(rows, COLUMNS, number)
        for name in names:
            steps, values = zip(*[(entry["step"], entry[name]) for entry in log if name in entry])
            axes.plot(steps, values, label=name, marker="." if len(steps) < 20 else None)
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("step", fontsize=8)
        if len(names) > 1:
            axes.legend(fontsize=8)
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
