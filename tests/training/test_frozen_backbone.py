"""The heads alone are trained in the first epochs: what stays as it is, however it is run."""

import pytest
import torch
from random_crops import RandomCrops, arguments, assert_close_weights, tiny_model, trainer_of

from modeling_dino import DinoForPreTraining


pytestmark = pytest.mark.usefixtures("one_thread")
EPOCH = 4  # steps


def copied(model: DinoForPreTraining) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict, after: dict) -> set[str]:
    """The networks and parts that differ, such as `student.backbone`."""
    return {".".join(name.split(".")[:2]) for name, value in after.items() if not torch.equal(before[name], value)}


@pytest.mark.parametrize("family", ["vit", "resnet", "dinov2"])
def test_backbones_of_student_and_teacher_stay_bitwise_until_then(tmp_path, family):
    model = tiny_model(family, drop_path_rate=0.0 if family == "resnet" else 0.5)
    for parameter in model.teacher.parameters():  # as in a run that is continued, whose teacher is not the student
        parameter.data.mul_(0.9)
    before = copied(model)
    run = {"freeze_backbone_epochs": 1.5, "warmup_epochs": 0, "clip": "module" if family == "dinov2" else "parameter"}
    frozen = trainer_of(tmp_path / "frozen", model, max_steps=EPOCH + 2, **run)
    frozen.train()
    assert changed(before, model.state_dict()) == {"student.head", "teacher.head", "center"}
    model = tiny_model(family)
    before = copied(model)
    trainer_of(tmp_path / "longer", model, max_steps=EPOCH + 3, **run).train()
    parts = {f"{network}.{part}" for network in ("student", "teacher") for part in ("backbone", "head")}
    assert changed(before, model.state_dict()) == {*parts, "center"}
    assert model.student.backbone.training


def test_nothing_of_the_backbone_is_computed_backwards(tmp_path, monkeypatch):
    model = tiny_model()
    trainer = trainer_of(tmp_path, model, max_steps=1, freeze_backbone_epochs=1)
    kept = []
    monkeypatch.setattr(
        trainer.steps,
        "on_optimizer_step",
        lambda *args, **kwargs: kept.extend(
            name for name, p in model.student.named_parameters() if p.grad is not None
        ),
    )
    trainer.train()
    assert kept
    assert all(name.startswith("head.") for name in kept)


def test_accumulated_it_is_the_same(tmp_path):
    models = []
    for parts in (1, 2):
        models.append(tiny_model())
        trainer_of(
            tmp_path / str(parts),
            models[-1],
            freeze_backbone_epochs=1,
            optim="sgd",  # of AdamW the first step of the backbone is the gradient's sign, which rounding can turn
            per_device_train_batch_size=4 // parts,
            gradient_accumulation_steps=parts,
        ).train()
    assert_close_weights(*(model.state_dict() for model in models))


@pytest.mark.parametrize("killed_at", [2, 6], ids=["frozen", "trained"])
def test_resumed_it_ends_the_same(tmp_path, killed_at):
    options = {"freeze_backbone_epochs": 1, "save_strategy": "steps", "save_steps": 1}
    whole = trainer_of(tmp_path / "whole", **options)
    whole.train()
    killed = trainer_of(tmp_path / "killed", **options)
    log = killed.log

    def kill(*args):
        log(*args)
        if killed.state.global_step == killed_at:
            raise KeyboardInterrupt

    killed.log = kill
    with pytest.raises(KeyboardInterrupt):
        killed.train()
    resumed = trainer_of(tmp_path / "killed", **options)
    resumed.train(resume_from_checkpoint=True)
    assert not changed(whole.model.state_dict(), resumed.model.state_dict())


def test_it_needs_a_loss_of_the_heads(tmp_path):
    with pytest.raises(ValueError, match=r"freeze_backbone_epochs=1 trains the heads alone, which no loss uses: set"):
        arguments(tmp_path, freeze_backbone_epochs=1, dino_weight=0.0, koleo_weight=1.0)
    with pytest.raises(ValueError, match="freeze_backbone_epochs=-1 must be at least 0"):
        arguments(tmp_path, freeze_backbone_epochs=-1)


def test_an_epoch_is_what_the_tests_take_it_for():
    assert len(RandomCrops()) == 4 * EPOCH
