"""Batches of any size, none included, also where the operations were recorded on a batch of another size."""

import pytest
import torch
from tiny_models import LATER_BACKBONES, TINY_BACKBONES, shallow_config, tiny_config

from modeling_dino import DinoBackbone, DinoForImageClassification, DinoModel


SIZES = [(32, 32), (40, 56)]


class FirstOutput(torch.nn.Module):
    """What `torch.jit.trace` takes: tensors in and out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        first = self.model(pixel_values)[0]
        return first[0] if isinstance(first, tuple) else first


CASES = [(kind, family) for kind in (DinoModel, DinoBackbone, DinoForImageClassification) for family in TINY_BACKBONES]
CASES += [(DinoModel, family) for family in LATER_BACKBONES]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}")
def model(request):
    kind, family = request.param
    return FirstOutput(kind(shallow_config(family, num_layers=2)).eval())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@torch.no_grad()
def test_no_images(model, attention):
    model.model.set_attn_implementation(attention)
    one, none = model(torch.randn(1, 3, 32, 40)), model(torch.zeros(0, 3, 32, 40))
    assert none.shape == (0, *one.shape[1:])
    assert model.model.prepare_for_inference()(torch.zeros(0, 3, 32, 40))[0] is not None


@torch.no_grad()
def test_no_images_through_the_methods(family):
    model, none = DinoModel(tiny_config(family)).eval(), torch.zeros(0, 3, 32, 40)
    assert model.get_features(none).shape[0] == 0
    assert model.get_intermediate_layers(none, n=2, reshape=True)[1].shape[0] == 0
    if model.backbone.has_cls_attention:
        assert model.get_cls_attention(none).shape == (0, 4, 4, 5)
    if model.backbone.has_attention:
        tokens = model.backbone.num_prefix_tokens + 20
        assert model.get_attention_maps(none)[0].shape == (0, 4, tokens, tokens)
        assert model(none, output_attentions=True).attentions[0].shape[0] == 0


@torch.no_grad()
def test_an_exported_model_takes_other_batches_and_sizes(model):
    """The graph has no guard on the size, square or not, also where positions are resized."""
    # a map of one cell is a case of its own to PyTorch
    least = 64 if model.model.config.backbone.startswith("convnext") else 32
    dynamic = {"pixel_values": dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)}
    exported = torch.export.export(model, (torch.randn(3, 3, 96, 160),), dynamic_shapes=dynamic).module()
    for batch_size, height, width in ((1, 32, 32), (2, 64, 64), (7, 40, 56), (2, 104, 32), (2, 160, 96)):
        images = torch.randn(batch_size, 3, max(height, least), max(width, least))
        torch.testing.assert_close(exported(images), model(images))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.filterwarnings("ignore:Converting a tensor")
@torch.no_grad()
def test_a_traced_model_takes_other_batches(model, size):
    traced = torch.jit.trace(model, torch.randn(3, 3, *size))
    for batch_size in (1, 2, 70):
        images = torch.randn(batch_size, 3, *size)
        torch.testing.assert_close(traced(images), model(images))
