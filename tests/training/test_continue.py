"""`dino pretrain continue`: it ends with the best model, or as it began, also when it was stopped on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import ALL_BACKBONES, TINY_HEAD, tiny_config

from modeling_dino import DinoForPreTraining, DinoModel
from modeling_dino.training import view_retrieval
from modeling_dino.training.options import PretrainOptions
from modeling_dino.training.pretrain import pretrain
from modeling_dino.training.recipes import load_recipe
from modeling_dino.training.trainer import DinoTrainer
from modeling_dino.training.training_folder import TrainingFolder


pytestmark = pytest.mark.usefixtures("one_thread")
NUM_IMAGES = 100
EPOCHS = 4
SHORT = [
    f"training.num_train_epochs={EPOCHS}",
    "training.freeze_backbone_epochs=1",
    "training.warmup_epochs=0",
    "training.logging_steps=1",
    "training.save_steps=1",
    "base_learning_rate=0.1",
    "batch_size=45",
    "crops.num_local_crops=1",
    *(f"model.{name}={value}" for name, value in TINY_HEAD.items()),
]
STEPS = 2 * EPOCHS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `images` of two classes and a `start` without a head."""
    path = tmp_path_factory.mktemp("continue")
    for number in range(NUM_IMAGES):
        file = path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(90 + 60 * (number % 2), 40, (5, 5, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((36, 32)).save(file)
    torch.manual_seed(0)
    DinoModel(tiny_config(head_type=None)).save_pretrained(path / "start")
    return path


@pytest.fixture
def scores(monkeypatch):
    """Lets the watch give scores out of a list, one after another."""
    left: list[float] = []
    monkeypatch.setattr(view_retrieval, "retrieval_accuracy", lambda *views: left.pop(0))
    return left.extend


def run(folder, output, *overrides, **options):
    given = {"from_model": str(folder / "start"), "data": str(folder / "images"), "recipe": "continue"} | options
    return pretrain(PretrainOptions(output=str(output), overrides=[*SHORT, *overrides], progress=False, **given))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def are_equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def log_of(path: Path) -> list[dict]:
    return json.loads((path / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]


def steps_of_columns(path: Path) -> list[int]:
    with Image.open(path / "pca.png") as picture:
        picture.load()
        return [int(step) for step in picture.info["steps"].split()]


@pytest.mark.slow
def test_the_best_checkpoint_is_what_is_saved(folder, tmp_path, scores, capsys):
    scores([40, 39, 50, 49.5, 50])
    summary = run(folder, tmp_path / "run")
    line = f"view_top1 40.0 -> 50.0 % (best at epoch 2 of {EPOCHS})"
    assert str(summary).splitlines()[1:] == [line]
    results = TrainingFolder.read(tmp_path / "run")["results"]
    assert (results["outcome"], results["view_top1"], results["start_view_top1"]) == (line, 50, 40)
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4", f"checkpoint-{STEPS}"}
    assert are_equal(weights(tmp_path / "run"), weights(tmp_path / "run/checkpoint-4"))
    assert not are_equal(weights(tmp_path / "run"), weights(tmp_path / f"run/checkpoint-{STEPS}"))
    assert [entry["epoch"] for entry in log_of(tmp_path / "run") if "view_top1" in entry] == [0, 1, 2, 3, 4]
    assert steps_of_columns(tmp_path / "run") == [0, 2, 4, 6, 8]
    assert DinoModel.from_pretrained(tmp_path / "run").config.projection_dim == TINY_HEAD["projection_dim"]
    again = run(folder, tmp_path / "run")  # nothing is left to do
    assert str(again).splitlines()[1:] == [line]


@pytest.mark.slow
@pytest.mark.parametrize("later", [[40, 40, 40, 40], [39, 12, 39.5, 1]])
def test_if_none_is_better_the_start_is_saved(folder, tmp_path, scores, later):
    scores([40, *later])
    summary = run(folder, tmp_path / "run")
    best = f"{max(later):.1f}"
    line = f"no checkpoint is better than the start (view_top1 40.0 %, best {best}): the start is saved"
    assert str(summary).splitlines()[1:] == [line]
    assert summary.results["view_top1"] == 40
    start, saved = weights(folder / "start"), weights(tmp_path / "run")
    for network in ("student", "teacher"):
        assert all(torch.equal(saved[f"{network}.{name}"], value) for name, value in start.items())
        assert saved[f"{network}.head.last_layer.weight_v"].any()
    assert not are_equal(saved, weights(tmp_path / f"run/checkpoint-{STEPS}"))


@pytest.mark.slow
def test_the_start_of_a_run_is_saved_as_it_was(folder, tmp_path, scores):
    """Student, teacher and center, which differ."""
    scores([40, 50, 40, 40, 40, 100, 1, 2, 3, 4])
    run(folder, tmp_path / "first")
    run(folder, tmp_path / "second", from_model=str(tmp_path / "first"))
    assert are_equal(weights(tmp_path / "first"), weights(tmp_path / "second"))


@pytest.mark.slow
@pytest.mark.parametrize(("killed_at", "better"), [(1, True), (3, True), (5, True), (7, False)])
def test_stopped_in_any_phase_it_ends_the_same(folder, tmp_path, monkeypatch, killed_at, better):
    """Its scores are of the weights: any checkpoint, or the start, may be the best."""
    sign = 1 if better else -1
    first: list[float] = []

    def score(views, _):
        value = float(views.double().abs().mean())
        first.append(value)
        return 50 + sign * 1e3 * abs(value - first[0])

    def watch_from(value: float | None):
        first[:] = [] if value is None else [value]

    monkeypatch.setattr(view_retrieval, "retrieval_accuracy", score)
    run(folder, tmp_path / "whole")
    started_at = first[0]
    log, killed = DinoTrainer.log, []

    def kill(trainer, logs, *args):
        log(trainer, logs, *args)
        if trainer.state.global_step == killed_at and not killed:
            killed.append(True)
            raise KeyboardInterrupt

    watch_from(None)
    with monkeypatch.context() as patched:
        patched.setattr(DinoTrainer, "log", kill)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "killed")
    watch_from(started_at if killed_at > 1 else None)
    moved = shutil.move(tmp_path / "killed", tmp_path / "moved")
    run(folder, moved)
    assert log_of(moved)[:-1] == log_of(tmp_path / "whole")[:-1]
    outcomes = [TrainingFolder.read(path)["results"]["outcome"] for path in (moved, tmp_path / "whole")]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0].startswith("view_top1" if better else "no checkpoint")
    assert are_equal(weights(moved), weights(tmp_path / "whole"))
    assert (moved / "pca.png").read_bytes() == (tmp_path / "whole/pca.png").read_bytes()


@pytest.mark.slow
def test_labelled_images_watch_it_if_they_are_given(folder, tmp_path):
    summary = run(folder, tmp_path / "run", eval_knn=[str(folder / "images")])
    assert "knn_top1" in summary.results["outcome"]
    facts = TrainingFolder.read(tmp_path / "run")
    assert facts["settings"]["watch"] == {"images": [str(folder / "images")], "every": None}
    assert facts["settings"]["recipe"]["training"]["metric_for_best_model"] == "knn_top1"
    scores = [entry["knn_top1"] for entry in log_of(tmp_path / "run") if "knn_top1" in entry]
    assert summary.results["knn_top1"] == max(scores)
    with pytest.raises(ValueError, match="has a run of other settings, "):
        run(folder, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "convnext", "xcit", "dinov2", "dinov3"])
def test_any_backbone_goes_on_with_crops_of_its_size(folder, tmp_path, family):
    torch.manual_seed(0)
    start = DinoModel(tiny_config(family, head_type=None))
    start.save_pretrained(tmp_path / "start")
    run(folder, tmp_path / "run", "training.max_steps=3", from_model=str(tmp_path / "start"))
    recipe = TrainingFolder.read(tmp_path / "run")["settings"]["recipe"]
    assert recipe["model"]["backbone"] == ALL_BACKBONES[family]["backbone"]
    assert recipe["crops"]["global_crop_size"] == 32
    assert recipe["crops"]["local_crop_size"] == max(16, start.backbone.min_image_size)
    assert DinoForPreTraining.from_pretrained(tmp_path / "run").config.backbone == start.config.backbone


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [(224, 16, (224, 96)), (518, 14, (224, 98)), (100, 16, (96, 48)), (32, 8, (32, 16)), (48, 14, (42, 14))],
)
def test_crop_sizes_are_whole_patches(size, patch, expected):
    recipe = load_recipe("continue").without_auto(1000, tiny_config(image_size=size, patch_size=patch))
    assert (recipe.crops.global_crop_size, recipe.crops.local_crop_size) == expected


def test_crops_can_be_auto_in_any_recipe():
    recipe = load_recipe("small_data", ["crops.local_crop_size=auto"])
    assert recipe.flat()["crops.local_crop_size"] == "auto"
    assert recipe.without_auto(1000).crops.local_crop_size == 24
    assert recipe.without_auto(1000).crops.global_crop_size == recipe.crops.global_crop_size


MISTAKES = {
    "recipe continue continues from a model, which is not given: name it by --from MODEL": {
        "from_model": None,
        "data": "few",
    },
    "training.metric_for_best_model=knn_top1 is not measured in this run: it can be view_top1": {
        "overrides": ["training.metric_for_best_model=knn_top1"]
    },
    "20 images are too few to hold 10% of them out": {"data": "few"},
    "load_best_model_at_end=True loads a checkpoint: set save_strategy": {"overrides": ["training.save_strategy=no"]},
    "90 images in {folder}/images are fewer than a batch of 96": {"overrides": ["batch_size=96"]},
}


@pytest.mark.parametrize("says", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(folder, dino, says):
    if not (folder / "few").exists():
        for file in sorted((folder / "images/a").iterdir())[:20]:
            (folder / "few").mkdir(exist_ok=True)
            shutil.copy(file, folder / "few")
    given = {"from_model": folder / "start", "data": "images", "overrides": [], **MISTAKES[says]}
    start = [] if given["from_model"] is None else ["--from", given["from_model"]]
    arguments = ["pretrain", "continue", *given["overrides"], "--data", folder / given["data"], *start]
    code, _, err = dino(*arguments, "--output", folder / "refused")
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("dino: ")]
    assert says.format(folder=folder) in line
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_a_best_checkpoint_that_is_damaged_is_named(folder, tmp_path, scores, monkeypatch):
    scores([40, 50, 49, 48, 47])
    rotate = DinoTrainer._finalize_training

    def damage(trainer, *args):
        (tmp_path / "run/checkpoint-2/model.safetensors").write_bytes(b"nothing")
        return rotate(trainer, *args)

    monkeypatch.setattr(DinoTrainer, "_finalize_training", damage)
    with pytest.raises(
        OSError, match=r"checkpoint-2, the best checkpoint, is not whole: model.safetensors is damaged"
    ):
        run(folder, tmp_path / "run")


def test_a_backbone_that_stays_frozen_is_warned_of(tmp_path, folder, messages):
    run(folder, tmp_path / "run", "training.max_steps=1", "training.freeze_backbone_epochs=3")
    assert any("the backbone is frozen in all 0.5 epochs" in message for message in messages())


def test_crops_that_follow_the_model_are_no_length(tmp_path, folder):
    run(folder, tmp_path / "run", "training.max_steps=1", "crops.global_crop_size=24")
    with pytest.raises(ValueError, match=r"has a run of other settings, recipe\.crops\.global_crop_size: 24 -> 32"):
        run(folder, tmp_path / "run", "training.max_steps=2")
