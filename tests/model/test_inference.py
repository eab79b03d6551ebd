"""Models prepared for inference: the same outputs and files, of convolutions in another order in memory."""

import copy

import pytest
import torch
from golden_data import assert_close
from tiny_models import ALL_BACKBONES, tiny_config

from modeling_dino import DinoForImageClassification, DinoModel


@pytest.fixture(params=ALL_BACKBONES)
def model(request) -> DinoModel:
    return DinoModel(tiny_config(request.param)).eval()


@torch.no_grad()
def test_outputs_are_the_same(model):
    prepared = copy.deepcopy(model).prepare_for_inference()
    for shape in [(3, 3, 32, 32), (1, 3, 40, 56)]:
        images = torch.randn(shape)
        expected, found = (x(images, output_hidden_states=True) for x in (model, prepared))
        assert_close(found.pooler_output, expected.pooler_output, 2e-6)
        assert_close(found.projection, expected.projection, 2e-6)
        for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
            assert_close(one, other, 2e-6)
        assert_close(prepared.get_features(images), expected.pooler_output, 2e-6)


def test_convolutions_are_in_channels_last(model):
    prepared = model.train().prepare_for_inference()
    assert prepared is model
    assert not model.training
    orders = {
        x.weight.is_contiguous(memory_format=torch.channels_last)
        for x in model.modules()
        if isinstance(x, torch.nn.Conv2d) and min(x.weight.shape) > 1
    }
    assert orders == {model.config.has_stages}


def test_what_is_saved_is_as_before(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    model.prepare_for_inference().save_pretrained(tmp_path / "prepared")
    files = [(tmp_path / kind / "model.safetensors").read_bytes() for kind in ("plain", "prepared")]
    assert files[0] == files[1]


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def test_it_can_be_trained_again(family):
    model = DinoForImageClassification(tiny_config(family)).eval()
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 1, 0])
    model(images, labels=labels).loss.backward()
    expected = gradients(model)
    model.zero_grad()
    model.prepare_for_inference()(images, labels=labels).loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)
