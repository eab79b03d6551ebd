"""Adapters are trained in the place of the backbone's weights, and are gone when the training ends."""

import sys

import pytest
import torch
from random_crops import (
    OBJECTIVES,
    KillAt,
    Killed,
    RandomCrops,
    arguments,
    assert_close_weights,
    losses_of,
    tiny_model,
    trainer_of,
)

from modeling_dino import DinoForPreTraining, DinoModel
from modeling_dino.training.adapters import linear_layers, low_rank_adapters
from modeling_dino.training.trainer import DinoTrainer


pytestmark = pytest.mark.usefixtures("one_thread")
RANK = 2


def backbone_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.backbone.state_dict().items()}


@pytest.mark.parametrize("family", ["vit", "dinov3", "convnext", "xcit"])
def test_linear_layers_change_by_so_low_a_rank_and_nothing_else_does(tmp_path, family):
    model = tiny_model(family)
    before = backbone_of(model.student)
    data = RandomCrops(sizes=(32, 32))
    trainer = trainer_of(tmp_path, model, data, max_steps=3, warmup_epochs=0, lora_rank=RANK)
    trainer.train()
    trainer.save_model()
    adapted = {f"{name}.weight" for name in linear_layers(model.student.backbone)}
    for network in (model.student, model.teacher):
        after = network.backbone.state_dict()
        assert list(after) == list(before)
        statistics = {name for name in after if "running_" in name or "num_batches" in name}
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed - statistics == adapted
        for name in adapted:
            values = torch.linalg.svdvals((after[name] - before[name]).double())
            assert (values[RANK:] < 1e-4 * values[0]).all(), name
    assert all(parameter.requires_grad for parameter in model.student.backbone.parameters())
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    saved = DinoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in model.teacher.state_dict().items())


@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_a_checkpoint_with_adapters_is_no_model_yet(tmp_path, family):
    """If it were loaded, the layers with adapters would be new."""
    trainer = trainer_of(
        tmp_path,
        tiny_model(family),
        RandomCrops(sizes=(32, 32)),
        max_steps=1,
        warmup_epochs=0,
        lora_rank=RANK,
        save_strategy="steps",
    )
    trainer.train()
    for model_class in (DinoModel, DinoForPreTraining):
        with pytest.raises(ValueError, match=r"adapters \(LoRA\).*lora_A.*the run's folder has the model") as raised:
            model_class.from_pretrained(tmp_path / "checkpoint-1")
        assert "\n" not in str(raised.value)


def test_merged_it_computes_what_it_did_with_adapters(tmp_path):
    """Of every token, and of the CLS token alone, whose attention else takes the weights themselves."""
    model, images = tiny_model(), torch.randn(2, 3, 32, 32)
    with low_rank_adapters(model, RANK):
        teacher = model.teacher.state_dict()
        assert all(torch.equal(teacher[name], value) for name, value in model.student.state_dict().items())
        for name, parameter in model.student.backbone.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.eval()
        with torch.no_grad():
            expected = [model.student(images).last_hidden_state, model.student.get_features(images)]
    with torch.no_grad():
        actual = [model.student(images).last_hidden_state, model.student.get_features(images)]
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, OBJECTIVES["dinov2"]], ids=["dino", "dinov2"])
def test_resumed_it_ends_the_same(tmp_path, options):
    family = "dinov2" if options else "vit"
    run = {"lora_rank": RANK, "save_strategy": "steps", "save_steps": 2, "freeze_backbone_epochs": 0.5, **options}
    whole = trainer_of(tmp_path / "whole", tiny_model(family), **run)
    whole.train()
    killed = trainer_of(tmp_path / "resumed", tiny_model(family), **run)
    killed.add_callback(KillAt(5))
    with pytest.raises(Killed):
        killed.train()
    resumed = trainer_of(tmp_path / "resumed", tiny_model(family), **run)
    resumed.train(resume_from_checkpoint=True)
    assert losses_of(resumed) == losses_of(whole)
    state = resumed.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in whole.model.state_dict().items())


def test_the_mask_token_is_trained(tmp_path):
    """It may be new, where a model is continued with a patch loss that it was trained without."""
    model = tiny_model("dinov2")
    before = backbone_of(model.student)
    trainer_of(tmp_path, model, max_steps=3, warmup_epochs=0, lora_rank=RANK, **OBJECTIVES["dinov2"]).train()
    after = model.student.backbone.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {"mask_token", *(f"{name}.weight" for name in linear_layers(model.student.backbone))}


def test_accumulated_it_is_the_same(tmp_path):
    models = []
    for parts in (1, 2):
        models.append(tiny_model())
        sizes = {"per_device_train_batch_size": 4 // parts, "gradient_accumulation_steps": parts}
        trainer_of(tmp_path / str(parts), models[-1], lora_rank=RANK, optim="sgd", **sizes).train()
    assert_close_weights(*(model.state_dict() for model in models))


def test_if_nothing_was_better_the_start_is_back_as_it_was(tmp_path):
    model = tiny_model()
    before = backbone_of(model.teacher)
    scores = iter([2.0, 1.0, 1.0])
    best = {"load_best_model_at_end": True, "metric_for_best_model": "score", "save_strategy": "steps"}
    DinoTrainer(
        model,
        arguments(tmp_path, lora_rank=RANK, **best),
        train_dataset=RandomCrops(),
        evaluation=lambda teacher: {"score": next(scores)},
    ).train()
    assert all(torch.equal(value, before[name]) for name, value in model.teacher.backbone.state_dict().items())


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("resnet", {"lora_rank": 2}, "of which a ResNet has none"),
        ("vit", {"lora_rank": -1}, "lora_rank=-1 must be at least 0"),
        ("dinov3", {"lora_rank": 2, "gram_weight": 1.0, "gram_update_steps": 2}, "set lora_rank=0"),
    ],
)
def test_mistakes(tmp_path, family, options, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, tiny_model(family), **options)


def test_without_peft_the_extra_is_named_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it raises ModuleNotFoundError
    with pytest.raises(ImportError, match=r"peft is not installed: run `pip install .*\[lora\]"):
        trainer_of(tmp_path, lora_rank=RANK)
