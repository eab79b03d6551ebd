"""Whole runs of DINOv2 and DINOv3, step by step by the public functions."""

import pytest
import torch
from golden_data import assert_close, read_golden, with_prefix
from later_training import LaterRun, backbone_of, by_our_names, comparable, dino_multipliers, network_of

from modeling_dino.training.schedules import cosine_schedule, linear_warmup, warmup_cosine_schedule


V2_METADATA, V2_TENSORS = read_golden("dinov2_training")
V3_METADATA, V3_TENSORS = read_golden("dinov3_training")


def dinov2_rates(settings: dict, step: int) -> dict[str, float]:
    """The rates of a step."""
    optim, teacher, per_epoch = settings["optim"], settings["teacher"], settings["steps_per_epoch"]
    total = optim["epochs"] * per_epoch
    rate = cosine_schedule(step, optim["lr"], optim["min_lr"], total, optim["warmup_epochs"] * per_epoch)
    temperatures = teacher["warmup_teacher_temp"], teacher["teacher_temp"]
    return {
        "lr": rate,
        "last_layer_lr": 0.0 if step < optim["freeze_last_layer_epochs"] * per_epoch else rate,
        "weight_decay": cosine_schedule(step, optim["weight_decay"], optim["weight_decay_end"], total),
        "momentum": cosine_schedule(step, teacher["momentum_teacher"], teacher["final_momentum_teacher"], total),
        "teacher_temp": linear_warmup(step, *temperatures, teacher["warmup_teacher_temp_epochs"] * per_epoch),
    }


def dinov3_schedule(settings: dict, schedule: dict, step: int) -> float:
    """The value of one of DINOv3's schedules at a step."""
    per_epoch = settings["steps_per_epoch"]
    cosine_epochs = schedule.get("cosine_epochs")
    return warmup_cosine_schedule(
        step,
        schedule["start"],
        schedule["peak"],
        schedule["end"],
        settings["optim"]["epochs"] * per_epoch,
        schedule["warmup_epochs"] * per_epoch,
        None if cosine_epochs is None else cosine_epochs * per_epoch,
    )


def dinov3_rates(settings: dict, step: int) -> dict[str, float]:
    """The rates of a step."""
    schedules = settings["schedules"]
    rates = {name: dinov3_schedule(settings, schedule, step) for name, schedule in schedules.items()}
    is_frozen = step < schedules["lr"]["freeze_last_layer_epochs"] * settings["steps_per_epoch"]
    return {**rates, "last_layer_lr": 0.0 if is_frozen else rates["lr"]}


def assert_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """The same names, and the same values but for the biases of keys."""
    assert set(actual) == set(expected)
    for name, tensor in comparable(actual).items():
        assert_close(tensor.detach(), comparable(expected)[name])


def assert_step(run: LaterRun, batch: dict, losses: dict, expected: dict[str, torch.Tensor], rates: dict, log: dict):
    """Makes a step, and compares what it saw with the original's."""
    for name, value in losses.items():
        assert_close(value.detach().reshape(1), expected[name])
    for name, value in rates.items():
        assert value == pytest.approx(log[name], rel=1e-9), name
    total, found = run.step(losses, rates)
    assert_close(total.reshape(1), batch["total_loss"])
    for name, norm in found["norms"].items():
        assert norm.item() == pytest.approx(log["grad_norm"][name], rel=1e-5)
    gradients = by_our_names(with_prefix(batch, "grad."))
    if gradients:
        ours = {name: gradient for name, gradient in found["gradients"].items() if name in gradients}
        assert_weights(ours, {name: gradients[name] for name in ours})
        absent = set(found["gradients"]) - set(gradients)
        assert all((found["gradients"][name] == 0).all() for name in absent)


@pytest.mark.parametrize("name", V2_METADATA)
def test_dinov2s_run(name):
    settings, tensors = V2_METADATA[name], with_prefix(V2_TENSORS, f"{name}.")
    networks = [network_of(settings, with_prefix(tensors, "student_init.")) for _ in range(2)]
    multipliers = {**dino_multipliers(settings), "ibot": settings["ibot"]["loss_weight"]}
    multipliers["koleo"] = settings["dino"]["koleo_loss_weight"]
    run = LaterRun(settings, *networks, multipliers)
    for step in range(settings["steps"]):
        batch, rates = with_prefix(tensors, f"step{step}."), dinov2_rates(settings, step)
        losses = run.losses(batch, rates["teacher_temp"])
        logged = {  # the original logs them multiplied, and some halved
            "dino_global": batch["dino_global_crops_loss"] / multipliers["dino_global"],
            "dino_local": batch["dino_local_crops_loss"] / multipliers["dino_local"],
            "ibot": batch["ibot_loss"] * 2,
            "koleo": batch["koleo_loss"] * 2 / multipliers["koleo"],
        }
        assert_step(run, batch, losses, logged, rates, settings["log"][step])
        for kind, center in run.centers.items():
            assert_close(center, batch[f"{kind}_center"].view_as(center))
    assert (settings["centering"] == "centering") == bool(run.centers)
    assert_weights(run.student.state_dict(), by_our_names(with_prefix(tensors, "student_final.")))
    assert_weights(run.teacher.state_dict(), by_our_names(with_prefix(tensors, "teacher_final.")))


@pytest.mark.parametrize("name", V3_METADATA)
def test_dinov3s_run(name):
    settings, tensors = V3_METADATA[name], with_prefix(V3_TENSORS, f"{name}.")
    networks = [network_of(settings, with_prefix(tensors, "student_init.")) for _ in range(2)]
    dino, gram = settings["dino"], settings["gram"]
    multipliers = {"ibot": settings["ibot"]["loss_weight"], "koleo": dino["koleo_loss_weight"]}
    run = LaterRun(settings, *networks, multipliers, dino["koleo_topk"])
    if gram["use_loss"]:
        run.gram_teacher = backbone_of(settings, with_prefix(tensors, "gram_teacher_init."))
        multipliers["gram"] = gram["loss_weight"]
    for step in range(settings["steps"]):
        batch, rates = with_prefix(tensors, f"step{step}."), dinov3_rates(settings, step)
        local_weight = 1.0
        if dino["reweight_dino_local_loss"]:
            local_weight = dinov3_schedule(settings, dino["local_loss_weight_schedule"], step)
        multipliers |= dino_multipliers(settings, local_weight)
        losses = run.losses(batch, rates["teacher_temp"])
        logged = {
            "dino_global": batch["dino_global_crops_loss"],
            "dino_local": batch["dino_local_crops_loss"],
            "ibot": batch["ibot_loss"],
            "koleo": batch["koleo_loss"] * 2,
            "gram": batch.get("gram_loss"),
        }
        assert local_weight == pytest.approx(batch["dino_local_loss_weight"].item())
        assert_step(run, batch, losses, logged, rates, settings["log"][step])
        if run.gram_teacher is not None:
            assert multipliers["gram"] == pytest.approx(batch["gram_loss_weight"].item())
            if (step + 1) % gram["update_frequency"] == 0:
                run.gram_teacher.backbone.load_state_dict(run.teacher.backbone.state_dict())
    assert_weights(run.student.state_dict(), by_our_names(with_prefix(tensors, "student_final.")))
    assert_weights(run.teacher.state_dict(), by_our_names(with_prefix(tensors, "teacher_final.")))
    if run.gram_teacher is not None:
        assert_weights(run.gram_teacher.state_dict(), by_our_names(with_prefix(tensors, "gram_teacher_final.")))
