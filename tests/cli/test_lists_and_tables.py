"""Every command that reads images takes lists with labels, as Windows writes them, and names the columns alike."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_images import coloured_images
from PIL import Image

from modeling_dino import load_features
from modeling_dino.data.video import Video


pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
batch_size: 4
model:
  {backbone: vit_tiny, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 4, patch_size: 8, image_size: 32,
   projection_dim: 8, head_hidden_dim: 8, head_bottleneck_dim: 4}
crops: {global_crop_size: 16, local_crop_size: 8, num_local_crops: 1}
training: {num_train_epochs: 1, warmup_epochs: 0, disable_tqdm: true}
"""
COLUMNS = ("--image-column", "file", "--label-column", "kind")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """`model`, images of three classes, and lists of them: `train.csv` and `test.csv` beside `*.parquet` of paths."""
    folder = coloured_images(tmp_path_factory.mktemp("lists"))
    (folder / "tiny.yaml").write_text(RECIPE)
    for part in ("train", "test"):
        files = sorted((folder / part).glob("*/*.png"))
        paths, labels = [str(file.relative_to(folder)) for file in files], [file.parent.name for file in files]
        rows = "".join(f'"{path}";{label}\r\n' for path, label in zip(paths, labels))
        (folder / f"{part}.csv").write_text(f"\ufefffile;kind\r\n{rows}", newline="")
        pq.write_table(pa.table({"file": paths, "kind": labels}), folder / f"{part}.parquet")
    return folder


@pytest.fixture(params=["csv", "parquet"])
def lists(request, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return {part: str(images / f"{part}.{request.param}") for part in ("train", "test")}


@pytest.mark.slow
def test_extract_and_report(dino, images, lists):
    arguments = ("extract", "--model", images / "model", "--images", lists["train"], "--num-workers", 0)
    code, _, err = dino(*arguments, "--output", "out", *COLUMNS)
    assert code == 0, err
    table = load_features("out")
    assert table["label"].tolist() == sorted(["red", "green", "blue"] * 4)
    dino("extract", "--model", images / "model", "--images", images / "train", "--output", "folder")
    assert (load_features("folder")["feature"] == table["feature"]).all()
    code, out, err = dino("report", "out", "--output", "report.html", "--num-workers", 0)
    assert (code, "12 images" in out, "without a picture" in out) == (0, True, False), err


@pytest.mark.parametrize("command", ["knn --k 3", "linear --epochs 2", "finetune --epochs 1 --output run"])
def test_what_learns_from_labels(dino, images, lists, command):
    sets = ("--model", images / "model", "--train", lists["train"], "--test", lists["test"], "--num-workers", 0)
    code, out, err = dino(*command.split(), *sets, *COLUMNS)
    assert (code, "top-1" in out) == (0, True), err


@pytest.mark.parametrize("command", ["attention", "pca"])
def test_pictures(dino, images, lists, command):
    arguments = (command, "--model", images / "model", "--images", lists["test"], "--output", "out", "--size", 32)
    code, out, err = dino(*arguments, *COLUMNS[:2])
    assert (code, "12 images" in out) == (0, True), err


@pytest.mark.slow
def test_pretraining_with_an_evaluation(dino, images, lists):
    columns = (*COLUMNS, "--num-workers", 0)
    evaluation = ("--eval-knn", lists["train"], "--eval-knn", lists["test"])
    arguments = ("pretrain", images / "tiny.yaml", "--data", lists["train"], "--output", "run")
    code, out, err = dino(*arguments, *evaluation, *columns)
    assert (code, "knn_top1" in out) == (0, True), err


def test_a_root_for_the_paths(dino, images, lists, tmp_path):
    """A table elsewhere, whose paths start at the folder that is named, or are unreadable."""
    for name in lists.values():
        suffix = name.rpartition(".")[2]
        (tmp_path / f"moved.{suffix}").write_bytes(Path(name).read_bytes())
    arguments = ("extract", "--model", images / "model", "--images", f"moved.{suffix}", "--output", "out", *COLUMNS)
    code, _, err = dino(*arguments)
    assert (code, "none of the 12 images can be read" in err) == (2, True)
    code, _, err = dino(*arguments, "--image-root", images, "--overwrite")
    assert code == 0, err
    code, _, err = dino(*arguments, "--image-root", "nowhere", "--overwrite")
    assert (code, err.strip()) == (2, "dino: the image root nowhere is no folder")


def test_labels_that_are_named_otherwise(dino, images, lists):
    """The message of each command names the columns that there are."""
    for command in ("knn", "linear", "finetune --output run"):
        sets = ("--model", images / "model", "--train", lists["train"], "--test", lists["test"], "--num-workers", 0)
        code, _, err = dino(*command.split(), *sets, *COLUMNS[:2])
        assert (code, "have no labels: name their column with --label-column: kind" in err) == (2, True), err


def test_frames_in_the_order_of_their_numbers(dino, images, tmp_path, monkeypatch):
    """Of a video that is made of images, and of one that is segmented with a ground truth."""
    monkeypatch.chdir(tmp_path)
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(1, 13):
            pixels = (20 * number, 0, 0)
            image = Image.new("RGB", (32, 32), pixels) if folder == "frames" else Image.new("L", (32, 32), 1)
            image.save(tmp_path / folder / f"frame{number}.png")
        (tmp_path / folder / "._frame1.png").write_bytes(b"of macOS")
    arguments = ("segment", "--model", images / "model", "--video", "frames", "--mask", "masks/frame1.png")
    code, out, err = dino(*arguments, "--output", "out", "--size", 32, "--ground-truth", "masks", "--overlay")
    assert (code, "1 objects in 12 frames" in out) == (0, True), err
    arguments = ("attention", "--model", images / "model", "--images", "frames", "--size", 32, "--fps", 5)
    code, _, err = dino(*arguments, "--output", "drawn")
    assert code == 0, err
    for video in ("out/overlay.mp4", "drawn/frames-attention.mp4"):
        red = [np.asarray(image)[..., 0].mean() for image in Video(video)]
        assert len(red) == 12
        assert red == sorted(red), video
