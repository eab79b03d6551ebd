import pytest
import torch
from golden_data import read_golden

from modeling_dino.training.schedules import cosine_schedule, linear_warmup


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
