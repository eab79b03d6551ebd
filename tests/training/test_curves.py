"""What the picture of a pretraining's curves shows and says."""

import math

import pytest
from PIL import Image

from modeling_dino.training.curves import draw_curves, figure_of


PROTOTYPES = 64


def log(steps: int = 30, **values) -> list[dict]:
    """What a healthy run logs, with some values replaced by functions of the step."""
    usual = {
        "loss": lambda step: 4 - step / 100,
        "teacher_entropy": lambda step: 3 - step / 100,
        "kl_divergence": lambda step: 1,
        "image_information": lambda step: 0.5,
        "center_norm": lambda step: 1.5,
        "learning_rate": lambda step: 1e-3 * math.cos(step / 30),
        "weight_decay": lambda step: 0.04,
        "teacher_momentum": lambda step: 0.99 + step / 10_000,
        "teacher_temperature": lambda step: 0.04,
    }
    return [{"step": step, **{name: f(step) for name, f in (usual | values).items()}} for step in range(1, steps + 1)]


def texts(figure) -> str:
    return f"{figure.get_suptitle()}\n{figure.get_supxlabel()}"


def test_constant_schedules_are_named_and_not_drawn():
    figure = figure_of(log(), PROTOTYPES)
    titles = [axes.get_title() for axes in figure.axes]
    assert {"learning rate", "teacher momentum"} < set(titles)
    assert "weight decay" not in titles
    assert figure.get_supxlabel() == "Constant: weight decay 0.04, teacher temperature 0.04."
    assert "norm of the center" in titles  # a measurement is drawn, also where it does not change


def test_axes_begin_at_zero():
    figure = figure_of(log(), PROTOTYPES)
    low = {axes.get_title(): axes.get_ylim()[0] for axes in figure.axes}
    assert low.pop("teacher momentum") > 0.9
    assert set(low.values()) == {0}
    (entropy,) = [axes for axes in figure.axes if axes.get_title().startswith("teacher entropy")]
    assert entropy.get_ylim()[1] > math.log(PROTOTYPES)
    assert "uniform over 64 prototypes" in [text.get_text() for text in entropy.texts]


def test_the_picture_says_what_the_loss_is_not_good_for_and_what_to_watch():
    assert "The loss does not compare between runs" in texts(figure_of(log(), PROTOTYPES))
    assert "--eval-knn measures" in texts(figure_of(log(), PROTOTYPES))
    evaluated = figure_of([*log(), {"step": 30, "knn_top1": 40.0, "knn_top5": 60.0}], PROTOTYPES)
    assert "--eval-knn" not in texts(evaluated)
    assert evaluated.axes[0].get_title() == "k-NN accuracy (%)"
    assert evaluated.axes[0].get_ylim() == (0, 100)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"teacher_entropy": lambda _: math.log(PROTOTYPES), "image_information": lambda _: 0.0}, "it is uniform"),
        ({"teacher_entropy": lambda _: 0.0}, "it is certain of one prototype"),
        ({"image_information": lambda _: 0.0}, "it is the same for every image"),
    ],
)
def test_a_collapse_is_named(values, says):
    assert f"The teacher's output has collapsed: {says}" in texts(figure_of(log(**values), PROTOTYPES))
    assert "collapsed" not in texts(figure_of(log(), PROTOTYPES))


@pytest.mark.parametrize("entries", [[], log(1), [{"step": 3, "epoch": 1.0, "train_runtime": 2.0}]])
def test_short_logs(tmp_path, entries):
    draw_curves(entries, tmp_path / "curves.png", PROTOTYPES)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > 1000


def test_losses_that_are_summed_are_drawn_in_one_panel_also_below_zero():
    log = [{"step": step, "ibot_loss": 5.0 - step, "koleo_loss": -0.5 * step, "mask_share": 0.1} for step in (1, 2)]
    panels = {axes.get_title(): axes for axes in figure_of(log).axes}
    assert set(panels) == {"losses (nats)", "share of masked patches"}
    axes = panels["losses (nats)"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "ibot: 3.000 at the end",
        "koleo: -1.000 at the end",
    ]
    assert axes.get_ylim()[0] < -1


def test_the_watch_without_labels_and_the_gradient_are_drawn():
    entries = log(grad_norm=lambda step: 2.0)
    figure = figure_of([*entries, {"step": 30, "view_top1": 81.25}], PROTOTYPES)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert "norm of the gradient" in panels
    assert panels["retrieval of the other view (%)"].get_ylim() == (0, 100)
    (label,) = panels["retrieval of the other view (%)"].get_legend().get_texts()
    assert label.get_text() == "view_top1: 81.2 at the end"
    assert "Watch the retrieval," in texts(figure)
