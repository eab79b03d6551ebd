import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from evaluation_images import coloured_images
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from modeling_dino import load_features
from modeling_dino.evaluation.evaluation_data import EvaluationFeatures, features_of
from modeling_dino.evaluation.knn_classification import classify_by_neighbours
from modeling_dino.evaluation.options import FeatureOptions


pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = {"last_blocks": 1, "dtype": "float32", "model_fingerprint": "", "transform": {}}


def features(values: list[list[float]], labels: list, source: str = "data", kind: str = "cls", **settings):
    names = list(range(len(values)))
    return EvaluationFeatures(source, torch.tensor(values), labels, names, kind, {**SETTINGS, **settings}, {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`model`, and `train` and `test` with images of three classes."""
    return coloured_images(tmp_path_factory.mktemp("knn"))


def test_a_case_worked_by_hand():
    """On a line: the nearest alone; of three, two far ones against a near one, at a temperature that lets them win."""
    train = features([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6], [0.0, 1.0]], ["a", "b", "b", "c"])
    test = features([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], ["a", "b", "c", "d"])
    accuracy = classify_by_neighbours(train, test, [1, 3], temperature=1.0)  # e^1 < 2 e^0.8, and e^1 < 2 e^0.6
    assert accuracy.top1 == {1: 50.0, 3: 25.0}
    assert accuracy.top5 == {1: 50.0, 3: 75.0}
    assert accuracy.per_class == {
        1: {"a": 100.0, "b": 0.0, "c": 100.0, "d": 0.0},
        3: {"a": 0.0, "b": 100.0, "c": 0.0, "d": 0.0},
    }
    assert accuracy.unknown == 1
    assert "1 of them have a class that no training image has" in str(accuracy)


def test_by_default_as_many_neighbours_as_there_are():
    generator = torch.Generator().manual_seed(0)
    for count, ks in ((7, [7]), (50, [10, 20])):
        part = features(torch.randn(count, 4, generator=generator).tolist(), [i % 2 for i in range(count)])
        assert list(classify_by_neighbours(part, part).top1) == ks


def test_the_command_line(tmp_path, folder, dino):
    """As scikit-learn on the features that `dino extract` writes; recorded beside the model, and in a file."""
    common = ("--model", folder / "model", "--dataset", "colours", "--record")
    sources = ("--train", folder / "train", "--test", folder / "test")
    code, out, err = dino("knn", *sources, *common, "--k", "3,9", "--per-class", "--json", tmp_path / "found.json")
    assert code == 0, err
    for part in ("train", "test"):
        assert (
            dino("extract", "--model", folder / "model", "--images", folder / part, "--output", tmp_path / part)[0]
            == 0
        )
    train, test = (load_features(tmp_path / part) for part in ("train", "test"))
    found = json.loads((tmp_path / "found.json").read_text())
    for k in (3, 9):
        rival = KNeighborsClassifier(k, weights=lambda distances: np.exp((1 - distances) / 0.07), metric="cosine")
        predicted = rival.fit(train["feature"], train["label"]).predict(test["feature"])
        right = predicted == test["label"]
        top1 = next(r["value"] for r in found if r["k"] == k and r["top"] == 1 and "label" not in r)
        assert top1 == pytest.approx(100 * right.mean(), abs=1e-4)
        assert f"k={k}: top-1 {top1:.2f} %" in out
        for label in np.unique(test["label"]):
            of_class = next(r["value"] for r in found if r["k"] == k and r.get("label") == label)
            assert of_class == pytest.approx(100 * right[test["label"] == label].mean(), abs=1e-4)
    recorded = json.loads((folder / "model" / "evaluation_results.json").read_text())
    assert recorded == [r for r in found if "label" not in r]
    again = dino("knn", "--train", tmp_path / "train", "--test", tmp_path / "test", "--k", "3,9")
    assert again[0] == 0
    assert again[1].splitlines()[:3] == out.splitlines()[:3]
    assert "recorded" not in again[1]


LAUNCHED = """
import json, sys
import torch
from modeling_dino.cli.app import app
torch.set_num_threads(1)
app(args=json.loads(sys.argv[1]), standalone_mode=False)
"""


@pytest.mark.slow
def test_two_processes_say_the_same_as_one(tmp_path, folder, dino):
    arguments = [
        "knn",
        "--model",
        folder / "model",
        "--train",
        folder / "train",
        "--test",
        folder / "test",
        "--k",
        "1,5",
    ]
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    code, said, _ = dino(*arguments, "--json", one, "--dataset", "colours")
    assert code == 0
    (tmp_path / "launched.py").write_text(LAUNCHED)
    arguments += ["--json", two, "--dataset", "colours"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += [str(tmp_path / "launched.py"), json.dumps([*map(str, arguments)])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("recorded")[0] == said.split("recorded")[0]
    assert json.loads(one.read_text()) == json.loads(two.read_text())
    assert done.stdout.count("k=5") == 1  # the main process alone speaks


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--k", "10,some"], "--k 10,some must be whole numbers"),
        (["--k", "0"], "k=[0]: each must be between 1 and the 12 training images"),
        (["--k", "13"], "k=[13]: each must be between 1 and the 12 training images"),
        (["--temperature", "0"], "temperature=0.0 must be greater than 0"),
        (["--features", "patches"], "several vectors an image"),
        (["--features", "keys@-1"], "several vectors an image"),
        (["--features", "projection", "--last-blocks", "2"], "the projection is of the last block alone"),
        (["--test", "plain"], "plain have no labels"),
        (["--train", "plain"], "plain have no labels"),
        (["--train", "train/red"], "have no labels"),
        (["--train", "nowhere"], "nowhere is neither a folder"),
    ],
)
def test_what_a_user_can_do_wrong_is_one_line(folder, dino, arguments, says):
    named = {"--train": "train", "--test": "test", **dict(zip(arguments[::2], arguments[1::2]))}
    named |= {key: folder / named[key] for key in ("--train", "--test")}
    code, _, err = dino("knn", "--model", folder / "model", *(x for pair in named.items() for x in pair))
    assert code == 2
    assert says in err.splitlines()[-1]


def test_what_is_left_out_is_said(tmp_path, folder, dino):
    images = [Image.open(file).copy() for file in sorted((folder / "test").glob("*/*.png"))[::3]]
    labels = ["blue", None, "green", "red"]
    Dataset.from_dict({"image": images, "label": labels}).save_to_disk(str(tmp_path / "data"))
    (tmp_path / "train").mkdir()
    shutil.copytree(folder / "train", tmp_path / "train", dirs_exist_ok=True)
    (tmp_path / "train" / "red" / "damaged.png").write_bytes(b"no image")
    code, out, err = dino(
        "knn", "--train", tmp_path / "train", "--test", tmp_path / "data", "--model", folder / "model"
    )
    assert code == 0, err
    assert f"note {tmp_path / 'data'}: 1 images have no label, and are left out" in err
    assert f"skipped {tmp_path / 'train' / 'red' / 'damaged.png'}: no image" in err
    assert out.startswith("3 images classified by 12, 3 classes")


def test_features_of_two_models_are_refused():
    train = features([[1.0], [0.5]], ["a", "b"], "one", model_fingerprint="1")
    with pytest.raises(ValueError, match="features of one and other cannot be compared: they differ in weights"):
        classify_by_neighbours(train, features([[1.0]], ["a"], "other", model_fingerprint="2"))


def test_features_of_images(folder):
    """The classes can be told apart, or the other tests would be of nothing."""
    train, test = (
        features_of(str(folder / part), str(folder / "model"), FeatureOptions(progress=False))
        for part in ("train", "test")
    )
    assert 34 < classify_by_neighbours(train, test, [3]).top1[3] < 100
