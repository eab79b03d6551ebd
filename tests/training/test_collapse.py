from dataclasses import asdict

import pytest

from modeling_dino.training.collapse import CollapseWatch


HEALTHY = {"loss": 3.0, "entropy": 2.0, "information": 0.5, "maximum": 4.0}


def named(steps: int, patience: int = 5, **values) -> list[str]:
    watch = CollapseWatch(patience)
    watch.update(**HEALTHY)
    messages = [watch.update(**{**HEALTHY, **values}) for _ in range(steps)]
    return [message for message in messages if message]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"entropy": 3.9999, "information": 1e-6}, "uniform"),
        ({"entropy": 0.0001, "information": 0.0}, "one prototype"),
        ({"entropy": 0.0001, "information": 1.0}, "one prototype"),
        ({"entropy": 2.0, "information": 1e-5}, "same for every image"),
        ({"loss": 9.0}, "explodes"),
    ],
)
def test_a_collapse_is_named_once_when_it_has_lasted(values, message):
    assert not named(4, **values)
    (warning,) = named(20, **values)
    assert message in warning


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"entropy": 3.93, "information": 0.06},  # an untrained network
        {"entropy": 3.9999, "information": None},  # one image
        {"loss": 5.0},
    ],
)
def test_a_healthy_run_is_not(values):
    assert not named(50, **values)


def test_an_explosion_is_named_sooner():
    assert len(named(10, patience=50, loss=9.0)) == 1
    assert not named(9, patience=50, loss=9.0)


def test_a_recovery_counts_back():
    watch = CollapseWatch(patience=3)
    collapsed = {**HEALTHY, "information": 0.0}
    steps = [collapsed, collapsed, HEALTHY, collapsed, collapsed, *[HEALTHY] * 3, *[collapsed] * 3]
    assert [bool(watch.update(**step)) for step in steps] == [*[False] * 4, True, *[False] * 5, True]


def test_it_goes_on_from_its_state():
    watch = CollapseWatch(patience=3)
    collapsed = {**HEALTHY, "information": 0.0}
    watch.update(**collapsed)
    watch.update(**collapsed)
    assert CollapseWatch(**asdict(watch)).update(**collapsed)
