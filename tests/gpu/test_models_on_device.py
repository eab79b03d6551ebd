import copy
from importlib.util import find_spec

import pytest
import torch
from golden_data import assert_close
from tiny_models import ALL_BACKBONES, shallow_config, tiny_config

from modeling_dino import DinoModel
from modeling_dino.benchmark.cuda_graphs import as_graph, with_graphs
from modeling_dino.extraction.features import image_features


TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
KERNELS = ("eager", "sdpa", "flash_attention_2", "flex_attention")


def expected_features(model: DinoModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Those of a CPU in float32."""
    with torch.no_grad():
        return image_features(copy.deepcopy(model).float().cpu(), images.float().cpu(), ["cls", "patches"])


@torch.no_grad()
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backbone", ALL_BACKBONES)
def test_features_are_those_of_a_cpu_in_float32(device, backbone, dtype):
    model = DinoModel(tiny_config(backbone, head_type=None)).eval().to(dtype)
    for size in (32, 48):
        images = torch.randn(3, 3, size, size).to(dtype)
        expected = expected_features(model, images)
        on_device = copy.deepcopy(model).to(device).prepare_for_inference()
        found = image_features(on_device, images.to(device), ["cls", "patches"])
        for kind, values in found.items():
            assert values.device.type == device.type
            assert values.dtype == dtype
            assert_close(values.float().cpu(), expected[kind], TOLERANCES[dtype])


@torch.no_grad()
@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_of_attention_agree(device, kernel):
    if kernel == "flash_attention_2" and (device.type == "cpu" or find_spec("flash_attn") is None):
        pytest.skip("flash_attention_2 needs a GPU and flash_attn")
    dtype = torch.float32 if kernel in ("eager", "sdpa") else torch.bfloat16
    config = shallow_config("dinov3", head_type=None, num_attention_heads=2)  # of 16 each
    model = DinoModel(config).eval().to(dtype)
    images = torch.randn(2, 3, 32, 32).to(dtype)
    expected = expected_features(model, images)["patches"]
    model = model.to(device)
    model.set_attn_implementation(kernel)
    found = image_features(model, images.to(device), "patches")
    assert_close(found.float().cpu(), expected, TOLERANCES[dtype])


@torch.no_grad()
def test_a_map_of_devices_and_offloaded_weights_change_nothing(device, tmp_path):
    model = DinoModel(tiny_config()).eval()
    model.save_pretrained(tmp_path / "model")
    images = torch.randn(2, 3, 32, 32)
    expected = model(images).projection
    where = str(device) if device.type == "cpu" else device.index
    for device_map in ("auto", {"backbone": where, "head": "cpu"}, {"backbone": "disk", "head": where}):
        loaded = DinoModel.from_pretrained(
            tmp_path / "model", device_map=device_map, offload_folder=str(tmp_path / "offloaded")
        )
        assert_close(loaded(images.to(device)).projection.cpu(), expected, 1e-4)


@torch.no_grad()
def test_compiled_once_for_all_sizes(device):
    torch._dynamo.reset()
    family = "dinov2" if device.type == "cuda" else "dinov3"  # bicubic positions take minutes to compile for a CPU
    model = DinoModel(shallow_config(family, head_type=None)).eval().to(device)
    compiled = torch.compile(image_features, dynamic=True)
    for batch_size, side in ((2, 32), (3, 48), (5, 64)):
        images = torch.randn(batch_size, 3, side, side, device=device)
        assert_close(compiled(model, images), image_features(model, images), 1e-4)


@torch.no_grad()
def test_compiled_with_cuda_graphs_for_one_image(device):
    torch._dynamo.reset()
    model = DinoModel(shallow_config("vit", head_type=None)).eval().to(device)
    compiled = torch.compile(image_features, mode="reduce-overhead")
    for _ in range(4):  # the graph is recorded in the second call
        image = torch.randn(1, 3, 32, 32, device=device)
        assert_close(compiled(model, image).clone(), image_features(model, image), 1e-4)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ALL_BACKBONES)
def test_recorded_as_cuda_graphs_by_hand(device, backbone):
    """A model asks for no value while it computes, so that all of it can be recorded."""
    model = DinoModel(tiny_config(backbone, head_type=None)).eval().to(device)
    images = torch.randn(1, 3, 32, 32, device=device)
    functions = {"dino": lambda: image_features(model, images)}
    if device.type == "cpu":
        assert with_graphs(functions, ["dino"], images) == ({}, {})
        return
    replay = as_graph(functions["dino"], images)
    assert_close(replay(), functions["dino"](), 1e-5)
