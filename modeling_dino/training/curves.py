# SPDX-License-Identifier: Apache-2.0
"""Draws what was logged during pretraining as curves in one picture."""

import math
from pathlib import Path

from ..runtime.extras import require
from ..runtime.whole_files import whole_file
from .collapse import COLLAPSES, collapse_of


# panels: title -> what is drawn in it
MEASURED = {
    "k-NN accuracy (%)": ["knn_top1", "knn_top5"],
    "retrieval of the other view (%)": ["view_top1"],
    "information of the teacher on the image (nats)": ["image_information"],
    "divergence of the student from the teacher (nats)": ["kl_divergence"],
    "teacher entropy (nats)": ["teacher_entropy"],
    "loss (nats): entropy and divergence": ["loss"],
    "losses (nats)": [f"{name}_loss" for name in ("dino_global", "dino_local", "ibot", "koleo", "gram")],
    "information of the teacher on the patch (nats)": ["patch_information"],
    "teacher entropy at masked patches (nats)": ["patch_entropy"],
    "share of masked patches": ["mask_share"],
    "norm of the center": ["center_norm"],
    "norm of the gradient": ["grad_norm"],
}
SCHEDULES = {
    "learning rate": ["learning_rate"],
    "weight decay": ["weight_decay"],
    "teacher momentum": ["teacher_momentum"],
    "teacher temperature": ["teacher_temperature"],
    "weight of the local crops' loss": ["dino_local_weight"],
    "weight of Gram anchoring": ["gram_weight"],
}
BELOW_ONE = "teacher momentum"  # shown in its own range, all others from 0 on
CONSTANT = 1e-6  # greatest relative difference of values that count as constant
COLUMNS = 5  # at most
WARNING = "#cf222e"
WATCH = (
    "The loss does not compare between runs whose temperatures, centers or numbers of prototypes differ: it can rise "
    "while the features improve.\nWatch {accuracy}, and the information: where it comes near 0, the teacher says the "
    "same of every image."
)
ACCURACIES = {"k-NN accuracy (%)": "the k-NN accuracy", "retrieval of the other view (%)": "the retrieval"}
NO_ACCURACY = "the k-NN accuracy, which --eval-knn measures"


def draw_curves(log: list[dict], path: Path, projection_dim: int | None = None):
    """Draws what [`figure_of`] makes into a PNG. Raises OSError if it cannot be written."""
    with whole_file(path) as partial:
        figure_of(log, projection_dim).savefig(partial, format="png", dpi=110)


def figure_of(log: list[dict], projection_dim: int | None = None):
    """
    Draws each quantity over the steps, in a matplotlib figure. A schedule that is constant is named, and not drawn.

    Args:
        log: `log_history` of the Trainer's state.
        projection_dim: number of prototypes, which bounds the entropy and tells a collapse.
    """
    figures = require("matplotlib.figure")
    curves = {title: curves_of(log, names) for title, names in (MEASURED | SCHEDULES).items()}
    constants = {title: value for title in SCHEDULES if (value := constant_of(curves[title])) is not None}
    drawn = {title: found for title, found in curves.items() if found and title not in constants}
    rows = -(-max(len(drawn), 1) // COLUMNS)
    columns = max(3, -(-len(drawn) // rows))
    figure = figures.Figure(figsize=(3.8 * columns, 2.7 * rows + 1), layout="constrained")
    maximum = None if projection_dim is None else math.log(projection_dim)
    for number, (title, found) in enumerate(drawn.items(), 1):
        axes = figure.add_subplot(rows, columns, number)
        draw_panel(axes, title, found)
        if title == "teacher entropy (nats)" and maximum:
            axes.axhline(maximum, color="grey", linestyle=":")
            axes.set_ylim(0, 1.15 * maximum)
            text = f"uniform over {projection_dim:,} prototypes"
            axes.text(0.02, maximum, text, transform=axes.get_yaxis_transform(), va="bottom", fontsize=8, color="grey")
    accuracy = next((name for title, name in ACCURACIES.items() if curves[title]), NO_ACCURACY)
    figure.suptitle(WATCH.format(accuracy=accuracy), fontsize=10, ha="left", x=0.01)
    warning, note = collapse_note(log, maximum), constants_note(constants)
    figure.supxlabel(warning or note, fontsize=9, ha="left", x=0.01, color=WARNING if warning else "dimgrey")
    return figure


def curves_of(log: list[dict], names: list[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Returns steps and values of each quantity that was logged."""
    entries = {name: [entry for entry in log if name in entry] for name in names}
    return {
        name: ([entry["step"] for entry in found], [entry[name] for entry in found])
        for name, found in entries.items()
        if found
    }


def constant_of(curves: dict[str, tuple[list[int], list[float]]]) -> float | None:
    """Returns the value that a schedule has at all steps, if it is one."""
    values = [value for _, of_curve in curves.values() for value in of_curve]
    if not values or max(values) - min(values) > CONSTANT * max(map(abs, values)):
        return None
    return values[0]


def draw_panel(axes, title: str, curves: dict[str, tuple[list[int], list[float]]]):
    """Draws the curves of one panel, on an axis that begins at 0 where this means something."""
    is_percent = "(%)" in title
    for name, (steps, values) in curves.items():
        short = name.removeprefix("knn_").removesuffix("_loss")
        label = f"{short}: {values[-1]:.{1 if is_percent else 3}f} at the end"
        axes.plot(steps, values, label=label, marker="." if len(steps) < 20 else None)
    if title != BELOW_ONE:
        lowest, highest = (pick(pick(values) for _, values in curves.values()) for pick in (min, max))
        axes.set_ylim(min(0, 1.08 * lowest), 1.08 * max(highest, 0) or 1)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("step", fontsize=8)
    if is_percent:
        axes.set_ylim(0, 100)
    if is_percent or len(curves) > 1:
        axes.legend(fontsize=8)


def constants_note(constants: dict[str, float]) -> str:
    """Returns a sentence about the schedules that are not drawn."""
    return f"Constant: {', '.join(f'{title} {value:.4g}' for title, value in constants.items())}." if constants else ""


def collapse_note(log: list[dict], maximum: float | None) -> str:
    """Returns a sentence if the last step that was logged shows a collapse; `maximum` is ln(projection_dim)."""
    last = next((entry for entry in reversed(log) if "teacher_entropy" in entry), None)
    if last is None or maximum is None:
        return ""
    kind = collapse_of(last["teacher_entropy"], last.get("image_information"), maximum)
    if kind is None:
        return ""
    what, remedy = COLLAPSES[kind]
    return f"The teacher's output has collapsed: {what.format(thing='image')}. {remedy}."
