"""Extraction by other engines: the features of PyTorch, in the same shards, and with the engine in the manifest."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_python
from recorded_graphs import graphs_recorded_once
from tiny_models import ALL_BACKBONES, shallow_config

from modeling_dino import DinoModel, evaluate_knn, export_model, extract_features, load_features
from modeling_dino.export.engines import open_graph
from modeling_dino.extraction import feature_files
from modeling_dino.runtime import extras


ENGINES = ("onnxruntime", "openvino")
SQUASHED = {"do_center_crop": False, "size": {"height": 24, "width": 48}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders of models and of images, and a `graph` of one of the models."""
    folder = tmp_path_factory.mktemp("engines")
    for kind in ALL_BACKBONES:
        torch.manual_seed(0)
        DinoModel(shallow_config(kind, num_layers=2)).save_pretrained(folder / kind)
    for i in range(11):
        (folder / "images" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        noise = Image.effect_noise((40 + i, 60 - i), 90).convert("RGB")
        noise.save(folder / "images" / "ab"[i % 2] / f"{i:02d}.png")
    export_model(model=folder / "vit", output=folder / "graph", outputs="features,patches,projection")
    export_model(model=folder / "vit", output=folder / "plain", outputs="features")
    return folder


@pytest.fixture(scope="module", autouse=True)
def _graphs_recorded_once():
    with graphs_recorded_once():
        yield


def extract(folder: Path, output: Path, model: str = "vit", **options):
    names = {"model": folder / model, "images": folder / "images", "output": output}
    return extract_features(**names, num_workers=0, progress=False, **options)


def assert_equal_features(one: Path, other: Path, bound: float = 1e-5):
    expected, found = load_features(one), load_features(other)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        if name in ("path", "label"):
            assert np.array_equal(found[name], values)
        else:
            assert np.abs(found[name] - values).max() <= bound * np.abs(values).max(), name


@pytest.mark.parametrize("engine", ENGINES)
def test_the_features_are_those_of_pytorch(tmp_path, folder, engine):
    options = {"features": "cls,cls_gem,patches,projection,keys@1", "batch_size": 3}
    extract(folder, tmp_path / "torch", **options)
    extract(folder, tmp_path / "engine", engine=engine, **options)
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")
    settings = json.loads((tmp_path / "engine" / "manifest.json").read_text())["settings"]
    assert (settings["engine"], settings["prepared"], settings["dtype"]) == (engine, "graph", "float32")
    assert settings["versions"].keys() == {"modeling-dino", "torch", "transformers", "pillow", engine}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in ALL_BACKBONES if kind != "vit"])
def test_every_kind(tmp_path, folder, kind):
    extract(folder, tmp_path / "torch", model=kind)
    extract(folder, tmp_path / "engine", model=kind, engine="openvino")
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")


@pytest.mark.parametrize("given", [{"scales": (1, 0.75)}, {"last_blocks": 2}, {"resize": "square", "image_size": 48}])
def test_other_features(tmp_path, folder, given):
    extract(folder, tmp_path / "torch", **given)
    extract(folder, tmp_path / "engine", engine="onnxruntime", **given)
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("transform", [{"crop_size": {"height": 32, "width": 24}}, SQUASHED], ids=["crop", "squash"])
def test_images_that_are_not_square(tmp_path, folder, engine, transform):
    model = DinoModel.from_pretrained(folder / "vit")
    model.image_transform = {**model.image_transform, **transform}
    model.save_pretrained(tmp_path / "model")
    extract(folder, tmp_path / "torch", model=tmp_path / "model", features="cls,patches")
    extract(folder, tmp_path / "engine", model=tmp_path / "model", features="cls,patches", engine=engine)
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")


@pytest.mark.parametrize("kind", ["vit", "dinov3"])
@pytest.mark.parametrize("resize", ["none", "longest"])
def test_images_of_different_sizes(tmp_path, folder, kind, resize):
    DinoModel(shallow_config(kind, num_layers=2, image_resize="square")).save_pretrained(tmp_path / "model")
    extract(folder, tmp_path / "torch", model=tmp_path / "model", resize=resize)
    extract(folder, tmp_path / "engine", model=tmp_path / "model", resize=resize, engine="openvino")
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")


def test_a_graph_of_one_size_refuses_others(folder, tmp_path):
    export_model(model=folder / "vit", output=tmp_path / "graph", image_size=32, outputs="features")
    for engine in ENGINES:
        graph = open_graph(tmp_path / "graph" / "onnx" / "model.onnx", engine)
        assert graph(torch.zeros(3, 3, 32, 32))["pooler_output"].shape == (3, 32)
        with pytest.raises(ValueError, match=f"{engine} cannot run the model"):
            graph(torch.zeros(3, 3, 40, 40))


def test_bfloat16(tmp_path, folder):
    extract(folder, tmp_path / "torch")
    extract(folder, tmp_path / "engine", engine="openvino", dtype="bfloat16")
    assert_equal_features(tmp_path / "torch", tmp_path / "engine", bound=3e-2)


@pytest.mark.parametrize("engine", ENGINES)
def test_it_goes_on_with_the_same_bytes(tmp_path, folder, monkeypatch, engine):
    monkeypatch.setattr(feature_files, "MIN_SHARD_ROWS", 4)
    extract(folder, tmp_path / "whole", engine=engine)
    write = feature_files.FeatureFolder.write_shard

    def write_first(self, part, chunk, *arguments):
        if part:
            raise KeyboardInterrupt
        write(self, part, chunk, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(feature_files.FeatureFolder, "write_shard", write_first)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, tmp_path / "stopped", engine=engine)
    assert len(list((tmp_path / "stopped").glob("*.parquet"))) == 1
    extract(folder, tmp_path / "stopped", engine=engine)
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_exported_model(tmp_path, folder, engine):
    features = "cls,patch_mean,cls_patch_mean,gem,patches,projection"
    extract(folder, tmp_path / "torch", features=features)
    extract(folder, tmp_path / "engine", model="graph", engine=engine, features=features)
    assert_equal_features(tmp_path / "torch", tmp_path / "engine")
    settings = json.loads((tmp_path / "engine" / "manifest.json").read_text())["settings"]
    assert settings["prepared"] == "export"
    assert settings["random_weights"]


def test_evaluations_take_an_engine(tmp_path, folder):
    given = {"train": folder / "images", "test": folder / "images", "k": [1, 3], "num_workers": 0, "progress": False}
    expected = evaluate_knn(model=folder / "vit", **given)
    for model in ("vit", "graph"):
        found = evaluate_knn(model=folder / model, engine="onnxruntime", **given)
        assert str(found) == str(expected)
    extract(folder, tmp_path / "features", model="graph", engine="onnxruntime")
    stored = {**given, "train": tmp_path / "features", "test": tmp_path / "features"}
    assert str(evaluate_knn(model=folder / "graph", **stored)).split()[:1] == str(expected).split()[:1]


MISTAKES = {
    "--engine tensorrt": "unknown engine 'tensorrt': allowed are torch, onnxruntime, openvino",
    "--engine onnxruntime --compile": "--compile is for --engine torch, not for onnxruntime",
    "--engine onnxruntime --dtype bfloat16": "onnxruntime computes in float32, not bfloat16",
    "--model graph": "graph is exported to onnx: pass --engine onnxruntime or openvino",
    "--model graph --engine openvino --dtype bfloat16": "graph is exported in float32: pass --dtype float32",
    "--model graph --engine openvino --features keys@1": "an exported model has no keys@1: name the model",
    "--model graph --engine openvino --last-blocks 2": "gives the last block at one scale: pass --last-blocks 1",
    "--model other --engine openvino": "other is damaged: its graph gives cls of shape (2, 32), not (2, 64)",
    "--model unnamed --engine openvino --features patch_mean": "unnamed is damaged: its graph lacks an output",
    "--engine onnxruntime --resize none": "onnxruntime needs too much memory for images in their own sizes",
    "--model graph --engine onnxruntime --resize none": "onnxruntime needs too much memory for images in their own",
    "--model narrow --engine openvino --features patches": "narrow lacks the outputs patches: export it with them",
    "--model fixed --engine openvino": "fixed is exported with image_size=32: export it without",
    "--model program --engine openvino": "program is a program of torch.export: name the model",
    "--model broken --engine onnxruntime": "onnxruntime cannot run the model: ",
    "--model broken --engine openvino": "openvino cannot run the model: ",
    "--model lost --engine openvino": "lost lacks its graph, onnx/model.onnx: export the model again",
    "--model damaged --engine openvino": "export.json is damaged: file='../secret' is not of a known export",
}


@pytest.fixture(scope="module")
def mistaken(folder, tmp_path_factory) -> Path:
    """A folder with the models, and some that cannot be run."""
    place = tmp_path_factory.mktemp("mistaken")
    for name in ("vit", "images", "graph"):
        (place / name).symlink_to(folder / name)
    for name in ("broken", "lost", "damaged", "narrow", "fixed", "program", "other", "unnamed"):
        (place / name / "onnx").mkdir(parents=True)
        facts = json.loads((folder / "graph" / "export.json").read_text())
        facts |= {"narrow": {"outputs": {"pooler_output": "features"}}, "fixed": {"image_size": 32}}.get(name, {})
        facts |= {"damaged": {"file": "../secret"}}.get(name, {})
        facts |= {"program": {"to": "torch", "file": "torch/model.pt2"}}.get(name, {})
        (place / name / "export.json").write_text(json.dumps(facts))
        (place / name / "config.json").write_bytes((folder / "graph" / "config.json").read_bytes())
        if name == "other":
            config = json.loads((place / name / "config.json").read_text())
            (place / name / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
        if name in ("other", "unnamed"):
            source = folder / ("graph" if name == "other" else "plain") / "onnx" / "model.onnx"
            shutil.copy(source, place / name / "onnx")
        elif name != "lost":
            (place / name / "onnx" / "model.onnx").write_bytes(b"no graph")
    (place / "program" / "torch").mkdir()
    (place / "program" / "torch" / "model.pt2").write_bytes(b"")
    return place


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_one_line_and_leave_nothing(mistaken, tmp_path, dino, monkeypatch, arguments):
    monkeypatch.chdir(mistaken)
    model = [] if "--model" in arguments else ["--model", "vit"]
    given = [*model, "--images", "images", "--output", tmp_path / "out", "--num-workers", 0]
    code, _, err = dino("extract", *given, *arguments.split())
    assert code == 2
    assert MISTAKES[arguments] in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_installed(folder, tmp_path, dino, monkeypatch):
    def import_others(name):
        if name == "openvino":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return import_module(name)

    monkeypatch.setattr(extras, "import_module", import_others)
    given = ["--model", folder / "vit", "--images", folder / "images", "--output", tmp_path / "out"]
    code, _, err = dino("extract", *given, "--engine", "openvino")
    assert code == 2
    assert "openvino is not installed: run `pip install" in err
    assert not (tmp_path / "out").exists()


def test_signals_are_handled_where_they_were_before_openvino(folder, tmp_path):
    """Else the process ends with the first signal after two models are gone, on processors with AMX."""
    code = f"""
import ctypes, gc, torch
from pathlib import Path
from modeling_dino.export.engines import SignalStack, open_graph

def stack():
    found = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.address, found.flags, found.size

images, before, file = torch.randn(2, 3, 32, 40), stack(), Path({str(folder / "plain" / "onnx" / "model.onnx")!r})
first, second = (open_graph(file, "openvino", "bfloat16") for _ in range(2))
first(images), second(images)
assert stack() == before
del first
gc.collect()
del second
gc.collect()
assert stack() == before
"""
    run_python(code, tmp_path)
