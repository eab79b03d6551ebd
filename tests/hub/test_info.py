import pytest
import torch
from tiny_models import ALL_BACKBONES, tiny_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import ViTConfig, ViTModel

from modeling_dino import DinoConfig, DinoModel
from modeling_dino.hub.info import backbone_flops, model_sizes, show_info
from modeling_dino.hub.options import InfoOptions


@pytest.mark.slow
def test_table_has_a_line_for_every_preset():
    lines = show_info(InfoOptions()).splitlines()
    assert [line.split()[0] for line in lines[1:]] == DinoConfig.presets()
    assert len({len(line) for line in lines}) == 1
    (vits16,) = (line.split() for line in lines if line.startswith("dino_vits16"))
    assert vits16[1:6] == ["vit_small", "224", "384", "65536", "21,665,664"]


@pytest.mark.parametrize(
    ("name", "multiply_adds"), [("dino_vits16", 4.6e9), ("dino_vitb16", 17.6e9), ("resnet34", 3.67e9)]
)
def test_flops_are_those_of_the_literature(name, multiply_adds):
    """Twice the multiply-adds that the DeiT paper and torchvision's model zoo give."""
    assert abs(model_sizes(name)["gigaflops"] * 1e9 / (2 * multiply_adds) - 1) < 0.01


@pytest.mark.parametrize("kind", ALL_BACKBONES)
def test_flops_are_those_of_the_whole_backbone(kind):
    config = tiny_config(kind)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        DinoModel(config).eval().backbone(torch.empty(1, 3, 32, 32))
    assert backbone_flops(config) == counter.get_total_flops() > 0


def test_a_model_of_another_library(tmp_path):
    ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    assert show_info(InfoOptions(model=str(tmp_path))).splitlines()[1].split()[1:5] == ["vit_tiny", "224", "32", "-"]


@pytest.mark.parametrize("head_type", ["dino", None])
def test_a_saved_model(tmp_path, family, head_type):
    model = DinoModel(tiny_config(family, head_type=head_type)).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    sizes = model_sizes(str(tmp_path))
    assert sizes["total_params"] == model.num_parameters()
    assert sizes["mebibytes"] == sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
    line = show_info(InfoOptions(model=str(tmp_path))).splitlines()[1]
    assert line.split()[4] == ("24" if head_type else "-")
