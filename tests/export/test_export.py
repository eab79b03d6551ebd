"""Models as graphs: what they compute in ONNX Runtime, OpenVINO and torch.export, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from noise_images import write_noise_images
from recorded_graphs import graphs_recorded_once
from tiny_models import ALL_BACKBONES, shallow_config, tiny_config

from modeling_dino import DinoImageProcessor, DinoModel, export_model
from modeling_dino.export import export as export_module
from modeling_dino.hub.loading import model_fingerprint
from modeling_dino.runtime import extras


OUTPUTS = {"tokens", "features", "patches", "projection", "layer@-2"}
LEAST_COSINE = 0.9  # of int8; 0.999 here, but sums saturate on processors without VNNI
SHAPES = [(1, 32, 32), (3, 96, 64), (2, 43, 112), (3, 64, 71), (1, 128, 40)]  # batch size, height, width


def run_onnx(file: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    session = onnxruntime.InferenceSession(str(file))
    names = [output.name for output in session.get_outputs()]
    return {x: torch.from_numpy(y) for x, y in zip(names, session.run(names, {"pixel_values": images.numpy()}))}


def run_openvino(file: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    compiled = openvino.Core().compile_model(str(file), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([images.numpy()])
    return {output.any_name: torch.from_numpy(np.array(found[output])) for output in compiled.outputs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders of models, by their kinds, and of images."""
    folder = tmp_path_factory.mktemp("export")
    for kind in ALL_BACKBONES:
        torch.manual_seed(0)
        model = DinoModel(shallow_config(kind, num_layers=2))
        for parameter in model.parameters():  # biases and gains that count
            parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder / kind)
    write_noise_images(folder / "images", 24)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _graphs_recorded_once():
    with graphs_recorded_once():
        yield


def outputs_of(model: DinoModel) -> set[str]:
    return OUTPUTS | ({"cls_attention"} if model.backbone.has_cls_attention else set())


@torch.no_grad()
def expected_of(model: DinoModel, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs = model(images)
    expected = {
        "last_hidden_state": outputs.last_hidden_state,
        "pooler_output": outputs.pooler_output,
        "patch_tokens": outputs.patch_tokens,
        "projection": outputs.projection,
        "layer_minus_2": model.get_intermediate_layers(images, n=2)[0],
    }
    if model.backbone.has_cls_attention:
        expected["cls_attention"] = model.get_cls_attention(images)
    return expected


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], bound: float = 1e-5):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        assert (found[name] - values).abs().max() <= bound * values.abs().max(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALL_BACKBONES)
def test_both_engines_compute_what_pytorch_does(tmp_path, folder, kind):
    model = DinoModel.from_pretrained(folder / kind).eval()
    summary = export_model(model=folder / kind, output=tmp_path / "out", outputs=",".join(sorted(outputs_of(model))))
    assert summary.largest_difference <= 1e-5
    for batch_size, height, width in SHAPES:
        images = torch.randn(batch_size, 3, height, width)
        for run in (run_onnx, run_openvino):
            assert_close(run(tmp_path / "out" / "onnx" / "model.onnx", images), expected_of(model, images))


def test_the_features_alone(tmp_path, folder):
    """The last block computes the CLS token alone."""
    model = DinoModel.from_pretrained(folder / "dinov2").eval()
    export_model(model=folder / "dinov2", output=tmp_path / "out", outputs="features, projection")
    images = torch.randn(2, 3, 48, 40)
    found = run_onnx(tmp_path / "out" / "onnx" / "model.onnx", images)
    assert_close(found, {name: expected_of(model, images)[name] for name in ("pooler_output", "projection")})


def test_a_folder_of_openvino(tmp_path, folder, dino):
    code, out, _ = dino("export", folder / "vit", tmp_path / "out", "--to", "openvino")
    assert code == 0
    first, second = out.splitlines()
    assert first.startswith("openvino in float32 differs from PyTorch by ")
    assert second == f"wrote last_hidden_state, pooler_output -> {tmp_path / 'out' / 'openvino' / 'model.xml'}"
    written = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert written == {
        "config.json",
        "preprocessor_config.json",
        "export.json",
        "openvino/model.xml",
        "openvino/model.bin",
    }
    for name in ("config.json", "preprocessor_config.json"):
        there, here = (json.loads((place / name).read_text()) for place in (folder / "vit", tmp_path / "out"))
        assert there.items() <= {**here, "dtype": there.get("dtype")}.items(), name
    images = torch.randn(2, 3, 48, 40)
    model = DinoModel.from_pretrained(folder / "vit").eval()
    expected = {name: expected_of(model, images)[name] for name in ("last_hidden_state", "pooler_output")}
    assert_close(run_openvino(tmp_path / "out" / "openvino" / "model.xml", images), expected)


def test_a_program_of_torch(tmp_path, folder):
    export_model(model=folder / "dinov3", output=tmp_path / "out", to="torch", outputs="features")
    program = torch.export.load(tmp_path / "out" / "torch" / "model.pt2").module()
    images = torch.randn(5, 3, 48, 40)
    model = DinoModel.from_pretrained(folder / "dinov3").eval()
    with torch.no_grad():
        torch.testing.assert_close(program(images)["pooler_output"], model.get_features(images))


@pytest.mark.parametrize(("to", "dtype"), [("onnx", "float16"), ("openvino", "bfloat16"), ("openvino", "float16")])
def test_half_precision(tmp_path, folder, to, dtype):
    summary = export_model(model=folder / "vit", output=tmp_path / "out", to=to, dtype=dtype)
    assert summary.largest_difference <= 2e-2
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["dtype"] == dtype
    assert facts["model_fingerprint"] == model_fingerprint(DinoModel.from_pretrained(folder / "vit"))


def test_images_of_8_bits_are_normalized_in_the_graph(tmp_path, folder):
    export_model(model=folder / "vit", output=tmp_path / "out", uint8=True, outputs="features")
    processor = DinoImageProcessor.from_pretrained(folder / "vit")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    found = run_onnx(tmp_path / "out" / "onnx" / "model.onnx", images)
    pixel_values = processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    model = DinoModel.from_pretrained(folder / "vit").eval()
    assert_close(found, {"pooler_output": expected_of(model, pixel_values)["pooler_output"]})


def test_fixed_sizes(tmp_path, folder):
    export_model(model=folder / "vit", output=tmp_path / "out", batch_size=2, image_size=40, outputs="features")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    assert session.get_inputs()[0].shape == [2, 3, 40, 40]


def test_the_axes_have_names(tmp_path, folder):
    export_model(model=folder / "resnet", output=tmp_path / "out", outputs="features")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 64]


def test_a_wrong_graph_is_not_kept(tmp_path, folder, dino, monkeypatch):
    def write_another(model, *arguments):
        model.model.backbone.norm.weight.data += 0.01
        write_onnx(model, *arguments)
        model.model.backbone.norm.weight.data -= 0.01

    write_onnx = export_module.write_onnx
    monkeypatch.setattr(export_module, "write_onnx", write_another)
    code, _, err = dino("export", folder / "vit", tmp_path / "out")
    assert code == 2
    assert "the graph is wrong, and nothing is written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_int8(tmp_path, folder, kind, to):
    given = {"model": folder / kind, "to": to, "outputs": "features", "quantize": "int8"}
    cost = export_model(**given, output=tmp_path / "out", calibrate=folder / "images").cost
    assert cost.num_images == 12
    assert LEAST_COSINE < cost.cosine < 1
    name = "onnx/model_quantized.onnx" if to == "onnx" else "openvino/model.xml"
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["file"] == name
    assert facts["quantized"]["same_neighbour"] == pytest.approx(cost.same_neighbour)
    images, model = torch.randn(4, 3, 48, 40), DinoModel.from_pretrained(folder / kind).eval()
    found = {"onnx": run_onnx, "openvino": run_openvino}[to](tmp_path / "out" / name, images)["pooler_output"]
    expected = expected_of(model, images)["pooler_output"]
    assert torch.nn.functional.cosine_similarity(found, expected).min() > LEAST_COSINE
    assert not torch.allclose(found, expected, rtol=1e-5)
    if to == "openvino":
        assert types_of_convolved(tmp_path / "out" / name) == {"Parameter" if kind == "vit" else "FakeQuantize"}


def types_of_convolved(file: Path) -> set[str]:
    """What the convolutions of a model of OpenVINO take: images of float32, or what is rounded to 8 bits."""
    graph = openvino.Core().read_model(str(file))
    convolutions = [op for op in graph.get_ordered_ops() if op.get_type_name() == "Convolution"]
    return {op.input_value(0).get_node().get_type_name() for op in convolutions}


def test_int8_by_the_ranges_of_each_batch(tmp_path, folder, dino):
    code, out, _ = dino("export", folder / "vit", tmp_path / "out", "--quantize", "int8")
    assert code == 0
    assert "int8, by 32 random images: cosine to the features of the graph before 0.9" in out


MISTAKES = {
    "--outputs features,crumbs": "unknown output 'crumbs': allowed are tokens, features,",
    "--outputs layer@7": "no such layers, [7]: vit_tiny has layers 0 to 1",
    "--to tflite": "unknown target 'tflite': allowed are onnx, openvino, torch",
    "--dtype int4": "unknown dtype 'int4'",
    "--dtype bfloat16": "ONNX Runtime does not compute in bfloat16 on a CPU",
    "--image-size 20000": "image_size=20000 must be at most 16384",
    "--batch-size 1000000": "batch_size=1000000 must be at most 4096",
    "--image-size 5": "image_size=5 must be at least 8",
    "--batch-size 0": "--batch-size",
    "--quantize int4": "unknown quantization 'int4': allowed is int8",
    "--calibrate images": "--calibrate is for --quantize int8",
    "--to torch --quantize int8": "only ONNX and OpenVINO quantize",
    "--to openvino --quantize int8": "name some with --calibrate",
    "--quantize int8 --calibrate empty": "empty: no images there",
    "--quantize int8 --calibrate few": "few has 1 images that can be read, but 4 are needed",
    "--quantize int8 --calibrate nowhere": "nowhere is neither a folder",
    "--dtype float16 --quantize int8": "ONNX Runtime quantizes float32, not float16",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, folder, dino, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "vit", "vit")
    (tmp_path / "empty").mkdir()
    (tmp_path / "few").mkdir()
    shutil.copy(folder / "images" / "00.png", "few")
    before = set(tmp_path.rglob("*"))
    code, _, err = dino("export", "vit", "out", *arguments.split())
    assert code == 2
    assert MISTAKES[arguments] in err
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("calibrate", [None, "images"])
def test_int8_of_a_fixed_batch(tmp_path, folder, calibrate):
    given = {"quantize": "int8", "batch_size": 5, "outputs": "features"}
    given |= {"calibrate": folder / calibrate} if calibrate else {}
    cost = export_model(model=folder / "vit", output=tmp_path / "out", **given).cost
    assert cost.num_images == (10 if calibrate else 20)
    assert [file.name for file in (tmp_path / "out" / "onnx").iterdir()] == ["model_quantized.onnx"]


def test_a_transform_that_does_not_normalize_8_bits_is_refused(tmp_path, folder, dino):
    model = DinoModel.from_pretrained(folder / "vit")
    model.image_transform = {**model.image_transform, "rescale_factor": 1 / 65535}
    model.save_pretrained(tmp_path / "deep")
    code, _, err = dino("export", tmp_path / "deep", tmp_path / "out", "--uint8")
    assert (code, (tmp_path / "out").exists()) == (2, False)
    assert "does not normalise images of 8 bits: leave out --uint8" in err


def test_an_exported_model_is_not_exported_again(tmp_path, folder, dino):
    export_model(model=folder / "vit", output=tmp_path / "graph", outputs="features")
    code, _, err = dino("export", tmp_path / "graph", tmp_path / "out")
    assert code == 2
    assert "graph is exported, and has no weights for PyTorch: name the model that it was made from" in err


def test_what_a_model_lacks_is_refused(tmp_path, folder, dino):
    DinoModel(tiny_config(head_type=None)).save_pretrained(tmp_path / "headless")
    for name, output, message in (
        (tmp_path / "headless", "projection", "no projection head"),
        (folder / "resnet", "cls_attention", "has no attention"),
    ):
        code, _, err = dino("export", name, tmp_path / "out", "--outputs", output)
        assert (code, message in err, (tmp_path / "out").exists()) == (2, True, False)


def test_a_missing_engine_is_named(tmp_path, folder, dino, monkeypatch):
    monkeypatch.setattr(extras, "_is_installed", lambda module: module != "openvino")
    code, _, err = dino("export", folder / "vit", tmp_path / "out")
    assert code == 2
    assert "`dino export` needs openvino, not installed here: run `pip install" in err
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_is_kept(tmp_path, folder, dino):
    (tmp_path / "out").write_text("mine")
    code, _, err = dino("export", folder / "vit", tmp_path / "out")
    assert (code, (tmp_path / "out").read_text()) == (2, "mine")
    assert "exists already" in err
