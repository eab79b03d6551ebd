"""Whole runs of DINOv2 and DINOv3, by the model and a step by hand, and by the trainer itself."""

from collections.abc import Callable

import pytest
import torch
from golden_data import TOLERANCE, assert_close, read_golden, with_prefix
from later_training import (
    CENTER_MOMENTUM,
    GLOBAL_CROPS,
    STUDENT_TEMPERATURE,
    StepByHand,
    by_our_names,
    comparable,
    crops_of,
    dinov2_rates,
    dinov3_rates,
    logged_losses,
    model_of,
    objectives_of,
    weight_schedules,
)
from random_crops import arguments
from torch.utils.data import Dataset
from transformers import TrainerCallback

from modeling_dino.training.trainer import DinoTrainer


PRECISIONS = [torch.float32, torch.float64]
RUNS = {}  # name -> the original's settings, its tensors, and what computes its rates
for file, rates_of_step in (("dinov2_training", dinov2_rates), ("dinov3_training", dinov3_rates)):
    metadata, all_tensors = read_golden(file)
    RUNS |= {
        f"{file[:6]}-{name}": (settings, with_prefix(all_tensors, f"{name}."), rates_of_step)
        for name, settings in metadata.items()
    }


def assert_weights(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """The same names, and the same values but for the biases of keys."""
    assert set(actual) == set(expected)
    for name, tensor in comparable(actual).items():
        assert_close(tensor.detach(), comparable(expected)[name])


def assert_end(model, tensors: dict[str, torch.Tensor]):
    """
    The weights at the end of a run: each of them in float64. In float32 Adam makes the rounding of the smallest
    gradients, which differs between processors, as large as a step; so there the length of the difference is compared.
    """
    for which in ("student", "teacher", "gram_teacher"):
        if expected := by_our_names(with_prefix(tensors, f"{which}_final.")):
            actual = getattr(model, which).state_dict()
            if model.dtype == torch.float64:
                assert_weights(actual, expected)
            assert set(actual) == set(expected)
            for name, theirs in comparable(expected).items():
                difference = (comparable(actual)[name].double() - theirs).norm() / theirs.norm()
                assert difference <= TOLERANCE, f"{name} differs by {difference:.2e} relative"


def recorded(name: str, dtype: torch.dtype) -> tuple[dict, dict[str, torch.Tensor], Callable]:
    """One of `RUNS` with its tensors in a precision."""
    settings, tensors, rates_of_step = RUNS[name]
    tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    return settings, tensors, rates_of_step


def assert_centers(model, batch: dict[str, torch.Tensor]):
    """The centers after a step, of runs that have them."""
    for ours, theirs in (("center", "dino_center"), ("patch_center", "ibot_center")):
        if theirs in batch:
            assert_close(getattr(model, ours), batch[theirs].view_as(getattr(model, ours)))
        else:
            assert not getattr(model, ours).any()


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", RUNS)
def test_the_originals_run_by_hand(name, dtype):
    settings, tensors, rates_of_step = recorded(name, dtype)
    model = model_of(settings, tensors).to(dtype)
    run = StepByHand(settings, model)
    for step in range(settings["steps"]):
        batch, rates, log = with_prefix(tensors, f"step{step}."), rates_of_step(settings, step), settings["log"][step]
        for rate, value in rates.items():
            assert value == pytest.approx(log[rate], rel=1e-9), rate
        output = run.forward(batch, rates, step)
        expected = logged_losses(settings, batch)
        assert output.losses.keys() == expected.keys()
        for term, value in output.losses.items():
            assert_close(value.detach().reshape(1), expected[term])
        assert_close(output.loss.detach().reshape(1), batch["total_loss"])
        gradients, norms = run.step(output, rates)
        for part, norm in norms.items():
            assert norm.item() == pytest.approx(log["grad_norm"][part], rel=1e-5)
        if theirs := by_our_names(with_prefix(batch, "grad.")):
            absent = set(gradients) - set(theirs)
            assert all((gradients[parameter] == 0).all() for parameter in absent)
            assert_weights({parameter: gradients[parameter] for parameter in set(gradients) - absent}, theirs)
        if model.gram_teacher is not None and (step + 1) % settings["gram"]["update_frequency"] == 0:
            model.update_gram_teacher()
        assert_centers(model, batch)
    assert_end(model, tensors)


class LaterCrops(Dataset):
    """The crops of a recorded run, in their order."""

    def __init__(self, settings: dict, tensors: dict[str, torch.Tensor]):
        self.settings, self.tensors, self.epoch = settings, tensors, 0

    def __len__(self) -> int:
        return self.settings["images"] * self.settings["steps_per_epoch"]

    def set_epoch(self, epoch: int):
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict:
        step, image = divmod(index, self.settings["images"])
        step = min(step + self.epoch * self.settings["steps_per_epoch"], self.settings["steps"] - 1)
        crops = crops_of(self.settings, with_prefix(self.tensors, f"step{step}."))
        names = [name for name in crops if name != "bool_masked_pos"]
        return {name: [crop[image] for crop in crops[name]] for name in names}


class RecordedMasks(DinoTrainer):
    """Takes the masks of a recorded run, which were drawn by another generator."""

    tensors: dict[str, torch.Tensor]

    def draw_masks(self, step, grid):
        return self.tensors[f"step{step}.collated_masks"].unflatten(0, (GLOBAL_CROPS, -1))


class Recorder(TrainerCallback):
    """Compares the centers after each step, and stops the run where the recorded one stopped."""

    def __init__(self, settings: dict, tensors: dict[str, torch.Tensor]):
        self.settings, self.tensors = settings, tensors

    def on_step_end(self, args, state, control, model=None, **kwargs):
        assert_centers(model, with_prefix(self.tensors, f"step{state.global_step - 1}."))
        control.should_training_stop = state.global_step == self.settings["steps"]


def arguments_of(settings: dict) -> dict:
    """The arguments of the trainer that either original's have."""
    optim = settings["optim"]
    common = {
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": settings["images"],
        "num_train_epochs": optim["epochs"],
        "adam_beta1": optim["adamw_beta1"],
        "adam_beta2": optim["adamw_beta2"],
        "student_temperature": STUDENT_TEMPERATURE,
        "center_momentum": CENTER_MOMENTUM,
        "max_grad_norm": optim["clip_grad"],
        "clip": "module",
        "freeze_last_layer_epochs": optim["freeze_last_layer_epochs"],
        "freeze_last_layer": "rate",
        "layer_decay": optim["layerwise_decay"],
        "patch_embed_multiplier": optim["patch_embed_lr_mult"],
        "num_global_crops": GLOBAL_CROPS,
        **objectives_of(settings),
    }
    return common | (dinov3_arguments(settings) if "schedules" in settings else dinov2_arguments(settings))


def dinov2_arguments(settings: dict) -> dict:
    optim, teacher = settings["optim"], settings["teacher"]
    return {
        "learning_rate": optim["lr"],
        "final_learning_rate": optim["min_lr"],
        "warmup_epochs": optim["warmup_epochs"],
        "weight_decay": optim["weight_decay"],
        "final_weight_decay": optim["weight_decay_end"],
        "teacher_momentum": teacher["momentum_teacher"],
        "final_teacher_momentum": teacher["final_momentum_teacher"],
        "warmup_teacher_temperature": teacher["warmup_teacher_temp"],
        "teacher_temperature": teacher["teacher_temp"],
        "teacher_temperature_warmup_epochs": teacher["warmup_teacher_temp_epochs"],
        "teacher_temperature_by_step": True,
    }


def dinov3_arguments(settings: dict) -> dict:
    names = {"lr": "learning_rate", "momentum": "teacher_momentum", "teacher_temp": "teacher_temperature"}
    schedules = {
        names.get(name, name): {key: value for key, value in schedule.items() if key != "freeze_last_layer_epochs"}
        for name, schedule in settings["schedules"].items()
    }
    schedules |= weight_schedules(settings)
    updates = settings["gram"]["update_frequency"] if settings["gram"]["use_loss"] else 0
    return {"schedules": schedules, "gram_update_steps": updates}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", RUNS)
def test_the_originals_run_by_the_trainer(name, dtype, tmp_path):
    settings, tensors, _ = recorded(name, dtype)
    trainer = RecordedMasks(
        model_of(settings, tensors).to(dtype),
        arguments(tmp_path, **arguments_of(settings)),
        train_dataset=LaterCrops(settings, tensors),
        callbacks=[Recorder(settings, tensors)],
    )
    trainer.tensors = tensors
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == settings["steps"]
    for step, entry in enumerate(logs):
        batch = with_prefix(tensors, f"step{step}.")
        assert_close(torch.tensor([entry["loss"]]), batch["total_loss"])
        for term, expected in logged_losses(settings, batch).items():
            assert_close(torch.tensor([entry[f"{term}_loss"]]), expected)
    assert_end(trainer.model, tensors)
