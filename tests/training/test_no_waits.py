"""A training step and a batch of features never wait for the device, except where a step reads its loss."""

from dataclasses import fields

import pytest
import torch
from random_crops import OBJECTIVES, RandomCrops, arguments, trainer_of
from tiny_models import ALL_BACKBONES, shallow_config
from torch.overrides import TorchFunctionMode
from without_values import NoCopies, forget_values, without_values

from modeling_dino import DinoForPreTraining, DinoModel, Objectives
from modeling_dino.extraction.features import image_features
from modeling_dino.training.masking import MaskBatch, mask_batch
from modeling_dino.training.optimization import (
    LARS,
    clip_each_gradient,
    clip_each_module,
    layered_parameter_groups,
    parameter_groups,
    set_rates,
)
from modeling_dino.training.steps import StepSums
from modeling_dino.training.trainer import draw_step_masks


pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = (32, 32, 16)
GRAM = {"ibot_weight": 1.0, "koleo_weight": 0.1, "gram_weight": 1.0, "targets": "sinkhorn"}
STEPS = {
    **{family: (family, OBJECTIVES.get(family, {})) for family in ALL_BACKBONES},
    "gram of another size": ("dinov2", {**GRAM, "gram_antialias": True}),
    "all losses": ("dinov2", GRAM),
}


def objectives_of(options: dict) -> Objectives:
    names = {field.name for field in fields(Objectives)}
    return Objectives(**{name: value for name, value in options.items() if name in names})


def masks_of(model, folder, mode) -> MaskBatch:
    """Masks as the trainer hands them over, drawn and counted on the CPU."""
    grid = model.student.backbone.grid(torch.empty(1, 3, SIZES[0], SIZES[0]))
    args = arguments(folder, per_device_train_batch_size=4, ibot_weight=1.0)
    masks = mask_batch(draw_step_masks(args, 0, grid).flatten(0, 1))
    return MaskBatch(*map(mode.from_tensor, (masks.masks, masks.indices, masks.weights)), masks.upper_bound)


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_does_not_wait_for_the_device(tmp_path, name):
    """Losses, gradients, clipping, the update, the teacher and the centers, under autocast as on a GPU."""
    family, options = STEPS[name]
    objectives, model = objectives_of(options), DinoForPreTraining(shallow_config(family)).train()
    if objectives.gram_weight:
        model.add_gram_teacher()
    mode = forget_values(model)
    given = {"bool_masked_pos": masks_of(model, tmp_path, mode)} if objectives.ibot_weight else {}
    sizes = (32, 32, 32) if family == "convnext" else SIZES
    sums = StepSums()
    with without_values(mode):
        groups = layered_parameter_groups(model.student, 0.9) if options else parameter_groups(model.student)
        optimizer = torch.optim.AdamW(groups, fused=True)
        crops = [torch.randn(4, 3, size, size) for size in sizes]
        if name == "gram of another size":
            given["gram_pixel_values"] = [torch.randn(4, 3, 48, 48) for _ in range(2)]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(crops, objectives=objectives, **given)
        sums.add(output)
        output.loss.backward()
        clip_each_gradient(model.student.parameters(), 3.0)
        clip_each_module([model.student.backbone, model.student.head], 3.0)
        set_rates(optimizer, 1e-3, 0.04)
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.99)
        for outputs, update in ((sums.crops, model.update_center), (sums.patches, model.update_patch_center)):
            if outputs.count:
                update(outputs.total, 0.9, count=outputs.count)


def test_lars_does_not_wait_for_the_device():
    model = DinoForPreTraining(shallow_config("resnet")).train()
    with without_values(forget_values(model)):
        optimizer = LARS(parameter_groups(model.student), lr=0.1)
        model([torch.randn(4, 3, 32, 32) for _ in range(3)]).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("family", ALL_BACKBONES)
def test_features_of_a_batch_do_not_wait_for_the_device(family):
    model = DinoModel(shallow_config(family)).eval().prepare_for_inference()
    kinds = ["cls", "patches", "gem", "projection"]
    with without_values(forget_values(model)), torch.no_grad():
        for side in (32, 64):  # of which one is native
            found = image_features(model, torch.randn(2, 3, side, side), kinds)
        assert found["cls"].shape == (2, model.config.hidden_size)


class CountedReads(TorchFunctionMode):
    """Counts what takes a value from the device."""

    names = ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy")
    count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.count += getattr(function, "__name__", "") in self.names
        return function(*args, **(kwargs or {}))


def test_a_step_of_the_trainer_reads_from_the_device_once(tmp_path):
    """To end the run before an update by numbers that are not finite."""
    counts = []
    for max_steps in (3, 6):
        trainer = trainer_of(tmp_path, data=RandomCrops(64), max_steps=max_steps, logging_steps=100)
        with CountedReads() as reads:
            trainer.train()
        counts.append(reads.count)
    assert counts[1] - counts[0] == 3


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.tensor([1.0], device=x.device),
    ],
)
def test_waits_are_found(wait):
    """What the tests above rely on."""
    model = torch.nn.Linear(2, 2)
    with without_values(forget_values(model)), pytest.raises(Exception, match=r"waits|aten\."):
        wait(model.weight)
    with NoCopies():
        assert torch.ones(2).sum() + 1 == 3  # other functions are left alone
