import json
import sys

import pytest
import torch
from tiny_models import ALL_BACKBONES, shallow_config, tiny_config

from modeling_dino import DinoModel, cli
from modeling_dino.benchmark.contests import measure_loading, with_constant_weights
from modeling_dino.benchmark.options import BenchOptions
from modeling_dino.benchmark.rivals import feature_rivals
from modeling_dino.benchmark.run import run_bench, table
from modeling_dino.benchmark.timing import Contest, measure


pytestmark = pytest.mark.usefixtures("one_thread")
LINE = {"what", "model", "seconds", "unequal"}
TRAINING = ("training", "training-dinov2", "training-dinov2-patch-head", "training-dinov2-drop-path")


@pytest.fixture
def models(tmp_path) -> list[str]:
    """Two folders; the configurations alone count."""
    resnet = tiny_config("resnet", backbone="resnet18", hidden_size=512, depths=[2, 2, 2, 2], resnet_stem="imagenet")
    for name, config in (("vit", tiny_config()), ("resnet", resnet)):
        DinoModel(config).save_pretrained(tmp_path / name)
    return [str(tmp_path / name) for name in ("vit", "resnet")]


@pytest.mark.slow
def test_the_command_measures_everything(models, tmp_path, monkeypatch, capsys):
    what = ",".join(["features,latency,attention", *TRAINING])
    arguments = ["--models", ",".join(models), "--what", what, "--rounds", 1, "--batch-size", 2]
    arguments += ["--training-batch-size", 2, "--json", tmp_path / "bench.json"]
    monkeypatch.setattr(sys, "argv", ["dino", "bench", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    assert {"cpu", "cores", "instructions", "gpu"} == set(report["machine"])
    assert {"date", "threads", "rounds", "device", "dtype"} <= set(report)
    assert {"torch", "timm", "transformers", "torchvision"} <= set(report["versions"])
    lines = {(line["what"], line["model"]): line for line in report["lines"]}
    vit, resnet = models
    assert set(lines) == {(w, m) for m in models for w in ("features", "latency")} | {
        (w, vit) for w in ("attention", *TRAINING)
    }
    for line in lines.values():
        assert set(line) >= LINE
        assert line["unequal"] == []
        assert all(seconds > 0 for seconds in line["seconds"].values())
        fastest = line["seconds"][line["fastest_rival"]]
        assert line["ratio"]["dino"] == pytest.approx(fastest / line["seconds"]["dino"])
    assert {"dino", "dino forward", "timm", "transformers sdpa"} <= set(lines["features", vit]["seconds"])
    assert {"torchvision", "torchvision channels_last", "timm"} <= set(lines["features", resnet]["seconds"])
    assert lines["attention", vit]["largest_difference"] <= 1e-6
    assert all(lines[w, vit]["update_difference"] <= 1e-3 for w in TRAINING)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*what.split(","), "torchvision channels_last", "plain step"))


@pytest.mark.slow
def test_an_extraction_is_measured_by_each_engine(tmp_path, monkeypatch):
    """The vectors are compared with the pipelines', and each engine has the halves' share of the processor's time."""
    monkeypatch.setattr("modeling_dino.benchmark.extraction.installed_engines", lambda: ["onnxruntime"])
    DinoModel(shallow_config("vit")).save_pretrained(tmp_path)
    options = BenchOptions(models=(str(tmp_path),), what=("extraction",), rounds=1, extraction_images=8)
    (line,) = run_bench(options)["lines"]
    engines = {"dino", "dino bfloat16", "dino onnxruntime"}
    assert set(line["share_of_halves"]) == engines
    assert all(share > 0 for share in line["share_of_halves"].values())
    assert line["unequal"] == []
    assert line["fastest_rival"] in ("pipeline 0 workers", "pipeline 1 worker")
    assert set(line["ratio"]) == set(line["cosine_distance"]) > engines
    assert "of halves" in table([line])


@pytest.mark.slow
def test_rivals_are_the_same_model(models):
    """The outputs that the command compares do differ where weights do."""
    for folder in models:
        model = DinoModel.from_pretrained(folder).eval()
        images = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = model(images).pooler_output
            rivals = feature_rivals(model, ["timm", "transformers", "torchvision"])
            assert len(rivals) == 3
            for rival in rivals.values():
                torch.testing.assert_close(rival(images), expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ALL_BACKBONES)
def test_loading_is_measured_of_every_kind(tmp_path, family):
    DinoModel(tiny_config(family, untie_cls_and_patch_norms=False)).save_pretrained(tmp_path)
    line = measure_loading(str(tmp_path), BenchOptions(rounds=1))
    assert {"dino", "reading the file"} <= set(line["seconds"])
    assert ("transformers" in line["seconds"]) == (family not in ("resnet", "xcit"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("dinov2", {"timm", "transformers sdpa", "transformers eager"}),
        ("dinov3", {"timm", "transformers sdpa", "transformers eager"}),
        ("convnext", {"timm", "transformers eager"}),
        ("xcit", {"timm"}),
    ],
)
@torch.no_grad()
def test_rivals_of_the_later_dinos_are_the_same_model(family, names):
    model = DinoModel(tiny_config(family, untie_cls_and_patch_norms=False, head_type=None)).eval()
    size = 2 * model.config.image_size  # other libraries resize positions in ways of their own, if they do
    rivals = feature_rivals(model, ["timm", "transformers", "torchvision"], size)
    assert set(rivals) == names
    images = torch.randn(2, 3, size, size)
    expected = model(images).pooler_output
    for rival in rivals.values():
        torch.testing.assert_close(rival(images), expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_no_ratio_of_unequal_outputs():
    options = BenchOptions(rounds=1)
    functions = {"dino": lambda: torch.ones(3), "equal": lambda: torch.ones(3), "other": lambda: torch.zeros(3)}
    line = measure(Contest("features", "", functions, ["dino"], 1e-5), options)
    assert line["unequal"] == ["other"]
    assert line["fastest_rival"] == "equal"
    del functions["equal"]
    line = measure(Contest("features", "", functions, ["dino"], 1e-5), options)
    assert "ratio" not in line
    assert "differs" in table([line])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"what": ["speed"]}, "unknown benchmark 'speed': allowed are features, latency, attention"),
        ({"against": ["jax"]}, "unknown library 'jax': allowed are timm, transformers, torchvision"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "tpu"}, "unknown device 'tpu': allowed are cpu, cuda"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"image_size": 0}, "image_size=0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BenchOptions(**arguments)


def test_all_ways_of_knn_are_equally_right(monkeypatch):
    monkeypatch.setattr("modeling_dino.benchmark.knn.NUM_TRAIN", 600)
    monkeypatch.setattr("modeling_dino.benchmark.knn.NUM_TEST", 100)
    (line,) = run_bench(BenchOptions(what=("knn",), rounds=1))["lines"]
    assert len(line["seconds"]) == 3
    assert line["unequal"] == []


def test_threads_are_as_before(models):
    threads = torch.get_num_threads()
    report = run_bench(
        BenchOptions(models=tuple(models[:1]), what=("latency",), against=("timm",), threads=2, rounds=1)
    )
    assert torch.get_num_threads() == threads
    assert report["threads"] == 2


def test_compiled_weights_are_constants():
    """Dynamo gives the compiler a graph whose only argument is the images; by options of torch.compile it does not."""
    linear, arguments = torch.nn.Linear(4, 4), []

    def compiler(graph, example_inputs):
        arguments.append(len(example_inputs))
        return graph

    compiled = torch.compile(lambda x: linear(x), backend=compiler)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert torch.equal(with_constant_weights(compiled)(x), linear(x))
        torch._dynamo.reset()
        compiled(x)
    assert arguments == [1, 3]


def test_results_are_saved_in_a_folder_that_is_there(tmp_path):
    """Seen before anything is measured."""
    with pytest.raises(ValueError, match="there is no folder for"):
        run_bench(BenchOptions(output=str(tmp_path / "nowhere" / "bench.json")))
