"""A step whose images come in parts, of a loss that depends on all of them."""

import pytest
import torch
from golden_data import assert_close
from random_crops import RandomCrops, tiny_model, trainer_of

from modeling_dino import DinoForPreTraining, Objectives
from modeling_dino.training.losses.koleo import koleo_loss
from modeling_dino.training.whole_steps import know_step


pytestmark = pytest.mark.usefixtures("one_thread")
SEEDS = (1, 2, 3)


def parts_of(sizes: tuple[int, ...], num_parts: int = 3, num_images: int = 2) -> list[list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(num_images, 3, size, size, generator=generator) for size in sizes] for _ in range(num_parts)]


def previews_of(model: DinoForPreTraining, parts: list, objectives: Objectives) -> list:
    return [model(part, objectives=objectives, preview=seed) for part, seed in zip(parts, SEEDS)]


@pytest.mark.parametrize("num_neighbours", [1, 3])
def test_the_mean_gradient_of_the_parts_is_that_of_all(num_neighbours):
    features = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(koleo_loss(features, num_neighbours), features)
    for first in (0, 2, 4):
        part = features[first : first + 2]
        loss = koleo_loss(part, num_neighbours, whole=features.detach(), first=first)
        assert_close(loss.detach(), koleo_loss(features.detach(), num_neighbours), tolerance=1e-12)
        (gradient,) = torch.autograd.grad(loss, features)
        assert_close(gradient[first : first + 2] / 3, expected[first : first + 2], tolerance=1e-12)
        assert gradient.count_nonzero() == 2 * 5


@pytest.mark.parametrize(
    ("family", "overrides", "sizes"),
    [
        ("vit", {"drop_path_rate": 0.5}, (32, 32, 16)),
        (
            "vit",
            {"drop_path_rate": 0.5},
            (32, 32, 32),
        ),  # the local crop goes through the backbone with the global ones
        ("dinov3", {"pos_embed_jitter": 2.0, "drop_path_rate": 0.5}, (32, 32, 16)),
        ("dinov2", {"drop_path_rate": 0.5, "drop_path_uniform": True}, (32, 32, 16)),
        ("resnet", {}, (32, 32, 16)),
    ],
)
def test_the_features_of_both_passes_are_the_same(family, overrides, sizes):
    """Bit for bit, whatever is random; KoLeo of all parts then has one value in each of them."""
    model, objectives = tiny_model(family, **overrides).train(), Objectives(koleo_weight=1.0)
    parts = parts_of(sizes)
    state = torch.get_rng_state()
    previews = previews_of(model, parts, objectives)
    assert torch.equal(torch.get_rng_state(), state)
    known = know_step(previews, objectives, 0.04)
    outputs = [model(part, objectives=objectives, known=of_part) for part, of_part in zip(parts, known)]
    losses = torch.stack([output.losses["koleo"] for output in outputs])
    expected = sum(koleo_loss(torch.cat([p.features[crop] for p in previews])) for crop in range(2))
    assert torch.equal(losses.detach(), expected.expand(3))
    others = previews_of(model, parts[:1] * 2, objectives)
    assert torch.equal(*(other.features[0] for other in others)) == (not overrides), "drawn anew"


def test_previews_leave_the_statistics_of_batch_norms_alone():
    model = tiny_model("resnet").train()
    before = {name: value.clone() for name, value in model.student.state_dict().items()}
    previews_of(model, parts_of((32, 32, 16)), Objectives(koleo_weight=1.0))
    assert all(torch.equal(value, before[name]) for name, value in model.student.state_dict().items())


def test_the_teacher_sees_each_image_once(tmp_path):
    """Its batch norms count."""
    for objectives in ({}, {"targets": "sinkhorn", "koleo_weight": 0.1}):
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 3, **objectives}
        trainer = trainer_of(tmp_path, tiny_model("resnet"), RandomCrops(), **options)
        trainer.train()
        for network in (trainer.model.teacher, trainer.model.student):
            counts = {
                int(value) for name, value in network.state_dict().items() if name.endswith("num_batches_tracked")
            }
            assert counts == ({6} if network is trainer.model.teacher else {12})


def test_without_parts_nothing_is_computed_twice(tmp_path, monkeypatch):
    monkeypatch.delattr(DinoForPreTraining, "preview")
    options = {"targets": "sinkhorn", "koleo_weight": 0.1, "max_steps": 1}
    trainer_of(tmp_path, **options).train()
    with pytest.raises(AttributeError, match="preview"):
        trainer_of(tmp_path, gradient_accumulation_steps=2, **options).train()
