"""`dino pretrain`, from images to a folder with the teacher: also stopped, continued from other models, refused."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import tiny_config

from modeling_dino import DinoForPreTraining, DinoModel
from modeling_dino.data.decoding import read_image
from modeling_dino.data.evaluation_transform import DinoImageProcessor
from modeling_dino.data.sources import open_source
from modeling_dino.image_processing_dino import image_processor_config
from modeling_dino.runtime.whole_files import one_writer
from modeling_dino.training import pretrain as module
from modeling_dino.training.arguments import DinoTrainingArguments
from modeling_dino.training.curves import draw_curves
from modeling_dino.training.knn_evaluation import labelled_features, split
from modeling_dino.training.multi_crop import MultiCrop
from modeling_dino.training.options import PretrainOptions
from modeling_dino.training.pretrain import pretrain
from modeling_dino.training.schedules import Schedules
from modeling_dino.training.trainer import DinoTrainer
from modeling_dino.training.training_folder import TrainingFolder


pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = """
batch_size: 4
base_learning_rate: 0.01
model:
  {backbone: vit_tiny, hidden_size: 32, num_hidden_layers: 3, num_attention_heads: 4, patch_size: 8, image_size: 32,
   projection_dim: 24, head_hidden_dim: 20, head_bottleneck_dim: 12, drop_path_rate: 0.2}
crops: {global_crop_size: 32, local_crop_size: 16, num_local_crops: 1}
training:
  {num_train_epochs: 3, warmup_epochs: 1, logging_steps: 1, save_strategy: steps, save_steps: 2, save_total_limit: 2,
   disable_tqdm: true}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a `tiny.yaml` and 13 `images` of two classes."""
    path = tmp_path_factory.mktemp("pretrain")
    (path / "tiny.yaml").write_text(RECIPE)
    for number in range(13):
        file = path / "images" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).normal(90 + 60 * (number % 2), 40, (48, 40, 3))
        Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(file)
    return path


def run(folder, output, *overrides, **arguments):
    options = {"recipe": str(folder / "tiny.yaml"), "data": str(folder / "images"), "output": str(output)}
    return pretrain(PretrainOptions(**options, overrides=overrides, **arguments))


@pytest.fixture(scope="module")
def finished(folder, one_thread):
    """A run with curves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("modeling_dino.training.trainer.draw_curves", draw_curves)
        run(folder, folder / "finished", eval_knn=[str(folder / "images")], eval_every=2)
    return folder / "finished"


def mark_unfinished(path):
    """As if the run had been stopped."""
    facts = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**facts, "complete": False}))


def log_of(path) -> list[dict]:
    states = sorted(path.glob("checkpoint-*/trainer_state.json"), key=lambda file: int(file.parent.name[11:]))
    return json.loads(states[-1].read_text())["log_history"]


@pytest.mark.slow
def test_the_folder_has_the_teacher_the_curves_and_the_facts(finished, folder):
    saved = load_file(finished / "model.safetensors")
    model = DinoModel.from_pretrained(finished)
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[f"teacher.{name}"])
    assert not torch.equal(saved["teacher.backbone.cls_token"], saved["student.backbone.cls_token"])
    assert json.loads((finished / "preprocessor_config.json").read_text())["crop_size"] == {"height": 32, "width": 32}
    with Image.open(finished / "curves.png") as picture:
        assert picture.width > 1000
    facts = TrainingFolder.read(finished)
    assert facts["complete"]
    assert facts["results"]["steps"] == 9
    assert facts["results"]["loss"] > 0
    assert 0 <= facts["results"]["knn_top1"] <= 100
    assert facts["settings"]["recipe"]["model"]["projection_dim"] == 24
    assert facts["settings"]["data"]["num_images"] == 13
    assert set(facts["versions"]) >= {"torch", "transformers", "torchvision"}
    log = log_of(finished)
    assert [entry["epoch"] for entry in log if "knn_top1" in entry] == [0, 2, 3]
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 10))


@pytest.mark.slow
def test_stopped_and_run_again_it_ends_the_same(finished, folder, monkeypatch):
    output, log, steps = folder / "stopped", DinoTrainer.log, []

    def stop(trainer, logs, *args):
        log(trainer, logs, *args)
        steps.append(trainer.state.global_step)
        if steps.count(5) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(DinoTrainer, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output, eval_knn=[str(folder / "images")], eval_every=2)
    assert not TrainingFolder.read(output)["complete"]
    assert {path.name for path in output.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    steps.append(5)
    run(folder, output, eval_knn=[str(folder / "images")], eval_every=2)
    assert steps[:8] == [0, 1, 2, 3, 4, 5, 5, 5], "from the checkpoint of step 4 on"
    assert (output / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert log_of(output) == log_of(finished)


@pytest.mark.slow
def test_evaluation_changes_nothing(finished, folder):
    run(folder, folder / "unwatched")
    assert (folder / "unwatched/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    run(folder, folder / "seeded", "training.seed=1")
    assert (folder / "seeded/model.safetensors").read_bytes() != (finished / "model.safetensors").read_bytes()


def test_a_complete_run_is_left_alone_and_another_is_refused(finished, folder):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    summary = run(folder, finished)
    assert summary.results["steps"] == 9
    with pytest.raises(
        ValueError, match=r"has a run of other settings, recipe\.crops\.num_local_crops: 1 -> 2: .*--overwrite"
    ):
        run(folder, finished, "crops.num_local_crops=2")
    with pytest.raises(ValueError, match=r"images holds something other than a run of `dino pretrain`"):
        run(folder, folder / "images", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        run(folder, folder / "tiny.yaml")
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


@pytest.mark.slow
def test_overwriting(folder, finished):
    copy = shutil.copytree(finished, folder / "copy")
    (copy / "notes.txt").write_text("mine")
    run(folder, copy, "training.max_steps=1", overwrite=True)
    assert TrainingFolder.read(copy)["results"]["steps"] == 1
    assert [path.name for path in copy.glob("checkpoint-*")] == ["checkpoint-1"]
    assert (copy / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_from_a_model_with_its_head(folder, finished):
    run(folder, folder / "further", "training.max_steps=1", "base_learning_rate=0", from_model=str(finished))
    before, after = (load_file(path / "model.safetensors") for path in (finished, folder / "further"))
    assert torch.equal(before["student.head.mlp.0.weight"], after["student.head.mlp.0.weight"])
    assert not torch.equal(before["center"], after["center"])
    DinoModel.from_pretrained(finished).save_pretrained(folder / "teacher")
    run(
        folder,
        folder / "single",
        "training.max_steps=1",
        "model.drop_path_rate=0.5",
        from_model=str(folder / "teacher"),
    )
    student = DinoModel.from_pretrained(folder / "single", which="student")
    assert student.config.drop_path_rate == 0.5


@pytest.mark.slow
def test_from_a_model_without_its_head(folder):
    DinoModel(tiny_config(head_type=None)).save_pretrained(folder / "headless")
    run(folder, folder / "headed", "training.max_steps=1", "base_learning_rate=0", from_model=str(folder / "headless"))
    before, after = (load_file(folder / name / "model.safetensors") for name in ("headless", "headed"))
    for name, value in before.items():
        assert torch.equal(after[f"student.{name}"], value)
    assert after["student.head.last_layer.weight_v"].shape == (24, 12)
    assert after["student.head.mlp.0.weight"].std() > 0


@pytest.mark.slow
def test_recipe_and_model_that_disagree(folder, finished):
    with pytest.raises(
        ValueError, match=r"disagree on patch_size, projection_dim: patch_size is 4 in the recipe and 8 in"
    ) as raised:
        run(folder, folder / "no", "model.patch_size=4", "model.projection_dim=8", from_model=str(finished))
    assert "add model.patch_size=8 model.projection_dim=24" in str(raised.value)
    assert not (folder / "no").exists()
    run(folder, folder / "yes", "model.projection_dim=auto", "training.max_steps=1", from_model=str(finished))
    assert DinoForPreTraining.from_pretrained(folder / "yes").config.projection_dim == 24


def test_features_for_k_nn(folder):
    model = DinoModel(tiny_config(head_type=None)).eval()
    source = open_source(str(folder / "images"))
    features, labels = labelled_features(model, source)
    assert labels == ["a"] * 7 + ["b"] * 6
    processor = DinoImageProcessor(**image_processor_config(model.config))
    image, _ = read_image(str(folder / "images/a/10.png"))
    expected = model(**processor(image, return_tensors="pt")).pooler_output[0]
    torch.testing.assert_close(features[1], expected)
    (_, train), (_, test) = split(features, labels)
    assert (len(train), len(test)) == (10, 3)
    (folder / "unlabelled").mkdir()
    shutil.copy(folder / "images/a/10.png", folder / "unlabelled")
    with pytest.raises(ValueError, match="have no labels"):
        run(folder, folder / "none", eval_knn=[str(folder / "unlabelled")])
    assert not (folder / "none").exists()


def test_k_nn_of_images_of_different_sizes(folder, tmp_path):
    """A transform without a crop; an image that is smaller than a patch is enlarged."""
    images = shutil.copytree(folder / "images", tmp_path / "images")
    for number, size in ((0, (64, 40)), (2, (33, 47)), (1, (5, 6))):
        file = images / "ab"[number % 2] / f"{number}.png"
        with Image.open(file) as image:
            image.resize(size).save(file)
    model = DinoModel(tiny_config(head_type=None)).eval()
    model.image_transform = {**model.image_transform, "do_resize": False, "do_center_crop": False}
    features, labels = labelled_features(model, open_source(str(images)))
    assert (features.shape, len(labels)) == ((13, 32), 13)
    transform = DinoImageProcessor(**model.image_transform)
    for number in (0, 2):
        image, _ = read_image(str(images / "a" / f"{number}.png"))
        expected = model(**transform(image, return_tensors="pt")).pooler_output[0]
        assert min((features - expected).abs().amax(1)) < 1e-5


@pytest.fixture
def weights(finished, tmp_path):
    """A copy of the teacher, with another image transform."""
    model = DinoModel.from_pretrained(finished)
    model.image_transform = {**model.image_transform, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    model.save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def transform_of(path) -> tuple[list[float], list[float]]:
    transform = json.loads((path / "preprocessor_config.json").read_text())
    return transform["image_mean"], transform["image_std"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "starts_from_weights", "expected"),
    [
        ([], True, ([0.5] * 3, [0.25] * 3)),
        (["image_mean=[0, 0.1, 0.2]"], True, ([0, 0.1, 0.2], [0.25] * 3)),
        (["image_mean=[0, 0, 0]", "image_std=[1, 1, 1]"], False, ([0] * 3, [1] * 3)),
    ],
)
def test_crops_are_normalised_by_the_transform_that_is_saved(
    folder, weights, tmp_path, monkeypatch, overrides, starts_from_weights, expected
):
    crops = []
    monkeypatch.setattr(module, "MultiCrop", lambda *args: crops.append(MultiCrop(*args)) or crops[0])
    start = {"from_model": str(weights)} if starts_from_weights else {}
    run(folder, tmp_path / "run", "training.max_steps=1", "training.save_steps=1", *overrides, **start)
    assert (crops[0].mean, crops[0].std) == expected
    assert transform_of(tmp_path / "run") == transform_of(tmp_path / "run" / "checkpoint-1") == expected
    assert DinoModel.from_pretrained(tmp_path / "run").image_transform["image_mean"] == expected[0]


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(folder, finished, tmp_path, messages):
    """From its last checkpoint, by the schedules of the longer run; and the same if that is stopped on the way."""
    longer = shutil.copytree(finished, tmp_path / "run")
    run(folder, longer, "training.num_train_epochs=4", eval_knn=[str(folder / "images")], eval_every=2)
    (line,) = [line for line in messages() if "goes on from step 9, to 12 steps instead of 9" in line]
    assert "learning_rate 1e-06 -> " in line
    assert "teacher_momentum 1 -> 0.99" in line
    log = [entry for entry in log_of(longer) if "loss" in entry]
    assert [entry["step"] for entry in log] == list(range(1, 13))
    assert log[:9] == [entry for entry in log_of(finished) if "loss" in entry]
    args = DinoTrainingArguments(str(longer), learning_rate=0.01 * 4 / 256, warmup_epochs=1)
    for entry in log[9:]:
        assert entry["learning_rate"] == Schedules(args, 3, 12).rates(entry["step"] - 1)["learning_rate"]
    assert TrainingFolder.read(longer)["results"]["steps"] == 12
    whole = (longer / "model.safetensors").read_bytes()
    shutil.rmtree(longer / "checkpoint-12")
    (longer / "run.json").write_text(
        (longer / "run.json").read_text().replace('"complete": true', '"complete": false')
    )
    run(folder, longer, "training.num_train_epochs=4", eval_knn=[str(folder / "images")], eval_every=2)
    assert (longer / "model.safetensors").read_bytes() == whole
    with pytest.raises(ValueError, match=r"has done 12 steps, more than the 9 that are asked for"):
        run(folder, longer)
    for checkpoint in longer.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(ValueError, match=r"another length, and no checkpoint to go on from: .*--from"):
        run(folder, longer, "training.num_train_epochs=5")


@pytest.mark.slow
def test_an_unfinished_run_may_change_its_length_within_what_is_left(folder, finished, tmp_path):
    output = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(output / "checkpoint-9")
    (output / "run.json").write_text(
        (output / "run.json").read_text().replace('"complete": true', '"complete": false')
    )
    with pytest.raises(ValueError, match=r"has done 8 steps, more than the 3 that are asked for"):
        run(folder, output, "training.num_train_epochs=1")
    run(folder, output, "training.max_steps=8")
    assert TrainingFolder.read(output)["results"]["steps"] == 8


@pytest.mark.slow
def test_a_checkpoint_that_is_not_whole_is_passed_over(folder, finished, tmp_path, messages):
    output = shutil.copytree(finished, tmp_path / "run")
    (output / "run.json").write_text(
        (output / "run.json").read_text().replace('"complete": true', '"complete": false')
    )
    (output / "checkpoint-9" / "optimizer.pt").unlink()
    (output / ".curves.png.0123abcd.partial").touch()
    run(folder, output, eval_knn=[str(folder / "images")], eval_every=2)
    assert any("checkpoint-9 is not whole, it lacks optimizer.pt" in line for line in messages())
    assert (output / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    assert log_of(output) == log_of(finished)
    assert not list(output.rglob("*.partial"))


def test_of_two_runs_into_one_folder_the_second_is_refused(folder, tmp_path):
    with one_writer(tmp_path / "run"), pytest.raises(ValueError, match=r"another process writes to .*run: wait"):
        run(folder, tmp_path / "run")


def test_weights_that_are_not_finite_are_refused(folder, weights):
    model = DinoModel.from_pretrained(weights)
    model.backbone.norm.bias.data[0] = float("inf")
    model.save_pretrained(weights)
    with pytest.raises(ValueError, match=r"weights: backbone\.norm\.bias has weights that are infinite"):
        run(folder, folder / "infinite", from_model=str(weights))
    assert not (folder / "infinite").exists()


def test_k_nn_of_one_class_is_refused(folder, tmp_path):
    images, one = str(folder / "images"), shutil.copytree(folder / "images" / "a", tmp_path / "one" / "a").parent
    for sources, says in (
        ([str(one)], "have the label 'a': two classes are needed"),
        ([str(one), images], "have the label 'a': two classes are needed"),
        ([images, str(tmp_path / "other")], "no label of .*other, such as 'c', is among those of"),
    ):
        if not (tmp_path / "other").exists():
            shutil.copytree(one / "a", tmp_path / "other" / "c")
        with pytest.raises(ValueError, match=says):
            run(folder, tmp_path / "run", eval_knn=sources)
    assert not (tmp_path / "run").exists()


REFUSED = {
    "unknown recipe 'vit_smal_100': did you mean vit_small_100?": {"recipe": "vit_smal_100"},
    "did you mean crops.num_local_crops?": {"overrides": ["crops.num_local_crop=2"]},
    "did you mean training.num_train_epochs?": {"overrides": ["num_train_epochs=2"]},
    "crops.hue='blue' must be a number": {"overrides": ["crops.hue=blue"]},
    "'verbose' is not of the form key=value": {"overrides": ["verbose"]},
    "13 images in {images} are fewer than a batch of 64: set batch_size=13 or less": {"overrides": ["batch_size=64"]},
    "crops.local_crop_size=4 is smaller than a patch of 8": {"overrides": ["crops.local_crop_size=4"]},
    "batch_size=4 is not a multiple": {"overrides": ["training.per_device_train_batch_size=3"]},
    "teacher_momentum=2 must be between 0 and 1": {"overrides": ["training.teacher_momentum=2"]},
    "unknown on_error 'stop'": {"on_error": "stop"},
    "is not a folder with a saved model": {"from": "{folder}/nowhere"},
    "{empty}: no images there": {"data": "{empty}"},
    "is neither a folder": {"data": "{folder}/nowhere"},
}


@pytest.mark.parametrize("says", REFUSED)
def test_bad_input_is_one_line_and_leaves_nothing(says, dino, folder):
    (folder / "empty").mkdir(exist_ok=True)
    places = {"folder": folder, "images": folder / "images", "empty": folder / "empty"}
    given = {"recipe": folder / "tiny.yaml", "data": folder / "images", "overrides": [], **REFUSED[says]}
    options = [
        (f"--{name.replace('_', '-')}", str(given[name]).format(**places))
        for name in ("data", "from", "on_error")
        if name in given
    ]
    code, _, err = dino(
        "pretrain", given["recipe"], *given["overrides"], *sum(options, ()), "--output", folder / "refused"
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("dino: ")]
    assert says.format(**places) in line
    assert "Traceback" not in err
    assert not (folder / "refused").exists()


@pytest.mark.slow
def test_an_unreadable_image_can_end_it_or_is_named(dino, folder):
    bad = shutil.copytree(folder / "images", folder / "bad")
    (bad / "a" / "4.png").write_bytes(b"nothing")
    arguments = ("pretrain", folder / "tiny.yaml", "--data", bad)
    code, _, err = dino(*arguments, "--output", folder / "failed", "--on-error", "fail", "--num-workers", 1)
    assert code == 2
    assert f"dino: cannot read {bad / 'a' / '4.png'}: no image in a known format" in err
    code, out, err = dino(*arguments, "training.max_steps=4", "--output", folder / "skipped")
    assert code == 0
    assert f"skipped {bad / 'a' / '4.png'}: no image in a known format" in err
    assert "1 images could not be read" in out
    assert list(TrainingFolder.read(folder / "skipped")["unreadable"]) == [str(bad / "a" / "4.png")]


@pytest.mark.slow
def test_notices(folder, messages):
    sizes = ("crops.global_crop_size=64", "model.image_size=64", "training.bf16=true", "training.max_steps=1")
    run(folder, folder / "large", *sizes)
    assert "images of 40 x 48 are enlarged to crops of 64" in "".join(messages())
    if not torch.cuda.is_available():
        assert "no GPU: training in float32, not in bf16" in "".join(messages())


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_saved_is_gone_on_from(folder, finished):
    """As far as a limit on the size of files is one."""
    output = folder / "full"
    run(folder, output, "training.save_steps=4", "training.save_total_limit=3")
    for path in [*output.glob("checkpoint-[89]"), output / "model.safetensors"]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    mark_unfinished(output)
    code = f"""
import resource, sys, torch
from modeling_dino import cli
torch.set_num_threads(1)
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
sys.argv = ["dino", "pretrain", {str(folder / "tiny.yaml")!r}, "training.save_steps=4", "training.save_total_limit=3",
            "--data", {str(folder / "images")!r}, "--output", {str(output)!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dino: ")]
    assert f"cannot write to {output}" in line
    assert f"run it again: it goes on from {output / 'checkpoint-4'}" in line
    assert "Traceback" not in done.stderr
    run(folder, output, "training.save_steps=4", "training.save_total_limit=3")
    assert (output / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "drop_path_rate")
RESNET = ["model.backbone=resnet18", *(f"model.{name}={0 if 'rate' in name else 'null'}" for name in SIZES)]
MIX = ["training.ibot_weight=1.0", "training.koleo_weight=0.1", "model.use_mask_token=true"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        ["crops.gram_crop_size=48"],
        ["crops.global_crop_size=[32, 40]", "crops.local_crop_size=[24, 16]", "crops.gram_crop_size=[48, 64]"],
    ],
    ids=["one size", "several sizes"],
)
def test_the_losses_of_dinov2_and_gram_anchoring(folder, tmp_path, sizes):
    gram = ["training.gram_weight=1.0", "training.gram_update_steps=2", *sizes]
    gram += ["crops.gram_distorted=false", "training.gram_max_updates=1"]
    run(folder, tmp_path / "run", *MIX, *gram)
    log = json.loads((tmp_path / "run" / "checkpoint-9" / "trainer_state.json").read_text())["log_history"]
    terms = {"dino_global_loss", "dino_local_loss", "ibot_loss", "koleo_loss", "gram_loss"}
    assert all(terms <= set(entry) for entry in log if "loss" in entry)
    assert run(folder, tmp_path / "run", *MIX, *gram).results["steps"] == 9  # nothing is left to do
    assert DinoModel.from_pretrained(tmp_path / "run").config.use_mask_token


@pytest.mark.slow
def test_a_mask_token_and_a_head_for_patches_are_added_to_a_model(folder, tmp_path):
    model = DinoModel(tiny_config(head_type=None))
    model.save_pretrained(tmp_path / "model")
    overrides = [*MIX, "model.patch_head=true", "training.max_steps=1", "training.warmup_epochs=2"]
    run(folder, tmp_path / "run", *overrides, from_model=str(tmp_path / "model"))
    trained = DinoForPreTraining.from_pretrained(tmp_path / "run")
    assert trained.config.use_mask_token
    assert trained.student.patch_head is not None
    assert torch.equal(trained.student.backbone.cls_token, model.backbone.cls_token)  # the first rate is 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.ibot_weight=1"], "vit_tiny has no mask token"),
        (["training.ibot_weight=1", *RESNET], "resnet18 has no patch tokens"),
        ([*MIX, "crops.global_crop_size=8", "crops.local_crop_size=8"], "image of 1 x 1 patches"),
        ([*MIX, "crops.global_crop_size=[32, 8]", "crops.local_crop_size=8"], "image of 1 x 1 patches"),
        (["crops.local_crop_size=[16, 4]"], "crops.local_crop_size=4 is smaller than a patch of 8"),
        (["training.dino_weight=0"], "all weights are 0"),
        (["crops.gram_crop_size=48"], "set training.gram_weight, too"),
        (["crops.gram_distorted=false"], "set training.gram_weight, too"),
        (["training.gram_weight=1", "training.gram_teacher=resnet"], "take a Gram teacher of the same family"),
    ],
)
def test_losses_that_cannot_be_computed_are_refused_before_the_folder_is_made(
    folder, tmp_path, overrides, message, monkeypatch
):
    DinoModel(tiny_config("resnet", head_type=None)).save_pretrained(tmp_path / "resnet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        run(folder, tmp_path / "run", *overrides)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()
