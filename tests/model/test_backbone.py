"""Which weights count as never trained, for backbones of each kind."""

import pytest
import torch
from tiny_models import tiny_config

from modeling_dino import DinoModel
from modeling_dino.backbone import has_initial_weights


def stepped(model: DinoModel, learning_rate: float = 1e-4) -> DinoModel:
    """The model after one small step of an optimizer."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    model.train()(torch.randn(2, 3, 32, 32)).pooler_output.square().sum().backward()
    optimizer.step()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_are_known_after_saving(tmp_path, family, dtype):
    DinoModel(tiny_config(family)).to(dtype).save_pretrained(tmp_path)
    assert has_initial_weights(DinoModel.from_pretrained(tmp_path).backbone)


def test_residual_branches_that_begin_at_zero_are_new():
    assert has_initial_weights(DinoModel(tiny_config("resnet", zero_init_residual=True)).backbone)


def test_one_step_of_training_makes_weights_trained(tmp_path, family):
    model = stepped(DinoModel(tiny_config(family)))
    assert not has_initial_weights(model.backbone)
    model.to(torch.bfloat16).save_pretrained(tmp_path)  # where norms' weights near 1 are rounded to 1
    assert not has_initial_weights(DinoModel.from_pretrained(tmp_path).backbone)


@pytest.mark.parametrize("part", ["norm.weight", "norm.bias", "blocks.2.mlp.fc1.bias"])
def test_any_part_that_has_moved_makes_a_vit_trained(part):
    backbone = DinoModel(tiny_config()).backbone
    backbone.get_parameter(part).data[3] += 1e-3
    assert not has_initial_weights(backbone)


def test_statistics_that_have_moved_make_a_resnet_trained():
    model = DinoModel(tiny_config("resnet"))
    model.train()(torch.randn(2, 3, 32, 32))
    assert not has_initial_weights(model.backbone)


def test_a_model_without_norms_counts_as_trained():
    assert not has_initial_weights(torch.nn.Linear(3, 3))
