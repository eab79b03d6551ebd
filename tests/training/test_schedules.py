import pytest
import torch
from golden_data import read_golden
from random_crops import arguments

from modeling_dino.training.schedules import Schedules, cosine_schedule, linear_warmup, warmup_cosine_schedule


def test_the_originals_schedules():
    metadata, tensors = read_golden("loss")
    schedules, loss = metadata["schedules"], metadata["loss"]
    per_epoch, rate = schedules["steps_per_epoch"], schedules["lr"]
    total = schedules["epochs"] * per_epoch
    warmup = {"warmup_steps": rate["warmup_epochs"] * per_epoch, "start": rate["start"]}
    rates = [cosine_schedule(i, rate["base"], rate["final"], total, **warmup) for i in range(total)]
    assert rates == pytest.approx(tensors["lr_schedule"].tolist(), rel=1e-12)
    for name, golden in (("weight_decay", "wd_schedule"), ("momentum", "momentum_schedule")):
        base, final = schedules[name]["base"], schedules[name]["final"]
        values = [cosine_schedule(i, base, final, total) for i in range(total)]
        assert values == pytest.approx(tensors[golden].tolist(), rel=1e-12)
    temperature = (loss["warmup_teacher_temp"], loss["teacher_temp"], loss["warmup_teacher_temp_epochs"])
    temperatures = [linear_warmup(epoch, *temperature) for epoch in range(loss["epochs"])]
    assert temperatures == pytest.approx(tensors["teacher_temp_schedule"].tolist(), rel=1e-12)


def test_a_run_shorter_than_the_warmup_is_the_beginning_of_a_longer_one():
    short = [cosine_schedule(i, 1.0, 0.1, total_steps=3, warmup_steps=10) for i in range(3)]
    long = [cosine_schedule(i, 1.0, 0.1, total_steps=30, warmup_steps=10) for i in range(3)]
    assert short == long == pytest.approx([0, 1 / 9, 2 / 9])


@pytest.mark.parametrize("total", [1, 2, 10])
@pytest.mark.parametrize("warmup", [0, 1, 2, 10])
def test_any_lengths(total, warmup):
    values = [cosine_schedule(i, 1.0, 0.1, total, warmup) for i in range(total + warmup + 2)]
    assert all(0 <= value <= 1 for value in values)
    assert values[-1] == pytest.approx(0.1)
    assert warmup == 0 or values[0] == 0


def test_a_warmup_of_one_epoch_or_none():
    assert [linear_warmup(i, 0.04, 0.07, 1) for i in range(2)] == [0.04, 0.07]
    assert linear_warmup(0, 0.04, 0.07, 0) == 0.07
    assert torch.tensor([linear_warmup(i, 0.0, 1.0, 5) for i in range(7)]).tolist() == [0, 0.25, 0.5, 0.75, 1, 1, 1]


def test_dinov2s_schedules():
    metadata, tensors = read_golden("dinov2_losses")
    golden = metadata["schedules"]
    optim, teacher, per_epoch = golden["optim"], golden["teacher"], golden["train"]["OFFICIAL_EPOCH_LENGTH"]
    total, steps = optim["epochs"] * per_epoch, range(len(tensors["schedule.lr"]))
    warmup = {"warmup_steps": optim["warmup_epochs"] * per_epoch}
    rates = [cosine_schedule(i, optim["lr"], optim["min_lr"], total, **warmup) for i in steps]
    last_layer_rates = [0.0 if i < optim["freeze_last_layer_epochs"] * per_epoch else rates[i] for i in steps]
    ends = {
        "weight_decay": (optim["weight_decay"], optim["weight_decay_end"]),
        "momentum": (teacher["momentum_teacher"], teacher["final_momentum_teacher"]),
    }
    values = {name: [cosine_schedule(i, *pair, total) for i in steps] for name, pair in ends.items()}
    warmup_steps = teacher["warmup_teacher_temp_epochs"] * per_epoch
    values["teacher_temp"] = [
        linear_warmup(i, teacher["warmup_teacher_temp"], teacher["teacher_temp"], warmup_steps) for i in steps
    ]
    for name, actual in {"lr": rates, "last_layer_lr": last_layer_rates, **values}.items():
        assert actual == pytest.approx(tensors[f"schedule.{name}"].tolist(), rel=1e-9), name


def test_dinov2s_schedule_that_begins_late():
    metadata, tensors = read_golden("dinov2_losses")
    golden = metadata["schedules"]["freeze_example"]
    frozen, total = golden["freeze_iters"], golden["total_iters"]
    ends = golden["base_value"], golden["final_value"]
    warmup = golden["warmup_iters"], golden["start_warmup_value"]
    expected = tensors["schedule.freeze_example"].tolist()
    values = [cosine_schedule(i - frozen, *ends, total - frozen, *warmup) for i in range(frozen, len(expected))]
    assert [0.0] * frozen + values == pytest.approx(expected, rel=1e-9)


def test_dinov3s_schedules():
    metadata, tensors = read_golden("dinov3_losses")
    for name, golden in metadata["schedules"]["v2"].items():
        values = [
            warmup_cosine_schedule(
                i,
                golden["start"],
                golden["peak"],
                golden["end"],
                golden["total_iterations"],
                golden["warmup_iterations"],
                golden.get("cosine_iterations"),
            )
            for i in range(golden["total_iterations"])
        ]
        assert values == pytest.approx(tensors[f"schedule.v2.{name}"].tolist(), rel=1e-9)


def test_dinov3s_cosine_that_is_cut_off():
    metadata, tensors = read_golden("dinov3_losses")
    golden, expected = metadata["schedules"]["truncated"], tensors["schedule.truncated"].tolist()
    ends = golden["base_value"], golden["final_value"], golden["total_iters"]
    warmup = golden["warmup_iters"], golden["start_warmup_value"]
    values = [cosine_schedule(i, *ends, *warmup, golden["trunc_extra"]) for i in range(len(expected))]
    assert values == pytest.approx(expected, rel=1e-9)


def test_constant_after_the_warmup():
    assert [warmup_cosine_schedule(i, 0, 2, 2, 6, 2) for i in range(8)] == [0, 1, 2, 2, 2, 2, 2, 2]
    assert [warmup_cosine_schedule(i, 0, 2, 1, 3, 2) for i in range(5)] == [0, 1, 2, 1, 1]
    assert [warmup_cosine_schedule(i, 0, 2, 1, 3) for i in range(4)] == pytest.approx([2, 1.5, 1, 1])


def test_when_a_frozen_backbone_is_trained_the_learning_rate_rises_once_more(tmp_path):
    given = {"learning_rate": 1.0, "final_learning_rate": 1.0, "warmup_epochs": 1, "freeze_backbone_epochs": 1.5}
    schedules = Schedules(arguments(tmp_path, **given), steps_per_epoch=4, total_steps=20)
    rates = [schedules.rates(step)["learning_rate"] for step in range(20)]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1] + [0, 1 / 3, 2 / 3] + [1] * 11)
